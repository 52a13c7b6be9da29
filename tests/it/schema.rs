use serde_json::{Value, json};
use tailwater::wire::{ClientFrame, Encoding, Submission};
use tokio::process::Command;

use crate::support::broker::Broker;
use crate::support::process::run_program_on;
use crate::support::system::{System, words};
use crate::support::{python, root};

/// Which of the values match the schema of this name, according to an independent validator.
async fn validate(values: &[(&str, Value)]) -> Vec<bool> {
    let root = root();
    let mut validator = Command::new(python("python"));
    validator
        .arg(root.join("tests/clients/validate.py"))
        .arg(root.join("src/wire/schema/tailwater.schema.json"));
    let input: String = values
        .iter()
        .map(|(name, value)| format!("{}\n", json!([name, value])))
        .collect();
    let answers = run_program_on(&mut validator, &input).await.prints();
    let valid: Vec<bool> = answers.lines().map(|line| line == "true").collect();
    assert_eq!(valid.len(), values.len());
    valid
}

async fn assert_all_fit(values: &[(&str, Value)]) {
    for (fits, (name, value)) in validate(values).await.into_iter().zip(values) {
        assert!(fits, "no {name}: {value}");
    }
}

/// The schema that a message of the edge belongs to.
fn name(frame: &Value) -> &'static str {
    if frame.get("op").is_some() {
        "ServerFrame"
    } else {
        "Event"
    }
}

#[tokio::test]
async fn the_examples_in_the_protocol_match_the_schemas() {
    let document = include_str!("../../src/wire/PROTOCOL.md");
    let lines = document
        .lines()
        .filter_map(|line| Some((line.get(..3)?, line.get(2..)?)));
    let values: Vec<_> = lines
        .filter_map(|(begin, rest)| match begin {
            "> {" => Some(("ClientFrame", serde_json::from_str(rest).unwrap())),
            "< {" => serde_json::from_str(rest)
                .ok()
                .map(|frame| (name(&frame), frame)),
            _ => None,
        })
        .collect();
    assert!(values.len() > 20, "{}", values.len());
    assert_all_fit(&values).await;
}

/// Frames of clients, valid and not.
fn client_frames() -> [Value; 33] {
    let cursor = "AeiRFY9quGgDBAQ";
    [
        json!({"op": "watch", "job": "j1"}),
        json!({"op": "watch", "job": "j1", "after": 0}),
        json!({"op": "watch", "job": "demo:j1"}),
        json!({"op": "watch", "job": "j1", "after": null, "cursor": cursor}),
        json!({"op": "unwatch", "job": "j1"}),
        json!({"op": "auth", "token": "anything"}),
        json!({"op": "submit", "ref": "1", "kind": "k"}),
        json!({"op": "submit", "ref": "1", "kind": "k", "input": [], "key": "x", "id": "j", "timeout_ms": 9}),
        json!({"op": "cancel", "job": "j1"}),
        json!({"op": "cancel", "job": "j1", "ref": "2"}),
        json!({"op": "auth", "token": {"any": "thing"}}),
        json!({"op": "submit", "ref": "1", "kind": "k", "watch_token": {"cancel": true, "ttl_ms": 9}}),
        json!({"op": "submit", "ref": "1", "kind": "k", "watch_token": {"ttl_ms": 0}}),
        json!({"op": "auth"}),
        json!({"op": "submit", "kind": "k"}),
        json!({"op": "submit", "ref": "1", "input": 1}),
        json!({"op": "submit", "ref": "1", "kind": "k", "more": 1}),
        json!({"op": "submit", "ref": "1", "kind": "k", "timeout_ms": 0}),
        json!({"op": "submit", "ref": "x".repeat(81), "kind": "k"}),
        json!({"op": "submit", "ref": "1", "kind": "k", "key": ""}),
        json!({"op": "submit", "ref": "1", "kind": "k", "key": "x".repeat(256)}),
        json!({"op": "cancel", "ref": "2"}),
        json!({"op": "cancel", "job": "j1", "more": 1}),
        json!({"op": "dance"}),
        json!({"op": "watch"}),
        json!({"op": "watch", "job": "a.b"}),
        json!({"op": "watch", "job": "x".repeat(65)}),
        json!({"op": "watch", "job": format!("demo:{}", "x".repeat(65))}),
        json!({"op": "watch", "job": "demo:"}),
        json!({"op": "watch", "job": "j1", "after": -1}),
        json!({"op": "watch", "job": "j1", "afterr": 1}),
        json!({"op": "unwatch", "job": "j1", "after": 1}),
        json!([]),
    ]
}

/// Submissions, valid and not.
fn submissions() -> [Value; 19] {
    [
        json!({"kind": "k"}),
        json!({"kind": "k", "input": [null], "id": "j", "timeout_ms": 5, "silence_timeout_ms": null}),
        json!({"kind": "k", "callback": "https://h/p"}),
        json!({"kind": "k", "timeout_ms": 5.0}),
        json!({"kind": "callback"}),
        json!({"kind": "a.b"}),
        json!({"kind": "k", "id": "k:j"}),
        json!({"kind": "k", "id": "callback:j"}),
        json!({"kind": "k", "id": "key-j"}),
        json!({"kind": "k", "id": "k:key-j"}),
        json!({"kind": "k", "id": "k:k:j"}),
        json!({"kind": "key-k", "id": "key-k:j"}),
        json!({"kind": "k", "timeout_ms": 0}),
        json!({"kind": "k", "timeout_ms": 1.5}),
        json!({"kind": "k", "timeout_ms": 1_u64 << 53}),
        json!({"kind": "k", "callback": "ftp://h"}),
        json!({"kind": "k", "callback": format!("http://{}", "x".repeat(2048))}),
        json!({"kind": "k", "more": 1}),
        json!({"input": 1}),
    ]
}

#[tokio::test]
async fn the_schemas_accept_exactly_the_valid_client_frames() {
    let frames = client_frames();
    let submissions = submissions();
    let taken = frames
        .iter()
        .map(|frame| ClientFrame::parse(frame.to_string().as_bytes(), Encoding::Json).is_ok());
    let taken: Vec<bool> = taken
        .chain(
            submissions
                .iter()
                .map(|job| Submission::from_json(job.to_string().as_bytes()).is_ok()),
        )
        .collect();
    assert!(
        taken.iter().filter(|taken| **taken).count() == 17,
        "{taken:?}"
    );
    let frames = frames.into_iter().map(|frame| ("ClientFrame", frame));
    let values: Vec<_> = frames
        .chain(submissions.into_iter().map(|job| ("Submission", job)))
        .collect();
    for ((fits, taken), (name, value)) in
        validate(&values).await.into_iter().zip(taken).zip(&values)
    {
        assert_eq!(fits, taken, "{name}: {value}");
    }
}

#[tokio::test]
async fn server_frames_match_the_schemas() {
    let system = System::on(Broker::shared_one()).await;
    system.demo().await;
    let edge = system.edge().await;
    system.submit("done", words(5, 0, 1)).await;
    system.submit("failed", json!({"words": "many"})).await;
    let cancelled = system.submit("cancelled", words(10_000, 5, 1)).await;
    system.cancel(&cancelled).await;
    let mut values = Vec::new();
    for job in ["done", "failed", "cancelled"] {
        let state = system.ended(&job.parse().unwrap()).await;
        assert_eq!(json!(state.status), job);
        values.push(("JobState", json!(state)));
        let mut client = edge.client().await;
        client.send(json!({"op": "watch", "job": job})).await;
        let frame = json!({"op": "watch", "job": job, "after": 99});
        client.send(frame).await;
        let mut ended = 0;
        // One watch ends, the other is refused.
        while ended < 2 {
            let frame = client.frame().await;
            ended += u32::from(frame["op"] == "end" || frame["op"] == "error");
            values.push((name(&frame), frame));
        }
    }
    assert!(values.iter().filter(|(name, _)| *name == "Event").count() > 9);
    assert_all_fit(&values).await;
    // The schemas are not trivial: this event matches neither.
    let wrong = json!({"type": "model:chunk:v1", "job": "j", "seq": 1, "attempt": 1, "ts": 1, "cursor": "A"});
    assert_eq!(
        validate(&[
            ("Event", wrong.clone()),
            ("ServerFrame", wrong.clone()),
            ("OtherEvent", wrong)
        ])
        .await,
        [false, false, true]
    );
    system.end().await;
}
