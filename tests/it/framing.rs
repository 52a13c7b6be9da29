use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::broker::Broker;
use crate::support::http::exchange;
use crate::support::system::{System, words};
use crate::support::within;

/// Sends these bytes; returns everything the edge sends until it closes.
async fn raw(addr: &str, bytes: &[u8]) -> String {
    let mut socket = TcpStream::connect(addr).await.unwrap();
    let mut answer = Vec::new();
    within("an answer", async {
        // The edge may answer before it has read everything.
        let _ = socket.write_all(bytes).await;
        let _ = socket.read_to_end(&mut answer).await;
    })
    .await;
    String::from_utf8_lossy(&answer).into_owned()
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
    let upgrade = "Upgrade: websocket\r\nConnection: Upgrade, close\r\nSec-WebSocket-Version: 13\r\n\
        Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    for (line, headers) in [
        ("GET /healthz", "Connection: close\r\n"),
        ("GET /nowhere", "Connection: close\r\n"),
        ("OPTIONS /api/jobs", "Connection: close\r\n"),
        (
            "POST /api/jobs/j/cancel",
            "Connection: close\r\nContent-Length: 0\r\n",
        ),
        (
            "GET /socket.io/?EIO=4&transport=polling",
            "Connection: close\r\n",
        ),
        ("GET /ws", upgrade),
    ] {
        for hosts in [
            "",
            "Host: x\r\nHost: x\r\n",
            "Host: x\r\nHOST: y\r\n",
            "Host: x, y\r\n",
            "Host: a b\r\n",
        ] {
            let answer = raw(
                &edge.addr,
                format!("{line} HTTP/1.1\r\n{hosts}{headers}\r\n").as_bytes(),
            )
            .await;
            assert_eq!(
                status_and_code(&answer),
                (400, "bad_request".into()),
                "{line}, {hosts:?}: {answer}"
            );
        }
    }
    for good in [
        "GET /healthz HTTP/1.0\r\n\r\n",
        "GET /healthz HTTP/1.1\r\nHost:\r\nConnection: close\r\n\r\n",
        "GET /healthz HTTP/1.1\r\nhost: [::1]:4000\r\nConnection: close\r\n\r\n",
        "GET http://elsewhere.example/healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    ] {
        let answer = raw(&edge.addr, good.as_bytes()).await;
        assert_eq!(status_and_code(&answer).0, 200, "{good}: {answer}");
    }
    system.end().await;
}

#[tokio::test]
async fn a_bad_websocket_handshake_is_refused_on_both_transports() {
    let system = System::on(Broker::shared_one()).await;
    let edge = system.edge().await;
    let (version, key) = (
        "Sec-WebSocket-Version: 13\r\n",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
    );
    let upgrade = "Upgrade: websocket\r\nConnection: Upgrade\r\n";
    let polled = exchange(
        &edge.addr,
        "GET",
        "/socket.io/?EIO=4&transport=polling",
        "",
        b"",
    )
    .await
    .1;
    let sid = polled.split('"').nth(3).unwrap();
    let doors = [
        "/ws",
        "/socket.io/?EIO=4&transport=websocket",
        "/socket.io?transport=websocket=&EIO=4",
        &format!("/socket.io/?EIO=4&transport=websocket&sid={sid}"),
    ];
    for path in doors {
        for (headers, status, code) in [
            (String::new(), 400, "bad_request"),
            (format!("{version}{key}"), 400, "bad_request"),
            (
                format!("Connection: keep-alive\r\n{version}{key}"),
                400,
                "bad_request",
            ),
            (
                format!("Upgrade: websocket\r\nConnection: close\r\n{version}{key}"),
                400,
                "bad_request",
            ),
            (format!("{upgrade}{version}"), 400, "bad_request"),
            (
                format!("{upgrade}{version}Sec-WebSocket-Key: x\r\n"),
                400,
                "bad_request",
            ),
            (
                format!("{upgrade}{version}Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25j\r\n"),
                400,
                "bad_request",
            ),
            (format!("{upgrade}{version}{key}{key}"), 400, "bad_request"),
            (format!("{upgrade}{key}"), 426, "upgrade_required"),
            (
                format!("{upgrade}{key}Sec-WebSocket-Version: 8\r\n"),
                426,
                "upgrade_required",
            ),
        ] {
            let request =
                format!("GET {path} HTTP/1.1\r\nHost: x\r\n{headers}Connection: close\r\n\r\n");
            let answer = raw(&edge.addr, request.as_bytes()).await;
            assert_eq!(
                status_and_code(&answer),
                (status, code.into()),
                "{path} {headers}: {answer}"
            );
            let names = answer.contains("\r\nsec-websocket-version: 13\r\n")
                && answer.contains("\r\nupgrade: websocket\r\n");
            assert_eq!(names, status == 426, "{answer}");
        }
        let old = format!("GET {path} HTTP/1.0\r\nHost: x\r\n{upgrade}{version}{key}\r\n");
        assert_eq!(
            status_and_code(&raw(&edge.addr, old.as_bytes()).await).0,
            400,
            "{path} over HTTP/1.0"
        );
    }
    for path in &doors[..3] {
        for upgrade in [
            upgrade,
            "Upgrade: WebSocket\r\nConnection: keep-alive, Upgrade\r\n",
            "Upgrade: h2c, websocket\r\nConnection: keep-alive\r\nConnection: upgrade\r\n",
        ] {
            let mut socket = TcpStream::connect(&edge.addr).await.unwrap();
            let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\n{upgrade}{version}{key}\r\n");
            socket.write_all(request.as_bytes()).await.unwrap();
            let mut answer = [0; 12];
            within("an answer", socket.read_exact(&mut answer))
                .await
                .unwrap();
            assert_eq!(&answer, b"HTTP/1.1 101", "{path} {upgrade}");
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
            let head = format!(
                "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX: {}\r\n\r\n",
                "x".repeat(size)
            );
            let answer = raw(&edge.addr, head.as_bytes()).await;
            assert!(
                answer.starts_with("HTTP/1.1 431 "),
                "{path}, {size}: {answer}"
            );
        }
    }
    let many = format!(
        "GET /healthz HTTP/1.1\r\nHost: x\r\n{}\r\n",
        "X: x\r\n".repeat(1000)
    );
    assert!(
        raw(&edge.addr, many.as_bytes())
            .await
            .starts_with("HTTP/1.1 431 ")
    );
    let long = format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "x".repeat(1 << 20));
    let answer = raw(&edge.addr, long.as_bytes()).await;
    assert!(
        answer.starts_with("HTTP/1.1 414 ") || answer.starts_with("HTTP/1.1 431 "),
        "{answer}"
    );
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
    let opened = exchange(
        &edge.addr,
        "GET",
        "/socket.io/?EIO=4&transport=polling",
        "",
        b"",
    )
    .await
    .1;
    let sid = opened.split('"').nth(3).unwrap();
    let session = format!("/socket.io/?EIO=4&transport=polling&sid={sid}");
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
            let head = format!(
                "POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\n\
                Content-Length: {length}\r\n{expect}\r\n"
            );
            // The body is never sent, so an edge that waits for it would not answer.
            let answer = raw(&edge.addr, head.as_bytes()).await;
            assert_eq!(
                status_and_code(&answer),
                (413, "too_large".into()),
                "{path}: {answer}"
            );
        }
    }
    // A body within the limit is requested.
    let body = json!({"kind": "demo", "input": words(3, 0, 1)}).to_string();
    let mut socket = TcpStream::connect(&edge.addr).await.unwrap();
    let head = format!(
        "POST /api/jobs HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\n\
        Expect: 100-continue\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    socket.write_all(head.as_bytes()).await.unwrap();
    let mut asked = [0; 25];
    within("an answer", socket.read_exact(&mut asked))
        .await
        .unwrap();
    assert_eq!(&asked, b"HTTP/1.1 100 Continue\r\n\r\n");
    socket.write_all(body.as_bytes()).await.unwrap();
    let mut answer = String::new();
    within("an answer", socket.read_to_string(&mut answer))
        .await
        .unwrap();
    assert!(answer.starts_with("HTTP/1.1 202 "), "{answer}");
    system.end().await;
}

#[tokio::test]
async fn options_of_an_unknown_path_gets_404() {
    let system = System::on(Broker::shared_one()).await;
    let edge = system.edge().await;
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
    let head = "POST /api/jobs HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n";
    let (after, json) = (
        "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n",
        "Content-Type: application/json\r\n",
    );
    // Bytes after such a body are not read as a request.
    for (headers, body, status) in [
        (
            "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n",
            chunked.as_str(),
            202,
        ),
        (
            "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n",
            &chunked,
            200,
        ),
        (
            "Transfer-Encoding: chunked\r\n",
            "x\r\n{}\r\n0\r\n\r\n",
            400,
        ),
        (
            "Transfer-Encoding: chunked\r\n",
            "-1\r\n{}\r\n0\r\n\r\n",
            400,
        ),
        (
            "Transfer-Encoding: chunked\r\n",
            "2\r\n{}}\r\n0\r\n\r\n",
            400,
        ),
        (
            "Transfer-Encoding: chunked\r\n",
            "fffffffffffffffff\r\n{}\r\n",
            400,
        ),
        ("Transfer-Encoding: gzip\r\n", "", 400),
        ("Content-Length: 2\r\nContent-Length: 3\r\n", "{}", 400),
        ("Content-Length: -2\r\n", "{}", 400),
        ("Content-Length: 2x\r\n", "{}", 400),
    ] {
        let answer = raw(
            &edge.addr,
            format!("{head}{headers}\r\n{body}{after}").as_bytes(),
        )
        .await;
        assert_eq!(
            status_and_code(&answer).0,
            status,
            "{headers:?} {body:?}: {answer}"
        );
        assert_eq!(
            answer.matches("HTTP/1.1 ").count(),
            1,
            "{headers:?}: {answer}"
        );
    }
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
        let request = "GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
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
            let (first, length) = (self.0.read_u8().await.ok()?, self.0.read_u8().await.ok()?);
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

#[tokio::test]
async fn protocol_violations_get_the_matching_close_code() {
    let system = System::on(Broker::shared_one()).await;
    let edge = system.edge().await;
    let two = |first: &[u8], second: &[u8]| [first, second].concat();
    for (what, bytes, code, reason) in [
        (
            "a frame without a mask",
            vec![0x81, 2, b'{', b'}'],
            1002,
            "protocol_error",
        ),
        ("a reserved bit", frame(0xc1, b"{}"), 1002, "protocol_error"),
        (
            "a reserved opcode for data",
            frame(0x83, b"{}"),
            1002,
            "protocol_error",
        ),
        (
            "a reserved opcode for control",
            frame(0x8b, b""),
            1002,
            "protocol_error",
        ),
        ("a ping in pieces", frame(0x09, b""), 1002, "protocol_error"),
        (
            "a ping of 126 bytes",
            frame(0x89, &[0; 126]),
            1002,
            "protocol_error",
        ),
        (
            "a continuation of nothing",
            frame(0x80, b"{}"),
            1002,
            "protocol_error",
        ),
        (
            "a message within a message",
            two(&frame(0x01, b"{"), &frame(0x81, b"{}")),
            1002,
            "protocol_error",
        ),
        (
            "a close of one byte",
            frame(0x88, b"x"),
            1002,
            "protocol_error",
        ),
        (
            "a text that is not UTF-8",
            frame(0x81, b"\"\xff\""),
            1007,
            "bad_utf8",
        ),
        (
            "a text that ends within a character",
            frame(0x81, "ä".as_bytes().split_at(1).0),
            1007,
            "bad_utf8",
        ),
        (
            "a piece that is not UTF-8",
            two(&frame(0x01, b"\xc3"), &frame(0x80, b"\x28")),
            1007,
            "bad_utf8",
        ),
        (
            "a close whose reason is not UTF-8",
            frame(0x88, b"\x03\xe8\xff"),
            1007,
            "bad_utf8",
        ),
        (
            "a length of 2 MiB",
            [
                &[0x81, 0x80 | 127][..],
                &(2_u64 << 20).to_be_bytes(),
                &[0; 4],
            ]
            .concat(),
            1009,
            "too_large",
        ),
        (
            "a length of 2 to the 62",
            [
                &[0x81, 0x80 | 127][..],
                &(1_u64 << 62).to_be_bytes(),
                &[0; 4],
            ]
            .concat(),
            1009,
            "too_large",
        ),
    ] {
        let mut client = Frames::open(&edge.addr).await;
        client.0.write_all(&bytes).await.unwrap();
        let (first, payload) = client
            .next()
            .await
            .unwrap_or_else(|| panic!("{what}: cut without a close"));
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
    assert_eq!(
        (first, payload.as_slice()),
        (0x8a, b"p".as_slice()),
        "the pong"
    );
    let (first, payload) = client.next().await.unwrap();
    let error: Value = serde_json::from_slice(&payload).unwrap();
    assert_eq!(
        (first, &error["code"], &error["job"]),
        (0x81, &json!("bad_job_id"), &json!("ä"))
    );
    system.end().await;
}
