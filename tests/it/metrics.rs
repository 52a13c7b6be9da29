use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tailwater::backend::{Backend, Failure, Finish, Job, Output};
use tailwater::metrics::{Exposition, MetricsFormat, catalog};
use tailwater::nats::{Nats, Role};
use tailwater::wire::{Body, Channel, Kind, Submission};
use tailwater::worker::{Worker, WorkerSettings};
use tempfile::TempDir;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::support::broker::Broker;
use crate::support::client::{Client, Seen, follow};
use crate::support::http::{get, http, metric};
use crate::support::process::tailwater;
use crate::support::proxy::Proxy;
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

/// Every sample that an edge or a worker serves now.
async fn scrape(addr: &str) -> BTreeMap<String, f64> {
    samples(&get(addr, "/metrics", "").await.1)
}

/// Waits until each of these samples has its value at the same time.
async fn until_counted(addr: &str, expected: &[(&str, f64)]) {
    let what = format!("{expected:?}");
    until(&what, async || {
        let found = scrape(addr).await;
        let mut expected = expected.iter();
        expected.all(|(name, value)| found.get(*name) == Some(value))
    })
    .await;
}

/// The sample of the attempts of the kind `demo` that ended this way.
fn ended(outcome: &str, code: &str) -> String {
    let labels = format!("kind=\"demo\",outcome=\"{outcome}\",code=\"{code}\"");
    format!("tailwater_worker_attempts_ended_total{{{labels}}}")
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
    let (_worker, worker_addr) = system.measured_worker(&["--threads", "2"], &["demo"]).await;
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
    let done = ended("done", "");
    until_counted(&worker_addr, &[(done.as_str(), 1.0)]).await;
    let (head, of_worker) = get(&worker_addr, "/metrics", "").await;
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

/// Does what the job's input says.
const TASKS: &str = r#"read -r task
case $task in
  '"fail"') exit 3;;
  '"hang"') echo begun; sleep 600;;
esac"#;

#[tokio::test]
async fn waiting_running_and_ended_jobs_are_counted_by_kind_and_code() {
    let system = System::on(Broker::shared_one()).await;
    let edge = system.edge().await;
    let setup = "setup --shards 2 --replicas 1 --kind demo";
    system.run(setup).await.prints();
    for task in ["fail", "hang"] {
        system.submit(task, json!(task)).await;
    }
    let of_queue = |waiting, running| {
        [
            ("tailwater_queue_waiting_jobs{kind=\"demo\"}", waiting),
            ("tailwater_queue_running_jobs{kind=\"demo\"}", running),
        ]
    };
    let idle = "tailwater_queue_idle_requests{kind=\"demo\"}";
    let oldest = "tailwater_queue_oldest_waiting_seconds{kind=\"demo\"}";
    until_counted(&edge.addr, &of_queue(2.0, 0.0)).await;
    until_counted(&edge.addr, &[(idle, 0.0)]).await;
    until("an age", async || scrape(&edge.addr).await[oldest] > 0.0).await;
    let exec = ["exec", "--", "sh", "-c", TASKS];
    let (_worker, worker_addr) = system.measured_worker(&[], &exec).await;
    let running = "tailwater_worker_running_jobs{kind=\"demo\"}";
    let failed = ended("failed", "exit_status");
    let of_worker = [
        (failed.as_str(), 1.0),
        ("tailwater_worker_attempts_total{kind=\"demo\"}", 2.0),
        (running, 1.0),
        ("tailwater_worker_attempt_seconds_count{kind=\"demo\"}", 1.0),
        // The program that fails prints nothing.
        (
            "tailwater_worker_first_output_seconds_count{kind=\"demo\"}",
            1.0,
        ),
    ];
    until_counted(&worker_addr, &of_worker).await;
    until_counted(&edge.addr, &of_queue(0.0, 1.0)).await;
    until_counted(&edge.addr, &[(oldest, 0.0)]).await;
    until("a free worker", async || {
        scrape(&edge.addr).await[idle] > 0.0
    })
    .await;
    let cancelled = http(&edge, "POST", "/api/jobs/hang/cancel", "", b"").await;
    assert_eq!(cancelled.0, 202, "{cancelled:?}");
    until_counted(&edge.addr, &[("tailwater_edge_cancels_total", 1.0)]).await;
    let cancelled = ended("cancelled", "");
    let of_worker = [(cancelled.as_str(), 1.0), (running, 0.0)];
    until_counted(&worker_addr, &of_worker).await;
    system.end().await;
}

#[tokio::test]
async fn an_event_that_the_broker_refuses_is_counted() {
    let system = System::on(Broker::shared_one()).await;
    let dir = TempDir::new().unwrap();
    let go = dir.path().join("go");
    let program = format!(
        "echo one; until [ -e {} ]; do sleep 0.05; done; echo two; sleep 600",
        go.display()
    );
    // With this ack wait, the worker does not look at the log by itself during the test.
    let flags = ["--ack-wait", "90s"];
    let exec = ["exec", "--", "sh", "-c", &program];
    let (_worker, worker_addr) = system.measured_worker(&flags, &exec).await;
    system.kind_is_known().await;
    let job = system.submit("lost", Value::Null).await;
    system.reaches("lost", 3).await;
    let refused = "tailwater_worker_fence_refusals_total{kind=\"demo\"}";
    // The submitter may have written the first event before the worker tried to.
    let before = scrape(&worker_addr).await[refused];
    system.take_over(&job, 2).await;
    fs::write(&go, "").unwrap();
    let superseded = ended("superseded", "");
    let of_worker = [(superseded.as_str(), 1.0), (refused, before + 1.0)];
    until_counted(&worker_addr, &of_worker).await;
    system.end().await;
}

/// Puts a job into the queue whose input no log can store, as another program might.
async fn put_too_large(system: &System, job: &str) {
    let subject = format!("{}.jobs.demo.{job}", system.options.prefix);
    let queued = json!({"job": job, "kind": "demo", "input": vec![0.5; 131_000]});
    let context = system.jetstream().await;
    let published = context.publish(subject, queued.to_string().into()).await;
    published.unwrap().await.unwrap();
}

#[tokio::test]
async fn the_end_of_a_job_that_never_started_is_counted_with_or_without_a_final_event() {
    let system = System::with(Broker::shared_one(), |settings| settings.shards = 1).await;
    let flags = ["--max-attempts", "1"];
    let (_worker, worker_addr) = system.measured_worker(&flags, &["demo"]).await;
    let failed = ended("failed", "attempts_exhausted");
    let abandoned = ended("abandoned", "");
    let took = "tailwater_worker_attempt_seconds_count{kind=\"demo\"}";
    put_too_large(&system, "failed").await;
    until_counted(&worker_addr, &[(failed.as_str(), 1.0), (took, 1.0)]).await;
    let context = system.jetstream().await;
    let log = context.get_stream(system.shard()).await.unwrap();
    let mut config = log.cached_info().config.clone();
    config.sealed = true;
    context.update_stream(config).await.unwrap();
    put_too_large(&system, "abandoned").await;
    let of_worker = [
        (failed.as_str(), 1.0),
        (abandoned.as_str(), 1.0),
        (took, 2.0),
    ];
    until_counted(&worker_addr, &of_worker).await;
    system.queue_is_empty().await;
    system.end().await;
}

/// Ends when it is notified, and reports the tokens that it has used.
struct WithTokens(Arc<Notify>);

impl Backend for WithTokens {
    async fn run(&self, _job: Job, out: Output) -> Result<Finish, Failure> {
        out.text("one").await?;
        self.0.notified().await;
        Ok(Finish {
            usage: Some(json!({"input_tokens": 5, "output_tokens": 7})),
            ..Finish::default()
        })
    }
}

#[tokio::test]
async fn tokens_are_counted_once_the_event_that_reports_them_is_stored() {
    let system = System::on(Broker::shared_one()).await;
    let kind: Kind = "demo".parse().unwrap();
    let mut settings = WorkerSettings::new(kind.clone());
    // The worker does not look at the log by itself during the test.
    settings.ack_wait = Duration::from_secs(90);
    let role = Role::Worker(Some(kind));
    let nats = Nats::connect(&system.as_role(role)).await.unwrap();
    let go = Arc::new(Notify::new());
    let backend = WithTokens(Arc::clone(&go));
    let worker = Worker::open(&nats, backend, settings).await.unwrap();
    let metrics = worker.metrics();
    let stop = system.tasks.stop().child_token();
    system.tasks.spawn(worker.run(stop));
    let until_ended = async |outcome: &str, tokens: [f64; 2]| {
        let outcome = ended(outcome, "");
        until(&outcome, async || {
            let mut all = Exposition::new();
            metrics.add_to(&mut all);
            let found = samples(&all.encode(MetricsFormat::Prometheus).unwrap());
            if found.get(&outcome) != Some(&1.0) {
                return false;
            }
            let counted = ["input", "output"].map(|direction| {
                found[&format!(
                    "tailwater_worker_tokens_total{{kind=\"demo\",type=\"{direction}\"}}"
                )]
            });
            assert_eq!(counted, tokens, "{outcome}");
            true
        })
        .await;
    };
    let lost = system.submit("lost", Value::Null).await;
    system.reaches("lost", 3).await;
    // Now the log refuses the attempt's last event.
    system.take_over(&lost, 2).await;
    go.notify_one();
    until_ended("superseded", [0.0, 0.0]).await;
    system.submit("kept", Value::Null).await;
    system.reaches("kept", 3).await;
    go.notify_one();
    until_ended("done", [5.0, 7.0]).await;
    system.end().await;
}

#[tokio::test]
async fn connections_to_nats_that_were_lost_are_counted() {
    let system = System::on(Broker::shared_one()).await;
    let broker = system.url().strip_prefix("nats://").unwrap();
    let proxy = Proxy::to(broker).await;
    let far = system.reached_at(&format!("nats://{}", proxy.addr));
    let (_worker, addr) = far.measured_worker(&[], &["demo"]).await;
    system.kind_is_known().await;
    let up = "tailwater_nats_connections{state=\"up\"}";
    let down = "tailwater_nats_connections{state=\"down\"}";
    let reconnects = "tailwater_nats_reconnects_total";
    let found = scrape(&addr).await;
    let all = found[up];
    assert!(all >= 1.0 && found[down] == 0.0, "{found:?}");
    // No process listens on this port.
    proxy.lead_to("127.0.0.1:1");
    proxy.cut();
    until_counted(&addr, &[(up, 0.0), (down, all), (reconnects, 0.0)]).await;
    proxy.lead_to(broker);
    until_counted(&addr, &[(up, all), (down, 0.0), (reconnects, all)]).await;
    system.end().await;
}

#[tokio::test]
async fn clients_their_watches_and_gaps_are_counted() {
    let system = System::with(Broker::shared_one(), |settings| settings.shards = 1).await;
    let edge = system.edge().await;
    let job = system.submit("gap", Value::Null).await;
    let mut writer = system.writer(&job, 1).await;
    for _ in 0..5 {
        let text = "x".into();
        let channel = Channel::Output;
        writer.append(Body::Chunk { text, channel }).await.unwrap();
    }
    // All events of the only shard are of this job.
    for stream_seq in [3, 4] {
        let delete = format!("STREAM.MSG.DELETE.{}", system.shard());
        let answer = system
            .ask_jetstream(&delete, &json!({"seq": stream_seq}))
            .await;
        assert_eq!(answer["success"], true, "{answer}");
    }
    let (client, seen) = live(&edge, "gap").await;
    assert_eq!(seen.missing, [(3, 4)]);
    let waiting = edge.watch("unknown").await;
    let of_clients = |open, live, waiting| {
        [
            ("tailwater_edge_connections{transport=\"websocket\"}", open),
            ("tailwater_edge_watches{state=\"live\"}", live),
            ("tailwater_edge_watches{state=\"waiting\"}", waiting),
            ("tailwater_edge_watches{state=\"reading\"}", 0.0),
        ]
    };
    until_counted(&edge.addr, &of_clients(2.0, 1.0, 1.0)).await;
    let counted = [
        ("tailwater_edge_watched_jobs", 2.0),
        ("tailwater_edge_gaps_total", 1.0),
        ("tailwater_edge_missing_events_total", 2.0),
    ];
    until_counted(&edge.addr, &counted).await;
    drop((client, waiting));
    until_counted(&edge.addr, &of_clients(0.0, 0.0, 0.0)).await;
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
