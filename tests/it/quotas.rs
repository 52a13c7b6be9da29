use serde_json::{Value, json};
use tailwater::edge::{EdgeSettings, Gate, SubjectLimits};

use crate::support::broker::Broker;
use crate::support::http::{exchange, get, metric};
use crate::support::sse::Sse;
use crate::support::system::{Edge, System, words};
use crate::support::tokens::{Sends, TokenClient, TokenSocket, bearer, keys, token};
use crate::support::{assert_fields, until};

/// An edge that checks tokens, with these limits of each subject.
async fn edge(system: &System, limits: SubjectLimits) -> Edge {
    let settings = EdgeSettings {
        gate: Gate::checked(keys(), None, limits),
        ..EdgeSettings::default()
    };
    system.edge_with(settings).await
}

fn everything(sub: &str) -> String {
    token(sub, &json!({"admin": true}), 600)
}

/// Submits a job that takes no time. Returns the head and the code of the answer.
async fn submit(edge: &Edge, token: &str) -> (String, String) {
    let headers = format!("Content-Type: application/json\r\n{}", bearer(token));
    let body = json!({"kind": "demo", "input": words(1, 1000, 1)}).to_string();
    let (head, answer) = exchange(&edge.addr, "POST", "/api/jobs", &headers, body.as_bytes()).await;
    let answer: Value = serde_json::from_str(&answer).unwrap();
    (head, answer["code"].as_str().unwrap_or("ok").to_owned())
}

/// Requires that a response names the limit and when to come back.
fn assert_limited(head: &str, policy: &str, limit: &str) {
    let lines: Vec<_> = head.lines().collect();
    for line in [
        "HTTP/1.1 429 Too Many Requests",
        "retry-after: 1",
        &format!("ratelimit-policy: {policy}"),
        &format!("ratelimit: {limit}"),
    ] {
        assert!(lines.contains(&line), "{line}: {head}");
    }
}

/// How often clients reached a limit, as the edge reports it. All edges of this process count
/// together.
async fn reached(edge: &Edge, limit: &str) -> f64 {
    counted(edge, &format!("limited_total{{limit=\"{limit}\"}}")).await
}

async fn counted(edge: &Edge, name: &str) -> f64 {
    let own = bearer(&everything("observer"));
    metric(&edge.addr, &own, &format!("tailwater_edge_{name}")).await
}

#[tokio::test]
async fn a_subject_with_too_many_streams_is_refused_on_every_transport() {
    let system = System::on(Broker::shared_one()).await;
    let limits = SubjectLimits {
        connections: 2,
        ..SubjectLimits::default()
    };
    let edge = edge(&system, limits).await;
    let before = reached(&edge, "connections").await;
    let refusals = "refusals_total{code=\"rate_limited\"}";
    let refused_before = counted(&edge, refusals).await;
    let a = everything("a");
    let b = everything("b");
    let path = "/api/jobs/later/events";
    let first = TokenClient::connect(&edge.addr, Sends::Header, &a)
        .await
        .unwrap();
    let stream = Sse::open(&edge.addr, path, &bearer(&a)).await;
    assert_eq!(stream.status, 200);
    for sends in [Sends::Header, Sends::Subprotocol, Sends::Frame] {
        let mut refused = TokenClient::connect(&edge.addr, sends, &a).await.unwrap();
        let error = refused.frame().await.unwrap();
        assert_fields!(error, {"op": "error", "code": "rate_limited", "retry_after": 1});
        let closed = refused.closed().await;
        assert_eq!(closed, "1013 rate_limited; retry_after=1", "{sends:?}");
    }
    let mut refused = TokenSocket::join(&edge.addr, Sends::Frame, &a)
        .await
        .unwrap();
    let packets = refused.rest().await;
    let error = packets
        .iter()
        .find(|packet| packet.contains("rate_limited"));
    let error = error.unwrap_or_else(|| panic!("{packets:?}"));
    assert!(
        error.starts_with(r#"42["tailwater:error""#) && error.contains(r#""retry_after":1"#),
        "{error}"
    );
    let (head, _) = get(&edge.addr, path, &bearer(&a)).await;
    assert_limited(&head, r#""connections";q=2"#, r#""connections";r=0;t=1"#);
    assert!(reached(&edge, "connections").await >= before + 5.0);
    assert!(counted(&edge, refusals).await >= refused_before + 5.0);
    // Requests that are not streams go on, and so do other subjects.
    let (head, _) = get(&edge.addr, "/api/jobs", &bearer(&a)).await;
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    let mut other = TokenClient::connect(&edge.addr, Sends::Header, &b)
        .await
        .unwrap();
    assert_eq!(other.ask(&json!({"op": "watch", "job": "j"})).await, "ok");
    drop((first, stream));
    until("a place for another stream", async || {
        let client = Box::pin(TokenClient::connect(&edge.addr, Sends::Header, &a)).await;
        let watch = json!({"op": "watch", "job": "j"});
        Box::pin(client.unwrap().ask(&watch)).await == "ok"
    })
    .await;
    system.end().await;
}

#[tokio::test]
async fn the_holder_of_a_token_for_one_job_leaves_streams_to_the_rest_of_its_subject() {
    let system = System::on(Broker::shared_one()).await;
    let limits = SubjectLimits {
        connections: 4,
        ..SubjectLimits::default()
    };
    let edge = edge(&system, limits).await;
    let for_job = bearer(&token("app", &json!({"watch": ["later"]}), 600));
    let own = bearer(&everything("app"));
    let path = "/api/jobs/later/events";
    let mut open = Vec::new();
    for (header, expected) in [
        (&for_job, 200),
        (&for_job, 200),
        (&for_job, 200),
        (&for_job, 429),
        (&own, 200),
        (&own, 429),
    ] {
        let stream = Sse::open(&edge.addr, path, header).await;
        assert_eq!(stream.status, expected, "{}", open.len());
        open.push(stream);
    }
    drop(open);
    system.end().await;
}

#[tokio::test]
async fn a_subject_that_submits_too_fast_is_told_when_to_come_back() {
    let system = System::on(Broker::shared_one()).await;
    system.declare_demo().await;
    let limits = SubjectLimits {
        submits_per_s: 1,
        ..SubjectLimits::default()
    };
    let edge = edge(&system, limits).await;
    let before = reached(&edge, "submits").await;
    let a = everything("a");
    let b = everything("b");
    let mut client = TokenClient::connect(&edge.addr, Sends::Header, &a)
        .await
        .unwrap();
    let frame = json!({"op": "submit", "ref": "r", "kind": "demo"});
    let mut codes = Vec::new();
    // The limit holds for all connections of the subject together.
    for _ in 0..2 {
        codes.push(client.ask(&frame).await);
        let (head, code) = submit(&edge, &a).await;
        if code == "rate_limited" {
            assert_limited(&head, r#""submits";q=1;w=1"#, r#""submits";r=0;t=1"#);
        }
        codes.push(code);
    }
    assert!(codes.contains(&"rate_limited".to_owned()), "{codes:?}");
    assert!(codes.contains(&"ok".to_owned()), "{codes:?}");
    assert!(reached(&edge, "submits").await > before);
    assert_eq!(submit(&edge, &b).await.1, "ok");
    until("a second to pass", async || {
        submit(&edge, &a).await.1 == "ok"
    })
    .await;
    system.end().await;
}

#[tokio::test]
async fn a_subject_with_too_many_jobs_submits_again_once_some_have_ended() {
    let system = System::on(Broker::shared_one()).await;
    system.declare_demo().await;
    let limits = SubjectLimits {
        jobs: 10,
        ..SubjectLimits::default()
    };
    let edge = edge(&system, limits).await;
    let before = reached(&edge, "jobs").await;
    let a = everything("a");
    let b = everything("b");
    for _ in 0..10 {
        assert_eq!(submit(&edge, &a).await.1, "ok");
    }
    let (head, code) = submit(&edge, &a).await;
    assert_eq!(code, "rate_limited");
    assert_limited(&head, r#""jobs";q=10"#, r#""jobs";r=0;t=1"#);
    assert!(reached(&edge, "jobs").await > before);
    assert_eq!(submit(&edge, &b).await.1, "ok");
    system.demo().await;
    for _ in 0..15 {
        until("a job to end", async || submit(&edge, &a).await.1 == "ok").await;
    }
    system.end().await;
}
