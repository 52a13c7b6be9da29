use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use serde_json::{Value, json};
use tailwater::metrics::catalog;
use tailwater::wire::{Body, Channel, Submission};
use tokio::time::Instant;

use crate::support::broker::Broker;
use crate::support::client::{Client, Seen, follow};
use crate::support::http::{get, metric};
use crate::support::process::tailwater;
use crate::support::system::{Edge, System, words};
use crate::support::{root, until};

/// The names of the metrics in a text of Prometheus, without the endings of histograms.
fn families(text: &str) -> BTreeSet<String> {
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    types
        .map(|line| line.split(' ').next().unwrap().to_owned())
        .collect()
}

/// Every sample of a text: name and labels, and value.
fn samples(text: &str) -> BTreeMap<String, f64> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            let (name, value) = line.rsplit_once(' ').unwrap();
            (name.to_owned(), value.parse().unwrap())
        })
        .collect()
}

fn served_by(process: &str) -> BTreeSet<String> {
    let of_process = catalog::ALL
        .iter()
        .filter(|metric| metric.is_served_by(process));
    of_process.map(|metric| metric.full_name()).collect()
}

/// An edge with two threads has delivered this many events over one WebSocket, accepted one job and
/// refused one request.
fn assert_edge_counted(of_edge: &str, events: usize) {
    let found = samples(of_edge);
    let value = |name: &str| {
        found
            .get(name)
            .copied()
            .unwrap_or_else(|| panic!("{name} in\n{of_edge}"))
    };
    let events = events as f64;
    for (name, expected) in [
        (
            "tailwater_edge_connections_opened_total{transport=\"websocket\"}",
            1.0,
        ),
        (
            "tailwater_edge_events_delivered_total{transport=\"websocket\"}",
            events,
        ),
        (
            "tailwater_edge_events_delivered_total{transport=\"sse\"}",
            0.0,
        ),
        ("tailwater_edge_submits_total{outcome=\"new\"}", 1.0),
        ("tailwater_edge_refusals_total{code=\"job_not_found\"}", 1.0),
        ("tailwater_edge_refusals_total{code=\"overloaded\"}", 0.0),
        ("tailwater_queue_waiting_jobs{kind=\"demo\"}", 0.0),
        // Three of each thread, and that for the live copies of the thread with a watched job.
        ("tailwater_nats_connections{state=\"up\"}", 7.0),
        ("tailwater_nats_connections{state=\"down\"}", 0.0),
    ] {
        assert_eq!(value(name), expected, "{name}");
    }
    assert!(value("tailwater_edge_sent_bytes_total{transport=\"websocket\"}") > 1000.0);
    assert!(value("tailwater_edge_memory_limit_bytes") > 1e6);
}

#[tokio::test]
async fn an_edge_and_a_worker_serve_exactly_the_documented_metrics() {
    let system = System::on(Broker::shared_one()).await;
    let (_edge, addr) = system.edge_process(&["--threads", "2"]).await;
    let mut worker =
        system.worker_process(&["--metrics", "127.0.0.1:0", "--threads", "2"], &["demo"]);
    let metrics = worker.says("metrics http://").await;
    let worker_addr = metrics.strip_suffix("/metrics").unwrap();
    system.kind_is_known().await;
    let body = json!({"kind": "demo", "id": "job-x7q", "input": words(30, 100, 1)}).to_string();
    let json = "Content-Type: application/json\r\n";
    let exchange = crate::support::http::exchange;
    let (head, _) = exchange(&addr, "POST", "/api/jobs", json, body.as_bytes()).await;
    assert!(head.starts_with("HTTP/1.1 202"), "{head}");
    let seen = follow(&addr, "job-x7q").await;
    seen.assert_whole();
    let (head, _) = exchange(&addr, "GET", "/api/jobs/no-such-job", "", b"").await;
    assert!(head.starts_with("HTTP/1.1 404"), "{head}");
    // The worker counts the end when it has stored it, which the client may learn first.
    let ended = "tailwater_worker_attempts_ended_total{kind=\"demo\",outcome=\"done\",code=\"\"}";
    until("the end to be counted", async || {
        samples(&get(worker_addr, "/metrics", "").await.1).get(ended) == Some(&1.0)
    })
    .await;
    let (head, of_worker) = get(worker_addr, "/metrics", "").await;
    assert!(head.contains("text/plain; version=0.0.4"), "{head}");
    assert_eq!(families(&of_worker), served_by("worker"));
    let (_, of_edge) = get(&addr, "/metrics", "").await;
    assert_eq!(families(&of_edge), served_by("edge"));
    for text in [&of_edge, &of_worker] {
        assert!(!text.contains("x7q"), "a job's id is a label:\n{text}");
    }
    assert_edge_counted(&of_edge, seen.events.len());
    let found = samples(&of_worker);
    let value = |name: &str| found[name];
    let chunks = seen.of_type("model:chunk:v1").len() as f64;
    assert_eq!(value("tailwater_worker_slots{kind=\"demo\"}"), 32.0);
    assert_eq!(value("tailwater_worker_attempts_total{kind=\"demo\"}"), 1.0);
    assert_eq!(
        value("tailwater_worker_output_events_total{kind=\"demo\"}"),
        chunks
    );
    assert_eq!(
        value("tailwater_worker_publish_seconds_count{kind=\"demo\"}"),
        chunks
    );
    let bytes = seen.text().len() as f64;
    assert_eq!(
        value("tailwater_worker_output_bytes_total{kind=\"demo\"}"),
        bytes
    );
    system.end().await;
}

/// A client that has read what is stored of a job.
async fn live(edge: &Edge, job: &str) -> (Client, Seen) {
    let (mut client, mut seen) = edge.watch(job).await;
    while seen.live == 0 {
        seen.step(&mut client).await;
    }
    (client, seen)
}

#[tokio::test]
async fn the_delay_of_one_event_in_16_is_measured_for_each_client_that_is_live() {
    // With one shard, each event of the job is the next message of the stream.
    let system = System::with(Broker::shared_one(), |settings| settings.shards = 1).await;
    let edge = system.edge().await;
    let submission = Submission::new("demo".parse().unwrap(), Value::Null);
    let job = system.submit_with("j1", submission).await;
    let mut writer = system.writer(&job, 1).await;
    let value = async |name: &str| {
        let name = format!("tailwater_edge_{name}");
        metric(&edge.addr, "", &name).await
    };
    let begun = Instant::now();
    let mut clients = vec![live(&edge, "j1").await];
    for (events, measured) in [(64, 4.0), (16, 6.0)] {
        for _ in 0..events {
            let text = "x".into();
            let channel = Channel::Output;
            writer.append(Body::Chunk { text, channel }).await.unwrap();
            for (client, seen) in &mut clients {
                while seen.last < writer.seq().0 {
                    seen.step(client).await;
                }
            }
        }
        // The edge counts an event once it is written, which its client may see first.
        until("the events to be counted", async || {
            value("delivery_delay_seconds_count").await == measured
        })
        .await;
        // What this one reads was stored before it was live.
        clients.push(live(&edge, "j1").await);
        assert_eq!(value("delivery_delay_seconds_count").await, measured);
    }
    assert_eq!(value("live_delay_seconds_count").await, 5.0);
    let longest = begun.elapsed().as_secs_f64();
    assert!(value("delivery_delay_seconds_sum").await < 6.0 * longest);
    system.end().await;
}

#[tokio::test]
async fn open_metrics_is_served_to_a_client_that_prefers_it() {
    let system = System::on(Broker::shared_one()).await;
    let edge = system.edge().await;
    let accept = "Accept: application/openmetrics-text;version=1.0.0;q=0.5,text/plain;q=0.3\r\n";
    let (head, text) = get(&edge.addr, "/metrics", accept).await;
    assert!(
        head.contains("application/openmetrics-text; version=1.0.0"),
        "{head}"
    );
    assert!(text.ends_with("# EOF\n"), "{text}");
    assert!(
        text.contains("# UNIT tailwater_edge_sent_bytes bytes\n"),
        "{text}"
    );
    system.end().await;
}

#[tokio::test]
async fn a_worker_that_cannot_serve_metrics_says_so() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap();
    let line = format!("worker --kind demo --metrics {addr} --nats nats://127.0.0.1:1 demo");
    tailwater(&line)
        .await
        .refuses(&format!("cannot listen on {addr}"));
}

#[test]
fn the_document_lists_exactly_these_metrics() {
    let document = fs::read_to_string(root().join("docs/metrics.md")).unwrap();
    let rows: Vec<_> = document
        .lines()
        .filter(|line| line.starts_with("| `tailwater_"))
        .collect();
    let expected: Vec<_> = catalog::ALL.iter().map(|metric| metric.row()).collect();
    assert_eq!(rows, expected);
}

#[test]
fn alerts_and_dashboards_use_only_metrics_that_exist() {
    let known: BTreeSet<_> = catalog::ALL
        .iter()
        .map(|metric| metric.full_name())
        .collect();
    let mut found = 0;
    for file in [
        "ops/alerts.yaml",
        "ops/alerts-test.yaml",
        "ops/grafana/tailwater.json",
    ] {
        let text = fs::read_to_string(root().join(file)).unwrap();
        let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        for word in words.filter(|word| word.starts_with("tailwater_")) {
            let name = word.strip_suffix("_bucket").unwrap_or(word);
            assert!(known.contains(name), "{file} uses {word}");
            found += 1;
        }
    }
    assert!(found > 50, "{found}");
}
