use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};
use tailwater::process_group::Signal;
use tailwater::wire::Status;
use tokio::process::Command;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_tungstenite::connect_async;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_util::sync::CancellationToken;

use crate::support::backends::TwoWords;
use crate::support::broker::Broker;
use crate::support::client::{Client, Encoding, Frame, Seen, follow_in};
use crate::support::http::{UPGRADE, http, refused};
use crate::support::process::run_program;
use crate::support::scenarios::in_both_encodings;
use crate::support::system::{Edge, System, text, words};
use crate::support::{assert_fields, assert_within, python, root, within};

in_both_encodings!(
    submitting_a_key_again_returns_the_same_job,
    a_cancel_returns_the_sequence_number_of_its_event,
    a_client_that_disconnects_does_not_stop_its_job,
    a_python_client_negotiates_and_resumes,
);

/// The next frame that is not about a watch.
async fn answer(client: &mut Client) -> Value {
    loop {
        let frame = client.frame().await;
        if frame.get("ref").is_some() {
            return frame;
        }
    }
}

async fn submitting_a_key_again_returns_the_same_job(broker: &Broker, encoding: Encoding) {
    let system = System::on(broker).await;
    system.demo().await;
    let edge = system.edge().await;
    let mut client = edge.client_in(encoding).await;
    // An edge that checks no tokens accepts any.
    let frame = json!({"op": "auth", "token": "anything"});
    client.send(frame).await;
    let authenticated = loop {
        let frame = client.frame().await;
        if frame["op"] == "authenticated" {
            break frame;
        }
    };
    assert_eq!(authenticated, json!({"op": "authenticated"}));
    let input = words(20, 0, 1);
    let mut submit =
        json!({"op": "submit", "ref": "a", "kind": "demo", "input": input, "key": "k-1"});
    client.send(submit.clone()).await;
    let first = answer(&mut client).await;
    let job = first["job"].as_str().unwrap().to_owned();
    let expected = json!({"op": "submitted", "ref": "a", "job": job, "status": "queued"});
    assert_eq!(first, expected);
    let seen = follow_in(&edge.addr, &job, encoding).await;
    seen.assert_text(text(&input));
    // Submitting it again through another edge returns the job, which has ended.
    let other = system.edge().await;
    let mut again = other.client_in(encoding).await;
    submit["ref"] = "b".into();
    again.send(submit.clone()).await;
    let expected = json!({"op": "submitted", "ref": "b", "job": job, "status": "done"});
    assert_eq!(answer(&mut again).await, expected);
    submit["input"] = words(21, 0, 1);
    again.send(submit.clone()).await;
    let error = answer(&mut again).await;
    assert_fields!(error, {"op": "error", "code": "key_reused"});
    let found = (&error["ref"], error.get("job"));
    assert_eq!(found, (&json!("b"), None), "{error}");
    // With an id and without a key.
    let named = json!({"op": "submit", "ref": "c", "kind": "demo", "input": input, "id": "named",
        "timeout_ms": 60_000, "silence_timeout_ms": 60_000});
    again.send(named).await;
    let submitted = json!({"op": "submitted", "ref": "c", "job": "named", "status": "queued"});
    assert_eq!(answer(&mut again).await, submitted);
    let seen = follow_in(&edge.addr, "named", encoding).await;
    assert_eq!(seen.events[&1]["timeout_ms"], 60_000);
    system.end().await;
}

async fn a_client_that_disconnects_does_not_stop_its_job(broker: &Broker, encoding: Encoding) {
    let system = System::on(broker).await;
    system.demo().await;
    let edge = system.edge().await;
    let mut client = edge.client_in(encoding).await;
    let input = words(40, 40, 5);
    client
        .send(json!({"op": "submit", "ref": "a", "kind": "demo", "input": input, "id": "left"}))
        .await;
    answer(&mut client).await;
    let mut seen = Seen::of("left");
    client.watch(&seen).await;
    while seen.last < 4 {
        seen.step(&mut client).await;
    }
    drop(client);
    let ended = system.ended(&"left".parse().unwrap()).await;
    assert_eq!(ended.status, Status::Done);
    let seen = follow_in(&edge.addr, "left", encoding).await;
    seen.assert_text(text(&input));
    system.end().await;
}

async fn a_cancel_returns_the_sequence_number_of_its_event(broker: &Broker, encoding: Encoding) {
    let system = System::on(broker).await;
    let go = Arc::new(Notify::new());
    system.worker(TwoWords(Arc::clone(&go)), |_| {}).await;
    let edge = system.edge().await;
    let mut client = edge.client_in(encoding).await;
    client
        .send(json!({"op": "submit", "ref": "s", "kind": "demo", "id": "long", "input": null}))
        .await;
    assert_eq!(answer(&mut client).await["op"], "submitted");
    let mut seen = Seen::of("long");
    client.watch(&seen).await;
    let mut receipts = Vec::new();
    let mut sent = false;
    while !seen.ended || receipts.len() < 3 {
        let frame = client.frame().await;
        if frame["op"] == "cancelling" || frame["op"] == "error" {
            receipts.push(frame);
            if receipts.len() == 2 {
                // Until now it could not end.
                go.notify_one();
                // A job that has ended cannot be cancelled.
                system.ended(&"long".parse().unwrap()).await;
                let frame = json!({"op": "cancel", "job": "long", "ref": "late"});
                client.send(frame).await;
            }
        } else {
            seen.record(&frame);
        }
        if seen.last >= 3 && !sent {
            sent = true;
            client.send(json!({"op": "cancel", "job": "long"})).await;
            let frame = json!({"op": "cancel", "job": "long", "ref": "again"});
            client.send(frame).await;
        }
    }
    seen.assert_whole();
    let (seq, _) = seen
        .events
        .iter()
        .find(|(_, event)| event["type"] == "job:cancel-requested:v1")
        .unwrap();
    // Either of the two may have been first.
    let (of_late, mut of_two): (Vec<_>, Vec<_>) = receipts
        .into_iter()
        .partition(|receipt| receipt["ref"] == "late");
    of_two.sort_by_key(|receipt| receipt.get("ref").is_some());
    let expected = json!({"op": "cancelling", "job": "long", "seq": seq});
    assert_eq!(of_two[0], expected);
    let expected = json!({"op": "cancelling", "job": "long", "seq": seq, "ref": "again"});
    assert_eq!(of_two[1], expected);
    assert_fields!(of_late[0], {"code": "job_ended", "job": "long"});
    assert_eq!(seen.last, seq + 1);
    system.end().await;
}

async fn a_python_client_negotiates_and_resumes(broker: &Broker, encoding: Encoding) {
    let system = System::on(broker).await;
    system.demo().await;
    let edge = system.edge().await;
    let input = words(40, 40, 4);
    system.submit("python", input.clone()).await;
    let codec = if encoding == Encoding::Json {
        "json"
    } else {
        "msgpack"
    };
    let script = root().join("tests/clients/handshake.py");
    let mut client = Command::new(python("python"));
    client.arg(script).args([&edge.addr, "python", codec]);
    let printed = run_program(&mut client).await.prints();
    let mut seen = Seen::of("python");
    let mut watched = 0;
    for line in printed.lines() {
        let frame: Value = serde_json::from_str(line).unwrap();
        watched += u32::from(frame["op"] == "watching");
        seen.record(&frame);
    }
    seen.assert_whole();
    assert_eq!((watched, seen.text()), (2, text(&input)));
    system.end().await;
}

#[tokio::test]
async fn errors_carry_the_ref_in_both_encodings() {
    let system = System::on(Broker::shared_one()).await;
    system.demo().await;
    let edge = system.edge().await;
    let long = "r".repeat(81);
    let submit = |field: &str, value: Value| {
        let mut frame = json!({"op": "submit", "ref": "r", "kind": "demo"});
        frame[field] = value;
        frame
    };
    let cancel = |job: &str| json!({"op": "cancel", "ref": "r", "job": job});
    let callback = json!("http://127.0.0.1/");
    for encoding in Encoding::ALL {
        let mut client = edge.client_in(encoding).await;
        for (frame, code) in [
            (json!({"op": "submit", "kind": "demo"}), "bad_request"),
            (submit("ref", json!(7)), "bad_request"),
            (submit("ref", json!(long)), "bad_request"),
            (submit("inputt", json!(1)), "bad_request"),
            (submit("key", json!("")), "bad_request"),
            (submit("timeout_ms", json!(0)), "bad_request"),
            (submit("kind", json!("de.mo")), "bad_kind"),
            (submit("kind", json!("callback")), "bad_kind"),
            (submit("kind", json!("unknown")), "unknown_kind"),
            (submit("id", json!("a.b")), "bad_job_id"),
            (submit("id", json!("other:a")), "bad_job_id"),
            (submit("input", json!("x".repeat(512 * 1024))), "too_large"),
            (submit("callback", callback.clone()), "callback_not_allowed"),
            (cancel("a.b"), "bad_job_id"),
            (cancel("unknown"), "job_not_found"),
            (json!({"op": "cancel", "ref": "r"}), "bad_request"),
            (json!({"op": "auth"}), "bad_request"),
            (json!({"op": "dance", "ref": "r"}), "unknown_op"),
        ] {
            client.send(frame.clone()).await;
            let error = client.op().await;
            let op = &error["op"];
            let got = error["code"].as_str();
            let found = (op, got);
            assert_eq!(found, (&json!("error"), Some(code)), "{encoding:?} {error}");
            let cut = |field| {
                let text = frame.get(field)?.as_str()?;
                Some(text.chars().take(80).collect::<String>())
            };
            assert_eq!(error["ref"].as_str(), cut("ref").as_deref(), "{error}");
            assert_eq!(error["job"].as_str(), cut("job").as_deref(), "{error}");
            assert!(!error["message"].as_str().unwrap().is_empty());
        }
        // Not a frame.
        match encoding {
            Encoding::Json => client.send_text("{").await,
            Encoding::MsgPack => client.send_binary(vec![0x81]).await,
        }
        let code = if encoding == Encoding::Json {
            "bad_json"
        } else {
            "bad_msgpack"
        };
        assert_eq!(client.op().await["code"], code);
        // A frame in a message of the other type closes the connection.
        let frame = json!({"op": "unwatch", "job": "j"});
        match encoding {
            Encoding::Json => client.send_binary(frame.to_string().into_bytes()).await,
            Encoding::MsgPack => client.send_text(&frame.to_string()).await,
        }
        assert_eq!(client.next().await, Frame::Closed(1003));
    }
    system.end().await;
}

#[tokio::test]
async fn the_first_known_subprotocol_is_used() {
    let system = System::on(Broker::shared_one()).await;
    let edge = system.edge().await;
    for (offered, spoken) in [
        (
            Some("soap, tailwater.v1.msgpack, tailwater.v1.json"),
            Some("tailwater.v1.msgpack"),
        ),
        (
            Some("tailwater.v1.json,tailwater.v1.msgpack"),
            Some("tailwater.v1.json"),
        ),
        (None, None),
    ] {
        let mut request = format!("ws://{}/ws", edge.addr)
            .into_client_request()
            .unwrap();
        if let Some(offered) = offered {
            request
                .headers_mut()
                .insert("Sec-WebSocket-Protocol", offered.parse().unwrap());
        }
        let (_, answer) = within("a handshake", connect_async(request)).await.unwrap();
        let named = answer
            .headers()
            .get("Sec-WebSocket-Protocol")
            .map(|name| name.to_str().unwrap());
        assert_eq!(named, spoken, "{offered:?}");
    }
    system.end().await;
}

#[tokio::test]
async fn a_close_is_answered() {
    let system = System::on(Broker::shared_one()).await;
    let edge = system.edge().await;
    for encoding in Encoding::ALL {
        let found = edge.client_in(encoding).await.close().await;
        assert_eq!(found, Frame::Closed(1000));
    }
    system.end().await;
}

#[tokio::test]
async fn requests_of_a_departed_client_are_completed() {
    let system = System::on(Broker::shared_one()).await;
    system.demo().await;
    let edge = system.edge().await;
    for n in 0..20 {
        let mut client = edge.client().await;
        let job = format!("left-{n}");
        let input = words(9000, 50, n);
        let frame = json!({"op": "submit", "ref": "s", "kind": "demo", "id": job, "input": input});
        client.send(frame).await;
        assert_eq!(answer(&mut client).await["op"], "submitted");
        client.send(json!({"op": "cancel", "job": job})).await;
        // Every second client closes the connection properly.
        if n % 2 == 0 {
            client.close().await;
        } else {
            drop(client);
        }
        let found = system.ended(&job.parse().unwrap()).await.status;
        assert_eq!(found, Status::Cancelled, "{job}");
    }
    system.end().await;
}

#[tokio::test]
async fn a_hanging_broker_blocks_a_limited_number_of_requests() {
    let mut broker = Broker::one();
    let system = System::on(&broker).await;
    system.demo().await;
    let edge = system.edge().await;
    let mut client = edge.client().await;
    broker.kill(0);
    for n in 0..40 {
        let input = words(3, 0, n);
        let frame = json!({"op": "submit", "ref": n.to_string(), "kind": "demo", "input": input});
        client.send(frame).await;
    }
    client.send(json!({"op": "unwatch", "job": "other"})).await;
    // Requests above the limit, and those that need no broker, are answered while the others wait.
    for n in 32..40 {
        let error = client.op().await;
        assert_fields!(error, {"code": "too_many_requests", "ref": n.to_string()});
    }
    assert_eq!(client.op().await["code"], "not_watching");
    broker.restart(0);
    let mut answers = BTreeMap::new();
    for _ in 0..32 {
        let answer = answer(&mut client).await;
        let good = answer["op"] == "submitted" || answer["code"] == "unavailable";
        assert!(good, "{answer}");
        answers.insert(
            answer["ref"].as_str().unwrap().parse::<u32>().unwrap(),
            answer,
        );
    }
    let found = answers.into_keys().collect::<Vec<_>>();
    assert_eq!(found, (0..32).collect::<Vec<_>>());
    // New requests are accepted again.
    within("a submit", async {
        loop {
            let frame = json!({"op": "submit", "ref": "now", "kind": "demo", "id": "now"});
            client.send(frame).await;
            let answer = answer(&mut client).await;
            if answer["op"] == "submitted" {
                return;
            }
            assert_eq!(answer["code"], "unavailable", "{answer}");
        }
    })
    .await;
    system.end().await;
}

/// Follows a job until the edge asks the client to reconnect, and then starts the next part of it.
async fn drained(mut client: Client, mut seen: Seen, next: &CancellationToken) -> Seen {
    assert_eq!(seen.follow(&mut client).await, Frame::Closed(1012));
    next.cancel();
    seen
}

#[tokio::test]
async fn a_stopping_edge_drains_its_clients_gradually() {
    let system = System::on(Broker::shared_one()).await;
    let [next, rest] = system.parts().await;
    let (mut process, addr) = system.edge_process(&["--drain", "4s"]).await;
    let first = Edge::at(&addr);
    let second = system.edge().await;
    for n in 0..10 {
        system.submit(&format!("drain-{n}"), words(60, 50, n)).await;
    }
    let clients = join_all((0..100).map(|n| {
        let first = &first;
        async move {
            let mut client = first.client_in(Encoding::ALL[n % 2]).await;
            let mut seen = Seen::of("drain");
            seen.job = format!("drain-{}", n % 10);
            client.watch(&seen).await;
            while seen.last < 4 {
                seen.step(&mut client).await;
            }
            (client, seen)
        }
    }))
    .await;
    let stopped = Instant::now();
    process.signal(Signal::TERM);
    let refused = async {
        // After the signal the edge refuses new clients for as long as others are connected.
        let mut ready = (200, Value::Null);
        while ready.0 == 200 {
            let (status, _, body) = http(&first, "GET", "/readyz", "", b"").await;
            ready = (status, body["code"].clone());
        }
        assert_eq!(ready, (503, json!("restarting")));
        refused(&first, "GET /ws", UPGRADE, 503, "restarting").await;
    };
    let leaving = join_all(
        clients
            .into_iter()
            .map(|(client, seen)| drained(client, seen, &next)),
    );
    let ((), left) = futures_util::future::join(refused, leaving).await;
    assert!(process.ends_within(Duration::from_secs(5)).await.success());
    assert_within(stopped, Duration::from_secs(20));
    // Clients that were drained late were served until then: the first twenty words of a job are 42
    // events, and others follow only after the first client had left.
    let latest = left.iter().map(|seen| seen.last).max();
    assert!(latest > Some(42), "{latest:?}");
    rest.cancel();
    let whole = left.into_iter().enumerate().map(|(n, mut seen)| {
        let second = &second;
        async move {
            let mut client = second.client_in(Encoding::ALL[n % 2]).await;
            client.watch(&seen).await;
            seen.follow(&mut client).await;
            seen.assert_text(text(&words(60, 50, (n % 10) as u64)));
        }
    });
    join_all(whole).await;
    system.end().await;
}

#[tokio::test]
async fn an_edge_without_clients_stops_at_once() {
    let system = System::on(Broker::shared_one()).await;
    let (mut process, addr) = system.edge_process(&["--drain", "1h"]).await;
    let edge = Edge::at(&addr);
    // An edge that answers has installed its signal handlers.
    assert_eq!(
        within("an answer", http(&edge, "GET", "/readyz", "", b""))
            .await
            .0,
        200
    );
    process.signal(Signal::TERM);
    assert!(process.ends_within(Duration::from_secs(5)).await.success());
    system.end().await;
}
