//! Accepts HTTP connections, sets their limits, and ends them in time when the edge stops. The
//! router handles the requests.

use std::convert::Infallible;
use std::future::{pending, poll_fn};
use std::io::{self, Write as _};
use std::net::{IpAddr, Shutdown};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use axum::Router;
use axum::extract::ConnectInfo;
use axum::serve::Listener;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;
use tracing::debug;

use super::client_stream::ClientStream;
use super::connection_slots::ConnectionSlots;
use super::counters::SentBytes;
use super::error::{Problem, count_refusal};
use super::http2;
use super::memory::{Large, SplitBudget};
use super::metered::Metered;
use super::slow::SlowPart;
use super::takeover::{LentStream, ResponseHead, Takeover};
use super::tls::Tls;
use crate::config::{DRAIN_WAIT, HEAD_WAIT, HTTP_BUFFER};
use crate::fair_slots::FairSlot;
use crate::runtime::Tasks;
use crate::wire::Code;

/// Accepts connections until the tasks should end. Each connection is one of the tasks.
pub(super) async fn serve(
    mut listener: TcpListener,
    tls: Option<&Tls>,
    router: Router,
    bodies: &SplitBudget,
    slots: &ConnectionSlots,
    sent: &Arc<SentBytes>,
    tasks: &Tasks,
) {
    loop {
        // When the process has no file descriptors left, axum's accept waits a little and
        // continues.
        let accepted = Listener::accept(&mut listener);
        let Some((stream, peer)) = tasks.stop().run_until_cancelled(accepted).await else {
            return;
        };
        if let Err(error) = stream.set_nodelay(true) {
            debug!(%error, "a connection without TCP_NODELAY");
        }
        let peer = peer.ip();
        let slot = match slots.acquire(peer) {
            Ok(slot) => slot,
            Err(problem) => {
                // A client that expects TLS could not read a response without it. The refusal is
                // counted in any case.
                let response = text_of(&problem);
                if tls.is_none() {
                    refuse(stream, &response);
                }
                continue;
            }
        };
        let router = router.clone();
        match tls.cloned() {
            None => {
                let stream =
                    Metered::new(ClientStream::Plain(stream), peer, bodies, Arc::clone(sent));
                tasks.spawn(connection(
                    stream.holding(slot),
                    router,
                    tasks.stop().clone(),
                ));
            }
            Some(tls) => {
                let bodies = bodies.clone();
                let tasks = tasks.clone();
                let secured = secured(stream, peer, tls, slot, bodies, Arc::clone(sent));
                tasks.clone().spawn(async move {
                    match tasks.stop().run_until_cancelled(secured).await {
                        Some(Ok((stream, true))) => http2::connection(stream, router, tasks).await,
                        Some(Ok((stream, false))) => {
                            connection(stream, router, tasks.stop().clone()).await;
                        }
                        Some(Err(error)) => {
                            if error.kind() == io::ErrorKind::TimedOut {
                                SlowPart::Handshake.count();
                            }
                            debug!(%error, "no TLS connection");
                        }
                        None => {}
                    }
                });
            }
        }
    }
}

/// Makes the TLS handshake. Returns whether the client chose HTTP/2.
async fn secured(
    stream: TcpStream,
    peer: IpAddr,
    tls: Tls,
    slot: FairSlot,
    bodies: SplitBudget,
    sent: Arc<SentBytes>,
) -> io::Result<(Metered<ClientStream>, bool)> {
    let (stream, is_http2) = tls.accept(stream).await?;
    let stream = ClientStream::Secured(Box::new(stream));
    let stream = Metered::new(stream, peer, &bodies, sent).holding(slot);
    Ok((stream, is_http2))
}

/// The whole response to a client without a slot, as text. Counts the refusal.
fn text_of(problem: &Problem) -> String {
    let response = problem.to_response();
    let status = response.status();
    let fields: String = response
        .headers()
        .iter()
        .filter_map(|(name, value)| Some(format!("{name}: {}\r\n", value.to_str().ok()?)))
        .collect();
    let body = response.body();
    format!(
        "HTTP/1.1 {status}\r\n{fields}cache-control: no-store\r\nconnection: close\r\n\
        content-length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// Refuses a client, without reading from it or waiting.
fn refuse(stream: TcpStream, response: &str) {
    let written = stream.into_std().and_then(|mut stream| {
        stream.write_all(response.as_bytes())?;
        stream.shutdown(Shutdown::Write)
    });
    if let Err(error) = written {
        debug!(%error, "a client was refused without a response");
    }
}

/// Serves one connection with HTTP/1.1 until it ends, or until a long response takes it away. When
/// the edge stops, the request in progress is still answered if that does not take too long.
async fn connection(stream: Metered<ClientStream>, router: Router, stop: CancellationToken) {
    let mut limits = http1::Builder::new();
    limits
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_WAIT)
        .max_buf_size(HTTP_BUFFER);
    // The buffer alone would accept a little more.
    limits.max_header_size(HTTP_BUFFER);
    let meter = stream.meter();
    let of_connection = meter.clone();
    let stream = LentStream::new(stream);
    let lent = stream.clone();
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(ConnectInfo(meter.clone()));
        let version = request.version();
        let has_body = request.method() != Method::HEAD;
        let answer = router.clone().oneshot(request);
        let meter = meter.clone();
        let lent = lent.clone();
        async move {
            let mut response = answer.await?;
            meter.set_large(response.extensions().get::<Large>().is_some());
            if let Some(takeover) = response.extensions_mut().remove::<Takeover>()
                && has_body
            {
                lent.request(takeover, ResponseHead::of(&response, version));
                // The connection is taken away.
                return pending().await;
            }
            Ok::<_, Infallible>(response)
        }
    });
    let io = TokioIo::new(stream.clone());
    let mut connection = pin!(limits.serve_connection(io, service).with_upgrades());
    let served = poll_fn(|cx| match connection.as_mut().poll(cx) {
        Poll::Ready(ended) => Poll::Ready(ended),
        Poll::Pending if stream.hand_over() => Poll::Ready(Ok(())),
        Poll::Pending => Poll::Pending,
    });
    let ended = tokio::select! {
        ended = served => Some(ended),
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            timeout(DRAIN_WAIT * 3 / 4, connection).await.ok()
        }
    };
    match ended {
        Some(Ok(())) => {}
        Some(Err(error)) => {
            // A client that is idle for as long is not slow.
            if error.is_timeout() && of_connection.has_asked() {
                SlowPart::Head.count();
            }
            // The library has answered it with 431 or 414.
            if error.is_parse_too_large() {
                count_refusal(Code::TooLarge);
            }
            debug!(%error, "a connection broke");
        }
        None => debug!("a connection was cut off at the stop"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::budget::Budget;
    use crate::edge::error::refusals;
    use crate::edge::forwarded::TrustedProxies;
    use crate::edge::memory::Memory;
    use crate::edge::quota::Quota;
    use crate::fair_slots::FairSlots;
    use axum::routing::get;
    use std::net::SocketAddr;
    use std::time::Duration;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};
    use tokio::net::TcpSocket;
    use tokio::time::{Instant, sleep};

    const PATIENCE: Duration = Duration::from_secs(20);

    /// A connection from this address that has sent a request, and what it was answered.
    async fn ask(from: &str, edge: SocketAddr) -> (TcpStream, String) {
        let socket = TcpSocket::new_v4().unwrap();
        let from: IpAddr = from.parse().unwrap();
        socket.bind((from, 0).into()).unwrap();
        let mut stream = socket.connect(edge).await.unwrap();
        // An edge that refuses a connection does not read from it.
        let _ = stream.write_all(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n").await;
        let mut answer = vec![0; 4096];
        let read = timeout(PATIENCE, stream.read(&mut answer)).await.unwrap();
        let read = read.unwrap_or(0);
        let answer = String::from_utf8_lossy(&answer[..read]).into_owned();
        (stream, answer)
    }

    /// Serves with these slots while `clients` run.
    async fn with_edge(slots: ConnectionSlots, clients: impl AsyncFnOnce(SocketAddr)) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let edge = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let tasks = Tasks::new(stop.clone());
        let memory = Memory::new(Budget::unlimited());
        let router = Router::new().route("/", get(async || "served"));
        let sent = Arc::default();
        let serving = serve(
            listener,
            None,
            router,
            &memory.bodies,
            &slots,
            &sent,
            &tasks,
        );
        let clients = async {
            clients(edge).await;
            stop.cancel();
        };
        tokio::join!(serving, clients);
        tasks.end(PATIENCE).await;
    }

    #[tokio::test]
    async fn an_address_with_its_share_of_connections_is_refused_and_others_are_not() {
        let slots = ConnectionSlots::new(FairSlots::new(8), TrustedProxies::default());
        let clients = async |edge| {
            let before = Quota::Address.reached();
            let mut held = Vec::new();
            for _ in 0..6 {
                let (stream, answer) = ask("127.0.0.1", edge).await;
                assert!(answer.ends_with("served"), "{answer}");
                held.push(stream);
            }
            let (_, refused) = ask("127.0.0.1", edge).await;
            for part in [
                "HTTP/1.1 429 Too Many Requests\r\n",
                "\r\nretry-after: 1\r\n",
                "\r\nratelimit-policy: \"address\";q=6\r\n",
                "\r\nratelimit: \"address\";r=0;t=1\r\n",
                r#""code":"rate_limited""#,
            ] {
                assert!(refused.contains(part), "{part}: {refused}");
            }
            assert!(Quota::Address.reached() > before);
            for from in ["127.0.0.2", "127.0.0.3"] {
                let (stream, answer) = ask(from, edge).await;
                assert!(answer.ends_with("served"), "{from}: {answer}");
                held.push(stream);
            }
            let (_, full) = ask("127.0.0.4", edge).await;
            assert!(full.starts_with("HTTP/1.1 503 "), "{full}");
            assert!(full.contains("\r\nretry-after: 1\r\n"), "{full}");
        };
        with_edge(slots, clients).await;
    }

    #[tokio::test]
    async fn the_connections_of_a_trusted_proxy_use_up_no_share() {
        let proxies = TrustedProxies(vec!["127.0.0.2/32".parse().unwrap()]);
        let slots = ConnectionSlots::new(FairSlots::new(8), proxies);
        let clients = async |edge| {
            let mut held = Vec::new();
            // More than the share of one address, which is 6.
            for _ in 0..7 {
                let (stream, answer) = ask("127.0.0.2", edge).await;
                assert!(answer.ends_with("served"), "{answer}");
                held.push(stream);
            }
            let (stream, answer) = ask("127.0.0.1", edge).await;
            assert!(answer.ends_with("served"), "{answer}");
            held.push(stream);
            let (_, full) = ask("127.0.0.2", edge).await;
            assert!(full.starts_with("HTTP/1.1 503 "), "{full}");
        };
        with_edge(slots, clients).await;
    }

    #[tokio::test]
    async fn a_head_that_is_too_large_is_refused_and_counted() {
        let counted = || {
            let mut refusals = refusals();
            let found = refusals.find(|(code, _)| *code == Code::TooLarge);
            found.map_or(0, |(_, count)| count)
        };
        let memory = Memory::new(Budget::unlimited());
        let peer: IpAddr = "127.0.0.1".parse().unwrap();
        let (mut client, edge) = duplex(2 * HTTP_BUFFER);
        let long = "x".repeat(HTTP_BUFFER);
        let head = format!("GET / HTTP/1.1\r\nHost: h\r\nX-Long: {long}\r\n\r\n");
        client.write_all(head.as_bytes()).await.unwrap();
        let edge = ClientStream::Response(edge);
        let stream = Metered::new(edge, peer, &memory.bodies, Arc::default());
        let router = Router::new().route("/", get(async || "served"));
        let before = counted();
        let served = connection(stream, router, CancellationToken::new());
        timeout(PATIENCE, served).await.unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
        // Other tests count, too.
        assert!(counted() > before);
    }

    /// One test, because all tests share the counter.
    #[tokio::test(start_paused = true)]
    async fn a_head_that_comes_too_slowly_ends_the_connection_and_is_counted() {
        let memory = Memory::new(Budget::unlimited());
        let peer: IpAddr = "127.0.0.1".parse().unwrap();
        for (sent, drips, is_slow) in [
            ("GET / HTTP/1.1\r\nHost:", false, true),
            ("GET / HTTP/1.1\r\nHost: h\r\nX-Drip: ", true, true),
            // Clients that are idle.
            ("", false, false),
            ("GET / HTTP/1.1\r\nHost: h\r\n\r\n", false, false),
        ] {
            let before = SlowPart::Head.ended();
            let (mut client, edge) = duplex(4096);
            client.write_all(sent.as_bytes()).await.unwrap();
            let drip = async {
                while drips && client.write_all(b"a").await.is_ok() {
                    sleep(Duration::from_secs(5)).await;
                }
                pending::<()>().await;
            };
            let edge = ClientStream::Response(edge);
            let stream = Metered::new(edge, peer, &memory.bodies, Arc::default());
            let router = Router::new().route("/", get(async || "served"));
            let begun = Instant::now();
            let served = connection(stream, router, CancellationToken::new());
            tokio::select! {
                biased;
                served = timeout(HEAD_WAIT * 2, served) => served.unwrap(),
                () = drip => {}
            }
            assert_eq!(begun.elapsed().as_secs(), HEAD_WAIT.as_secs(), "{sent:?}");
            let counted = SlowPart::Head.ended() - before;
            assert_eq!(counted, u64::from(is_slow), "{sent:?}");
        }
    }
}
