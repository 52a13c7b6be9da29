use std::future::poll_fn;
use std::path::Path;
use std::pin::Pin;
use std::time::Duration;

use futures_util::future::join_all;
use hyper::body::{Body as _, Incoming};
use hyper::client::conn::http2;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::CertificateDer;
use serde_json::{Value, json};
use tailwater::edge::{EdgeSettings, Gate, SubjectLimits, Tls};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::client::TlsStream;

use crate::support::broker::Broker;
use crate::support::client::{Client, Seen, follow};
use crate::support::http::get;
use crate::support::process::{run, run_program};
use crate::support::socketio::Raw;
use crate::support::sse::{Item, Sse};
use crate::support::system::{Edge, System, words};
use crate::support::tls::{Authority, Tunnel, replace};
use crate::support::tokens::{keys, token};
use crate::support::{assert_within, eventually, until, within};

/// An edge with TLS.
struct Secured {
    system: System,
    edge: Edge,
    authority: Authority,
}

impl Secured {
    async fn start() -> Self {
        Self::start_with(Gate::open()).await
    }

    /// The same with this check of tokens.
    async fn start_with(gate: Gate) -> Self {
        let system = System::on(Broker::shared_one()).await;
        system.wordy().await;
        let authority = Authority::new();
        authority.issue("edge");
        let tls = Tls::load(authority.file("edge.pem"), authority.file("edge.key")).unwrap();
        let settings = EdgeSettings {
            tls: Some(tls),
            gate,
            drain: Duration::ZERO,
            ..EdgeSettings::default()
        };
        let edge = system.edge_with(settings).await;
        Self {
            system,
            edge,
            authority,
        }
    }

    async fn connect(&self, protocol: &str) -> TlsStream<TcpStream> {
        self.authority.connect(&self.edge.addr, protocol).await
    }

    /// A client that speaks HTTP/2 over one connection.
    async fn http2(&self, limits: &http2::Builder<TokioExecutor>) -> Http2 {
        let stream = TokioIo::new(self.connect("h2").await);
        let (requests, connection) = limits.handshake(stream).await.unwrap();
        self.system.tasks.spawn_until_stop(async move {
            // The edge may end it.
            let _ = connection.await;
        });
        Http2 {
            requests,
            addr: self.edge.addr.clone(),
            authorization: String::new(),
        }
    }

    /// The value of a metric, which all edges of this process count together.
    async fn counted(&self, name: &str) -> f64 {
        let builder = http2::Builder::new(TokioExecutor::new());
        let client = Box::pin(self.http2(&builder)).await;
        let text = whole(client.send("GET", "/metrics", "").await.unwrap()).await;
        let mut lines = text.lines();
        let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        let value = value.unwrap_or_else(|| panic!("no {name} in\n{text}"));
        value.parse().unwrap()
    }

    /// The certificate that a new client gets.
    async fn certificate(&self) -> CertificateDer<'static> {
        let stream = self.connect("http/1.1").await;
        let (_, session) = stream.get_ref();
        session.peer_certificates().unwrap()[0].clone().into_owned()
    }
}

struct Http2 {
    requests: http2::SendRequest<String>,
    addr: String,
    authorization: String,
}

impl Http2 {
    async fn send(
        &self,
        method: &str,
        path: &str,
        body: &str,
    ) -> hyper::Result<Response<Incoming>> {
        let request = Request::builder()
            .method(method)
            .uri(format!("https://{}{path}", self.addr))
            .header("content-type", "application/json")
            .header("authorization", &self.authorization)
            .body(body.to_owned())
            .unwrap();
        let mut requests = self.requests.clone();
        within("a response", requests.send_request(request)).await
    }
}

/// The next bytes of a body; `None` at its end or when the connection ended.
async fn chunk(body: &mut Incoming) -> Option<Vec<u8>> {
    let frame = poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx));
    let frame = within("a part of a response", frame).await?.ok()?;
    Some(frame.into_data().map(Vec::from).unwrap_or_default())
}

async fn whole(mut response: Response<Incoming>) -> String {
    let mut text = Vec::new();
    within("the end of a response", async {
        while let Some(piece) = chunk(response.body_mut()).await {
            text.extend(piece);
        }
    })
    .await;
    String::from_utf8(text).unwrap()
}

#[tokio::test]
async fn every_transport_works_over_tls() {
    let secured = Secured::start().await;
    let tunnel = Tunnel::to(&secured.authority, &secured.edge.addr).await;
    secured.system.submit("j", words(20, 200, 1)).await;
    follow(&tunnel.addr, "j").await.assert_whole();
    let mut stream = Sse::open(&tunnel.addr, "/api/jobs/j/events", "").await;
    let mut seen = Seen::of("j");
    while let Item::Event(event, _) = stream.event().await {
        seen.record(&event);
    }
    seen.ended = seen.events[&seen.last]["type"] == "job:done:v1";
    seen.assert_whole();
    let mut socketio = Raw::join(&tunnel.addr).await;
    let answer = socketio.ask(1, "watch", &json!({"job": "j"})).await;
    assert_eq!(answer["job"], "j", "{answer}");
    let (head, _) = get(&tunnel.addr, "/readyz", "").await;
    assert!(head.contains(" 200 "), "{head}");
    secured.system.end().await;
}

#[tokio::test]
async fn a_client_without_tls_gets_nothing_from_an_edge_with_tls() {
    let secured = Secured::start().await;
    let mut plain = TcpStream::connect(&secured.edge.addr).await.unwrap();
    plain
        .write_all(b"GET /api/jobs HTTP/1.1\r\nHost: x\r\n\r\n")
        .await
        .unwrap();
    let mut answer = Vec::new();
    // A reset is an end as well.
    let _ = within("the end", plain.read_to_end(&mut answer)).await;
    assert!(
        !answer.windows(4).any(|bytes| bytes == b"HTTP"),
        "{answer:?}"
    );
    secured.system.end().await;
}

#[tokio::test]
async fn forty_event_streams_share_one_http_2_connection() {
    let secured = Secured::start().await;
    let client = secured
        .http2(&http2::Builder::new(TokioExecutor::new()))
        .await;
    let body = r#"{"kind":"demo","id":"h2","input":{"words":30,"rate":60,"seed":1}}"#;
    let submitted = client.send("POST", "/api/jobs", body).await.unwrap();
    assert_eq!(submitted.status(), 202);
    let streams = join_all((0..40).map(|_| async {
        let response = client.send("GET", "/api/jobs/h2/events", "").await.unwrap();
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        let text = whole(response).await;
        let mut seen = Seen::of("h2");
        let events = text.lines().filter_map(|line| line.strip_prefix("data: "));
        for event in events {
            seen.record(&serde_json::from_str::<Value>(event).unwrap());
        }
        seen.ended = seen.events[&seen.last]["type"] == "job:done:v1";
        seen.assert_whole();
    }));
    within("all streams", streams).await;
    secured.system.end().await;
}

#[tokio::test]
async fn each_event_stream_over_http_2_counts_for_its_subject() {
    let limits = SubjectLimits {
        connections: 2,
        ..SubjectLimits::default()
    };
    let secured = Secured::start_with(Gate::checked(keys(), None, limits)).await;
    let builder = http2::Builder::new(TokioExecutor::new());
    let mut client = secured.http2(&builder).await;
    let mut open = Vec::new();
    for (sub, expected) in [("a", 200_u16), ("a", 200), ("a", 429), ("b", 200)] {
        let own = token(sub, &json!({"watch": ["*"]}), 600);
        client.authorization = format!("Bearer {own}");
        let sent = client.send("GET", "/api/jobs/later/events", "");
        let response = sent.await.unwrap();
        assert_eq!(response.status(), expected, "{sub}");
        open.push(response);
    }
    let refused = open.remove(2);
    assert_eq!(
        refused.headers()["ratelimit-policy"],
        r#""connections";q=2"#
    );
    // A stream that the client ends makes room, although its connection stays open.
    drop(open.remove(0));
    let own = token("a", &json!({"watch": ["*"]}), 600);
    client.authorization = format!("Bearer {own}");
    until("room for another stream", async || {
        let sent = client.send("GET", "/api/jobs/later/events", "").await;
        sent.unwrap().status() == 200
    })
    .await;
    drop(open);
    secured.system.end().await;
}

#[tokio::test]
async fn a_new_certificate_is_used_and_disconnects_nobody() {
    let secured = Secured::start().await;
    let tunnel = Tunnel::to(&secured.authority, &secured.edge.addr).await;
    secured.system.submit("long", words(5000, 100, 1)).await;
    let mut client = Client::connect(&tunnel.addr).await;
    let mut seen = Seen::of("long");
    client.watch(&seen).await;
    let before = secured.certificate().await;
    // A key without its certificate changes nothing.
    secured.authority.issue("next");
    let key = secured.authority.file("edge.key");
    std::fs::copy(secured.authority.file("next.key"), &key).unwrap();
    let since = Instant::now();
    while since.elapsed() < Duration::from_secs(2) {
        assert_eq!(secured.certificate().await, before);
    }
    replace(&secured.authority, "edge", "next");
    until("the new certificate", async || {
        secured.certificate().await != before
    })
    .await;
    for _ in 0..50 {
        seen.step(&mut client).await;
    }
    secured.system.end().await;
}

#[tokio::test]
async fn a_certificate_that_cannot_be_used_is_refused_at_the_start() {
    let authority = Authority::new();
    for name in ["edge", "other"] {
        authority.issue(name);
    }
    let file = |name: &str| authority.file(name).display().to_string();
    std::fs::write(authority.file("empty.pem"), "").unwrap();
    for (cert, key, error) in [
        ("edge.pem", "other.key", "cannot use the certificate in"),
        ("missing.pem", "edge.key", "missing.pem for TLS"),
        ("empty.pem", "edge.key", "it has no certificate in PEM"),
        ("edge.pem", "empty.pem", "empty.pem for TLS"),
    ] {
        let cert = file(cert);
        let key = file(key);
        let args = [
            "edge",
            "--listen",
            "127.0.0.1:0",
            "--tls-cert",
            &cert,
            "--tls-key",
            &key,
        ];
        run(args).await.refuses(error);
    }
    let only = run(["edge", "--tls-cert", &file("edge.pem")]).await;
    assert_eq!(only.code, 64, "a certificate without its key");
}

#[tokio::test]
async fn a_client_that_never_completes_a_handshake_is_disconnected() {
    let secured = Secured::start().await;
    let mut client = TcpStream::connect(&secured.edge.addr).await.unwrap();
    client.write_all(&[0x16, 0x03, 0x01, 0x01]).await.unwrap();
    let since = Instant::now();
    let mut rest = Vec::new();
    let _ = within("the end", client.read_to_end(&mut rest)).await;
    assert_within(since, Duration::from_secs(20));
    secured.system.end().await;
}

/// One frame of HTTP/2.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// A GET of `/api/jobs`, encoded by HPACK with the static table and literals.
fn headers(stream: u32) -> Vec<u8> {
    let mut block = vec![0x82, 0x87, 0x04, 9];
    block.extend(b"/api/jobs");
    block.extend([0x01, 4]);
    block.extend(b"edge");
    frame(1, 0x05, stream, &block)
}

/// The error with which the edge ends a connection of HTTP/2 that sends this, and then `more` until it ends.
async fn goaway(secured: &Secured, more: impl Fn(u32) -> Vec<u8>) -> Option<u32> {
    let stream = secured.connect("h2").await;
    let (mut reads, mut writes) = tokio::io::split(stream);
    let mut first = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    first.extend(frame(4, 0, 0, &[]));
    let sends = async {
        if writes.write_all(&first).await.is_err() {
            return;
        }
        for number in 0..100_000 {
            if writes.write_all(&more(2 * number + 1)).await.is_err() {
                return;
            }
        }
    };
    let receives = async {
        let mut head = [0; 9];
        loop {
            reads.read_exact(&mut head).await.ok()?;
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
            let mut payload = vec![0; length as usize];
            reads.read_exact(&mut payload).await.ok()?;
            // GOAWAY
            if head[3] == 7 {
                let code = u32::from_be_bytes(payload[4..8].try_into().unwrap());
                if code != 0 {
                    return Some(code);
                }
            }
        }
    };
    let (code, ()) = within("the end", futures_util::future::join(receives, sends)).await;
    code
}

/// `ENHANCE_YOUR_CALM`.
const CALM: u32 = 11;

#[tokio::test]
async fn an_http_2_client_that_only_resets_requests_is_disconnected() {
    let secured = Secured::start().await;
    let floods = async || secured.counted("tailwater_edge_http2_floods_total").await;
    let before = floods().await;
    let resets = |stream: u32| {
        let cancel = 8_u32.to_be_bytes();
        [headers(stream), frame(3, 0, stream, &cancel)].concat()
    };
    assert_eq!(goaway(&secured, resets).await, Some(CALM));
    until("the flood to be counted", async || floods().await > before).await;
    // Headers that never end.
    let endless = |stream: u32| match stream {
        1 => frame(1, 0, 1, &[0x82, 0x87]),
        _ => frame(9, 0, 1, &[0x00; 16_000]),
    };
    assert!(goaway(&secured, endless).await.is_some());
    let tunnel = Tunnel::to(&secured.authority, &secured.edge.addr).await;
    Box::pin(within("another client", Client::connect(&tunnel.addr))).await;
    secured.system.end().await;
}

#[tokio::test]
async fn an_http_2_client_that_reads_nothing_is_disconnected() {
    let secured = Secured::start().await;
    let job = secured
        .system
        .submit("large", words(60_000, 1_000_000, 1))
        .await;
    secured.system.ended(&job).await;
    let unread = r#"tailwater_edge_slow_connections_total{part="output"}"#;
    let before = secured.counted(unread).await;
    let mut limits = http2::Builder::new(TokioExecutor::new());
    limits.initial_stream_window_size(1000);
    let client = secured.http2(&limits).await;
    let response = client
        .send("GET", "/api/jobs/large/state", "")
        .await
        .unwrap();
    assert_eq!(response.status(), 200);
    let since = Instant::now();
    eventually("the end of the connection", async || {
        let ended = client.requests.is_closed();
        ended.then_some(())
    })
    .await;
    assert_within(since, Duration::from_secs(20));
    assert!(secured.counted(unread).await > before);
    drop(response);
    secured.system.end().await;
}

#[tokio::test]
async fn one_unread_response_over_http_2_does_not_end_the_others() {
    let secured = Secured::start().await;
    let large = words(60_000, 1_000_000, 1);
    let job = secured.system.submit("large", large).await;
    secured.system.ended(&job).await;
    // It runs for longer than a client may leave a large response unread.
    secured.system.submit("live", words(400, 20, 1)).await;
    let mut limits = http2::Builder::new(TokioExecutor::new());
    limits.initial_stream_window_size(1000);
    let client = secured.http2(&limits).await;
    let unread = client.send("GET", "/api/jobs/large/state", "");
    let mut unread = unread.await.unwrap().into_body();
    let live = client.send("GET", "/api/jobs/live/events", "");
    let live = whole(live.await.unwrap()).await;
    assert!(live.contains("job:done:v1"), "{live}");
    let reset = loop {
        let frame = poll_fn(|cx| Pin::new(&mut unread).poll_frame(cx));
        match within("the rest of a response", frame).await {
            Some(Ok(_)) => {}
            Some(Err(error)) => break error,
            None => panic!("the response is complete"),
        }
    };
    assert!(!client.requests.is_closed(), "{reset}");
    let answer = client.send("GET", "/healthz", "").await.unwrap();
    assert_eq!(answer.status(), 200);
    secured.system.end().await;
}

#[tokio::test]
async fn curl_speaks_http_2_with_an_edge() {
    let secured = Secured::start().await;
    secured.system.submit("curl", words(3, 100, 1)).await;
    let ca = secured.authority.file("ca.pem");
    let mut curl = tokio::process::Command::new("curl");
    let url = format!("https://{}/api/jobs/curl/events", secured.edge.addr);
    curl.args(["-sN", "--noproxy", "*", "-w", "%{http_version}", "--cacert"])
        .arg(Path::new(&ca))
        .arg(url);
    let text = run_program(&mut curl).await.out;
    assert!(
        text.contains("job:done:v1") && text.ends_with('2'),
        "{text}"
    );
    secured.system.end().await;
}
