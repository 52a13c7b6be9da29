//! HTTP requests over a bare socket, for heads and bodies that no library would send.

use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::system::Edge;
use super::within;

/// Sends one HTTP request; returns the head and the body of the answer.
pub async fn exchange(
    addr: &str,
    method: &str,
    path: &str,
    headers: &str,
    body: &[u8],
) -> (String, String) {
    let mut socket = TcpStream::connect(addr).await.unwrap();
    let length = body.len();
    let headers = if headers.contains("Connection:") {
        headers.to_owned()
    } else {
        format!("Connection: close\r\n{headers}")
    };
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n{headers}\r\n"
    );
    let mut answer = Vec::new();
    within("an answer", async {
        socket.write_all(head.as_bytes()).await.unwrap();
        // The edge may answer before it has read all of a body that it refuses.
        let _ = socket.write_all(body).await;
        let _ = socket.read_to_end(&mut answer).await;
    })
    .await;
    let answer = String::from_utf8(answer).unwrap();
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .unwrap_or_else(|| panic!("no answer to {method} {path}"));
    (format!("{head}\r\n"), body.to_owned())
}

/// Sends these bytes; returns everything that the edge sends until it closes the connection, or until
/// it has upgraded it: a WebSocket stays open.
pub async fn raw(addr: &str, bytes: impl AsRef<[u8]>) -> String {
    let mut socket = TcpStream::connect(addr).await.unwrap();
    let mut answer = Vec::new();
    within("an answer", async {
        // The edge may answer before it has read everything.
        let _ = socket.write_all(bytes.as_ref()).await;
        let is_upgraded = |answer: &[u8]| {
            answer.starts_with(b"HTTP/1.1 101 ")
                && answer.windows(4).any(|bytes| bytes == b"\r\n\r\n")
        };
        while !is_upgraded(&answer) {
            if socket.read_buf(&mut answer).await.unwrap_or(0) == 0 {
                break;
            }
        }
    })
    .await;
    String::from_utf8_lossy(&answer).into_owned()
}

/// The value of a header in the head of an edge's answer; `name` is in lowercase.
pub fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
}

/// Sends one HTTP request to an edge; returns status, content type and body.
pub async fn http(
    edge: &Edge,
    method: &str,
    path: &str,
    headers: &str,
    body: &[u8],
) -> (u16, String, Value) {
    let (head, body) = exchange(&edge.addr, method, path, headers, body).await;
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    if status == 503 {
        assert!(
            head.to_ascii_lowercase().contains("\r\nretry-after: "),
            "{head}"
        );
    }
    let content = header(&head, "content-type").unwrap_or("").to_owned();
    (
        status,
        content,
        serde_json::from_str(&body).unwrap_or(Value::Null),
    )
}

pub async fn post(edge: &Edge, body: &Value) -> (u16, Value) {
    let json = "Content-Type: application/json\r\n";
    let (status, _, body) =
        http(edge, "POST", "/api/jobs", json, body.to_string().as_bytes()).await;
    (status, body)
}

/// Header lines that upgrade to a WebSocket, and close the connection if that is refused.
pub const UPGRADE: &str = "Upgrade: websocket\r\nConnection: Upgrade, close\r\n\
    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

/// Requires that an edge refuses a request without a body with this status and code.
pub async fn refused(edge: &Edge, request: &str, headers: &str, status: u16, code: &str) {
    let (method, path) = request.split_once(' ').unwrap();
    let (got, content, problem) = http(edge, method, path, headers, b"").await;
    let found = (got, problem["code"].as_str());
    assert_eq!(
        found,
        (status, Some(code)),
        "{request} {headers:?}: {problem}"
    );
    assert_eq!(content, "application/problem+json", "{request}");
}

/// Requires that an edge answers a GET with JSON.
pub async fn get_json(edge: &Edge, path: &str) -> Value {
    let accept = "Accept: application/json\r\n";
    let (status, content, body) = http(edge, "GET", path, accept, b"").await;
    let found = (status, content.as_str());
    assert_eq!(found, (200, "application/json"), "{path}: {body}");
    body
}

/// A GET; returns the head and the body of the answer.
pub async fn get(addr: &str, path: &str, headers: &str) -> (String, String) {
    exchange(addr, "GET", path, headers, b"").await
}

/// Requires that an edge refuses to submit a job with this status and code; returns the problem.
pub async fn post_refused(edge: &Edge, body: &Value, status: u16, code: &str) -> Value {
    let (found, problem) = post(edge, body).await;
    assert_problem(found, &problem, status, code);
    problem
}

/// The statistics of an edge.
pub async fn stats(addr: &str, path: &str) -> Value {
    serde_json::from_str(&get(addr, path, "").await.1).unwrap()
}

/// The value of a metric that an edge or a worker serves. `name` includes the labels.
pub async fn metric(addr: &str, headers: &str, name: &str) -> f64 {
    let (_, text) = get(addr, "/metrics", headers).await;
    let mut lines = text.lines();
    let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    let value = value.unwrap_or_else(|| panic!("no {name} in\n{text}"));
    value.parse().unwrap()
}

/// Requires that an answer is a problem with this status and code.
#[track_caller]
pub fn assert_problem(status: u16, problem: &Value, expected: u16, code: &str) {
    let found = (status, problem["code"].as_str());
    assert_eq!(found, (expected, Some(code)), "{problem}");
}
