//! HTTP connections: accepts them, gives each its limits, and ends all in time when the edge stops. What is asked over
//! them is the router's.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::Router;
use axum::extract::ConnectInfo;
use axum::serve::Listener;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Sleep, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;
use tracing::debug;

use super::socketio::meter::Metered;
use crate::config::{DRAIN_WAIT, HEAD_WAIT, HTTP_BUFFER, WRITE_WAIT};
use crate::runtime::Tasks;

/// Accepts connections until the tasks should end; those that were accepted are among the tasks.
pub(super) async fn serve(mut listener: TcpListener, router: Router, tasks: &Tasks) {
    loop {
        // axum's accept waits a little when the process has no file descriptors left, and goes on.
        let accepted = Listener::accept(&mut listener);
        let Some((stream, _)) = tasks.stop().run_until_cancelled(accepted).await else { return };
        if let Err(error) = stream.set_nodelay(true) {
            debug!(%error, "a connection without TCP_NODELAY");
        }
        tasks.spawn(connection(stream, router.clone(), tasks.stop().clone()));
    }
}

/// Serves one connection. When the edge stops, the request under way is answered, if that takes no longer than the edge
/// may.
async fn connection(stream: TcpStream, router: Router, stop: CancellationToken) {
    let mut limits = http1::Builder::new();
    limits.timer(TokioTimer::new()).header_read_timeout(HEAD_WAIT).max_buf_size(HTTP_BUFFER);
    let stream = Metered::new(Patient::new(stream));
    let meter = stream.meter();
    let router = router.map_request(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(ConnectInfo(meter.clone()));
        request
    });
    let (io, service) = (TokioIo::new(stream), TowerToHyperService::new(router));
    let mut connection = std::pin::pin!(limits.serve_connection(io, service).with_upgrades());
    let ended = tokio::select! {
        ended = &mut connection => Some(ended),
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

/// A connection whose client is gone when it takes nothing for [`WRITE_WAIT`]. hyper itself waits for ever.
#[derive(Debug)]
struct Patient<T> {
    io: T,
    /// Runs while a write waits.
    patience: Option<Pin<Box<Sleep>>>,
}

impl<T> Patient<T> {
    const fn new(io: T) -> Self {
        Self { io, patience: None }
    }

    fn judge<R>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<R>>) -> Poll<io::Result<R>> {
        if written.is_ready() {
            self.patience = None;
            return written;
        }
        let patience = self.patience.get_or_insert_with(|| Box::pin(sleep(WRITE_WAIT)));
        patience.as_mut().poll(cx).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Patient<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buffer)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Patient<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write(cx, bytes);
        self.judge(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write_vectored(cx, bytes);
        self.judge(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};
    use tokio::time::Instant;

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_nothing_for_the_write_wait_is_gone() {
        let (_client, edge) = duplex(10);
        let (mut edge, begun) = (Patient::new(edge), Instant::now());
        let error = edge.write_all(&[0; 11]).await.unwrap_err();
        assert_eq!((error.kind(), begun.elapsed()), (io::ErrorKind::TimedOut, WRITE_WAIT));
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_a_little_now_and_then_is_there() {
        let (mut client, edge) = duplex(10);
        let (mut edge, begun) = (Patient::new(edge), Instant::now());
        let takes = async {
            for _ in 0..20 {
                sleep(WRITE_WAIT * 9 / 10).await;
                client.read_exact(&mut [0]).await.unwrap();
            }
        };
        let (written, ()) = tokio::join!(edge.write_all(&[0; 30]), takes);
        written.unwrap();
        assert!(begun.elapsed() > WRITE_WAIT * 10);
    }
}
