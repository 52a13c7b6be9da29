use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use futures_util::StreamExt as _;
use ring::hmac;
use ring::rand::SystemRandom;
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use serde_json::{Value, json};
use tailwater::auth::{Expected, KeySet, Revocation, StaticTokens, TokenKeys};
use tailwater::edge::{EdgeSettings, Gate, KeySource, SubjectLimits};
use tailwater::nats::{AuthBucket, Nats, RevocationChange};
use tailwater::wire::{Body, Channel, Submission};
use tempfile::TempDir;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::support::broker::Broker;
use crate::support::http::{exchange, get, http};
use crate::support::http_server::{Exchange, Server};
use crate::support::link::{Flow, Link};
use crate::support::sse::{Item, Sse};
use crate::support::system::{Edge, System};
use crate::support::tokens::{
    SIGNING, Sends, TokenClient, TokenSocket, bearer, issue_ticket, keys, now_s, signed, token,
};
use crate::support::{timed, until, within};

const JSON: &str = "Content-Type: application/json\r\n";

fn chunk(text: &str) -> Body {
    Body::Chunk {
        text: text.into(),
        channel: Channel::Output,
    }
}

async fn submit(system: &System, id: &str) {
    let submission = Submission::new("demo".parse().unwrap(), Value::Null);
    system.submit_with(id, submission).await;
}

/// Sends a submission with a token; returns the answer.
async fn submit_with(edge: &Edge, token: &str, headers: &str, body: &Value) -> (u16, Value) {
    let headers = format!("{JSON}{headers}{}", bearer(token));
    let body = body.to_string();
    let (status, _, answer) = http(edge, "POST", "/api/jobs", &headers, body.as_bytes()).await;
    (status, answer)
}

async fn status(edge: &Edge, path: &str, token: &str) -> u16 {
    http(edge, "GET", path, &bearer(token), b"").await.0
}

#[tokio::test]
async fn a_connection_is_told_that_its_token_expires_and_goes_on_with_a_new_one() {
    let system = System::on(Broker::shared_one()).await;
    submit(&system, "j1").await;
    let job = "j1".parse().unwrap();
    let edge = system.edge_with_tokens().await;
    let grants = json!({"watch": ["j1"]});
    let first = token("a", &grants, 10);
    let mut client = TokenClient::connect(&edge.addr, Sends::Frame, &first)
        .await
        .unwrap();
    assert_eq!(client.frame().await.unwrap()["op"], "token_expiring");
    client.send(&json!({"op": "watch", "job": "j1"})).await;
    assert_eq!(client.frame().await.unwrap()["op"], "watching");
    assert_eq!(client.frame().await.unwrap()["seq"], 1);
    assert_eq!(client.frame().await.unwrap()["op"], "live");
    let mut writer = system.writer(&job, 1).await;
    writer.append(chunk("a")).await.unwrap();
    assert_eq!(client.frame().await.unwrap()["seq"], 2);
    // An invalid token, and one of another secret, change nothing.
    for bad in ["nonsense", &signed(&[b'x'; 40], "a", &grants, 600)] {
        let refused = client.ask(&json!({"op": "auth", "token": bad})).await;
        assert_eq!(refused, "unauthorized");
    }
    let renewed = token("a", &grants, 20);
    client.send(&json!({"op": "auth", "token": renewed})).await;
    let answer = client.frame().await.unwrap();
    assert_eq!(answer["op"], "authenticated");
    assert!(answer["expires_in_ms"].as_u64() > Some(10_000), "{answer}");
    // The watch goes on where it is, also after the first token has expired.
    assert_eq!(client.frame().await.unwrap()["op"], "token_expiring");
    until("the first token to expire", async || {
        status(&edge, "/api/jobs/j1", &first).await == 401
    })
    .await;
    for seq in 3..10 {
        writer.append(chunk("b")).await.unwrap();
        assert_eq!(client.frame().await.unwrap()["seq"], seq);
    }
    assert_eq!(client.closed().await, "4401 token_expired");
    assert_eq!(status(&edge, "/api/jobs/j1", &renewed).await, 401);
    system.end().await;
}

#[tokio::test]
async fn a_socketio_client_goes_on_with_a_new_token_where_it_is() {
    let system = System::on(Broker::shared_one()).await;
    submit(&system, "j1").await;
    let job = "j1".parse().unwrap();
    let edge = system.edge_with_tokens().await;
    let grants = json!({"watch": ["j1"]});
    let first = token("a", &grants, 6);
    let mut socket = TokenSocket::join(&edge.addr, Sends::Frame, &first)
        .await
        .unwrap();
    let notice = socket.packet().await.unwrap();
    assert!(notice.starts_with("42[\"token_expiring\","), "{notice}");
    let watched = socket.ask("watch", &json!({"job": "j1"})).await;
    assert_eq!(watched, "ok");
    let mut packet = socket.packet().await.unwrap();
    while !packet.starts_with("42[\"live\",") {
        packet = socket.packet().await.unwrap();
    }
    let refused = socket.ask("auth", &json!({"token": "nonsense"})).await;
    assert_eq!(refused, "unauthorized");
    let renewed = json!({"token": token("a", &grants, 600)});
    let answer = socket.acknowledged("auth", &renewed).await;
    assert_eq!(answer["op"], "authenticated", "{answer}");
    until("the first token to expire", async || {
        status(&edge, "/api/jobs/j1", &first).await == 401
    })
    .await;
    let mut writer = system.writer(&job, 1).await;
    writer.append(chunk("a")).await.unwrap();
    let packet = socket.packet().await.expect("an event");
    let event = packet.strip_prefix("42").expect("an event");
    let event: Value = serde_json::from_str(event).unwrap();
    assert_eq!(event[1]["seq"], 2, "{event}");
    // Another subject's token ends the connection.
    let other = json!({"token": token("b", &grants, 600)});
    assert_eq!(socket.ask("auth", &other).await, "forbidden");
    socket.rest().await;
    system.end().await;
}

#[tokio::test]
async fn every_connection_ends_when_its_token_expires() {
    let system = System::on(Broker::shared_one()).await;
    submit(&system, "j1").await;
    let edge = system.edge_with_tokens().await;
    // Long enough for a busy machine to open them all.
    let short = token("a", &json!({"watch": ["j1"]}), 15);
    let mut client = TokenClient::connect(&edge.addr, Sends::Header, &short)
        .await
        .unwrap();
    let mut stream = Sse::open(&edge.addr, "/api/jobs/j1/events", &bearer(&short)).await;
    let mut socket = TokenSocket::join(&edge.addr, Sends::Frame, &short)
        .await
        .unwrap();
    let page = "/api/jobs/j1/events?after=1&wait=60";
    let accept = format!("{}Accept: application/json\r\n", bearer(&short));
    let (page, closed) = tokio::join!(http(&edge, "GET", page, &accept, b""), client.closed());
    assert_eq!(closed, "4401 token_expired");
    assert_eq!((page.0, &page.2["code"]), (401, &json!("token_expired")));
    let mut names = Vec::new();
    let mut events = 0;
    loop {
        match stream.event().await {
            Item::Event(..) => events += 1,
            Item::Named(name, frame) => {
                assert_eq!(frame["op"], name);
                assert!(
                    frame["expires_in_ms"].as_u64().unwrap() <= 15_000,
                    "{frame}"
                );
                names.push(name);
            }
            Item::End => break,
            Item::Retry(_) | Item::Comment => {}
        }
    }
    assert_eq!((names, events), (vec!["token_expiring".to_owned()], 1));
    let packets = socket.rest().await.join("\n");
    for expected in ["42[\"token_expiring\",", "\"token_expired\"", "41"] {
        assert!(packets.contains(expected), "{expected}: {packets}");
    }
    // What has expired opens no new connection.
    assert_eq!(status(&edge, "/api/jobs/j1", &short).await, 401);
    system.end().await;
}

#[tokio::test]
async fn a_new_token_ends_the_watches_that_it_does_not_allow() {
    let system = System::on(Broker::shared_one()).await;
    for id in ["j1", "j2"] {
        submit(&system, id).await;
    }
    let edge = system.edge_with_tokens().await;
    let mut client = TokenClient::connect(
        &edge.addr,
        Sends::Header,
        &token("a", &json!({"watch": ["*"]}), 600),
    )
    .await
    .unwrap();
    for id in ["j1", "j2"] {
        client.send(&json!({"op": "watch", "job": id})).await;
        while client.frame().await.unwrap()["op"] != "live" {}
    }
    let narrow = token("a", &json!({"watch": ["j2"]}), 600);
    client.send(&json!({"op": "auth", "token": narrow})).await;
    assert_eq!(client.frame().await.unwrap()["op"], "authenticated");
    let ended = client.frame().await.unwrap();
    assert_eq!(
        (&ended["code"], &ended["job"]),
        (&json!("job_not_found"), &json!("j1"))
    );
    for (id, seen) in [("j1", false), ("j2", true)] {
        let mut writer = system.writer(&id.parse().unwrap(), 1).await;
        writer.append(chunk("x")).await.unwrap();
        if seen {
            let event = client.frame().await.unwrap();
            assert_eq!((&event["job"], &event["seq"]), (&json!("j2"), &json!(2)));
        }
    }
    // Another subject's token closes the connection: its watches are not that subject's.
    let other = token("b", &json!({"watch": ["*"]}), 600);
    client.send(&json!({"op": "auth", "token": other})).await;
    assert_eq!(client.closed().await, "4403 forbidden");
    system.end().await;
}

#[tokio::test]
async fn a_revocation_ends_open_connections_on_every_edge_within_a_second() {
    let system = System::on(Broker::shared_one()).await;
    submit(&system, "j1").await;
    let edges = [
        system.edge_with_tokens().await,
        system.edge_with_tokens().await,
    ];
    let grants = json!({"watch": ["j1"]});
    let nats = Nats::connect(&system.options).await.unwrap();
    let bucket = AuthBucket::open(&nats).await.unwrap();
    for revocation in [Revocation::Sub("a".into()), Revocation::Jti("jti-a".into())] {
        let revoked = token("a", &grants, 600);
        let kept = token("b", &grants, 600);
        let mut clients = Vec::new();
        for edge in &edges {
            let client = TokenClient::connect(&edge.addr, Sends::Header, &revoked).await;
            let stream = Sse::open(&edge.addr, "/api/jobs/j1/events", &bearer(&revoked)).await;
            assert_eq!(stream.status, 200);
            clients.push((client.unwrap(), stream));
        }
        let mut other = TokenClient::connect(&edges[0].addr, Sends::Header, &kept)
            .await
            .unwrap();
        bucket.revoke(&revocation, now_s()).await.unwrap();
        let all_closed = async {
            for (client, stream) in &mut clients {
                assert_eq!(client.closed().await, "4401 token_revoked");
                stream.ends().await;
            }
        };
        // The edges run in this process.
        let ((), took) = timed(all_closed).await;
        assert!(took < Duration::from_secs(1), "{took:?}");
        assert_eq!(status(&edges[1], "/api/jobs/j1", &revoked).await, 401);
        assert_eq!(other.ask(&json!({"op": "watch", "job": "j1"})).await, "ok");
        // An edge that starts later knows it as well.
        let late = system.edge_with_tokens().await;
        assert_eq!(status(&late, "/api/jobs/j1", &revoked).await, 401);
        bucket.withdraw(&revocation).await.unwrap();
        for edge in &edges {
            let back = async || status(edge, "/api/jobs/j1", &revoked).await == 200;
            until("the token to be valid again", back).await;
        }
    }
    system.end().await;
}

#[tokio::test]
async fn revoking_a_token_revokes_the_watch_tokens_that_were_requested_with_it() {
    let system = System::on(Broker::shared_one()).await;
    system.declare_demo().await;
    let edge = system.edge_with_tokens().await;
    let nats = Nats::connect(&system.options).await.unwrap();
    let bucket = AuthBucket::open(&nats).await.unwrap();
    let mut requested = Vec::new();
    for sub in ["a", "b"] {
        let own = token(sub, &json!({"submit": ["demo"]}), 600);
        let (_, answer) = submit_with(&edge, &own, "", &json!({"kind": "demo"})).await;
        let path = format!("/api/jobs/{}", answer["id"].as_str().unwrap());
        let for_job = answer["watch_token"].as_str().unwrap().to_owned();
        assert_eq!(status(&edge, &path, &for_job).await, 200);
        requested.push((path, for_job));
    }
    let (path, revoked) = &requested[0];
    let (other_path, kept) = &requested[1];
    let mut client = TokenClient::connect(&edge.addr, Sends::Header, revoked)
        .await
        .unwrap();
    let stream = format!("{path}/events");
    let mut stream = Sse::open(&edge.addr, &stream, &bearer(revoked)).await;
    assert_eq!(stream.status, 200);
    let revocation = Revocation::Jti("jti-a".into());
    bucket.revoke(&revocation, now_s()).await.unwrap();
    assert_eq!(client.closed().await, "4401 token_revoked");
    stream.ends().await;
    assert_eq!(status(&edge, path, revoked).await, 401);
    assert_eq!(status(&edge, other_path, kept).await, 200);
    system.end().await;
}

#[tokio::test]
async fn a_ticket_opens_one_stream_of_its_job_once_on_any_edge() {
    let system = System::on(Broker::shared_one()).await;
    for id in ["j1", "j2"] {
        submit(&system, id).await;
    }
    let edges = [
        system.edge_with_tokens().await,
        system.edge_with_tokens().await,
    ];
    let own = token("a", &json!({"watch": ["*"], "cancel": ["*"]}), 600);
    let issue = async |job: &str| issue_ticket(&edges[0].addr, &own, job).await;
    let open = async |edge: &Edge, job: &str, ticket: &str| {
        let path = format!("/api/jobs/{job}/events?ticket={ticket}");
        Sse::open(&edge.addr, &path, "").await.status
    };
    let ticket = issue("j1").await;
    assert_eq!(open(&edges[1], "j1", &ticket).await, 200);
    for edge in &edges {
        assert_eq!(open(edge, "j1", &ticket).await, 401);
    }
    // Of many that use it at the same time, one gets the stream.
    let ticket = issue("j1").await;
    let opened =
        futures_util::future::join_all((0..10).map(|n| open(&edges[n % 2], "j1", &ticket))).await;
    assert_eq!(
        opened.iter().filter(|status| **status == 200).count(),
        1,
        "{opened:?}"
    );
    // Not for another job, and not for another route.
    let ticket = issue("j1").await;
    assert_eq!(open(&edges[0], "j2", &ticket).await, 404);
    let ticket = issue("j1").await;
    for (method, path) in [
        ("GET", "/api/jobs/j1"),
        ("POST", "/api/jobs/j1/cancel"),
        ("GET", "/api/jobs"),
    ] {
        let path = format!("{path}?ticket={ticket}");
        let (status, ..) = http(&edges[0], method, &path, "", b"").await;
        assert_eq!(status, 401, "{method} {path}");
    }
    for forged in ["", "x", &own, &"A".repeat(43), "..%2f", "*"] {
        assert_eq!(open(&edges[0], "j1", forged).await, 401, "{forged}");
    }
    system.end().await;
}

#[tokio::test]
async fn a_ticket_and_a_cookie_open_no_state_whatever_the_job_is_named() {
    let system = System::on(Broker::shared_one()).await;
    submit(&system, "events").await;
    let edge = system.edge_with_tokens().await;
    let own = token("a", &json!({"watch": ["*"]}), 600);
    let cookie = format!("Cookie: tailwater_token={own}\r\n");
    let stream = Sse::open(&edge.addr, "/api/jobs/events/events", &cookie).await;
    assert_eq!(stream.status, 200);
    let ticket = issue_ticket(&edge.addr, &own, "events").await;
    for (query, headers) in [(format!("?ticket={ticket}"), ""), (String::new(), &*cookie)] {
        let path = format!("/api/jobs/events{query}");
        let (status, ..) = http(&edge, "GET", &path, headers, b"").await;
        assert_eq!(status, 401, "{path}");
    }
    let stream = format!("/api/jobs/events/events?ticket={ticket}");
    assert_eq!(Sse::open(&edge.addr, &stream, "").await.status, 200);
    system.end().await;
}

#[tokio::test]
async fn the_broker_forgets_a_ticket_after_a_minute() {
    let system = System::on(Broker::shared_one()).await;
    submit(&system, "j1").await;
    let edge = system.edge_with_tokens().await;
    let own = token("a", &json!({"watch": ["j1"]}), 600);
    let ticket = issue_ticket(&edge.addr, &own, "j1").await;
    let context = system.jetstream().await;
    let bucket = context.get_stream(system.names().tickets_stream()).await;
    let bucket = bucket.unwrap();
    let max_age = bucket.cached_info().config.max_age;
    assert_eq!(max_age, Duration::from_secs(60));
    let subject = format!("$KV.{}.*", system.names().tickets_bucket());
    let stored = bucket.get_last_raw_message_by_subject(&subject).await;
    let stored = stored.unwrap();
    // What is stored is no use to a reader of the bucket.
    let seen = format!(
        "{} {}",
        stored.subject,
        String::from_utf8_lossy(&stored.payload)
    );
    assert!(!seen.contains(&ticket), "{seen}");
    system.end().await;
}

#[tokio::test]
async fn an_edge_without_the_bucket_of_tickets_says_that_setup_must_run() {
    let system = System::on(Broker::shared_one()).await;
    let stream = system.names().tickets_stream();
    let context = system.jetstream().await;
    context.delete_stream(&stream).await.unwrap();
    let dir = TempDir::new().unwrap();
    let secret = dir.path().join("secret");
    std::fs::write(&secret, SIGNING).unwrap();
    let secret = secret.display().to_string();
    let auth = ["--auth", "jwt", "--auth-secret", &secret];
    let line = format!("edge --listen 127.0.0.1:0 {}", auth.join(" "));
    let expected = format!("NATS has no stream {stream}: run `tailwater setup` first");
    system.run(&line).await.fails(2, &expected);
    // Without tokens it needs no bucket.
    drop(system.edge_process(&["--auth", "none"]).await);
    system.run("setup --shards 2").await.prints();
    drop(system.edge_process(&auth).await);
    system.end().await;
}

#[tokio::test]
async fn a_token_in_a_url_is_refused() {
    let system = System::on(Broker::shared_one()).await;
    submit(&system, "j1").await;
    let edge = system.edge_with_tokens().await;
    let own = token("a", &json!({"admin": true}), 600);
    for path in [
        "/api/jobs/j1",
        "/api/jobs/j1/events",
        "/api/jobs",
        "/socket.io/",
        "/ws",
    ] {
        for name in ["token", "access_token", "jwt", "bearer"] {
            let path = format!("{path}?{name}={own}");
            let (status, _, body) = http(&edge, "GET", &path, &bearer(&own), b"").await;
            assert_eq!(
                (status, &body["code"]),
                (400, &json!("token_in_url")),
                "{path}"
            );
        }
    }
    system.end().await;
}

#[tokio::test]
async fn the_answer_to_a_submit_has_a_token_for_this_job_only() {
    let system = System::on(Broker::shared_one()).await;
    system.declare_demo().await;
    let edge = system.edge_with_tokens().await;
    let own = token("a", &json!({"submit": ["demo"]}), 600);
    let (code, plain) = submit_with(&edge, &own, "", &json!({"kind": "demo"})).await;
    assert_eq!(code, 202, "{plain}");
    let terms = json!({"kind": "demo", "watch_token": {"cancel": true, "ttl_ms": 15_000}});
    let (_, asked) = submit_with(&edge, &own, "", &terms).await;
    let job = |answer: &Value| answer["id"].as_str().unwrap().to_owned();
    let token_of = |answer: &Value| answer["watch_token"].as_str().unwrap().to_owned();
    for (answer, other, cancel) in [(&plain, &asked, 403), (&asked, &plain, 202)] {
        let for_job = token_of(answer);
        let own = job(answer);
        let other = job(other);
        assert_eq!(
            status(&edge, &format!("/api/jobs/{own}"), &for_job).await,
            200
        );
        assert_eq!(
            status(&edge, &format!("/api/jobs/{other}"), &for_job).await,
            404
        );
        assert_eq!(status(&edge, "/api/jobs", &for_job).await, 403);
        let path = format!("/api/jobs/{own}/cancel");
        let (cancelled, ..) = http(&edge, "POST", &path, &bearer(&for_job), b"").await;
        assert_eq!(cancelled, cancel);
        let (submitted, _) = submit_with(&edge, &for_job, "", &json!({"kind": "demo"})).await;
        assert_eq!(submitted, 403);
    }
    let mut client = TokenClient::connect(&edge.addr, Sends::Subprotocol, &token_of(&asked))
        .await
        .unwrap();
    client
        .send(&json!({"op": "watch", "job": job(&asked)}))
        .await;
    assert_eq!(client.closed().await, "4401 token_expired");
    // Over the other transports as well.
    let mut client = TokenClient::connect(&edge.addr, Sends::Header, &own)
        .await
        .unwrap();
    client
        .send(&json!({"op": "submit", "ref": "r", "kind": "demo"}))
        .await;
    let submitted = client.frame().await.unwrap();
    assert!(submitted["watch_token"].is_string(), "{submitted}");
    let mut socket = TokenSocket::join(&edge.addr, Sends::Frame, &own)
        .await
        .unwrap();
    let submitted = socket
        .acknowledged("submit", &json!({"kind": "demo"}))
        .await;
    assert!(submitted["watch_token"].is_string(), "{submitted}");
    system.end().await;
}

#[tokio::test]
async fn a_repeated_submission_gives_no_one_access_to_the_job_of_another_subject() {
    let system = System::on(Broker::shared_one()).await;
    system.declare_demo().await;
    let edge = system.edge_with_tokens().await;
    let grants = json!({"submit": ["demo"]});
    let a = token("a", &grants, 600);
    let b = token("b", &grants, 600);
    // The same key of two subjects is two jobs; the same key of one subject is one.
    let key = "Idempotency-Key: order-7\r\n";
    let body = json!({"kind": "demo"});
    let (_, first) = submit_with(&edge, &a, key, &body).await;
    let (again_status, again) = submit_with(&edge, &a, key, &body).await;
    let (other_status, other) = submit_with(&edge, &b, key, &body).await;
    assert_eq!((again_status, other_status), (200, 202));
    assert_eq!(first["id"], again["id"]);
    assert_ne!(first["id"], other["id"]);
    assert!(again["watch_token"].is_string(), "{again}");
    // An id is not a secret.
    let body = json!({"kind": "demo", "id": "shared"});
    let (_, first) = submit_with(&edge, &a, "", &body).await;
    let (repeated, guessed) = submit_with(&edge, &b, "", &body).await;
    assert!(first["watch_token"].is_string(), "{first}");
    assert_eq!(
        (repeated, &guessed["watch_token"]),
        (200, &Value::Null),
        "{guessed}"
    );
    system.end().await;
}

#[tokio::test]
async fn static_tokens_of_a_file_are_accepted() {
    let system = System::on(Broker::shared_one()).await;
    submit(&system, "j1").await;
    let listed = "static-token-of-the-viewer-0";
    let file =
        json!({"tokens": [{"token": listed, "sub": "viewer", "role": "viewer"}]}).to_string();
    let keys = TokenKeys {
        tokens: StaticTokens::from_json(file.as_bytes()).unwrap(),
        ..TokenKeys::default()
    };
    let edge = system.edge_with_keys(keys).await;
    assert_eq!(status(&edge, "/api/jobs/j1", listed).await, 200);
    assert_eq!(status(&edge, "/api/stats", listed).await, 403);
    assert_eq!(status(&edge, "/api/jobs/j1", &listed[1..]).await, 401);
    assert_eq!(
        status(
            &edge,
            "/api/jobs/j1",
            &token("a", &json!({"admin": true}), 60)
        )
        .await,
        401
    );
    let mut client = TokenClient::connect(&edge.addr, Sends::Subprotocol, listed)
        .await
        .unwrap();
    assert_eq!(client.ask(&json!({"op": "watch", "job": "j1"})).await, "ok");
    system.end().await;
}

#[tokio::test]
async fn issuer_and_audience_are_checked_by_an_edge_that_names_them() {
    let system = System::on(Broker::shared_one()).await;
    submit(&system, "j1").await;
    let keys = TokenKeys {
        expected: Expected {
            issuer: None,
            audience: Some("tailwater".into()),
        },
        ..keys()
    };
    let edge = system.edge_with_keys(keys).await;
    let without = token("a", &json!({"admin": true}), 60);
    let (status, _, body) = http(&edge, "GET", "/api/jobs/j1", &bearer(&without), b"").await;
    assert_eq!(
        (status, &body["code"]),
        (401, &json!("unauthorized")),
        "{body}"
    );
    system.end().await;
}

#[tokio::test]
async fn a_client_that_sends_no_token_in_time_is_closed() {
    let system = System::on(Broker::shared_one()).await;
    let edge = system.edge_with_tokens().await;
    let since = Instant::now();
    let mut client = TokenClient::connect(&edge.addr, Sends::Nothing, "")
        .await
        .unwrap();
    assert_eq!(client.closed().await, "4401 unauthorized");
    let waited = since.elapsed();
    assert!((9..20).contains(&waited.as_secs()), "{waited:?}");
    system.end().await;
}

#[tokio::test]
async fn the_reason_of_a_refused_token_is_reported_whatever_follows() {
    let system = System::on(Broker::shared_one()).await;
    let edge = system.edge_with_tokens().await;
    let grants = json!({"watch": ["j1"]});
    let auth = |token: String| json!({"op": "auth", "token": token});
    let watch = json!({"op": "watch", "job": "j1"});
    let expired = auth(token("a", &grants, -1));
    for following in [watch, json!({"op": "ping"}), auth("nonsense".to_owned())] {
        let mut client = TokenClient::connect(&edge.addr, Sends::Nothing, "")
            .await
            .unwrap();
        client
            .send_together(&[expired.clone(), following.clone()])
            .await;
        assert_eq!(client.closed().await, "4401 token_expired", "{following}");
    }
    system.end().await;
}

/// An issuer that signs tokens with keys of its own.
struct Issuer(Vec<Ed25519KeyPair>);

impl Issuer {
    fn with_keys(count: usize) -> Self {
        let random = SystemRandom::new();
        let keys = (0..count).map(|_| {
            let pkcs8 = Ed25519KeyPair::generate_pkcs8(&random).unwrap();
            Ed25519KeyPair::from_pkcs8(pkcs8.as_ref()).unwrap()
        });
        Self(keys.collect())
    }

    /// The JWK set of the first keys.
    fn key_set(&self, count: usize) -> String {
        let keys = self.0.iter().take(count).enumerate().map(|(n, key)| {
            let x = BASE64.encode(key.public_key());
            json!({"kty": "OKP", "crv": "Ed25519", "kid": n.to_string(), "x": x})
        });
        let set = json!({"keys": keys.collect::<Vec<_>>()}).to_string();
        assert!(KeySet::from_json(set.as_bytes()).is_ok());
        set
    }

    /// A token for watching the job, signed with the key of this number.
    fn token(&self, number: usize) -> String {
        let part = |value: Value| BASE64.encode(value.to_string());
        let header = part(json!({"alg": "EdDSA", "kid": number.to_string()}));
        let claims = part(json!({"sub": "a", "exp": now_s() + 60, "tailwater": {"watch": ["j1"]}}));
        let message = format!("{header}.{claims}");
        let tag = BASE64.encode(self.0[number].sign(message.as_bytes()));
        format!("{message}.{tag}")
    }
}

/// A token with this header and these claims, signed with a secret.
fn hmac_token(header: &Value, claims: &Value, secret: &[u8]) -> String {
    let part = |value: &Value| BASE64.encode(value.to_string());
    let message = format!("{}.{}", part(header), part(claims));
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
    let tag = BASE64.encode(hmac::sign(&key, message.as_bytes()));
    format!("{message}.{tag}")
}

#[tokio::test]
async fn forged_tokens_get_in_nowhere() {
    let system = System::on(Broker::shared_one()).await;
    submit(&system, "j1").await;
    let issuer = Issuer::with_keys(1);
    let set = issuer.key_set(1);
    let server = Server::start(move |mut exchange: Exchange| {
        let set = set.clone();
        async move { exchange.answer("200 OK", JSON, &set).await }
    })
    .await;
    let edge = edge_with_keys_of(&system, keys(), &server).await;
    let end = now_s() + 600;
    let claims = json!({"sub": "a", "exp": end, "tailwater": {"admin": true}});
    let hs256 = json!({"alg": "HS256"});
    for valid in [issuer.token(0), hmac_token(&hs256, &claims, SIGNING)] {
        assert_eq!(status(&edge, "/api/jobs/j1", &valid).await, 200, "{valid}");
    }
    let with = |field: &str, value: Value| {
        let mut claims = claims.clone();
        claims[field] = value;
        hmac_token(&hs256, &claims, SIGNING)
    };
    let header = |field: &str, value: &str| json!({"alg": "HS256", field: value});
    let public: &[u8] = issuer.0[0].public_key().as_ref();
    let unsigned = hmac_token(&json!({"alg": "none"}), &claims, b"");
    let forged = [
        format!("{}.", unsigned.rsplit_once('.').unwrap().0),
        unsigned,
        // The public key as a secret.
        hmac_token(&header("kid", "0"), &claims, public),
        hmac_token(
            &header("kid", "0"),
            &claims,
            BASE64.encode(public).as_bytes(),
        ),
        // A key that the token names or brings.
        hmac_token(&header("kid", "../../../../dev/null"), &claims, b""),
        hmac_token(&header("kid", "0' UNION SELECT 'x"), &claims, b"x"),
        hmac_token(
            &header("jku", &format!("http://{}/own", server.addr)),
            &claims,
            b"x",
        ),
        hmac_token(&json!({"alg": "HS384"}), &claims, SIGNING),
        with("nbf", json!(end)),
        with("exp", Value::Null),
        with("sub", json!("")),
        with("tailwater", json!({"everything": true})),
    ];
    for token in forged {
        assert_eq!(status(&edge, "/api/jobs/j1", &token).await, 401, "{token}");
        for sends in [Sends::Header, Sends::Subprotocol, Sends::Frame] {
            let refused = TokenClient::connect(&edge.addr, sends, &token).await.err();
            let code = refused.unwrap_or_else(|| panic!("{sends:?} {token}"));
            assert!(code.ends_with("unauthorized"), "{code}: {sends:?} {token}");
        }
        let refused = TokenSocket::join(&edge.addr, Sends::Frame, &token).await;
        assert_eq!(refused.err().as_deref(), Some("unauthorized"), "{token}");
    }
    // The edge has read no key but those of its issuer.
    assert_eq!(server.requests().len(), 1);
    system.end().await;
}

/// An edge that reads an issuer's keys from this server, besides its own.
async fn edge_with_keys_of(system: &System, own: TokenKeys, server: &Server) -> Edge {
    let source = KeySource::Url(format!("http://{}/keys", server.addr));
    system
        .edge_with(EdgeSettings {
            gate: Gate::checked(own, Some(source), SubjectLimits::default()),
            ..EdgeSettings::default()
        })
        .await
}

/// After a `connect_error`, a Socket.IO library would not connect again by itself.
#[tokio::test]
async fn a_socketio_client_whose_token_cannot_be_checked_yet_is_cut_off_without_a_refusal() {
    let system = System::on(Broker::shared_one()).await;
    let server = Server::start(|mut exchange: Exchange| async move {
        exchange.answer("500 Oops", JSON, "").await;
    })
    .await;
    let edge = edge_with_keys_of(&system, TokenKeys::default(), &server).await;
    let token = Issuer::with_keys(1).token(0);
    let refused = TokenSocket::join(&edge.addr, Sends::Frame, &token).await;
    assert_eq!(refused.err().as_deref(), Some("disconnected"));
    let path = "/socket.io/?EIO=4&transport=polling";
    let (_, open) = get(&edge.addr, path, "").await;
    let open: Value = serde_json::from_str(open.strip_prefix('0').unwrap()).unwrap();
    let path = format!("{path}&sid={}", open["sid"].as_str().unwrap());
    let join = format!("40{}", json!({"token": token}));
    let polls = async {
        loop {
            let (head, body) = get(&edge.addr, &path, "").await;
            if head.starts_with("HTTP/1.1 400 ") {
                break;
            }
            // Engine.IO's `close` and `ping`, which a poll before the end may get.
            assert!(["1", "2"].contains(&body.as_str()), "{head}{body}");
        }
    };
    let joins = exchange(&edge.addr, "POST", &path, "", join.as_bytes());
    within("the end of the session", async {
        tokio::join!(polls, joins)
    })
    .await;
    system.end().await;
}

#[tokio::test]
async fn an_unknown_key_makes_the_edge_read_the_key_set_again_but_rarely() {
    let system = System::on(Broker::shared_one()).await;
    submit(&system, "j1").await;
    let issuer = Issuer::with_keys(3);
    // The second key is published after the edge has read the set once.
    let sets = [issuer.key_set(1), issuer.key_set(2)];
    let server = Server::start(move |mut exchange: Exchange| {
        let set = sets[(exchange.number - 1).min(1)].clone();
        async move { exchange.answer("200 OK", JSON, &set).await }
    })
    .await;
    let edge = edge_with_keys_of(&system, TokenKeys::default(), &server).await;
    assert_eq!(status(&edge, "/api/jobs/j1", &issuer.token(0)).await, 200);
    assert_eq!(server.requests().len(), 1);
    assert_eq!(status(&edge, "/api/jobs/j1", &issuer.token(1)).await, 200);
    assert_eq!(server.requests().len(), 2);
    for _ in 0..20 {
        assert_eq!(status(&edge, "/api/jobs/j1", &issuer.token(2)).await, 401);
    }
    assert_eq!(server.requests().len(), 2);
    system.end().await;
}

#[tokio::test]
async fn the_old_keys_stay_in_use_when_the_key_set_cannot_be_read_again() {
    let system = System::on(Broker::shared_one()).await;
    submit(&system, "j1").await;
    let issuer = Issuer::with_keys(2);
    for (line, body) in [
        ("500 Oops", ""),
        ("200 OK", "<html>"),
        ("200 OK", r#"{"keys":[]}"#),
    ] {
        let set = issuer.key_set(1);
        let server = Server::start(move |mut exchange: Exchange| {
            let (line, body) = match exchange.number {
                1 => ("200 OK", set.clone()),
                _ => (line, body.to_owned()),
            };
            async move { exchange.answer(line, JSON, &body).await }
        })
        .await;
        let edge = edge_with_keys_of(&system, TokenKeys::default(), &server).await;
        assert_eq!(status(&edge, "/api/jobs/j1", &issuer.token(1)).await, 401);
        assert_eq!(server.requests().len(), 2);
        let old = status(&edge, "/api/jobs/j1", &issuer.token(0)).await;
        assert_eq!(old, 200, "{line} {body}");
    }
    system.end().await;
}

#[tokio::test]
async fn the_key_set_is_read_for_all_even_if_the_first_client_disconnects() {
    let system = System::on(Broker::shared_one()).await;
    submit(&system, "j1").await;
    let issuer = Issuer::with_keys(2);
    let sets = [issuer.key_set(1), issuer.key_set(2)];
    let released = Arc::new(Notify::new());
    let release = Arc::clone(&released);
    let server = Server::start(move |mut exchange: Exchange| {
        let set = sets[(exchange.number - 1).min(1)].clone();
        let released = Arc::clone(&released);
        async move {
            if exchange.number == 2 {
                released.notified().await;
            }
            exchange.answer("200 OK", JSON, &set).await;
        }
    })
    .await;
    let edge = edge_with_keys_of(&system, TokenKeys::default(), &server).await;
    let token = issuer.token(1);
    tokio::select! {
        found = status(&edge, "/api/jobs/j1", &token) => panic!("answered with {found}"),
        () = until("a request for the keys", async || server.requests().len() == 2) => {}
    }
    // The edge has noticed that the first client disconnected once it has served others.
    for _ in 0..5 {
        assert_eq!(status(&edge, "/healthz", &token).await, 200);
    }
    release.notify_one();
    assert_eq!(status(&edge, "/api/jobs/j1", &token).await, 200);
    assert_eq!(server.requests().len(), 2);
    system.end().await;
}

/// An operator removes the revocations while the answer to the watch's question whether there are
/// any is on its way.
#[tokio::test]
async fn a_watch_is_complete_when_the_revocations_are_removed_while_it_begins() {
    let broker = Broker::shared_one();
    let system = System::on(broker).await;
    let near = Nats::connect(&system.options).await.unwrap();
    let bucket = AuthBucket::open(&near).await.unwrap();
    let revocation = Revocation::Sub("a".into());
    bucket.revoke(&revocation, 1).await.unwrap();
    let link = Link::to(&broker.addr(0)).await;
    let far = system.reached_at(&format!("nats://{}", link.addr));
    let far = Nats::connect(&far.options).await.unwrap();
    let watched = AuthBucket::open(&far).await.unwrap();
    let stream = system.names().auth_stream();
    let client = system.client().await;
    let info = format!("$JS.API.STREAM.INFO.{stream}");
    let mut asked = client.subscribe(info).await.unwrap();
    // Once a request is answered, the subscription is active.
    client.request("$JS.API.INFO", "".into()).await.unwrap();
    link.set(Flow::Late(Duration::from_secs(1)));
    let complete = Notify::new();
    let watch = watched.watch_revocations(|change| {
        if change == RevocationChange::Complete {
            complete.notify_one();
        }
    });
    let remove = async {
        within("a request", asked.next()).await.unwrap();
        link.set(Flow::Silent);
        let revoked = format!("$KV.{}.revoked.>", system.names().auth_bucket());
        system.remove(&stream, &revoked).await;
        link.set(Flow::Open);
        within("a complete watch", complete.notified()).await;
    };
    tokio::select! {
        ended = watch => panic!("{ended:?}"),
        () = remove => {}
    }
    system.end().await;
}
