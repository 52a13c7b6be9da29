use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::broker::Broker;
use crate::support::http::{UPGRADE, exchange, get, raw};
use crate::support::system::{System, words};
use crate::support::{assert_fields, within};

/// Requires that the edge sends these bytes next.
async fn assert_reads(socket: &mut TcpStream, expected: &str) {
    let mut bytes = vec![0; expected.len()];
    let read = within("an answer", socket.read_exact(&mut bytes)).await;
    read.unwrap();
    assert_eq!(String::from_utf8_lossy(&bytes), expected);
}

/// The status and the code of an answer.
fn status_and_code(answer: &str) -> (u16, String) {
    let status = answer
        .split(' ')
        .nth(1)
        .unwrap_or_else(|| panic!("no answer: {answer:?}"));
    let body: Value = answer
        .split_once("\r\n\r\n")
        .map_or(Value::Null, |(head, body)| {
            assert!(
                body.is_empty() || !head.contains("problem+json") || body.starts_with('{'),
                "{answer}"
            );
            serde_json::from_str(body).unwrap_or_default()
        });
    (
        status.parse().unwrap(),
        body["code"].as_str().unwrap_or_default().to_owned(),
    )
}

#[tokio::test]
async fn a_request_must_name_exactly_one_host() {
    let system = System::on(Broker::shared_one()).await;
    let edge = system.edge().await;
    let close = "Connection: close\r\n";
    let empty = "Connection: close\r\nContent-Length: 0\r\n";
    for (line, headers) in [
        ("GET /healthz", close),
        ("GET /nowhere", close),
        ("OPTIONS /api/jobs", close),
        ("POST /api/jobs/j/cancel", empty),
        ("GET /socket.io/?EIO=4&transport=polling", close),
        ("GET /ws", UPGRADE),
    ] {
        for hosts in [
            "",
            "Host: localhost\r\nHost: localhost\r\n",
            "Host: localhost\r\nHOST: y\r\n",
            "Host: x, y\r\n",
            "Host: a b\r\n",
        ] {
            let request = format!("{line} HTTP/1.1\r\n{hosts}{headers}\r\n");
            let answer = raw(&edge.addr, request).await;
            let found = status_and_code(&answer);
            let expected = (400, "bad_request".into());
            assert_eq!(found, expected, "{line}, {hosts:?}: {answer}");
        }
    }
    for good in [
        "GET /healthz HTTP/1.0\r\n\r\n",
        "GET /healthz HTTP/1.1\r\nHost:\r\nConnection: close\r\n\r\n",
        "GET /healthz HTTP/1.1\r\nhost: [::1]:4000\r\nConnection: close\r\n\r\n",
        "GET http://elsewhere.example/healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
    ] {
        let answer = raw(&edge.addr, good).await;
        assert_eq!(status_and_code(&answer).0, 200, "{good}: {answer}");
    }
    system.end().await;
}

#[tokio::test]
async fn a_bad_websocket_handshake_is_refused_on_both_transports() {
    let system = System::on(Broker::shared_one()).await;
    let edge = system.edge().await;
    let version = "Sec-WebSocket-Version: 13\r\n";
    let key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    let upgrade = "Upgrade: websocket\r\nConnection: Upgrade\r\n";
    let polling = "/socket.io/?EIO=4&transport=polling";
    let (_, opened) = get(&edge.addr, polling, "").await;
    let sid = opened.split('"').nth(3).unwrap();
    let paths = [
        "/ws",
        "/socket.io/?EIO=4&transport=websocket",
        "/socket.io?transport=websocket=&EIO=4",
        &format!("/socket.io/?EIO=4&transport=websocket&sid={sid}"),
    ];
    let bad = [
        String::new(),
        format!("{version}{key}"),
        format!("Connection: keep-alive\r\n{version}{key}"),
        format!("Upgrade: websocket\r\nConnection: close\r\n{version}{key}"),
        format!("{upgrade}{version}"),
        format!("{upgrade}{version}Sec-WebSocket-Key: x\r\n"),
        format!("{upgrade}{version}Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25j\r\n"),
        format!("{upgrade}{version}{key}{key}"),
    ];
    let other_version = [
        format!("{upgrade}{key}"),
        format!("{upgrade}{key}Sec-WebSocket-Version: 8\r\n"),
    ];
    let bad = bad.iter().map(|headers| (headers, 400, "bad_request"));
    let other_version = other_version
        .iter()
        .map(|headers| (headers, 426, "upgrade_required"));
    let handshakes: Vec<_> = bad.chain(other_version).collect();
    for path in paths {
        for &(headers, status, code) in &handshakes {
            let head = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{headers}");
            let answer = raw(&edge.addr, format!("{head}Connection: close\r\n\r\n")).await;
            let found = status_and_code(&answer);
            assert_eq!(found, (status, code.into()), "{path} {headers}: {answer}");
            let names = answer.contains("\r\nsec-websocket-version: 13\r\n")
                && answer.contains("\r\nupgrade: websocket\r\n");
            assert_eq!(names, status == 426, "{answer}");
        }
        let old = format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n{upgrade}{version}{key}\r\n");
        let (status, _) = status_and_code(&raw(&edge.addr, old).await);
        assert_eq!(status, 400, "{path} over HTTP/1.0");
    }
    for path in &paths[..3] {
        for upgrade in [
            upgrade,
            "Upgrade: WebSocket\r\nConnection: keep-alive, Upgrade\r\n",
            "Upgrade: h2c, websocket\r\nConnection: keep-alive\r\nConnection: upgrade\r\n",
        ] {
            let mut socket = TcpStream::connect(&edge.addr).await.unwrap();
            let request =
                format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{upgrade}{version}{key}\r\n");
            socket.write_all(request.as_bytes()).await.unwrap();
            assert_reads(&mut socket, "HTTP/1.1 101").await;
        }
    }
    system.end().await;
}

#[tokio::test]
async fn an_oversized_head_gets_431() {
    let system = System::on(Broker::shared_one()).await;
    let edge = system.edge().await;
    for path in ["/healthz", "/ws", "/socket.io/?EIO=4&transport=polling"] {
        for size in [64 << 10, 65 << 10, 100_000, 1 << 20, 4 << 20] {
            let filler = "x".repeat(size);
            let head = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n");
            let answer = raw(&edge.addr, format!("{head}X: {filler}\r\n\r\n")).await;
            assert!(
                answer.starts_with("HTTP/1.1 431 "),
                "{path}, {size}: {answer}"
            );
        }
    }
    let many = "X: x\r\n".repeat(1000);
    let head = "GET /healthz HTTP/1.1\r\nHost: localhost\r\n";
    let answer = raw(&edge.addr, format!("{head}{many}\r\n")).await;
    assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
    let long = "x".repeat(1 << 20);
    let answer = raw(
        &edge.addr,
        format!("GET /{long} HTTP/1.1\r\nHost: localhost\r\n\r\n"),
    )
    .await;
    let (status, _) = status_and_code(&answer);
    assert!([414, 431].contains(&status), "{answer}");
    // A head just below the limit is accepted.
    let cookie = format!("Cookie: {}\r\n", "x".repeat(60_000));
    let (head, _) = exchange(&edge.addr, "GET", "/healthz", &cookie, b"").await;
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    system.end().await;
}

#[tokio::test]
async fn an_oversized_body_is_refused_before_it_is_sent() {
    let system = System::on(Broker::shared_one()).await;
    system.demo().await;
    let edge = system.edge().await;
    let polling = "/socket.io/?EIO=4&transport=polling";
    let (_, opened) = get(&edge.addr, polling, "").await;
    let sid = opened.split('"').nth(3).unwrap();
    let session = format!("{polling}&sid={sid}");
    let json = "Content-Type: application/json\r\nConnection: close\r\n";
    for path in [
        "/api/jobs",
        session.as_str(),
        "/socket.io/?EIO=4&transport=polling&sid=unknown",
        "/nowhere",
    ] {
        for (length, expect) in [
            ((1_u64 << 20) + 1, "Expect: 100-continue\r\n"),
            (1_u64 << 40, "Expect: 100-Continue\r\n"),
            (1_u64 << 40, ""),
        ] {
            let head = format!("POST {path} HTTP/1.1\r\nHost: localhost\r\n{json}");
            let head = format!("{head}Content-Length: {length}\r\n{expect}\r\n");
            // The body is never sent, so an edge that waits for it would not answer.
            let answer = raw(&edge.addr, head).await;
            let found = status_and_code(&answer);
            assert_eq!(found, (413, "too_large".into()), "{path}: {answer}");
        }
    }
    // A body within the limit is requested.
    let body = json!({"kind": "demo", "input": words(3, 0, 1)}).to_string();
    let mut socket = TcpStream::connect(&edge.addr).await.unwrap();
    let length = body.len();
    let head = format!(
        "POST /api/jobs HTTP/1.1\r\nHost: localhost\r\n{json}\
         Expect: 100-continue\r\nContent-Length: {length}\r\n\r\n"
    );
    socket.write_all(head.as_bytes()).await.unwrap();
    assert_reads(&mut socket, "HTTP/1.1 100 Continue\r\n\r\n").await;
    socket.write_all(body.as_bytes()).await.unwrap();
    assert_reads(&mut socket, "HTTP/1.1 202 ").await;
    system.end().await;
}

#[tokio::test]
async fn options_of_an_unknown_path_gets_404() {
    let system = System::on(Broker::shared_one()).await;
    let edge = system.edge_for_all_pages().await;
    let preflight = "Origin: https://elsewhere.example\r\nAccess-Control-Request-Method: POST\r\n";
    for headers in ["", preflight] {
        for path in [
            "/nowhere",
            "/api",
            "/api/jobs/",
            "/api/jobs/j/nothing",
            "/ws/",
            "//",
        ] {
            let (head, body) = exchange(&edge.addr, "OPTIONS", path, headers, b"").await;
            assert!(
                head.starts_with("HTTP/1.1 404 ") && body.contains("\"not_found\""),
                "{path}: {head}"
            );
        }
        for path in [
            "/api/jobs",
            "/api/jobs/j/events",
            "/ws",
            "/socket.io/",
            "/socket.io",
            "/healthz",
            "*",
        ] {
            let (head, _) = exchange(&edge.addr, "OPTIONS", path, headers, b"").await;
            assert!(head.starts_with("HTTP/1.1 200 "), "{path}: {head}");
        }
    }
    system.end().await;
}

#[tokio::test]
async fn an_ambiguous_body_length_closes_the_connection() {
    let system = System::on(Broker::shared_one()).await;
    system.demo().await;
    let edge = system.edge().await;
    let body = json!({"kind": "demo", "id": "framed", "input": words(3, 0, 1)}).to_string();
    let chunked = format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
    let head = "POST /api/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n";
    let after = "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let length = "Content-Length: 4\r\n";
    let encoding = "Transfer-Encoding: chunked\r\n";
    // Bytes after such a body are not read as a request.
    for (headers, body, status) in [
        (&*format!("{length}{encoding}"), chunked.as_str(), 202),
        (&format!("{encoding}{length}"), &chunked, 200),
        (encoding, "x\r\n{}\r\n0\r\n\r\n", 400),
        (encoding, "-1\r\n{}\r\n0\r\n\r\n", 400),
        (encoding, "2\r\n{}}\r\n0\r\n\r\n", 400),
        (encoding, "fffffffffffffffff\r\n{}\r\n", 400),
        ("Transfer-Encoding: gzip\r\n", "", 400),
        ("Content-Length: 2\r\nContent-Length: 3\r\n", "{}", 400),
        ("Content-Length: -2\r\n", "{}", 400),
        ("Content-Length: 2x\r\n", "{}", 400),
    ] {
        let answer = raw(&edge.addr, format!("{head}{headers}\r\n{body}{after}")).await;
        let (found, _) = status_and_code(&answer);
        assert_eq!(found, status, "{headers:?} {body:?}: {answer}");
        let answers = answer.matches("HTTP/1.1 ").count();
        assert_eq!(answers, 1, "{headers:?}: {answer}");
    }
    let json = "Content-Type: application/json\r\n";
    // Only the first of them submitted the job.
    let (answer, _) = exchange(&edge.addr, "POST", "/api/jobs", json, body.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    system.end().await;
}

/// A bare WebSocket, to send frames that no library would.
struct Frames(TcpStream);

impl Frames {
    async fn open(addr: &str) -> Self {
        let mut socket = TcpStream::connect(addr).await.unwrap();
        let request = "GET /ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
            Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
        socket.write_all(request.as_bytes()).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(within("a handshake", socket.read_u8()).await.unwrap());
        }
        assert!(head.starts_with(b"HTTP/1.1 101 "));
        let mut frames = Self(socket);
        assert_eq!(frames.next().await.unwrap().0, 0x81, "the hello");
        frames
    }

    /// The first byte and the payload of the next frame; `None` at the end of the connection.
    async fn next(&mut self) -> Option<(u8, Vec<u8>)> {
        within("a frame", async {
            let first = self.0.read_u8().await.ok()?;
            let length = self.0.read_u8().await.ok()?;
            let length = if length == 126 {
                self.0.read_u16().await.ok()?
            } else {
                u16::from(length)
            };
            let mut payload = vec![0; usize::from(length)];
            self.0.read_exact(&mut payload).await.ok()?;
            Some((first, payload))
        })
        .await
    }
}

/// A frame of a client, with a mask of zeros.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![first];
    match payload.len() {
        length @ 0..126 => frame.push(0x80 | length as u8),
        length => {
            frame.push(0x80 | 126);
            frame.extend((length as u16).to_be_bytes());
        }
    }
    frame.extend([0; 4]);
    frame.extend(payload);
    frame
}

const VIOLATION: (u16, &str) = (1002, "protocol_error");
const BAD_UTF8: (u16, &str) = (1007, "bad_utf8");
const TOO_LARGE: (u16, &str) = (1009, "too_large");

#[tokio::test]
async fn protocol_violations_get_the_matching_close_code() {
    let system = System::on(Broker::shared_one()).await;
    let edge = system.edge().await;
    let two = |first: &[u8], second: &[u8]| [first, second].concat();
    let of_length = |length: u64| two(&[0x81, 0x80 | 127], &two(&length.to_be_bytes(), &[0; 4]));
    let within_message = two(&frame(0x01, b"{"), &frame(0x81, b"{}"));
    let cut_character = frame(0x81, "ä".as_bytes().split_at(1).0);
    let bad_piece = two(&frame(0x01, b"\xc3"), &frame(0x80, b"\x28"));
    for (what, bytes, (code, reason)) in [
        (
            "a frame without a mask",
            vec![0x81, 2, b'{', b'}'],
            VIOLATION,
        ),
        ("a reserved bit", frame(0xc1, b"{}"), VIOLATION),
        ("a reserved opcode for data", frame(0x83, b"{}"), VIOLATION),
        ("a reserved opcode for control", frame(0x8b, b""), VIOLATION),
        ("a ping in pieces", frame(0x09, b""), VIOLATION),
        ("a ping of 126 bytes", frame(0x89, &[0; 126]), VIOLATION),
        ("a continuation of nothing", frame(0x80, b"{}"), VIOLATION),
        ("a message within a message", within_message, VIOLATION),
        ("a close of one byte", frame(0x88, b"x"), VIOLATION),
        (
            "a text that is not UTF-8",
            frame(0x81, b"\"\xff\""),
            BAD_UTF8,
        ),
        (
            "a text that ends within a character",
            cut_character,
            BAD_UTF8,
        ),
        ("a piece that is not UTF-8", bad_piece, BAD_UTF8),
        (
            "a reason that is not UTF-8",
            frame(0x88, b"\x03\xe8\xff"),
            BAD_UTF8,
        ),
        ("a length of 2 MiB", of_length(2 << 20), TOO_LARGE),
        ("a length of 2 to the 62", of_length(1 << 62), TOO_LARGE),
    ] {
        let mut client = Frames::open(&edge.addr).await;
        client.0.write_all(&bytes).await.unwrap();
        let Some((first, payload)) = client.next().await else {
            panic!("{what}: cut without a close")
        };
        assert_eq!(first, 0x88, "{what}: {payload:?}");
        let closed = (
            u16::from_be_bytes([payload[0], payload[1]]),
            String::from_utf8_lossy(&payload[2..]),
        );
        assert_eq!(closed, (code, reason.into()), "{what}");
        assert_eq!(client.next().await, None, "{what}");
    }
    // Unusual but valid frames keep the connection open.
    let mut client = Frames::open(&edge.addr).await;
    let pieces = [
        frame(0x01, b"{\"op\":\"un"),
        frame(0x89, b"p"),
        frame(0x80, b"watch\",\"job\":\"\xc3\xa4\"}"),
    ]
    .concat();
    client.0.write_all(&pieces).await.unwrap();
    let (first, payload) = client.next().await.unwrap();
    assert_eq!((first, &*payload), (0x8a, &b"p"[..]), "the pong");
    let (first, payload) = client.next().await.unwrap();
    let error: Value = serde_json::from_slice(&payload).unwrap();
    assert_eq!(first, 0x81);
    assert_fields!(error, {"code": "bad_job_id", "job": "ä"});
    system.end().await;
}
