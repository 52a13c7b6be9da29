//! A client's connection without the HTTP library: the socket, and what is being written to it. A
//! client that accepts no data is not read from, and is cut off after a while. It knows no
//! protocol.

use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tracing::debug;

use super::alarm::{Alarm, AlarmTime};
use super::client_stream::ClientStream;
use super::counters::{SentBytes, Transport};
use super::metered::pace::ReadPace;
use super::output::{EventFraming, OutputQueue};
use super::slow::SlowPart;
use super::takeover::TakenStream;
use super::turn::Turn;
use super::turn_queue::QueuedTurn;
use super::watches::Released;
use crate::config::{ANSWER_WAIT, READ_CHUNK, STREAM_STALL, WRITE_WAIT};
use crate::fair_slots::FairSlot;

/// A client's connection.
#[derive(Debug)]
pub(super) struct Link<T> {
    io: T,
    pub(super) output: OutputQueue,
    pub(super) alarm: Alarm,
    turn: Turn,
    /// The turn for which the client waits, since the last one is over.
    queued: Option<QueuedTurn>,
    pace: ReadPace,
    /// Since when the client has accepted no data.
    blocked_since: Option<AlarmTime>,
    /// Whether what is written takes scarce memory.
    pub(super) is_large: bool,
    /// What was read before: by the HTTP library, or more than could be handled.
    early: Option<Box<Bytes>>,
    /// Its slot among the connections.
    slot: Option<FairSlot>,
    /// Counts what is written.
    sent: Option<Arc<SentBytes>>,
    /// What it is counted for.
    transport: Option<Transport>,
}

/// The client has disconnected, or has accepted no data for too long.
#[derive(Debug)]
pub(super) struct Broken;

impl Link<ClientStream> {
    /// A connection that was taken away from the HTTP library.
    pub(super) fn taken(taken: TakenStream, framing: EventFraming, alarm: Alarm) -> Self {
        let mut link = Self::new(taken.stream, framing, alarm);
        link.slot = taken.slot;
        link.early = (!taken.early.is_empty()).then(|| Box::new(taken.early));
        link
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> Link<T> {
    /// The connection of a client whose events have this framing.
    pub(super) fn new(io: T, framing: EventFraming, alarm: Alarm) -> Self {
        Self {
            io,
            output: OutputQueue::new(framing),
            alarm,
            turn: Turn::default(),
            queued: None,
            pace: ReadPace::new(),
            blocked_since: None,
            is_large: false,
            early: None,
            slot: None,
            sent: None,
            transport: None,
        }
    }

    /// Counts what is written over this transport.
    pub(super) fn count_sent(&mut self, sent: &Arc<SentBytes>, transport: Transport) {
        self.sent = Some(Arc::clone(sent));
        self.transport = Some(transport);
    }

    /// Reads some of what has arrived: nothing at the end of the input. Pending also at the end of
    /// the client's turn.
    pub(super) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<Result<(), Broken>> {
        ready!(self.poll_turn(cx));
        ready!(self.pace.poll_ready(cx));
        if let Some(mut early) = self.early.take() {
            let part = early.split_to(early.len().min(buffer.remaining()));
            buffer.put_slice(&part);
            self.early = (!early.is_empty()).then_some(early);
            return Poll::Ready(Ok(()));
        }
        let read = ready!(Pin::new(&mut self.io).poll_read(cx, buffer));
        self.pace.count(buffer.filled().len());
        self.turn.count(buffer.filled().len());
        Poll::Ready(read.map_err(|error| {
            debug!(%error, "the connection broke");
            Broken
        }))
    }

    /// Writes the output. Pending while the client accepts no data, and at the end of its turn.
    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        while !self.output.is_empty() {
            ready!(self.poll_turn(cx));
            match self.output.poll_write(Pin::new(&mut self.io), cx) {
                Poll::Ready(Ok(bytes)) => {
                    self.blocked_since = None;
                    self.turn.count(bytes);
                    if let Some(sent) = &self.sent {
                        sent.count(self.transport, bytes);
                    }
                }
                Poll::Ready(Err(error)) => {
                    debug!(%error, "the connection broke");
                    return Poll::Ready(Err(Broken));
                }
                Poll::Pending => return self.poll_blocked(cx),
            }
        }
        // TLS buffers what it has accepted.
        match Pin::new(&mut self.io).poll_flush(cx) {
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(error)) => {
                debug!(%error, "the connection broke");
                return Poll::Ready(Err(Broken));
            }
            Poll::Pending => return self.poll_blocked(cx),
        }
        self.is_large = false;
        self.blocked_since = None;
        Poll::Ready(Ok(()))
    }

    /// Waits for a client that accepts no data, for a limited time.
    fn poll_blocked(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        let now = self.alarm.now();
        let deadline = *self.blocked_since.get_or_insert(now) + self.write_wait();
        if now >= deadline {
            debug!("the client accepts no data");
            SlowPart::Output.count();
            return Poll::Ready(Err(Broken));
        }
        self.alarm.set_by(deadline, cx.waker());
        Poll::Pending
    }

    /// Begins the client's turn: others were served since the last one. A client that waits for its
    /// turn may be woken for other reasons before that.
    pub(super) fn begin_turn(&mut self) {
        if self.queued.is_none_or(|turn| self.alarm.has_come(turn)) {
            self.queued = None;
            self.turn = Turn::default();
        }
    }

    /// Lets others be served at the end of the client's turn.
    fn poll_turn(&mut self, cx: &Context<'_>) -> Poll<()> {
        if self.queued.is_some() {
            self.begin_turn();
        } else if self.turn.is_over() {
            self.queued = Some(self.alarm.wait_for_turn(cx.waker()));
        }
        if self.queued.is_some() {
            Poll::Pending
        } else {
            Poll::Ready(())
        }
    }

    /// Drops the events that wait. See [`OutputQueue::release`].
    pub(super) fn release(&mut self) -> Released {
        let released = self.output.release();
        self.is_large = released.holds_large;
        released
    }

    /// Whether to drop the events that wait: at once if they can be read again `for_free`, and
    /// otherwise after a moment, so that they are not read from the log again each time that the
    /// socket is full.
    pub(super) fn should_release(&mut self, for_free: bool, cx: &Context<'_>) -> bool {
        self.is_stalled(for_free, cx) && self.output.has_more_events()
    }

    /// Whether the client has accepted no data for so long that what waits for it is dropped.
    pub(super) fn is_stalled(&mut self, for_free: bool, cx: &Context<'_>) -> bool {
        let Some(time) = self.blocked_for() else {
            return false;
        };
        let is_due = for_free || time >= STREAM_STALL;
        if !is_due {
            let soon = self.alarm.now() + STREAM_STALL;
            self.alarm.set_by(soon, cx.waker());
        }
        is_due
    }

    /// For how long the client has accepted no data; `None` while it does.
    pub(super) fn blocked_for(&self) -> Option<Duration> {
        let since = self.blocked_since?;
        Some(self.alarm.now().since(since))
    }

    fn write_wait(&self) -> Duration {
        if self.is_large {
            ANSWER_WAIT
        } else {
            WRITE_WAIT
        }
    }

    /// Reads these bytes again, before all others.
    pub(super) fn unread(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let later = self.early.take().unwrap_or_default();
        self.early = Some(Box::new([bytes, &later].concat().into()));
    }

    /// Reads and ignores everything up to the end of the input.
    pub(super) fn poll_discard(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        let mut buffer = [MaybeUninit::uninit(); READ_CHUNK];
        let mut buffer = ReadBuf::uninit(&mut buffer);
        ready!(self.poll_read(cx, &mut buffer))?;
        if buffer.filled().is_empty() {
            return Poll::Ready(Ok(()));
        }
        // Others are served before more is read.
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Sends the end of the output, after everything was written.
    pub(super) fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        let shut = ready!(Pin::new(&mut self.io).poll_shutdown(cx));
        Poll::Ready(shut.map_err(|_| Broken))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::TURN_BYTES;
    use crate::edge::alarm::Alarms;
    use crate::runtime::Tasks;
    use crate::wire::Stored;
    use futures_util::{FutureExt as _, poll};
    use std::future::poll_fn;
    use tokio::io::{AsyncReadExt as _, DuplexStream, duplex};
    use tokio::task::yield_now;
    use tokio_util::sync::CancellationToken;

    /// A client of a thread that gives its clients their turns.
    async fn connect(tasks: &Tasks) -> (DuplexStream, Link<DuplexStream>) {
        let alarms = Alarms::new();
        let stop = CancellationToken::new();
        tasks.spawn(alarms.clone().run(stop, tasks.stop().clone()));
        yield_now().await;
        let (client, edge) = duplex(1 << 20);
        (client, Link::new(edge, Stored::json, alarms.alarm()))
    }

    #[tokio::test]
    async fn each_poll_writes_one_turn_until_everything_is_written() {
        let tasks = Tasks::default();
        let (mut client, mut link) = connect(&tasks).await;
        let sent = vec![b'x'; 5 * TURN_BYTES / 2];
        link.output.put(sent.clone());
        let mut polls = 0;
        let flushed = poll_fn(|cx| {
            polls += 1;
            link.begin_turn();
            link.poll_flush(cx)
        });
        assert!(flushed.await.is_ok());
        assert_eq!(polls, 3);
        let mut received = vec![0; sent.len()];
        client.read_exact(&mut received).await.unwrap();
        assert!(received == sent);
        assert!(tasks.end(WRITE_WAIT).await);
    }

    #[tokio::test]
    async fn a_client_that_is_woken_before_its_turn_writes_nothing() {
        let tasks = Tasks::default();
        let (mut client, mut link) = connect(&tasks).await;
        link.output.put(vec![b'x'; 3 * TURN_BYTES]);
        let mut received = Vec::with_capacity(3 * TURN_BYTES);
        for turns in 1..=2 {
            for _ in 0..10 {
                link.begin_turn();
                assert!(poll!(poll_fn(|cx| link.poll_flush(cx))).is_pending());
            }
            while let Some(read) = client.read_buf(&mut received).now_or_never() {
                read.unwrap();
            }
            assert_eq!(received.len(), turns * TURN_BYTES);
            // The turn comes.
            yield_now().await;
        }
        assert!(tasks.end(WRITE_WAIT).await);
    }
}
