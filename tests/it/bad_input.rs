use serde_json::json;
use tailwater::wire::{Cursor, JobId, Seq};

use crate::support::broker::Broker;
use crate::support::client::{Client, Frame, Seen};
use crate::support::http::{UPGRADE, assert_problem, http, post, post_refused, refused};
use crate::support::system::{Edge, System, text, words};
use crate::support::{assert_fields, table};

#[tokio::test]
async fn bad_requests_are_refused_with_a_code_and_store_nothing() {
    let system = System::on(Broker::shared_one()).await;
    system.demo().await;
    let edge = system.edge().await;
    let long = "x".repeat(65);
    let of_size = |size| json!({"kind": "demo", "input": "x".repeat(size)});
    for (body, status, code) in [
        (json!({"kind": "demo", "id": "a.b"}), 400, "bad_job_id"),
        (json!({"kind": "demo", "id": "a*"}), 400, "bad_job_id"),
        (json!({"kind": "demo", "id": "a b"}), 400, "bad_job_id"),
        (json!({"kind": "demo", "id": ""}), 400, "bad_job_id"),
        (json!({"kind": "demo", "id": long}), 400, "bad_job_id"),
        (json!({"kind": "demo", "id": "other:a"}), 400, "bad_job_id"),
        (
            json!({"kind": "demo", "id": "callback:a"}),
            400,
            "bad_job_id",
        ),
        (
            json!({"kind": "demo", "id": "demo:key-a"}),
            400,
            "bad_job_id",
        ),
        (
            json!({"kind": "demo", "id": "demo:demo:a"}),
            400,
            "bad_job_id",
        ),
        (json!({"kind": "demo", "id": "demo:"}), 400, "bad_job_id"),
        (json!({"kind": "de.mo"}), 400, "bad_kind"),
        (json!({"kind": "unknown"}), 422, "unknown_kind"),
        (json!({"input": 1}), 400, "bad_request"),
        (json!({"kind": "demo", "inputt": 1}), 400, "bad_request"),
        (json!([1]), 400, "bad_request"),
        (of_size(512 * 1024), 413, "too_large"),
        (of_size(10 << 20), 413, "too_large"),
    ] {
        let problem = post_refused(&edge, &body, status, code).await;
        assert_eq!(problem["status"], status);
    }
    for (content, body, status, code) in [
        ("application/json", "{", 400, "bad_json"),
        ("text/plain", "{}", 415, "unsupported_media_type"),
        ("", "{}", 415, "unsupported_media_type"),
    ] {
        let headers = match content {
            "" => String::new(),
            content => format!("Content-Type: {content}\r\n"),
        };
        let (found, _, problem) = http(&edge, "POST", "/api/jobs", &headers, body.as_bytes()).await;
        assert_problem(found, &problem, status, code);
    }
    for [method, path, status, code] in table(
        "GET /api/jobs/a.b/state 400 bad_job_id
        GET /api/jobs/unknown/state 404 job_not_found
        GET /api/job/unknown/state 404 job_not_found
        GET /nowhere 404 not_found
        PUT /api/jobs 405 method_not_allowed
        GET /ws 400 bad_request",
    ) {
        let request = format!("{method} {path}");
        refused(&edge, &request, "", status.parse().unwrap(), code).await;
    }
    // The streams are still empty.
    assert_eq!(system.stored_messages().await, 0);
    system.end().await;
}

#[tokio::test]
async fn submitting_an_id_again_returns_the_job_or_a_conflict() {
    let system = System::on(Broker::shared_one()).await;
    system.demo().await;
    let edge = system.edge().await;
    let body = json!({"kind": "demo", "id": "twice", "input": {"words": 5, "rate": 0}});
    let (status, answer) = post(&edge, &body).await;
    let expected = json!({"id": "twice", "job": "twice", "kind": "demo", "status": "queued"});
    assert_eq!((status, answer), (202, expected));
    assert_eq!(post(&edge, &body).await.0, 200);
    let other = json!({"kind": "demo", "id": "twice", "input": {"words": 6, "rate": 0}});
    post_refused(&edge, &other, 409, "job_exists").await;
    let state = system.ended(&"twice".parse().unwrap()).await;
    assert_eq!((state.attempt, state.output), (1, text(&body["input"])));
    for (job, status, code) in [
        ("twice", 409, "job_ended"),
        ("unknown", 404, "job_not_found"),
        ("a.b", 400, "bad_job_id"),
    ] {
        let request = format!("POST /api/jobs/{job}/cancel");
        refused(&edge, &request, "", status, code).await;
    }
    system.end().await;
}

#[tokio::test]
async fn a_bad_frame_is_answered_and_the_connection_stays_open() {
    let system = System::on(Broker::shared_one()).await;
    system.demo().await;
    let edge = system.edge().await;
    let mut client = edge.client().await;
    for (frame, code) in [
        ("hello", "bad_json"),
        ("", "bad_json"),
        ("[]", "bad_request"),
        (r#"{"op":"dance"}"#, "unknown_op"),
        (r#"{"op":"watch"}"#, "bad_request"),
        (r#"{"op":"watch","job":"a.b"}"#, "bad_job_id"),
        (r#"{"op":"watch","job":"a b"}"#, "bad_job_id"),
        (r#"{"op":"watch","job":"*"}"#, "bad_job_id"),
        (
            r#"{"op":"watch","job":"j","cursor":"made up"}"#,
            "bad_cursor",
        ),
        (r#"{"op":"watch","job":"j","after":7}"#, "after_the_end"),
        (r#"{"op":"unwatch","job":"j"}"#, "not_watching"),
    ] {
        client.send_text(frame).await;
        let error = client.op().await;
        assert_fields!(error, {"op": "error", "code": code}, "{frame}: {error}");
        assert!(!error["message"].as_str().unwrap().is_empty());
    }
    // The connection still works.
    let input = words(10, 0, 1);
    system.submit("after", input.clone()).await;
    let mut seen = Seen::of("after");
    client.watch(&seen).await;
    seen.follow(&mut client).await;
    seen.assert_whole();
    client.watch(&Seen::of("again")).await;
    client.watch(&Seen::of("again")).await;
    let codes = [client.op().await, client.op().await, client.op().await];
    assert!(
        codes
            .iter()
            .any(|frame| frame["code"] == "already_watching"),
        "{codes:?}"
    );
    system.end().await;
}

#[tokio::test]
async fn a_frame_of_ten_megabytes_closes_only_the_connection_that_sent_it() {
    let system = System::on(Broker::shared_one()).await;
    system.demo().await;
    let edge = system.edge().await;
    let (mut good, mut seen) = edge.watch("good").await;
    let mut bad = edge.client().await;
    let frame = json!({"op": "watch", "job": "x".repeat(10 << 20)}).to_string();
    bad.send_text(&frame).await;
    assert_eq!(bad.next().await, Frame::Closed(1009));
    let mut binary = edge.client().await;
    binary.send_binary(vec![1, 2, 3]).await;
    assert_eq!(binary.next().await, Frame::Closed(1003));
    system.submit("good", words(10, 0, 1)).await;
    seen.follow(&mut good).await;
    seen.assert_whole();
    system.end().await;
}

#[tokio::test]
async fn unknown_cursors_and_cursors_of_other_jobs_are_refused() {
    let broker = Broker::one();
    let system = System::on(&broker).await;
    system.demo().await;
    let edge = system.edge().await;
    let jobs: [JobId; 2] = ["one", "two"].map(|id| id.parse().unwrap());
    let mut cursors = Vec::new();
    for job in &jobs {
        system.submit(&job.to_string(), words(10, 0, 1)).await;
        cursors.push(system.ended(job).await.cursor.unwrap());
    }
    let found = refusal(&edge, "one", &cursors[1]).await;
    assert_eq!(found, "cursor_of_other_job");
    // A well-formed cursor of an event that does not exist.
    let forged = Cursor::of(&jobs[0], Seq(3), 9999, b"no such event");
    let found = refusal(&edge, "one", &forged.to_string()).await;
    assert_eq!(found, "cursor_not_in_log");
    let elsewhere = Cursor::of(&jobs[0], Seq(30), 1, b"another event");
    let found = refusal(&edge, "one", &elsewhere.to_string()).await;
    assert_eq!(found, "cursor_not_in_log");
    system.end().await;
    // The same job runs again in new streams.
    let rebuilt = System::on(&broker).await;
    rebuilt.demo().await;
    let job = rebuilt.submit("one", words(10, 0, 2)).await;
    rebuilt.ended(&job).await;
    let edge = rebuilt.edge().await;
    let found = refusal(&edge, "one", &cursors[0]).await;
    assert_eq!(found, "cursor_not_in_log");
    rebuilt.end().await;
}

async fn refusal(edge: &Edge, job: &str, cursor: &str) -> String {
    let mut client = edge.client().await;
    let frame = json!({"op": "watch", "job": job, "cursor": cursor});
    client.send(frame).await;
    let error = client.op().await;
    assert_eq!(error["job"], job, "{error}");
    error["code"]
        .as_str()
        .unwrap_or_else(|| panic!("{error}"))
        .to_owned()
}

#[tokio::test]
async fn an_unknown_subprotocol_is_refused_before_the_upgrade() {
    let system = System::on(Broker::shared_one()).await;
    let edge = system.edge().await;
    let upgrade = format!("{UPGRADE}Sec-WebSocket-Protocol: soap\r\n");
    refused(&edge, "GET /ws", &upgrade, 400, "bad_subprotocol").await;
    assert!(Client::try_connect(&edge.addr).await.is_some());
    system.end().await;
}
