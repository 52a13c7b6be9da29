//! Connections that say how much leaves over them, that can be cut, and whose clients are gone when they take nothing. A
//! client that takes nothing is not heard either. It knows no protocol.

use std::io::{self, IoSlice};
use std::net::IpAddr;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

pub(in crate::edge) use super::line::Meter;
use crate::config::READ_AHEAD;

/// A connection with a [`Meter`]. Its client is gone when it takes nothing for as long as the meter says; hyper
/// itself waits for ever.
#[derive(Debug)]
pub(in crate::edge) struct Metered<T> {
    io: T,
    meter: Meter,
    /// Runs while a write waits.
    patience: Option<Pin<Box<Sleep>>>,
    /// How many bytes were read beyond those that were written.
    ahead: usize,
    /// Who reads on once something was written.
    reader: Option<Waker>,
}

impl<T> Metered<T> {
    /// Measures `io`, the connection of a client at this address.
    pub(in crate::edge) fn new(io: T, peer: IpAddr) -> Self {
        Self { io, meter: Meter::new(peer), patience: None, ahead: 0, reader: None }
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
                self.ahead = self.ahead.saturating_sub(*bytes);
            }
            if let Some(reader) = self.reader.take() {
                reader.wake();
            }
            return written;
        }
        if self.meter.stops_waiting(cx) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        let patience = self.patience.get_or_insert_with(|| Box::pin(sleep(self.meter.patience())));
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
        // Libraries answer by themselves, a ping with a pong for instance, and keep what cannot be written. A client that
        // takes nothing is heard only up to here, so that it cannot fill the memory with answers to itself.
        if self.patience.is_some() && self.ahead >= READ_AHEAD {
            self.reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.io).poll_read(cx, buffer);
        self.ahead = self.ahead.saturating_add(buffer.filled().len() - before);
        read
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
    use crate::config::{ANSWER_WAIT, WRITE_WAIT};
    use futures_util::FutureExt as _;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex, split};
    use tokio::time::{Instant, timeout};

    const PEER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_nothing_for_the_write_wait_is_gone() {
        let (_client, edge) = duplex(10);
        let (mut edge, begun) = (Metered::new(edge, PEER), Instant::now());
        let error = edge.write_all(&[0; 11]).await.unwrap_err();
        assert_eq!((error.kind(), begun.elapsed()), (io::ErrorKind::TimedOut, WRITE_WAIT));
        let (_client, edge) = duplex(10);
        let (mut edge, begun) = (Metered::new(edge, PEER), Instant::now());
        edge.meter().hurry(true);
        edge.write_all(&[0; 11]).await.unwrap_err();
        assert_eq!(begun.elapsed(), ANSWER_WAIT, "of a large answer");
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_nothing_is_not_heard_until_it_takes_something() {
        let (mut client, edge) = duplex(2 * READ_AHEAD);
        let (mut hears, mut says) = split(Metered::new(edge, PEER));
        client.write_all(&vec![0; 2 * READ_AHEAD]).await.unwrap();
        says.write_all(&vec![0; 2 * READ_AHEAD]).await.unwrap();
        assert!(says.write(&[0]).now_or_never().is_none(), "the client takes nothing");
        let mut heard = vec![0; READ_AHEAD];
        hears.read_exact(&mut heard).now_or_never().expect("some is heard ahead").unwrap();
        assert!(hears.read(&mut heard).now_or_never().is_none());
        let takes = async {
            client.read_exact(&mut [0; 2]).await.unwrap();
            says.write_all(&[0]).await.unwrap();
        };
        let rest = timeout(WRITE_WAIT / 2, hears.read_exact(&mut heard));
        let (rest, ()) = tokio::join!(rest, takes);
        rest.expect("it is heard again").unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_a_little_now_and_then_is_there() {
        let (mut client, edge) = duplex(10);
        let (mut edge, begun) = (Metered::new(edge, PEER), Instant::now());
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
