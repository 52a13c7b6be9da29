use std::path::Path;
use std::time::Duration;

use futures_util::future::{join, join_all};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tailwater::edge::EdgeSettings;
use tailwater::process_group::Signal;
use tailwater::wire::Submission;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::support::backends::Flood;
use crate::support::broker::Broker;
use crate::support::http::{exchange, get, stats};
use crate::support::proxy::Proxy;
use crate::support::socketio::{Raw, join_by_polling};
use crate::support::system::{System, text, words};
use crate::support::third_party::ThirdParty;
use crate::support::{assert_fields, assert_within, eventually, free_port, until};

const NODE: &str = "socketio.mjs";
const PYTHON: &str = "socketio_client.py";

/// After how many milliseconds a client reports that it is stuck, if a busy machine may take long.
const PATIENCE_MS: u32 = 150_000;

/// Requires that a client saw every event of a job once, in order, to the end.
fn assert_whole(seen: &Value, text: &str, last: u64) {
    let sha256: String = Sha256::digest(text)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let expected = json!({"stuck": false, "doubled": 0, "gaps": 0, "missing": 0, "stray": [], "events": last, "last": last,
        "sha256": sha256, "job": seen["job"]});
    for (field, value) in expected.as_object().unwrap() {
        assert_eq!(&seen[field], value, "{field} of {seen}");
    }
    // A client may connect while the edge is still starting.
    assert!(
        seen["errors"]
            .as_array()
            .unwrap()
            .iter()
            .all(|code| code == "unavailable"),
        "{seen}"
    );
    assert!(seen["connected"].as_u64() > Some(0), "{seen}");
}

/// Waits until most of two hundred clients are connected.
async fn until_connected(addr: &str) {
    eventually("all clients", || async {
        let stats = stats(addr, "/api/stats").await;
        (stats["connections"]["socketio"].as_u64() > Some(150)).then_some(())
    })
    .await;
}

/// Client `n` of two hundred, which reaches the edge directly or through a proxy.
fn crowd_client(n: usize, proxy: &str) -> Value {
    let transports = [None, Some(["polling"]), Some(["websocket"])];
    let mut client =
        json!({"job": crowd_job(n), "resume": (["auth", "watch"][n % 2]), "cuts": n % 4});
    if let Some(transport) = transports[n % 3] {
        client["transports"] = json!(transport);
    }
    // Node's client hangs for 45 s when its connection is cut while it upgrades from polling to
    // a WebSocket, and the proxy would hit that moment.
    if n % 5 < 2 && (n >= 100 || !n.is_multiple_of(3)) {
        client["via"] = json!(proxy);
    }
    client
}

/// The job that client `n` of two hundred follows.
fn crowd_job(n: usize) -> String {
    format!("crowd-{}", n % 20)
}

#[tokio::test]
async fn two_hundred_clients_survive_cuts_and_edge_restarts() {
    let system = System::on(Broker::shared_one()).await;
    let [rest] = system.parts().await;
    // While the edge is down, its clients' own connections do not take this port.
    let listen = format!("127.0.0.1:{}", free_port());
    let (mut edge_process, addr) = system
        .edge_process(&["--threads", "2", "--listen", &listen])
        .await;
    let proxy =
        Proxy::cutting_after(&addr, Duration::from_millis(300), Duration::from_secs(4)).await;
    let input = |n: u64| words(60, 6, n);
    for n in 0..20 {
        system.submit(&crowd_job(n), input(n as u64)).await;
    }
    let via = format!("http://{}", proxy.addr);
    let given = |from: usize| {
        let clients = (from..from + 100).map(|n| crowd_client(n, &via));
        json!({"url": format!("http://{addr}"), "seed": 7, "patience": PATIENCE_MS,
            "clients": clients.collect::<Vec<_>>()})
    };
    let node = ThirdParty::node(Path::new(NODE), &given(0));
    let python = ThirdParty::python(PYTHON, &given(100));
    let chaos = async {
        // All clients are connected before the edge is killed.
        until_connected(&addr).await;
        edge_process.kill().await;
        // The address is free once the process has ended.
        eventually("the address", || async {
            std::net::TcpListener::bind(&addr).ok()
        })
        .await;
        let (mut second, _) = system
            .edge_process(&["--threads", "2", "--listen", &addr])
            .await;
        until_connected(&addr).await;
        second.signal(Signal::TERM);
        second.ends_within(Duration::from_secs(5)).await;
        system
            .edge_process(&["--threads", "2", "--listen", &addr])
            .await
    };
    // No job ends before all edges have run.
    let chaos = async {
        let edge = chaos.await;
        rest.cancel();
        edge
    };
    let ((node, python), _edge) = join(join(node.ends(), python.ends()), chaos).await;
    assert_eq!((node.len(), python.len()), (100, 100));
    let mut disconnects = 0;
    for seen in node.iter().chain(&python) {
        let name = seen["job"].as_str().unwrap();
        let number = name.strip_prefix("crowd-").unwrap().parse().unwrap();
        let last = system.last(&name.parse().unwrap()).await;
        assert_whole(seen, &text(&input(number)), last.seq.0);
        disconnects += seen["disconnects"].as_array().unwrap().len();
    }
    eprintln!(
        "{disconnects} disconnects, {} cuts by the proxy",
        proxy.cuts()
    );
    // Each saw at least one edge end, and further cuts by the proxy and by itself.
    assert!(
        disconnects > 350 && proxy.cuts() > 60,
        "{disconnects}, {}",
        proxy.cuts()
    );
    system.end().await;
}

#[tokio::test]
async fn two_edges_serve_websocket_clients_behind_a_balancer() {
    let system = System::on(Broker::shared_one()).await;
    system.wordy().await;
    let edges = [system.edge().await, system.edge().await];
    let balancer = Proxy::between(&[&edges[0].addr, &edges[1].addr]).await;
    let input = words(200, 40, 3);
    let client = |resume| json!({"job": "balanced", "resume": resume, "transports": ["websocket"], "cuts": 2});
    let clients: Vec<_> = (0..10)
        .flat_map(|_| ["auth", "watch"])
        .map(client)
        .collect();
    let given = json!({"url": format!("http://{}", balancer.addr), "seed": 3, "clients": clients});
    let node = ThirdParty::node(Path::new(NODE), &given);
    for edge in &edges {
        until("half of the clients", async || {
            stats(&edge.addr, "/api/stats").await["connections"]["socketio"] == 10
        })
        .await;
    }
    let job = system.submit("balanced", input.clone()).await;
    let seen = node.ends().await;
    let last = system.last(&job).await;
    let mut disconnects = 0;
    for (n, seen) in seen.iter().enumerate() {
        assert_whole(seen, &text(&input), last.seq.0);
        // Only the client itself disconnects, and each reconnect succeeds at once.
        let ends = seen["disconnects"].as_array().unwrap();
        assert!(
            ends.iter().all(|end| end == "forced close"),
            "client {n}: {seen}"
        );
        assert_eq!(seen["refused"], 0, "client {n}: {seen}");
        disconnects += ends.len();
    }
    assert!(disconnects > 30, "{disconnects}");
    for edge in &edges {
        let delivered = stats(&edge.addr, "/api/stats").await["events_delivered"].as_u64();
        assert!(
            delivered > Some(last.seq.0),
            "{delivered:?} of one of the edges"
        );
    }
    system.end().await;
}

#[tokio::test]
async fn polling_sessions_work_on_every_thread() {
    let system = System::on(Broker::shared_one()).await;
    let [rest] = system.parts().await;
    let (_edge, addr) = system.edge_process(&["--threads", "2"]).await;
    let input = words(100, 20, 3);
    let job = system.submit("threads", input.clone()).await;
    let clients: Vec<_> = (0..20)
        .map(|n| {
            let resume = ["auth", "watch"][n % 2];
            match n % 4 {
                0 => json!({"job": "threads", "resume": resume}),
                _ => json!({"job": "threads", "resume": resume, "transports": ["polling"]}),
            }
        })
        .collect();
    let given = json!({"url": format!("http://{addr}"), "clients": clients});
    let node = ThirdParty::node(Path::new(NODE), &given);
    let python = ThirdParty::python(PYTHON, &given);
    // Clients upgrade as soon as they are connected; the rest of the job takes longer than that.
    let begun = async {
        until("all clients", async || {
            let connections = &stats(&addr, "/api/stats").await["connections"];
            connections["socketio"] == 40
        })
        .await;
        rest.cancel();
    };
    let ((node, python), ()) = join(join(node.ends(), python.ends()), begun).await;
    let last = system.last(&job).await;
    for (n, seen) in node.iter().chain(&python).enumerate() {
        assert_whole(seen, &text(&input), last.seq.0);
        // A thread that does not know a session would refuse it, and the client would reconnect.
        assert_eq!(seen["disconnects"], json!([]), "client {n}: {seen}");
    }
    let upgraded = |seen: &&Value| {
        seen["transports"]
            .as_array()
            .unwrap()
            .contains(&json!("websocket"))
    };
    assert_eq!(node.iter().filter(upgraded).count(), 5);
    assert_eq!(python.iter().filter(upgraded).count(), 5);
    system.end().await;
}

#[tokio::test]
async fn a_slow_client_answers_pings_late_and_stays_connected() {
    let system = System::on(Broker::shared_one()).await;
    system
        .worker(Flood { megabytes: 30 }, |settings| {
            settings.kind = "flood".parse().unwrap()
        })
        .await;
    let (_edge, addr) = system.edge_process(&["--threads", "2"]).await;
    let job = system
        .submit_with(
            "slow",
            Submission::new("flood".parse().unwrap(), Value::Null),
        )
        .await;
    let clients = [json!({"job": "slow", "resume": "auth", "transports": ["websocket"]})];
    // A ping comes after 25 s and must be answered within 20 s. The client is slower than the edge
    // all that time. It reads little at a time, or its socket buffer would hold many megabytes
    // before the ping.
    let slow = json!({"for": 46_000, "every": 100, "bytes": 40_000});
    let begun = Instant::now();
    let node = ThirdParty::node(
        Path::new(NODE),
        &json!({"url": format!("http://{addr}"), "clients": clients, "slow": slow, "patience": PATIENCE_MS}),
    );
    let seen = node.ends().await;
    let last = system.last(&job).await;
    assert_whole(
        &seen[0],
        &"0123456789abcde\n".repeat(64 * 30 * 1024),
        last.seq.0,
    );
    assert_eq!(seen[0]["disconnects"], json!([]), "{}", seen[0]);
    assert!(
        begun.elapsed() > Duration::from_secs(46),
        "{:?}: it was never slow",
        begun.elapsed()
    );
    system.end().await;
}

#[tokio::test]
async fn acknowledgements_carry_the_same_object_as_frames() {
    let system = System::on(Broker::shared_one()).await;
    system.demo().await;
    let edge = system.edge().await;
    let mut raw = Raw::join(&edge.addr).await;
    let submission = json!({"kind": "demo", "input": words(5, 100, 1), "id": "ack", "ref": "r"});
    let answer = raw.ask(1, "submit", &submission).await;
    let expected = json!({"op": "submitted", "job": "ack", "status": "queued", "ref": "r"});
    assert_eq!(answer, expected);
    system.ended(&"ack".parse().unwrap()).await;
    let answer = raw.ask(2, "watch", &json!({"job": "ack"})).await;
    let expected = json!({"op": "watching", "job": "ack", "status": "done"});
    assert_eq!(answer, expected);
    let mut last = 0;
    loop {
        let (name, data) = raw.event().await;
        if name == "end" {
            assert_eq!(data, json!({"op": "end", "job": "ack"}));
            break;
        }
        last += 1;
        assert_fields!(data, {"type": name.as_str(), "seq": last});
        assert!(data["cursor"].is_string());
    }
    for (number, (event, data, code)) in [
        ("watch", json!({"job": "ack", "after": 99}), "after_the_end"),
        (
            "watch",
            json!({"job": "ack", "cursor": "nonsense"}),
            "bad_cursor",
        ),
        ("watch", json!({"job": "a.b"}), "bad_job_id"),
        ("unwatch", json!({"job": "ack"}), "not_watching"),
        ("cancel", json!({"job": "ack"}), "job_ended"),
        ("cancel", json!({"job": "unknown"}), "job_not_found"),
        ("submit", json!({"kind": "unknown"}), "unknown_kind"),
        ("submit", json!({"kind": "demo", "id": "ack"}), "job_exists"),
        (
            "submit",
            json!({"kind": "demo", "inputt": 1}),
            "bad_request",
        ),
        ("dance", json!({}), "unknown_op"),
        ("watch", json!("ack"), "bad_request"),
    ]
    .into_iter()
    .enumerate()
    {
        let answer = raw.ask(10 + number as u32, event, &data).await;
        assert_fields!(answer, {"op": "error", "code": code});
        let expected = data.get("job").filter(|_| event != "submit");
        assert_eq!(answer.get("job"), expected, "{answer}");
    }
    // A job that does not exist yet can be watched and unwatched.
    let answer = raw.ask(30, "watch", &json!({"job": "later"})).await;
    assert_eq!(answer, json!({"op": "watching", "job": "later"}));
    let found = raw.ask(31, "watch", &json!({"job": "later"})).await;
    assert_eq!(found["code"], "already_watching");
    let found = raw.ask(32, "unwatch", &json!({"job": "later"})).await;
    assert_eq!(found, json!({"op": "unwatched", "job": "later"}));
    let submission = json!({"kind": "demo", "input": words(10_000, 20, 1), "key": "k"});
    let answer = raw.ask(33, "submit", &submission).await;
    let job = answer["job"].as_str().unwrap().to_owned();
    let found = raw.ask(34, "submit", &submission).await;
    assert_eq!(found["job"], job, "the same key is the same job");
    let answer = raw.ask(35, "cancel", &json!({"job": job})).await;
    assert!(
        answer["op"] == "cancelling" && answer["job"] == job && answer["seq"].is_u64(),
        "{answer}"
    );
    system.end().await;
}

#[tokio::test]
async fn requests_without_acknowledgement_are_answered_by_events() {
    let system = System::on(Broker::shared_one()).await;
    system.demo().await;
    let edge = system.edge().await;
    let mut raw = Raw::join(&edge.addr).await;
    for (request, name, expected) in [
        (
            r#"42["watch",{"job":"none"}]"#,
            "watching",
            json!({"op": "watching", "job": "none"}),
        ),
        ("", "live", json!({"op": "live", "job": "none"})),
        (
            r#"42["unwatch",{"job":"none"}]"#,
            "unwatched",
            json!({"op": "unwatched", "job": "none"}),
        ),
    ] {
        if !request.is_empty() {
            raw.send(request).await;
        }
        assert_eq!(raw.event().await, (name.to_owned(), expected));
    }
    raw.send(r#"42["unwatch",{"job":"none"}]"#).await;
    let (name, error) = raw.event().await;
    let expected = ("tailwater:error", &json!("not_watching"), &json!("none"));
    assert_eq!((name.as_str(), &error["code"], &error["job"]), expected);
    system.end().await;
}

#[tokio::test]
async fn the_stats_count_clients_jobs_and_events() {
    let system = System::on(Broker::shared_one()).await;
    system.demo().await;
    let (_edge, addr) = system.edge_process(&["--threads", "2"]).await;
    let empty = stats(&addr, "/api/stats").await;
    let none = json!({"websocket": 0, "socketio": 0, "sse": 0});
    assert_fields!(empty, {"connections": none, "watched_jobs": 0});
    let mut clients = Vec::new();
    for n in 0..4 {
        let mut raw = Raw::join(&addr).await;
        raw.ask(1, "watch", &json!({"job": format!("counted-{}", n % 2)}))
            .await;
        clients.push(raw);
    }
    let mut plain = crate::support::client::Client::connect(&addr).await;
    plain.send(json!({"op": "watch", "job": "counted-0"})).await;
    assert_eq!(plain.op().await["op"], "watching");
    let rooms = stats(&addr, "/api/socketio/stats").await;
    let expected = json!({"connected": 4, "rooms": {"counted-0": 2, "counted-1": 2}});
    assert_eq!(rooms, expected);
    let job = system.submit("counted-0", words(5, 100, 1)).await;
    let last = system.ended(&job).await.seq.0;
    let delivered = eventually("the events", || async {
        let stats = stats(&addr, "/api/stats").await;
        (stats["events_delivered"] == 3 * last).then_some(stats)
    })
    .await;
    let found = &delivered;
    assert_eq!(
        found["connections"],
        json!({"websocket": 1, "socketio": 4, "sse": 0})
    );
    assert_fields!(delivered, {"lag": 0, "replays": 0});
    until("a rate", async || {
        stats(&addr, "/api/stats").await["events_per_second"]
            .as_f64()
            .unwrap()
            > 0.0
    })
    .await;
    drop((clients, plain));
    eventually("no connected client", || async {
        let is_empty = stats(&addr, "/api/stats").await["connections"] == none;
        (is_empty
            && stats(&addr, "/api/socketio/stats").await == json!({"connected": 0, "rooms": {}}))
        .then_some(())
    })
    .await;
    system.end().await;
}

#[tokio::test]
async fn a_greedy_client_is_disconnected_alone() {
    let system = System::on(Broker::shared_one()).await;
    system.demo().await;
    let edge = system.edge().await;
    let mut other = Raw::join(&edge.addr).await;
    // Larger than a message can be.
    let mut raw = Raw::join(&edge.addr).await;
    raw.send(&format!("42[\"watch\",{:?}]", "x".repeat(1 << 20)))
        .await;
    assert_eq!(raw.next().await, None);
    // With more attachments than the edge reads before it refuses.
    let mut raw = Raw::join(&edge.addr).await;
    raw.send(r#"451025-["watch",{"_placeholder":true,"num":0}]"#)
        .await;
    while let Some(text) = raw.next().await {
        assert_eq!(text, "1", "only an end may come");
    }
    // More requests than the edge queues, without reading the answers.
    let mut raw = Raw::join(&edge.addr).await;
    let begun = Instant::now();
    while raw.send(r#"421["unwatch",{"job":"unknown"}]"#).await {
        assert!(
            begun.elapsed() < Duration::from_secs(50),
            "it is never cut off"
        );
    }
    let found = other.ask(1, "watch", &json!({"job": "unknown"})).await;
    assert_eq!(found["op"], "watching");
    let unknown = "/socket.io/?EIO=4&transport=polling&sid=AAAAAAAAAAAAAAAA";
    let (head, _) = get(&edge.addr, unknown, "").await;
    assert!(head.starts_with("HTTP/1.1 400"), "{head}");
    system.end().await;
}

#[tokio::test]
async fn abandoning_a_poll_disconnects_the_client() {
    let system = System::on(Broker::shared_one()).await;
    let edge = system.edge().await;
    let path = join_by_polling(&edge.addr).await;
    let poll = tokio::time::timeout(Duration::from_secs(2), get(&edge.addr, &path, "")).await;
    assert!(poll.is_err(), "{poll:?}");
    until("no connected client", async || {
        stats(&edge.addr, "/api/socketio/stats").await["connected"] == 0
    })
    .await;
    let (head, _) = get(&edge.addr, &path, "").await;
    assert!(head.starts_with("HTTP/1.1 400"), "{head}");
    system.end().await;
}

#[tokio::test]
async fn a_poll_is_answered_when_its_session_is_cut() {
    let system = System::on(Broker::shared_one()).await;
    let edge = system.edge().await;
    // Two polls at once, as a retrying library would send: the session cannot continue.
    let path = format!("{}&t=once", join_by_polling(&edge.addr).await);
    let begun = Instant::now();
    let polls = join(get(&edge.addr, &path, ""), get(&edge.addr, &path, "")).await;
    // The next ping would also have answered the poll.
    assert_within(begun, Duration::from_secs(15));
    for (head, body) in [polls.0, polls.1] {
        assert!(head.starts_with("HTTP/1.1 400"), "{head}");
        assert!(body.contains("the session has ended"), "{body}");
    }
    system.end().await;
}

#[tokio::test]
async fn a_stopping_edge_drains_polling_clients_gradually() {
    let system = System::on(Broker::shared_one()).await;
    let drain = Duration::from_secs(3);
    let edge = system
        .edge_with(EdgeSettings {
            drain,
            ..EdgeSettings::default()
        })
        .await;
    let paths = join_all((0..30).map(|_| join_by_polling(&edge.addr))).await;
    let stopped = Instant::now();
    edge.stop();
    let has_left = CancellationToken::new();
    // Each is asked to reconnect. Returns whether it got the answer to its request before.
    let polls = paths.iter().map(|path| async {
        let mut was_served = false;
        loop {
            let (head, body) = get(&edge.addr, path, "").await;
            if head.starts_with("HTTP/1.1 200") {
                was_served |= body.contains("not_watching");
                continue;
            }
            assert!(
                head.starts_with("HTTP/1.1 503") && body.contains("\"restarting\""),
                "{head} {body}"
            );
            has_left.cancel();
            return was_served;
        }
    });
    let requests = async {
        has_left.cancelled().await;
        let unwatch: &[u8] = br#"42["unwatch",{"job":"none"}]"#;
        let posts = paths
            .iter()
            .map(|path| exchange(&edge.addr, "POST", path, "", unwatch));
        join_all(posts).await;
    };
    let (were_served, ()) = join(join_all(polls), requests).await;
    assert_within(stopped, drain * 5);
    // Those that were asked late were served after the first one had been asked.
    let served = were_served.into_iter().filter(|served| *served).count();
    assert!((1..30).contains(&served), "{served} of 30");
    system.end().await;
}

#[tokio::test]
async fn an_allowed_page_of_another_origin_can_poll() {
    let system = System::on(Broker::shared_one()).await;
    let edge = system.edge_for_all_pages().await;
    let path = "/socket.io/?EIO=4&transport=polling";
    let (head, body) = get(&edge.addr, path, "Origin: https://elsewhere.example\r\n").await;
    let allowed = "access-control-allow-origin: https://elsewhere.example";
    assert!(head.contains(allowed), "{head}");
    assert!(body.starts_with("0{\"sid\""), "{body}");
    system.end().await;
}
