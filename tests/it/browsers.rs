use serde_json::{Value, json};
use tailwater::edge::{AllowedOrigins, EdgeSettings};

use crate::support::broker::Broker;
use crate::support::http::{UPGRADE, exchange, http, raw};
use crate::support::system::{Edge, System};
use crate::support::tokens::{bearer, gate, keys, token};

const EVIL: &str = "Origin: https://evil.example\r\n";
const JSON: &str = "Content-Type: application/json\r\n";

/// The status and the code of the answer to a request with these header lines.
async fn ask(edge: &Edge, method: &str, path: &str, headers: &str, body: &Value) -> (u16, String) {
    let body = if body.is_null() {
        String::new()
    } else {
        body.to_string()
    };
    let (status, _, answer) = http(edge, method, path, headers, body.as_bytes()).await;
    (
        status,
        answer["code"].as_str().unwrap_or_default().to_owned(),
    )
}

/// Every way in.
fn requests() -> Vec<(&'static str, &'static str, String, Value)> {
    let plain = |method, path| (method, path, String::new(), Value::Null);
    vec![
        plain("GET", "/"),
        plain("GET", "/api/jobs"),
        plain("GET", "/api/jobs/j1"),
        plain("GET", "/api/jobs/j1/events"),
        plain("GET", "/api/stats"),
        plain("GET", "/openapi.json"),
        plain("GET", "/healthz"),
        plain("GET", "/nowhere"),
        plain("POST", "/api/jobs/j1/cancel"),
        (
            "POST",
            "/api/jobs",
            JSON.to_owned(),
            json!({"kind": "demo"}),
        ),
        // A page may send these without a preflight.
        (
            "POST",
            "/api/jobs",
            "Content-Type: text/plain\r\n".to_owned(),
            json!({"kind": "demo"}),
        ),
        (
            "OPTIONS",
            "/api/jobs",
            "Access-Control-Request-Method: POST\r\n".to_owned(),
            Value::Null,
        ),
        ("GET", "/ws", UPGRADE.to_owned(), Value::Null),
        plain("GET", "/socket.io/?EIO=4&transport=polling"),
        (
            "GET",
            "/socket.io/?EIO=4&transport=websocket",
            UPGRADE.to_owned(),
            Value::Null,
        ),
    ]
}

#[tokio::test]
async fn a_page_of_another_origin_can_neither_read_nor_submit() {
    let system = System::on(Broker::shared_one()).await;
    system.declare_demo().await;
    let edge = system.edge().await;
    for origin in [
        "https://evil.example",
        "null",
        "http://localhost:1",
        "http://localhost.evil.example",
        "file://",
    ] {
        for (method, path, headers, body) in requests() {
            let headers = format!("Origin: {origin}\r\n{headers}");
            let (head, answer) = exchange(
                &edge.addr,
                method,
                path,
                &headers,
                body.to_string().as_bytes(),
            )
            .await;
            let is_refused =
                head.starts_with("HTTP/1.1 403") && answer.contains("origin_not_allowed");
            assert!(is_refused, "{origin} {method} {path}: {head}");
            assert!(
                !head.contains("access-control-allow-origin"),
                "{path}: {head}"
            );
        }
    }
    assert_eq!(system.stored_messages().await, 0);
    system.end().await;
}

#[tokio::test]
async fn a_page_of_the_edge_itself_and_of_a_listed_origin_can_submit() {
    let system = System::on(Broker::shared_one()).await;
    system.declare_demo().await;
    let mut settings = EdgeSettings::default();
    settings.browsers.origins = AllowedOrigins::Listed(vec!["https://app.example".into()]);
    let edge = system.edge_with(settings).await;
    let body = json!({"kind": "demo"});
    for (origin, expected) in [
        ("http://localhost", 202),
        ("https://localhost", 202),
        ("https://app.example", 202),
        ("https://app.example:8443", 403),
        ("https://evil.example", 403),
    ] {
        let headers = format!("Origin: {origin}\r\n{JSON}");
        let (head, _) = exchange(
            &edge.addr,
            "POST",
            "/api/jobs",
            &headers,
            body.to_string().as_bytes(),
        )
        .await;
        assert!(
            head.starts_with(&format!("HTTP/1.1 {expected}")),
            "{origin}: {head}"
        );
        let allowed = format!("access-control-allow-origin: {origin}");
        assert_eq!(head.contains(&allowed), expected == 202, "{origin}: {head}");
        assert!(!head.contains("access-control-allow-credentials"), "{head}");
    }
    system.end().await;
}

#[tokio::test]
async fn a_request_that_names_another_host_is_refused() {
    let system = System::on(Broker::shared_one()).await;
    let mut settings = EdgeSettings::default();
    settings.browsers.public_hosts = vec!["tail.example".into()];
    let edge = system.edge_with(settings).await;
    for (host, served) in [
        ("tail.example", true),
        ("tail.example:4000", true),
        ("127.0.0.1:4000", true),
        ("localhost", true),
        ("evil.example", false),
        ("evil.example:4000", false),
        ("tail.example.evil.example", false),
        ("127.0.0.1.evil.example", false),
    ] {
        for (path, headers) in [("/healthz", ""), ("/api/jobs", ""), ("/ws", UPGRADE)] {
            // A page that was rebound to this address has its own origin.
            let request = format!(
                "GET {path} HTTP/1.1\r\nHost: {host}\r\nOrigin: http://{host}\r\nConnection: close\r\n{headers}\r\n"
            );
            let answer = raw(&edge.addr, &request).await;
            let is_refused =
                answer.starts_with("HTTP/1.1 421") && answer.contains("host_not_allowed");
            assert_eq!(is_refused, !served, "{host} {path}: {answer}");
        }
    }
    system.end().await;
}

#[tokio::test]
async fn with_tokens_any_page_may_try_but_does_nothing_without_one() {
    let system = System::on(Broker::shared_one()).await;
    system.declare_demo().await;
    let edge = system
        .edge_with(EdgeSettings {
            gate: gate(keys()),
            browsers: tailwater::edge::BrowserPolicy {
                origins: AllowedOrigins::Any,
                ..Default::default()
            },
            ..EdgeSettings::default()
        })
        .await;
    let body = json!({"kind": "demo"});
    let without = format!("{EVIL}{JSON}Cookie: token=x; session=y\r\n");
    assert_eq!(
        ask(&edge, "POST", "/api/jobs", &without, &body).await,
        (401, "unauthorized".into())
    );
    let own = bearer(&token("a", &json!({"submit": ["demo"]}), 60));
    let with = format!("{EVIL}{JSON}{own}");
    assert_eq!(ask(&edge, "POST", "/api/jobs", &with, &body).await.0, 202);
    // The page can read the refusal.
    let (head, _) = exchange(&edge.addr, "GET", "/api/jobs", EVIL, b"").await;
    assert!(
        head.contains("access-control-allow-origin: https://evil.example"),
        "{head}"
    );
    assert!(head.contains("www-authenticate: Bearer"), "{head}");
    system.end().await;
}

#[tokio::test]
async fn every_answer_has_the_headers_that_protect_a_browser() {
    let system = System::on(Broker::shared_one()).await;
    let checked = system.edge_with_tokens().await;
    let open = system.edge().await;
    let get = |path: &str, headers: &str| {
        format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{headers}\r\n")
    };
    let polling = "/socket.io/?EIO=4&transport=polling";
    let rebound = "GET / HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n".to_owned();
    let hostless = "GET / HTTP/1.1\r\nConnection: close\r\n\r\n".to_owned();
    let put = get("/api/jobs", "").replace("GET", "PUT");
    for (edge, request, status) in [
        (&open, get("/", ""), 200),
        (&open, get("/console.js", ""), 200),
        (&open, get("/client.js", ""), 200),
        (&open, get("/api/jobs", ""), 200),
        (&open, get("/openapi.json", ""), 200),
        (&open, get("/metrics", ""), 200),
        (&open, get(polling, ""), 200),
        (&open, get("/api/jobs/none", ""), 404),
        (&open, get("/nowhere", ""), 404),
        (&open, get("/api/jobs/a.b", ""), 400),
        (&open, put, 405),
        (&open, get("/", EVIL), 403),
        (&open, rebound, 421),
        (&open, hostless, 400),
        (&checked, get("/api/jobs", ""), 401),
        (&checked, get("/api/jobs?token=x", ""), 400),
    ] {
        let answer = raw(&edge.addr, &request).await;
        let (head, body) = answer
            .split_once("\r\n\r\n")
            .unwrap_or((answer.as_str(), ""));
        assert!(
            head.starts_with(&format!("HTTP/1.1 {status}")),
            "{request}: {head}"
        );
        for header in [
            "x-content-type-options: nosniff",
            "x-frame-options: DENY",
            "referrer-policy: no-referrer",
            "content-security-policy: default-src 'none'",
        ] {
            assert!(head.contains(header), "{request} {header}: {head}");
        }
        // The policy allows no script or style within a page.
        for inline in ["<script>", "<style", " style=", " onload="] {
            assert!(!body.contains(inline), "{request}: {inline}");
        }
    }
    system.end().await;
}
