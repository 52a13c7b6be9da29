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
use super::counters::SentBytes;
use super::error::count_refusal;
use super::http2;
use super::memory::{Large, SplitBudget};
use super::meter::network;
use super::metered::Metered;
use super::takeover::{LentStream, ResponseHead, Takeover};
use super::tls::Tls;
use crate::config::{DRAIN_WAIT, HEAD_WAIT, HTTP_BUFFER};
use crate::fair_slots::{FairSlot, FairSlots};
use crate::runtime::Tasks;
use crate::wire::Code;

/// Accepts connections until the tasks should end. Each connection is one of the tasks.
pub(super) async fn serve(
    mut listener: TcpListener,
    tls: Option<&Tls>,
    router: Router,
    bodies: &SplitBudget,
    slots: &FairSlots,
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
        let Ok(slot) = slots.acquire(network(peer)) else {
            // Without TLS, a client that expects it could not read an answer.
            if tls.is_none() {
                refuse(stream);
            }
            continue;
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
                        Some(Err(error)) => debug!(%error, "no TLS connection"),
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

/// Refuses a client for which there is no slot, without reading from it or waiting.
fn refuse(stream: TcpStream) {
    count_refusal(Code::Overloaded);
    /// The `Problem` of [`Code::Overloaded`](crate::wire::Code::Overloaded).
    const ANSWER: &str = concat!(
        "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/problem+json\r\nretry-after: 1\r\n",
        "cache-control: no-store\r\nconnection: close\r\ncontent-length: 98\r\n\r\n",
        r#"{"type":"about:blank","title":"Too many connections; try later.","status":503,"code":"overloaded"}"#,
    );
    let answered = stream.into_std().and_then(|mut stream| {
        stream.write_all(ANSWER.as_bytes())?;
        stream.shutdown(Shutdown::Write)
    });
    if let Err(error) = answered {
        debug!(%error, "a client was refused without an answer");
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
        Some(Err(error)) => debug!(%error, "a connection broke"),
        None => debug!("a connection was cut off at the stop"),
    }
}
