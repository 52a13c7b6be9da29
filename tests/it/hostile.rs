//! Clients that make an edge hold as much memory as they can: it stays within its limits, greedy
//! clients are refused with a code, and others are served. `scripts/hostile.sh` does the same with
//! more clients.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::json;
use tailwater::process_group::Signal;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;

use crate::support::broker::Broker;
use crate::support::client::Client;
use crate::support::http::stats;
use crate::support::process::Process;
use crate::support::system::System;
use crate::support::{until, within};

/// The memory that hostile clients of one kind may cost an edge, in KiB.
const MOST: u64 = 64 * 1024;
/// More bytes of pings than the socket buffers hold.
const HEARD_MAX: usize = 64 << 20;
/// The largest body.
const BODY: usize = 1024 * 1024;

/// An edge that a shell starts after this command, with these flags, and its address.
async fn edge_after(system: &System, command: &str, more: &[&str]) -> (Process, String) {
    let command = format!("{command} && exec \"$0\" \"$@\"");
    let flags = [
        "-c",
        &command,
        env!("CARGO_BIN_EXE_tailwater"),
        "edge",
        "--threads",
        "1",
        "--listen",
        "127.0.0.1:0",
    ];
    let more = more.iter().map(|flag| (*flag).to_owned()).collect();
    let args = [flags.map(str::to_owned).to_vec(), more, system.flags()].concat();
    let mut edge = Process::start_program(Path::new("sh"), args, &[], Stdio::null());
    let addr = edge.says("ready http://").await;
    (edge, addr)
}

#[tokio::test]
async fn an_edge_opens_as_many_files_as_the_system_allows() {
    let system = System::on(Broker::shared_one()).await;
    let (edge, _) = edge_after(&system, "ulimit -S -n 300", &[]).await;
    let (now, most) = edge.open_files_max();
    assert_eq!(now, most);
    system.end().await;
}

/// The status and code of an answer, from its first bytes.
async fn ask(addr: &str, request: &[u8], wait: Duration) -> (tokio::net::TcpStream, String) {
    let mut socket = tokio::net::TcpStream::connect(addr).await.unwrap();
    // The edge may refuse before it has read the whole request.
    let _ = within("a request", socket.write_all(request)).await;
    let mut head = vec![0; 2048];
    let read = match timeout(wait, socket.read(&mut head)).await {
        Ok(Ok(read)) => read,
        Ok(Err(_)) => 0,
        Err(_) => return (socket, "no answer".into()),
    };
    let head = String::from_utf8_lossy(&head[..read]).into_owned();
    let status = head.split(' ').nth(1).unwrap_or("cut").to_owned();
    let code = head
        .split(r#""code":""#)
        .nth(1)
        .and_then(|rest| rest.split('"').next());
    match code {
        Some(code) => (socket, format!("{status} {code}")),
        None => (socket, status),
    }
}

/// Upgrades a connection and sends pings without reading, until a write blocks; returns how many
/// bytes were sent.
fn ping(addr: &str, path: &str, joins: &[u8]) -> usize {
    let mut socket = TcpStream::connect(addr).unwrap();
    let upgrade = format!(
        "GET {path} HTTP/1.1\r\nHost: {addr}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    socket.write_all(upgrade.as_bytes()).unwrap();
    let mut head = [0; 12];
    socket.read_exact(&mut head).unwrap();
    assert_eq!(&head, b"HTTP/1.1 101");
    socket.write_all(joins).unwrap();
    let mut pings = Vec::new();
    for _ in 0..500 {
        pings.extend([0x89, 0x80 | 125, 0, 0, 0, 0]);
        pings.extend([b'x'; 125]);
    }
    socket
        .set_write_timeout(Some(Duration::from_secs(2)))
        .unwrap();
    let mut sent = 0;
    while sent < HEARD_MAX && socket.write_all(&pings).is_ok() {
        sent += pings.len();
    }
    sent
}

#[tokio::test]
async fn unread_pongs_cost_no_memory() {
    let system = System::on(Broker::shared_one()).await;
    let (edge, addr) = system.edge_process(&[]).await;
    // A Socket.IO client joins by `40`, in a masked frame.
    let joins = [0x81, 0x82, 0, 0, 0, 0, b'4', b'0'];
    for (path, joins) in [
        ("/ws", &[][..]),
        ("/socket.io/?EIO=4&transport=websocket", &joins[..]),
    ] {
        let before = edge.memory();
        let to = addr.clone();
        let path = path.to_owned();
        let joins = joins.to_vec();
        let sent = tokio::task::spawn_blocking(move || ping(&to, &path, &joins))
            .await
            .unwrap();
        let after = edge.memory();
        assert!(sent < HEARD_MAX, "{sent} bytes were heard");
        assert!(
            after < before + 16 * 1024,
            "{before} to {after} KiB for {sent} bytes"
        );
        Box::pin(within("another client", Client::connect(&addr))).await;
    }
    system.end().await;
}

#[tokio::test]
async fn incomplete_bodies_hold_bounded_memory() {
    let system = System::on(Broker::shared_one()).await;
    system.demo().await;
    let (edge, addr) = system.edge_process(&[]).await;
    system.submit("known", json!({"words": 1})).await;
    let before = edge.memory();
    let mut short = format!(
        "POST /api/jobs HTTP/1.1\r\nHost: {addr}\r\nContent-Type: application/json\r\nContent-Length: {BODY}\r\n\r\n"
    )
    .into_bytes();
    short.resize(short.len() + BODY - 1, b' ');
    let flood = join_all((0..100).map(|_| ask(&addr, &short, Duration::from_secs(60))));
    let beside = async {
        until("a flood", async || {
            stats(&addr, "/api/stats").await["memory"]["refused"].as_u64() > Some(50)
        })
        .await;
        let peak = edge.memory();
        let body = r#"{"kind":"demo","input":{"words":1}}"#;
        let length = body.len();
        let small = format!(
            "POST /api/jobs HTTP/1.1\r\nHost: {addr}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
        );
        (
            peak,
            ask(&addr, small.as_bytes(), Duration::from_secs(30))
                .await
                .1,
        )
    };
    let (flood, (peak, small)) = within("a flood", futures_util::future::join(flood, beside)).await;
    assert_eq!(small, "202");
    assert!(peak < before + MOST, "{before} to {peak} KiB");
    let count = |what: &str| flood.iter().filter(|(_, met)| met == what).count();
    let refused = count("503 overloaded");
    let late = count("408 timeout");
    // A client whose connection is reset during its request sees no answer.
    assert!(
        (1..=16).contains(&late) && refused + late + count("cut") == 100,
        "{refused} and {late}"
    );
    assert_eq!(stats(&addr, "/api/stats").await["memory"]["used"], 0);
    system.end().await;
}

#[tokio::test]
async fn inputs_that_wait_for_the_broker_hold_bounded_memory() {
    let broker = Broker::one();
    let system = System::on(&broker).await;
    let (edge, addr) = system
        .edge_process(&["--memory", "64MiB", "--chat-kind", "demo"])
        .await;
    // 500 KiB of text, about 16 MiB in memory.
    let heavy = format!("[{}1]", r#"{"number":1234567890},"#.repeat(23_000));
    let said = r#""messages":[{"role":"user","content":"hello","parts":[{"type":"text","text":"hello"}]}]"#;
    let requests: Vec<Vec<u8>> = (0..16)
        .flat_map(|number| {
            [
                ("/api/jobs", format!(r#"{{"kind":"demo","input":{heavy}}}"#)),
                ("/api/chat", format!(r#"{{"id":"{number}",{said},"more":{heavy}}}"#)),
                ("/v1/chat/completions", format!(r#"{{"model":"demo",{said},"more":{heavy}}}"#)),
            ]
        })
        .map(|(path, body)| {
            let length = body.len();
            format!(
                "POST {path} HTTP/1.1\r\nHost: {addr}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
            )
            .into_bytes()
        })
        .collect();
    let before = edge.memory();
    broker.signal(0, Signal::STOP);
    let asked = requests
        .iter()
        .map(|request| ask(&addr, request, Duration::from_secs(60)));
    let answers = within("the answers", join_all(asked)).await;
    broker.signal(0, Signal::CONT);
    let peak = edge.peak_memory();
    let is_late = |(_, met): &(_, String)| met == "503 unavailable";
    assert!(answers.iter().any(is_late), "none waited for the broker");
    assert!(peak < before + MOST, "{before} to {peak} KiB");
    system.end().await;
}

/// The responses to a request that is sent this often, at once over one connection.
async fn pipelined(addr: &str, request: &[u8], count: usize) -> String {
    let mut socket = tokio::net::TcpStream::connect(addr).await.unwrap();
    let (mut takes, mut gives) = socket.split();
    let requests = request.repeat(count);
    let answers = async {
        let mut answers = String::new();
        let mut buffer = vec![0; 65536];
        while answers.matches("HTTP/1.1 ").count() < count || !answers.ends_with('}') {
            let read = takes.read(&mut buffer).await.unwrap();
            assert!(
                read > 0,
                "cut after {}",
                answers.matches("HTTP/1.1 ").count()
            );
            answers += std::str::from_utf8(&buffer[..read]).unwrap();
        }
        answers
    };
    let (answers, given) = within(
        "answers",
        futures_util::future::join(answers, gives.write_all(&requests)),
    )
    .await;
    given.unwrap();
    answers
}

#[tokio::test]
async fn unfinished_handshakes_are_bounded_and_unknown_ids_refused() {
    let system = System::on(Broker::shared_one()).await;
    let (edge, addr) = system.edge_process(&[]).await;
    let before = edge.memory();
    let get = |query: &str| {
        let upgrade = if query.starts_with("websocket") {
            "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
        } else {
            ""
        };
        format!("GET /socket.io/?EIO=4&transport={query} HTTP/1.1\r\nHost: {addr}\r\n{upgrade}\r\n")
            .into_bytes()
    };
    let answers = pipelined(&addr, &get("polling"), 3000).await;
    let taken = answers.matches("HTTP/1.1 200").count();
    let refused = answers.matches(r#""code":"overloaded""#).count();
    assert_eq!((taken, refused), (2048, 952), "of one address");
    let after = edge.memory();
    assert!(after < before + MOST, "{before} to {after} KiB");
    for transport in ["polling", "websocket"] {
        let forged = get(&format!("{transport}&sid=AAAAAAAAAAAAAAHs"));
        let found = ask(&addr, &forged, Duration::from_secs(10)).await.1;
        assert_eq!(found, "400 1", "{transport}");
    }
    system.end().await;
}

#[tokio::test]
async fn clients_of_socketio_that_poll_count_as_connections_of_their_address() {
    let system = System::on(Broker::shared_one()).await;
    // A quarter of the files is kept for the edge itself. One address gets three quarters of 150.
    let (_edge, addr) = edge_after(&system, "ulimit -n 200", &[]).await;
    let handshake =
        format!("GET /socket.io/?EIO=4&transport=polling HTTP/1.1\r\nHost: {addr}\r\n\r\n");
    let answers = pipelined(&addr, handshake.as_bytes(), 200).await;
    let taken = answers.matches("HTTP/1.1 200").count();
    let refused = answers.matches(r#""code":"rate_limited""#).count();
    // The connection that sends these requests has a slot, too.
    assert_eq!((taken, refused), (112, 88));
    system.end().await;
}

#[tokio::test]
async fn the_clients_of_a_trusted_proxy_are_limited_one_by_one() {
    let system = System::on(Broker::shared_one()).await;
    for flags in [&["--trusted-proxy", "127.0.0.1"][..], &[]] {
        let (_edge, addr) = system.edge_process(flags).await;
        let handshake = |client: &str| {
            let head = format!("Host: {addr}\r\nX-Forwarded-For: {client}\r\n\r\n");
            format!("GET /socket.io/?EIO=4&transport=polling HTTP/1.1\r\n{head}").into_bytes()
        };
        let greedy = "198.51.100.1";
        let answers = pipelined(&addr, &handshake(greedy), 2100).await;
        assert_eq!(answers.matches("HTTP/1.1 200").count(), 2048, "{flags:?}");
        // Without the flag, all of them have the address of the proxy.
        let of_another = if flags.is_empty() {
            "503 overloaded"
        } else {
            "200"
        };
        for (client, expected) in [
            ("198.51.100.2", of_another),
            // A proxy appends the address. What precedes it is what the client claims.
            ("198.51.100.3, 198.51.100.1", "503 overloaded"),
        ] {
            let found = ask(&addr, &handshake(client), Duration::from_secs(10)).await;
            assert_eq!(found.1, expected, "{client} {flags:?}");
        }
    }
    system.end().await;
}

#[tokio::test]
async fn a_websocket_behind_a_trusted_proxy_counts_for_its_client() {
    let system = System::on(Broker::shared_one()).await;
    let flags = ["--trusted-proxy", "127.0.0.1"];
    let (_edge, addr) = edge_after(&system, "ulimit -n 200", &flags).await;
    let upgrade = |client: &str| {
        format!(
            "GET /ws HTTP/1.1\r\nHost: {addr}\r\nX-Forwarded-For: {client}\r\n\
             Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        .into_bytes()
    };
    let greedy = upgrade("198.51.100.1");
    let mut held = Vec::new();
    let refused = loop {
        let (socket, met) = ask(&addr, &greedy, Duration::from_secs(10)).await;
        if met != "101" {
            break met;
        }
        held.push(socket);
    };
    assert_eq!(refused, "429 rate_limited");
    // Three quarters of 150. Connections that have just been upgraded may still count twice.
    assert!((100..=112).contains(&held.len()), "{}", held.len());
    let other = upgrade("198.51.100.2");
    let (_socket, met) = ask(&addr, &other, Duration::from_secs(10)).await;
    assert_eq!(met, "101");
    system.end().await;
}
