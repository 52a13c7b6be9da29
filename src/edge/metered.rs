//! A client's connection, measured and limited. A client that stops reading is not read from, and
//! is cut off after a while; one that sends too much is read slowly; an incomplete message counts
//! in the memory budget. It knows no protocol.

pub(super) mod pace;
mod partial;

use std::io::{self, IoSlice};
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

use self::pace::ReadPace;
use self::partial::PartialMessage;
use super::counters::SentBytes;
use super::memory::SplitBudget;
use super::meter::Meter;
use super::slow::SlowPart;
use crate::config::READ_AHEAD;
use crate::fair_slots::FairSlot;

/// A connection with a [`Meter`]. It ends when its client stops reading for longer than the meter
/// allows; hyper would wait forever.
#[derive(Debug)]
pub(super) struct Metered<T> {
    io: T,
    meter: Meter,
    /// Runs while a write waits.
    write_timer: WaitTimer,
    /// Runs while a flush or a shutdown waits: TLS has bytes that it has accepted, but not written.
    flush_timer: WaitTimer,
    /// How many more bytes were read than written.
    read_ahead: usize,
    /// Wakes the reader once something was written.
    paused_reader: Option<Waker>,
    /// The incomplete message of a WebSocket.
    partial: PartialMessage,
    pace: ReadPace,
    /// Its slot among the connections, also after an upgrade.
    slot: Option<FairSlot>,
}

impl<T> Metered<T> {
    /// Wraps `io`, the connection of a client at this address. `sent` counts what is written.
    pub(super) fn new(io: T, peer: IpAddr, bodies: &SplitBudget, sent: Arc<SentBytes>) -> Self {
        Self {
            io,
            meter: Meter::new(peer, sent),
            write_timer: None,
            flush_timer: None,
            read_ahead: 0,
            paused_reader: None,
            partial: PartialMessage::new(bodies),
            pace: ReadPace::new(),
            slot: None,
        }
    }

    /// Holds this slot until the connection ends.
    pub(super) fn holding(mut self, slot: FairSlot) -> Self {
        self.slot = Some(slot);
        self
    }

    /// The connection and its slot, without the limits of this type.
    pub(super) fn into_parts(self) -> (T, Option<FairSlot>) {
        (self.io, self.slot)
    }

    pub(super) fn meter(&self) -> Meter {
        self.meter.clone()
    }

    /// Counts the bytes written, or limits how long the write waits.
    fn after_write(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(bytes)) = &written {
            self.meter.count_sent(*bytes);
            self.read_ahead = self.read_ahead.saturating_sub(*bytes);
            if self.write_timer.is_some() {
                // The client has read since a flush began to wait, so the next one waits anew.
                self.flush_timer = None;
            }
        }
        let limited = limited(written, &mut self.write_timer, &self.meter, cx);
        if self.write_timer.is_none()
            && let Some(reader) = self.paused_reader.take()
        {
            reader.wake();
        }
        limited
    }
}

/// A timer that runs while the client accepts nothing.
type WaitTimer = Option<Pin<Box<Sleep>>>;

/// The result of what waits for the client; an error once it has waited for longer than the meter
/// allows.
fn limited<R>(
    polled: Poll<io::Result<R>>,
    timer: &mut WaitTimer,
    meter: &Meter,
    cx: &mut Context<'_>,
) -> Poll<io::Result<R>> {
    if polled.is_ready() {
        *timer = None;
        return polled;
    }
    if meter.stops_writing(cx) {
        return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
    }
    let timer = timer.get_or_insert_with(|| Box::pin(sleep(meter.write_wait())));
    ready!(timer.as_mut().poll(cx));
    meter.count_unread();
    Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
}

impl<T: AsyncRead + Unpin> AsyncRead for Metered<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.meter.stops_reading(cx) {
            // As if the client had disconnected.
            return Poll::Ready(Ok(()));
        }
        // The libraries answer some input by themselves (a ping with a pong) and queue what they
        // cannot write. Reading from a client that does not read would fill the memory with
        // answers.
        if self.write_timer.is_some() && self.read_ahead >= READ_AHEAD {
            self.paused_reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
        ready!(self.pace.poll_ready(cx));
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.io).poll_read(cx, buffer);
        let bytes = buffer.filled().len() - before;
        self.read_ahead = self.read_ahead.saturating_add(bytes);
        self.pace.count(bytes);
        if bytes > 0 {
            self.meter.note_received();
        }
        let Some(requests) = self.meter.requests() else {
            return read;
        };
        if bytes > 0 {
            self.partial.add(bytes, requests)?;
        }
        // Polled after the bytes are added, so that the deadline wakes the reader.
        if read.is_pending() && !self.partial.is_complete(requests) && self.partial.is_late(cx) {
            SlowPart::Message.count();
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        read
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Metered<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write(cx, bytes);
        self.after_write(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write_vectored(cx, bytes);
        self.after_write(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let flushed = Pin::new(&mut this.io).poll_flush(cx);
        limited(flushed, &mut this.flush_timer, &this.meter, cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let shut = Pin::new(&mut this.io).poll_shutdown(cx);
        limited(shut, &mut this.flush_timer, &this.meter, cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::budget::{Budget, LimitReached};
    use crate::config::{ANSWER_WAIT, BODIES_BYTES, BODY_WAIT, READ_BURST, READ_RATE, WRITE_WAIT};
    use crate::edge::memory::Memory;
    use crate::edge::traffic::Traffic;
    use crate::wire::limits::BODY_MAX;
    use futures_util::FutureExt as _;
    use std::sync::Arc;
    use std::time::Duration;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex, split};
    use tokio::time::{Instant, timeout};

    fn bodies() -> SplitBudget {
        Memory::new(Budget::unlimited()).bodies
    }

    const PEER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    #[tokio::test(start_paused = true)]
    async fn a_client_that_reads_nothing_for_the_write_wait_is_cut_off() {
        let before = SlowPart::Output.ended();
        let (_client, edge) = duplex(10);
        let mut edge = Metered::new(edge, PEER, &bodies(), Arc::default());
        let begun = Instant::now();
        let error = edge.write_all(&[0; 11]).await.unwrap_err();
        assert_eq!(
            (error.kind(), begun.elapsed()),
            (io::ErrorKind::TimedOut, WRITE_WAIT)
        );
        let (_client, edge) = duplex(10);
        let mut edge = Metered::new(edge, PEER, &bodies(), Arc::default());
        let begun = Instant::now();
        edge.meter().set_large(true);
        edge.write_all(&[0; 11]).await.unwrap_err();
        assert_eq!(begun.elapsed(), ANSWER_WAIT, "of a large response");
        // Other tests count, too.
        assert!(SlowPart::Output.ended() >= before + 2);
    }

    /// Accepts bytes, as TLS does until its buffer is full, for a client that reads nothing.
    struct Unread {
        is_full: bool,
    }

    impl AsyncWrite for Unread {
        fn poll_write(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            if self.is_full {
                return Poll::Pending;
            }
            Poll::Ready(Ok(bytes.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Pending
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Pending
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_flush_or_a_shutdown_waits_no_longer_than_a_write() {
        for is_last in [false, true] {
            let unread = Unread { is_full: false };
            let mut edge = Metered::new(unread, PEER, &bodies(), Arc::default());
            edge.write_all(&[0]).await.unwrap();
            let begun = Instant::now();
            let waiting = async {
                if is_last {
                    edge.shutdown().await
                } else {
                    edge.flush().await
                }
            };
            let ended = timeout(WRITE_WAIT * 2, waiting).await;
            let error = ended.expect("it is limited").unwrap_err();
            assert_eq!(
                (error.kind(), begun.elapsed()),
                (io::ErrorKind::TimedOut, WRITE_WAIT)
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_flush_waits_anew_once_the_client_has_read() {
        let unread = Unread { is_full: true };
        let mut edge = Metered::new(unread, PEER, &bodies(), Arc::default());
        assert!(edge.flush().now_or_never().is_none());
        assert!(edge.write(&[0]).now_or_never().is_none());
        sleep(WRITE_WAIT * 3 / 4).await;
        edge.io.is_full = false;
        edge.write_all(&[0]).await.unwrap();
        let begun = Instant::now();
        let ended = timeout(WRITE_WAIT * 2, edge.flush()).await;
        let error = ended.expect("it is limited").unwrap_err();
        assert_eq!(
            (error.kind(), begun.elapsed()),
            (io::ErrorKind::TimedOut, WRITE_WAIT)
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_reads_nothing_is_not_read_from() {
        let (mut client, edge) = duplex(2 * READ_AHEAD);
        let (mut reader, mut writer) = split(Metered::new(edge, PEER, &bodies(), Arc::default()));
        client.write_all(&vec![0; 2 * READ_AHEAD]).await.unwrap();
        writer.write_all(&vec![0; 2 * READ_AHEAD]).await.unwrap();
        assert!(
            writer.write(&[0]).now_or_never().is_none(),
            "the client does not read"
        );
        let mut received = vec![0; READ_AHEAD];
        reader
            .read_exact(&mut received)
            .now_or_never()
            .expect("some bytes are read ahead")
            .unwrap();
        assert!(reader.read(&mut received).now_or_never().is_none());
        let takes = async {
            client.read_exact(&mut [0; 2]).await.unwrap();
            writer.write_all(&[0]).await.unwrap();
        };
        let rest = timeout(WRITE_WAIT / 2, reader.read_exact(&mut received));
        let (rest, ()) = tokio::join!(rest, takes);
        rest.expect("the client is read from again").unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_reads_a_little_now_and_then_is_kept() {
        let (mut client, edge) = duplex(10);
        let mut edge = Metered::new(edge, PEER, &bodies(), Arc::default());
        let begun = Instant::now();
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

    #[tokio::test(start_paused = true)]
    async fn a_client_that_sends_too_much_is_read_at_the_rate_limit_and_still_written_to() {
        let bytes = 3 * usize::try_from(READ_BURST).unwrap();
        let (mut client, edge) = duplex(bytes);
        client.write_all(&vec![0; bytes]).await.unwrap();
        let (mut reader, mut writer) = split(Metered::new(edge, PEER, &bodies(), Arc::default()));
        let mut received = vec![0; bytes];
        let begun = Instant::now();
        let before = pace::read_pauses();
        let burst = bytes / 3;
        reader
            .read_exact(&mut received[..burst])
            .now_or_never()
            .expect("a burst is read at once")
            .unwrap();
        assert!(reader.read(&mut received).now_or_never().is_none());
        writer
            .write_all(&[0])
            .now_or_never()
            .expect("writes do not wait")
            .unwrap();
        for part in received[burst..].chunks_mut(READ_AHEAD) {
            reader.read_exact(part).await.unwrap();
        }
        let seconds = (bytes - burst) as f64 / READ_RATE as f64;
        let took = begun.elapsed().as_secs_f64();
        assert!(
            (seconds * 0.9..seconds * 1.2).contains(&took),
            "{took} of {seconds} s"
        );
        assert!(pace::read_pauses() > before);
        sleep(Duration::from_secs(60)).await;
        client.write_all(&vec![0; burst]).await.unwrap();
        reader
            .read_exact(&mut received[..burst])
            .now_or_never()
            .expect("a client may send a burst again after a pause")
            .unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn incomplete_messages_hold_limited_memory_for_a_limited_time() {
        let memory = Memory::new(Budget::unlimited());
        let mut connections = Vec::new();
        let mut refused = 0;
        for _ in 0..50 {
            let (mut client, edge) = duplex(BODY_MAX);
            let mut edge = Metered::new(edge, PEER, &memory.bodies, Arc::default());
            let traffic = Arc::<Traffic>::default();
            edge.meter().attach(&traffic);
            client.write_all(&vec![0; BODY_MAX - 1]).await.unwrap();
            let mut message = vec![0; BODY_MAX];
            match edge.read_exact(&mut message[1..]).await {
                Ok(_) => connections.push((client, edge, traffic)),
                Err(error) => {
                    assert!(error.get_ref().unwrap().is::<LimitReached>());
                    refused += 1;
                }
            }
        }
        assert_eq!((connections.len(), refused), (16, 34));
        assert_eq!(memory.whole.used(), BODIES_BYTES);
        // One is completed, and its room is released with the next bytes.
        let (client, edge, traffic) = &mut connections[0];
        traffic.count_request();
        client.write_all(&[0]).await.unwrap();
        edge.read_exact(&mut [0]).await.unwrap();
        assert_eq!(memory.whole.used(), BODIES_BYTES - BODY_MAX);
        let begun = Instant::now();
        let before = SlowPart::Message.ended();
        let error = connections[1].1.read(&mut [0]).await.unwrap_err();
        assert_eq!(
            (error.kind(), begun.elapsed()),
            (io::ErrorKind::TimedOut, BODY_WAIT)
        );
        assert!(SlowPart::Message.ended() > before);
    }

    #[tokio::test(start_paused = true)]
    async fn uncounted_bytes_with_long_pauses_do_not_count_as_a_message() {
        let memory = Memory::new(Budget::unlimited());
        let (mut client, edge) = duplex(100);
        let mut edge = Metered::new(edge, PEER, &memory.bodies, Arc::default());
        edge.meter().attach(&Arc::default());
        for _ in 0..30_000 {
            client.write_all(&[0; 7]).await.unwrap();
            edge.read_exact(&mut [0; 7]).await.unwrap();
            sleep(crate::config::PING_EVERY).await;
        }
        assert_eq!(memory.whole.used(), 0);
    }
}
