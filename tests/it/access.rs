use serde_json::{Value, json};
use tailwater::auth::Revocation;
use tailwater::nats::{AuthBucket, Nats};
use tailwater::wire::Submission;

use crate::support::broker::Broker;
use crate::support::http::{exchange, http};
use crate::support::sse::Sse;
use crate::support::system::{Edge, System};
use crate::support::table;
use crate::support::tokens::{
    PollingSocket, Sends, TokenClient, TokenSocket, bearer, now_s, signed, token,
};

/// What each kind of token may do, as the code of the answer. `-`: the transport closes or refuses the connection with
/// the code of the row `connect`.
///
/// The tokens: none at all; one of another secret; one that has expired; a revoked one; a valid one without grants; one
/// for watching the job; for watching and cancelling another job; for submitting the kind; for watching and cancelling
/// the job; for watching the job and listing; for everything.
const MATRIX: &str = "
    connect   unauthorized unauthorized token_expired token_revoked ok            ok        ok            ok            ok        ok        ok
    state     unauthorized unauthorized token_expired token_revoked job_not_found ok        job_not_found job_not_found ok        ok        ok
    page      unauthorized unauthorized token_expired token_revoked job_not_found ok        job_not_found job_not_found ok        ok        ok
    stream    unauthorized unauthorized token_expired token_revoked job_not_found ok        job_not_found job_not_found ok        ok        ok
    watch     -            -            -             -             job_not_found ok        job_not_found job_not_found ok        ok        ok
    absent    unauthorized unauthorized token_expired token_revoked job_not_found job_not_found job_not_found job_not_found job_not_found job_not_found job_not_found
    ticket    unauthorized unauthorized token_expired token_revoked job_not_found ok        job_not_found job_not_found ok        ok        ok
    purge     unauthorized unauthorized token_expired token_revoked job_not_found forbidden job_not_found job_not_found forbidden forbidden job_not_ended
    cancel    unauthorized unauthorized token_expired token_revoked job_not_found forbidden job_not_found job_not_found ok        forbidden ok
    submit    unauthorized unauthorized token_expired token_revoked forbidden     forbidden forbidden     ok            forbidden forbidden ok
    kind      unauthorized unauthorized token_expired token_revoked forbidden     forbidden forbidden     forbidden     forbidden forbidden unknown_kind
    list      unauthorized unauthorized token_expired token_revoked forbidden     forbidden forbidden     forbidden     forbidden ok        ok
    stats     unauthorized unauthorized token_expired token_revoked forbidden     forbidden forbidden     forbidden     forbidden forbidden ok
    metrics   unauthorized unauthorized token_expired token_revoked forbidden     forbidden forbidden     forbidden     forbidden forbidden ok
    describe  unauthorized unauthorized token_expired token_revoked ok            ok        ok            ok            ok        ok        ok
    health    ok           ok           ok            ok            ok            ok        ok            ok            ok        ok        ok
";

const KINDS: usize = 11;

/// The tokens of the columns.
fn tokens() -> [Option<String>; KINDS] {
    let watch = json!({"watch": ["j1"]});
    [
        None,
        Some(signed(
            b"another secret of thirty-two bytes or more",
            "a",
            &json!({"admin": true}),
            600,
        )),
        Some(token("a", &json!({"admin": true}), -1)),
        Some(token("revoked", &json!({"admin": true}), 600)),
        Some(token("nothing", &json!({}), 600)),
        Some(token("watcher", &watch, 600)),
        Some(token(
            "other",
            &json!({"watch": ["j", "j12", "j2*"], "cancel": ["j2"]}),
            600,
        )),
        Some(token("submitter", &json!({"submit": ["demo"]}), 600)),
        Some(token(
            "canceller",
            &json!({"watch": ["j*"], "cancel": ["j1"]}),
            600,
        )),
        Some(token(
            "lister",
            &json!({"watch": ["j1"], "list": true}),
            600,
        )),
        Some(token("admin", &json!({"admin": true}), 600)),
    ]
}

/// The code of an HTTP answer, or `ok`.
fn code(status: u16, body: &Value) -> String {
    match body["code"].as_str() {
        Some(code) => code.to_owned(),
        None if (200..300).contains(&status) => "ok".to_owned(),
        None => panic!("{status}: {body}"),
    }
}

/// Sends the requests of an operation with these headers and this query, which has a credential or none.
async fn over_http(edge: &Edge, operation: &str, own: &str, query: &str) -> Option<String> {
    let json = format!("{own}Content-Type: application/json\r\n");
    let get = async |path: &str, accept: &str| {
        let headers = format!("{own}{accept}");
        let (status, _, body) = http(edge, "GET", &format!("{path}{query}"), &headers, b"").await;
        code(status, &body)
    };
    let post = async |path: &str, body: Value| {
        let body = body.to_string();
        let path = format!("{path}{query}");
        let (status, _, body) = http(edge, "POST", &path, &json, body.as_bytes()).await;
        code(status, &body)
    };
    Some(match operation {
        "state" => {
            let state = get("/api/jobs/j1/state", "").await;
            let result = get("/api/jobs/j1", "").await;
            let old = get("/api/job/j1/state", "").await;
            assert_eq!((&state, &state), (&result, &old));
            state
        }
        "absent" => get("/api/jobs/j1-never-submitted", "").await,
        "page" => get("/api/jobs/j1/events", "Accept: application/json\r\n").await,
        "stream" => {
            let path = format!("/api/jobs/j1/events{query}");
            let stream = Sse::open(&edge.addr, &path, own).await;
            match stream.status {
                200 => "ok".to_owned(),
                // The code is in the body, as for a page.
                _ => get("/api/jobs/j1/events", "").await,
            }
        }
        "ticket" => post("/api/tickets", json!({"job": "j1"})).await,
        // The job waits in the queue.
        "purge" => {
            let path = format!("/api/jobs/j1{query}");
            let (status, _, body) = http(edge, "DELETE", &path, own, b"").await;
            code(status, &body)
        }
        "cancel" => post("/api/jobs/j1/cancel", json!({})).await,
        "submit" => post("/api/jobs", json!({"kind": "demo"})).await,
        "kind" => post("/api/jobs", json!({"kind": "exec"})).await,
        "list" => get("/api/jobs", "").await,
        "stats" => {
            let stats = get("/api/stats", "").await;
            let socketio = get("/api/socketio/stats", "").await;
            assert_eq!(stats, socketio);
            stats
        }
        "metrics" => {
            let path = format!("/metrics{query}");
            let (head, body) = exchange(&edge.addr, "GET", &path, own, b"").await;
            let status = head.split(' ').nth(1).unwrap().parse().unwrap();
            code(status, &serde_json::from_str(&body).unwrap_or_default())
        }
        "describe" => get("/openapi.json", "").await,
        "health" => get("/healthz", "").await,
        _ => return None,
    })
}

/// What an `EventSource` can send of a token: a header with the cookie, and a query with a ticket, if there is one for the
/// token.
async fn of_event_source(edge: &Edge, token: &str) -> Vec<(&'static str, String, String)> {
    let cookie = format!("Cookie: tailwater_token={token}\r\n");
    let mut found = vec![("cookie", cookie, String::new())];
    let headers = format!("{}Content-Type: application/json\r\n", bearer(token));
    let body = br#"{"job":"j1"}"#;
    let (_, _, issued) = http(edge, "POST", "/api/tickets", &headers, body).await;
    if let Some(ticket) = issued["ticket"].as_str() {
        found.push(("ticket", String::new(), format!("?ticket={ticket}")));
    }
    found
}

/// How a client sends this token.
fn way_of(token: Option<&str>, sends: Sends) -> Sends {
    if token.is_some() {
        sends
    } else {
        Sends::Nothing
    }
}

/// The frame of an operation that WebSocket and Socket.IO clients have.
fn frame(operation: &str) -> Option<(&str, Value)> {
    Some(match operation {
        "watch" => ("watch", json!({"job": "j1"})),
        "cancel" => ("cancel", json!({"job": "j1"})),
        "submit" => ("submit", json!({"kind": "demo", "ref": "r"})),
        "kind" => ("submit", json!({"kind": "exec", "ref": "r"})),
        _ => return None,
    })
}

async fn over_websocket(
    edge: &Edge,
    operation: &str,
    sends: Sends,
    token: Option<&str>,
) -> Option<String> {
    let sends = way_of(token, sends);
    let connected = TokenClient::connect(&edge.addr, sends, token.unwrap_or_default()).await;
    let closed = |code: String| code.strip_prefix("4401 ").unwrap_or(&code).to_owned();
    if operation == "connect" {
        return Some(match connected {
            // Without a token, the first frame ends the connection.
            Ok(mut client) if token.is_none() => {
                closed(client.ask(&json!({"op": "watch", "job": "j1"})).await)
            }
            Ok(_) => "ok".to_owned(),
            Err(code) => closed(code),
        });
    }
    let (op, mut fields) = frame(operation)?;
    let mut client = connected.ok().filter(|_| token.is_some())?;
    fields["op"] = op.into();
    Some(client.ask(&fields).await)
}

async fn over_socketio(
    edge: &Edge,
    operation: &str,
    sends: Sends,
    token: Option<&str>,
) -> Option<String> {
    let sends = way_of(token, sends);
    let joined = TokenSocket::join(&edge.addr, sends, token.unwrap_or_default()).await;
    if operation == "connect" {
        return Some(joined.map_or_else(|code| code, |_| "ok".to_owned()));
    }
    let (event, fields) = frame(operation)?;
    Some(joined.ok()?.ask(event, &fields).await)
}

async fn over_polling(
    edge: &Edge,
    operation: &str,
    sends: Sends,
    token: Option<&str>,
) -> Option<String> {
    if operation != "connect" && frame(operation).is_none() {
        return None;
    }
    let sends = way_of(token, sends);
    let joined = PollingSocket::join(&edge.addr, sends, token.unwrap_or_default()).await;
    if operation == "connect" {
        return Some(joined.map_or_else(|code| code, |_| "ok".to_owned()));
    }
    let (event, fields) = frame(operation)?;
    Some(joined.ok()?.ask(event, &fields).await)
}

#[tokio::test]
async fn each_token_may_do_what_it_grants_on_every_transport_and_nothing_else() {
    let system = System::on(Broker::shared_one()).await;
    system.declare_demo().await;
    system
        .submit_with("j1", Submission::new("demo".parse().unwrap(), Value::Null))
        .await;
    let nats = Nats::connect(&system.options).await.unwrap();
    let bucket = AuthBucket::open(&nats).await.unwrap();
    // Issued first: a revocation covers the tokens that were issued up to its second.
    let tokens = tokens();
    let revocation = Revocation::Sub("revoked".to_owned());
    bucket.revoke(&revocation, now_s()).await.unwrap();
    let edge = system.edge_with_tokens().await;
    let mut checked = 0;
    for [operation, expected @ ..] in table::<{ KINDS + 1 }>(MATRIX) {
        let without_token = expected[0];
        for (number, (token, expected)) in tokens.iter().zip(expected).enumerate() {
            let token = token.as_deref();
            let own = token.map(bearer).unwrap_or_default();
            let mut answers = vec![("http", over_http(&edge, operation, &own, "").await)];
            for sends in [Sends::Header, Sends::Subprotocol, Sends::Frame] {
                let answer = over_websocket(&edge, operation, sends, token).await;
                answers.push(("websocket", answer));
            }
            for sends in [Sends::Header, Sends::Frame] {
                let answer = over_socketio(&edge, operation, sends, token).await;
                answers.push(("socketio", answer));
                let answer = over_polling(&edge, operation, sends, token).await;
                answers.push(("polling", answer));
            }
            let mut found = false;
            for (transport, answer) in answers {
                if let Some(answer) = answer {
                    // The transport before it has cancelled the job.
                    let was_allowed = operation == "cancel" && answer == "job_ended";
                    let answer = if was_allowed { "ok" } else { &answer };
                    assert_eq!(
                        answer, expected,
                        "{operation} over {transport}, token {number}"
                    );
                    (found, checked) = (true, checked + 1);
                }
            }
            assert_eq!(found, expected != "-", "{operation}, token {number}");
            let Some(token) = token else { continue };
            // A cookie and a ticket open the events of the job. For anything else they are as good as no token.
            let expected = match operation {
                "page" | "stream" => expected,
                _ => without_token,
            };
            for (credential, headers, query) in of_event_source(&edge, token).await {
                if let Some(answer) = over_http(&edge, operation, &headers, &query).await {
                    assert_eq!(
                        answer, expected,
                        "{operation} with a {credential}, token {number}"
                    );
                    checked += 1;
                }
            }
        }
    }
    assert!(checked > 500, "{checked}");
    system.end().await;
}

#[tokio::test]
async fn a_list_contains_only_the_jobs_that_the_subject_may_watch() {
    let system = System::on(Broker::shared_one()).await;
    for id in ["a1", "a2", "b1", "b2", "c1"] {
        system
            .submit_with(id, Submission::new("demo".parse().unwrap(), Value::Null))
            .await;
    }
    let edge = system.edge_with_tokens().await;
    for (watch, expected) in [
        (json!(["a*", "c1"]), vec!["a1", "a2", "c1"]),
        (json!(["b2"]), vec!["b2"]),
        (json!([]), vec![]),
        (json!(["*"]), vec!["a1", "a2", "b1", "b2", "c1"]),
    ] {
        let own = bearer(&token("a", &json!({"watch": watch, "list": true}), 600));
        let mut ids = Vec::new();
        let mut path = "/api/jobs?limit=1".to_owned();
        loop {
            let (status, _, page) = http(&edge, "GET", &path, &own, b"").await;
            assert_eq!(status, 200, "{page}");
            let jobs = page["jobs"].as_array().unwrap();
            ids.extend(
                jobs.iter()
                    .map(|job| job["id"].as_str().unwrap().to_owned()),
            );
            match page["next"].as_str() {
                Some(next) => path = format!("/api/jobs?limit=1&page={next}"),
                None => break,
            }
        }
        ids.sort_unstable();
        assert_eq!(ids, expected);
    }
    system.end().await;
}

#[tokio::test]
async fn path_tricks_and_wildcards_reach_no_other_job() {
    let system = System::on(Broker::shared_one()).await;
    system
        .submit_with(
            "secret",
            Submission::new("demo".parse().unwrap(), Value::Null),
        )
        .await;
    let edge = system.edge_with_tokens().await;
    let limited = token(
        "a",
        &json!({"watch": ["j1", "mine*"], "cancel": ["mine*"]}),
        600,
    );
    let own = bearer(&limited);
    for id in [
        "secret",
        "mine%2F..%2Fsecret",
        "mine/../secret",
        "mine%2e%2e%2fsecret",
        "..%2Fsecret",
        "mine%00secret",
        "*",
        ">",
        "%3E",
        "mine.secret",
        "mine%0d%0asecret",
        "Secret",
        "%73ecret",
    ] {
        for (method, path) in [
            ("GET", format!("/api/jobs/{id}")),
            ("GET", format!("/api/jobs/{id}/state")),
            ("GET", format!("/api/jobs/{id}/events")),
            ("GET", format!("/api/jobs/{id}/events?must_exist=true")),
            ("POST", format!("/api/jobs/{id}/cancel")),
            ("DELETE", format!("/api/jobs/{id}")),
        ] {
            let (status, _, body) = http(&edge, method, &path, &own, b"").await;
            let refused = ["job_not_found", "bad_job_id", "not_found", "bad_request"];
            let code = body["code"].as_str().unwrap_or_default();
            // A path that is not valid HTTP gets 400 without a body.
            let is_bare = status == 400 && body.is_null();
            assert!(
                is_bare || refused.contains(&code),
                "{method} {path}: {status} {body}"
            );
        }
    }
    let mut client = TokenClient::connect(&edge.addr, Sends::Header, &limited)
        .await
        .unwrap();
    for id in [
        "secret",
        "mine/../secret",
        "mine.secret",
        "*",
        ">",
        "mine\0secret",
        "mine\nsecret",
        "",
    ] {
        for op in ["watch", "cancel"] {
            let refused = client.ask(&json!({"op": op, "job": id})).await;
            assert!(
                ["job_not_found", "bad_job_id"].contains(&&*refused),
                "{op} {id:?}: {refused}"
            );
        }
    }
    system.end().await;
}
