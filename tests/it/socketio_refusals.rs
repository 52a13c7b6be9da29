use std::path::Path;
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};
use tailwater::wire::{Body, Channel, Submission};

use crate::support::broker::Broker;
use crate::support::http::{exchange, get, refused, stats};
use crate::support::socketio::{Raw, join_by_polling};
use crate::support::system::{System, words};
use crate::support::third_party::ThirdParty;
use crate::support::{assert_fields, eventually, within};

#[tokio::test]
async fn attachments_and_unknown_namespaces_are_refused() {
    let system = System::on(Broker::shared_one()).await;
    system.demo().await;
    let edge = system.edge().await;
    let mut clients = Vec::new();
    for transport in ["websocket", "polling"] {
        let given = json!({"url": format!("http://{}", edge.addr), "transports": [transport]});
        clients.push(ThirdParty::node(Path::new("socketio_refused.mjs"), &given));
        clients.push(ThirdParty::python("socketio_refused.py", &given));
    }
    for seen in join_all(clients.into_iter().map(ThirdParty::ends))
        .await
        .concat()
    {
        let refused = |field: &str, job: Value, reference: Value| {
            let error = &seen[field];
            assert_fields!(error, {"op": "error", "code": "unsupported_media_type"}, "{seen}");
            assert_fields!(error, {"job": job, "ref": reference}, "{field} of {seen}");
            assert!(
                error["message"].as_str().unwrap().contains("attachment"),
                "{error}"
            );
        };
        refused("argument", Value::Null, Value::Null);
        refused("field", Value::Null, json!("r"));
        refused("beside", json!("j"), Value::Null);
        refused("event", json!("j"), Value::Null);
        assert_eq!(seen["namespace"], "Invalid namespace", "{seen}");
        let found = (&seen["after"]["op"], &seen["disconnected"]);
        assert_eq!(found, (&json!("watching"), &json!(0)), "{seen}");
    }
    system.end().await;
}

/// Posts packets, and polls until one that begins with `answer` arrives.
async fn post_and_poll(addr: &str, path: &str, posted: &str, answer: &str) -> String {
    let (head, body) = exchange(addr, "POST", path, "", posted.as_bytes()).await;
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}{body}");
    within("an answer", async {
        loop {
            let (head, body) = get(addr, path, "").await;
            assert!(head.starts_with("HTTP/1.1 200 "), "{head}{body}");
            let mut packets = body.split('\x1e');
            if let Some(found) = packets.find(|packet| packet.starts_with(answer)) {
                return found.to_owned();
            }
        }
    })
    .await
}

/// The library would wait for them without a deadline.
#[tokio::test]
async fn a_poll_brings_the_refusal_of_an_emit_before_its_attachments_are_posted() {
    let system = System::on(Broker::shared_one()).await;
    let edge = system.edge().await;
    let path = join_by_polling(&edge.addr).await;
    let emit = r#"452-7["submit",{"kind":"demo","ref":"r","input":{"_placeholder":true,"num":0}}]"#;
    let answer = post_and_poll(&edge.addr, &path, emit, "437").await;
    assert!(answer.contains(r#""unsupported_media_type""#), "{answer}");
    // The library would end the session: it expects an attachment next.
    let other = r#"428["watch",{"job":"a"}]"#;
    let answer = post_and_poll(&edge.addr, &path, other, "438").await;
    assert!(answer.contains(r#""watching""#), "{answer}");
    let late = "bAAAA\x1ebAAAA\x1e429[\"watch\",{\"job\":\"b\"}]";
    let answer = post_and_poll(&edge.addr, &path, late, "439").await;
    assert!(answer.contains(r#""watching""#), "{answer}");
    system.end().await;
}

#[tokio::test]
async fn a_client_that_polls_gets_no_refusal_that_repeats_a_long_name_of_a_namespace() {
    let system = System::on(Broker::shared_one()).await;
    let edge = system.edge().await;
    let path = join_by_polling(&edge.addr).await;
    let long = format!("40/{}", "x".repeat(100_000));
    let (head, _) = exchange(&edge.addr, "POST", &path, "", long.as_bytes()).await;
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    let answer = post_and_poll(&edge.addr, &path, "40/other", "44").await;
    assert!(answer.starts_with("44/other,"), "{answer}");
    system.end().await;
}

#[tokio::test]
async fn the_path_works_without_its_trailing_slash() {
    let system = System::on(Broker::shared_one()).await;
    let edge = system.edge().await;
    let path = "/socket.io?EIO=4&transport=polling";
    let (head, open) = get(&edge.addr, path, "").await;
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    let open: Value = serde_json::from_str(open.strip_prefix('0').unwrap()).unwrap();
    let session = format!("{path}&sid={}", open["sid"].as_str().unwrap());
    let (head, _) = exchange(&edge.addr, "POST", &session, "", b"40").await;
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    // Both paths lead to the same session.
    let other_path = session.replace("socket.io?", "socket.io/?");
    let (head, body) = get(&edge.addr, &other_path, "").await;
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    assert!(body.contains("40{\"sid\""), "{body}");
    let unknown = "/socket.iox?EIO=4&transport=polling";
    let (head, _) = get(&edge.addr, unknown, "").await;
    assert!(head.starts_with("HTTP/1.1 404 "), "{head}");
    system.end().await;
}

#[tokio::test]
async fn a_failed_upgrade_keeps_the_polling_session() {
    let system = System::on(Broker::shared_one()).await;
    let edge = system.edge().await;
    let path = join_by_polling(&edge.addr).await;
    // As a proxy without WebSocket support forwards it.
    let upgrade = path.replace("transport=polling", "transport=websocket");
    let key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    refused(&edge, &format!("GET {upgrade}"), key, 400, "bad_request").await;
    let watch = br#"421["watch",{"job":"still"}]"#;
    let (head, _) = exchange(&edge.addr, "POST", &path, "", watch).await;
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    let (_, body) = get(&edge.addr, &path, "").await;
    assert!(
        body.contains(r#"431[{"op":"watching","job":"still"}]"#),
        "{body}"
    );
    let found = stats(&edge.addr, "/api/socketio/stats").await;
    assert_eq!(found["connected"], 1);
    system.end().await;
}

/// Both events together are too large for one response to a poll.
#[tokio::test]
async fn an_event_that_had_no_room_in_the_last_poll_is_sent_after_an_upgrade() {
    let system = System::on(Broker::shared_one()).await;
    let edge = system.edge().await;
    let kind = "demo".parse().unwrap();
    let submission = Submission::new(kind, json!("x".repeat(4000)));
    let job = system.submit_with("large", submission).await;
    let large = Body::Chunk {
        text: "x".repeat(1_046_000),
        channel: Channel::Output,
    };
    let mut writer = system.writer(&job, 1).await;
    writer.append(large).await.unwrap();
    let path = join_by_polling(&edge.addr).await;
    let watch = br#"42["watch",{"job":"large"}]"#;
    let (head, _) = exchange(&edge.addr, "POST", &path, "", watch).await;
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    within("the first event", async {
        loop {
            let (_, polled) = get(&edge.addr, &path, "").await;
            assert!(!polled.contains("model:chunk:v1"));
            if polled.contains("job:queued:v1") {
                break;
            }
        }
    })
    .await;
    let mut raw = Raw::upgrade(&edge.addr, &path).await;
    let (name, event) = raw.event().await;
    assert_eq!(
        (name.as_str(), &event["seq"]),
        ("model:chunk:v1", &json!(2))
    );
    system.end().await;
}

#[tokio::test]
async fn clients_behind_a_proxy_without_websockets_keep_polling() {
    let system = System::on(Broker::shared_one()).await;
    let edge = system.edge().await;
    let given = json!({"url": format!("http://{}", edge.addr)});
    let seen = ThirdParty::node(Path::new("socketio_bare_proxy.mjs"), &given)
        .ends()
        .await
        .remove(0);
    for first in ["websocket", "polling"] {
        assert_eq!(seen[first], json!(["watching", "polling"]), "{seen}");
    }
    assert_fields!(seen, {"upgrades": [400, 400, 400], "only": "websocket error"});
    system.end().await;
}

#[tokio::test]
async fn requests_have_the_same_limits_as_websocket_frames() {
    let system = System::on(Broker::shared_one()).await;
    system.demo().await;
    let edge = system.edge().await;
    let mut raw = Raw::join(&edge.addr).await;
    let fits = "ä".repeat(80);
    let long = "ä".repeat(81);
    let submit =
        |reference: &str| json!({"kind": "demo", "input": words(3, 0, 1), "ref": reference});
    let answer = raw.ask(1, "submit", &submit(&fits)).await;
    assert_fields!(answer, {"op": "submitted", "ref": fits});
    let answer = raw.ask(2, "submit", &submit(&long)).await;
    assert_fields!(answer, {"code": "bad_request", "ref": fits});
    for (number, (field, value, code)) in [
        ("key", json!(""), "bad_request"),
        ("key", json!("k".repeat(256)), "bad_request"),
        ("ref", json!(7), "bad_request"),
        ("input", json!("x".repeat(512 * 1024)), "too_large"),
        ("timeout_ms", json!(0), "bad_request"),
        ("id", json!("other:a"), "bad_job_id"),
        (
            "callback",
            json!("http://127.0.0.1/"),
            "callback_not_allowed",
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let mut submission = submit("r");
        submission[field] = value;
        let answer = raw.ask(10 + number as u32, "submit", &submission).await;
        assert_fields!(answer, {"op": "error", "code": code}, "{field}: {answer}");
    }
    // The most watches that a connection may have.
    for n in 0..1024 {
        raw.send(&format!(r#"42["watch",{{"job":"w{n}"}}]"#)).await;
    }
    let answer = raw.ask(100, "watch", &json!({"job": "one-more"})).await;
    assert_fields!(answer, {"code": "too_many_watches", "job": "one-more"});
    system.end().await;
}

#[tokio::test]
async fn concurrent_requests_are_limited_as_on_a_websocket() {
    let mut broker = Broker::one();
    let system = System::on(&broker).await;
    system.demo().await;
    let edge = system.edge().await;
    let mut raw = Raw::join(&edge.addr).await;
    broker.kill(0);
    for n in 0..40 {
        let submission =
            json!(["submit", {"kind": "demo", "input": words(3, 0, n), "ref": n.to_string()}]);
        raw.send(&format!("42{n}{submission}")).await;
    }
    raw.send(r#"4240["cancel",{"job":"j"}]"#).await;
    raw.send(r#"4241["unwatch",{"job":"other"}]"#).await;
    // Requests above the limit, and those that need no broker, are answered while the others wait.
    for n in 32..40 {
        let answer = raw.next().await.unwrap();
        let error = json!({"op": "error", "code": "too_many_requests", "ref": n.to_string()});
        let acknowledged: Vec<Value> =
            serde_json::from_str(answer.strip_prefix(&format!("43{n}")).unwrap()).unwrap();
        for (field, value) in error.as_object().unwrap() {
            assert_eq!(&acknowledged[0][field], value, "{answer}");
        }
    }
    let answer = raw.next().await.unwrap();
    assert!(
        answer.starts_with("4340") && answer.contains("too_many_requests"),
        "{answer}"
    );
    assert!(raw.next().await.unwrap().contains("not_watching"));
    broker.restart(0);
    let mut answered = Vec::new();
    while answered.len() < 32 {
        let answer = raw.next().await.unwrap();
        assert!(
            answer.contains(r#""op":"submitted""#) || answer.contains(r#""unavailable""#),
            "{answer}"
        );
        answered.push(
            answer.split('[').next().unwrap()[2..]
                .parse::<u32>()
                .unwrap(),
        );
    }
    answered.sort_unstable();
    assert_eq!(answered, (0..32).collect::<Vec<_>>());
    // New requests are accepted again.
    within("a submit", async {
        loop {
            let answer = raw
                .ask(50, "submit", &json!({"kind": "demo", "id": "now"}))
                .await;
            if answer["op"] == "submitted" {
                return;
            }
            assert_eq!(answer["code"], "unavailable", "{answer}");
        }
    })
    .await;
    system.end().await;
}

#[tokio::test]
async fn an_oversized_post_is_refused_and_ends_its_session() {
    let system = System::on(Broker::shared_one()).await;
    let edge = system.edge().await;
    let path = join_by_polling(&edge.addr).await;
    let body = format!("42[\"watch\",{:?}]", "x".repeat(1 << 20));
    let (head, body) = exchange(&edge.addr, "POST", &path, "", body.as_bytes()).await;
    assert!(
        head.starts_with("HTTP/1.1 413 ") && body.contains("\"too_large\""),
        "{head}{body}"
    );
    eventually("no connected client", || async {
        let poll = get(&edge.addr, &path, "");
        let _ = tokio::time::timeout(Duration::from_millis(200), poll).await;
        (stats(&edge.addr, "/api/socketio/stats").await["connected"] == 0).then_some(())
    })
    .await;
    system.end().await;
}

/// The library keeps a buffer for each connection that is as large as the largest event. In the
/// smallest memory there is room for two of these.
#[tokio::test]
async fn a_client_gets_a_large_event_whose_buffer_finds_no_room_before_it_is_disconnected() {
    let system = System::on(Broker::shared_one()).await;
    let (_edge, addr) = system.edge_process(&["--memory", "64MiB"]).await;
    let submission = Submission::new("demo".parse().unwrap(), Value::Null);
    let job = system.submit_with("large", submission).await;
    let large = Body::Chunk {
        text: "x".repeat(800_000),
        channel: Channel::Output,
    };
    let mut writer = system.writer(&job, 1).await;
    writer.append(large).await.unwrap();
    let mut clients = Vec::new();
    for _ in 0..4 {
        let mut raw = Raw::join(&addr).await;
        raw.ask(1, "watch", &json!({"job": "large"})).await;
        while raw.event().await.0 != "model:chunk:v1" {}
        clients.push(raw);
    }
    let mut over_budget = clients.split_off(2);
    for raw in &mut over_budget {
        while raw.next().await.is_some() {}
    }
    for raw in &mut clients {
        let answer = raw.ask(2, "unwatch", &json!({"job": "large"})).await;
        assert_eq!(answer["op"], "unwatched");
    }
    system.end().await;
}
