//! Connections that say how much leaves over them, that can be cut, and whose clients are gone when they take nothing. It
//! knows no protocol.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

pub(in crate::edge) use super::line::Meter;
use crate::config::WRITE_WAIT;

/// A connection with a [`Meter`]. Its client is gone when it takes nothing for [`WRITE_WAIT`]; hyper itself waits for ever.
#[derive(Debug)]
pub(in crate::edge) struct Metered<T> {
    io: T,
    meter: Meter,
    /// Runs while a write waits.
    patience: Option<Pin<Box<Sleep>>>,
}

impl<T> Metered<T> {
    /// Measures `io`.
    pub(in crate::edge) fn new(io: T) -> Self {
        Self { io, meter: Meter::default(), patience: None }
    }

    /// What measures it.
    pub(in crate::edge) fn meter(&self) -> Meter {
        self.meter.clone()
    }

    fn judge(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if written.is_ready() {
            self.patience = None;
            if let Poll::Ready(Ok(bytes)) = &written {
                self.meter.wrote(*bytes);
            }
            return written;
        }
        if self.meter.stops_waiting(cx) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        let patience = self.patience.get_or_insert_with(|| Box::pin(sleep(WRITE_WAIT)));
        patience.as_mut().poll(cx).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Metered<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.meter.stops_reading(cx) {
            // As if the client had gone.
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.io).poll_read(cx, buffer)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Metered<T> {
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
        let (mut edge, begun) = (Metered::new(edge), Instant::now());
        let error = edge.write_all(&[0; 11]).await.unwrap_err();
        assert_eq!((error.kind(), begun.elapsed()), (io::ErrorKind::TimedOut, WRITE_WAIT));
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_a_little_now_and_then_is_there() {
        let (mut client, edge) = duplex(10);
        let (mut edge, begun) = (Metered::new(edge), Instant::now());
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
