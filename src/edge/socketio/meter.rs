//! Connections that say how much leaves over them, that can be cut, and whose clients are gone when they take nothing. A
//! client that takes nothing is not heard either. It knows no protocol.

use std::io::{self, IoSlice};
use std::net::IpAddr;
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

pub(in crate::edge) use super::line::Meter;
use crate::config::{
    BODY_MAX, BODY_WAIT, QUIET_WAIT, READ_AHEAD, READ_BURST, READ_RATE, SMALL_BYTES, TINY_BYTES,
};
use crate::edge::memory::{Held, Part};
use crate::share::FairSlot;

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
    /// The message that comes, on a WebSocket.
    coming: Coming,
    pace: Pace,
    /// Its place among the connections; what it is upgraded to keeps it.
    slot: Option<FairSlot>,
}

/// How fast a client is heard. What it sends costs time to parse, which is its own: one that sends more than it may at once
/// is read slowly from then on, and what is written to it is not affected.
#[derive(Debug)]
struct Pace {
    /// How many bytes may be read at once; less than nothing when it were more.
    left: i64,
    /// Up to when they were counted.
    counted: Instant,
    wait: Option<Pin<Box<Sleep>>>,
}

impl Pace {
    fn new() -> Self {
        Self {
            left: READ_BURST,
            counted: Instant::now(),
            wait: None,
        }
    }

    /// Whether something may be read. Wakes when it may.
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        /// What is waited for at least, in bytes: a timer for each small read would cost more than the read.
        const PART: i64 = READ_AHEAD as i64;
        while self.left <= 0 {
            if let Some(wait) = &mut self.wait {
                ready!(wait.as_mut().poll(cx));
                self.wait = None;
            }
            let now = Instant::now();
            let micros = i64::try_from((now - self.counted).as_micros()).unwrap_or(i64::MAX);
            let more = micros.saturating_mul(READ_RATE) / 1_000_000;
            self.left = self.left.saturating_add(more).min(READ_BURST);
            self.counted = now;
            if self.left <= 0 {
                let missing = u64::try_from(PART - self.left).unwrap_or_default();
                let wait = Duration::from_micros(missing * 1_000_000 / READ_RATE.unsigned_abs());
                self.wait = Some(Box::pin(sleep(wait)));
            }
        }
        Poll::Ready(())
    }
}

/// The part of a WebSocket's message that has come: its library keeps it until the message is whole.
#[derive(Debug)]
struct Coming {
    bytes: usize,
    /// How many messages were whole before it.
    before: u64,
    /// How many bytes of pings and pongs had come, which may come between its parts.
    control: u64,
    since: Instant,
    room: Held,
    /// Runs once it is large.
    patience: Option<Pin<Box<Sleep>>>,
}

impl Coming {
    fn new(bodies: &Part) -> Self {
        let (since, room) = (Instant::now(), bodies.begin(BODY_MAX));
        Self {
            bytes: 0,
            before: 0,
            control: 0,
            since,
            room,
            patience: None,
        }
    }

    /// So many bytes have come, after so many whole messages and so many bytes of pings and pongs.
    fn came(&mut self, bytes: usize, (before, control): (u64, u64)) -> io::Result<()> {
        let between = usize::try_from(control - self.control).unwrap_or(usize::MAX);
        self.control = control;
        self.bytes = self.bytes.saturating_sub(between);
        let quiet = self.bytes < TINY_BYTES && self.since.elapsed() > QUIET_WAIT;
        if before != self.before || quiet {
            self.room.clear();
            self.bytes = 0;
            self.before = before;
            self.since = Instant::now();
            self.patience = None;
        }
        self.bytes += bytes;
        if self.bytes > SMALL_BYTES && self.patience.is_none() {
            self.patience = Some(Box::pin(sleep(BODY_WAIT)));
        }
        let counts = if self.bytes > TINY_BYTES {
            self.bytes
        } else {
            0
        };
        self.room.resize(counts).map_err(io::Error::other)
    }

    /// Whether a large one has taken too long.
    fn is_late(&mut self, cx: &mut Context<'_>) -> bool {
        self.patience
            .as_mut()
            .is_some_and(|patience| patience.as_mut().poll(cx).is_ready())
    }
}

impl<T> Metered<T> {
    /// Measures `io`, the connection of a client at this address.
    pub(in crate::edge) fn new(io: T, peer: IpAddr, bodies: &Part) -> Self {
        let coming = Coming::new(bodies);
        Self {
            io,
            meter: Meter::new(peer),
            patience: None,
            ahead: 0,
            reader: None,
            coming,
            pace: Pace::new(),
            slot: None,
        }
    }

    /// The same, which holds its place among the connections until it ends.
    pub(in crate::edge) fn holding(mut self, slot: FairSlot) -> Self {
        self.slot = Some(slot);
        self
    }

    /// The connection itself.
    pub(in crate::edge) fn into_inner(self) -> T {
        self.io
    }

    /// What measures it.
    pub(in crate::edge) fn meter(&self) -> Meter {
        self.meter.clone()
    }

    fn judge(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
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
        let patience = self
            .patience
            .get_or_insert_with(|| Box::pin(sleep(self.meter.patience())));
        patience
            .as_mut()
            .poll(cx)
            .map(|()| Err(io::ErrorKind::TimedOut.into()))
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
        ready!(self.pace.poll_ready(cx));
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.io).poll_read(cx, buffer);
        let came = buffer.filled().len() - before;
        self.ahead = self.ahead.saturating_add(came);
        self.pace.left -= i64::try_from(came).unwrap_or(i64::MAX);
        let Some(heard) = self.meter.heard() else {
            return read;
        };
        if came > 0 {
            self.coming.came(came, heard)?;
        }
        // Polled after the bytes were counted, so that it wakes who waits for the rest.
        if read.is_pending() && self.coming.before == heard.0 && self.coming.is_late(cx) {
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
    use crate::budget::{Budget, NoRoom};
    use crate::config::{ANSWER_WAIT, BODIES_BYTES, WRITE_WAIT};
    use crate::edge::memory::Memory;
    use futures_util::FutureExt as _;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex, split};
    use tokio::time::timeout;

    fn bodies() -> Part {
        Memory::new(Budget::unlimited()).bodies
    }

    const PEER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_nothing_for_the_write_wait_is_gone() {
        let (_client, edge) = duplex(10);
        let (mut edge, begun) = (Metered::new(edge, PEER, &bodies()), Instant::now());
        let error = edge.write_all(&[0; 11]).await.unwrap_err();
        assert_eq!(
            (error.kind(), begun.elapsed()),
            (io::ErrorKind::TimedOut, WRITE_WAIT)
        );
        let (_client, edge) = duplex(10);
        let (mut edge, begun) = (Metered::new(edge, PEER, &bodies()), Instant::now());
        edge.meter().hurry(true);
        edge.write_all(&[0; 11]).await.unwrap_err();
        assert_eq!(begun.elapsed(), ANSWER_WAIT, "of a large answer");
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_nothing_is_not_heard_until_it_takes_something() {
        let (mut client, edge) = duplex(2 * READ_AHEAD);
        let (mut hears, mut says) = split(Metered::new(edge, PEER, &bodies()));
        client.write_all(&vec![0; 2 * READ_AHEAD]).await.unwrap();
        says.write_all(&vec![0; 2 * READ_AHEAD]).await.unwrap();
        assert!(
            says.write(&[0]).now_or_never().is_none(),
            "the client takes nothing"
        );
        let mut heard = vec![0; READ_AHEAD];
        hears
            .read_exact(&mut heard)
            .now_or_never()
            .expect("some is heard ahead")
            .unwrap();
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
        let (mut edge, begun) = (Metered::new(edge, PEER, &bodies()), Instant::now());
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
    async fn a_client_that_sends_without_end_is_heard_at_its_rate_and_written_to_meanwhile() {
        let bytes = 3 * usize::try_from(READ_BURST).unwrap();
        let (mut client, edge) = duplex(bytes);
        client.write_all(&vec![0; bytes]).await.unwrap();
        let (mut hears, mut says) = split(Metered::new(edge, PEER, &bodies()));
        let (mut heard, begun) = (vec![0; bytes], Instant::now());
        let burst = bytes / 3;
        hears
            .read_exact(&mut heard[..burst])
            .now_or_never()
            .expect("a large message at once")
            .unwrap();
        assert!(hears.read(&mut heard).now_or_never().is_none());
        says.write_all(&[0])
            .now_or_never()
            .expect("what is written does not wait")
            .unwrap();
        for part in heard[burst..].chunks_mut(READ_AHEAD) {
            hears.read_exact(part).await.unwrap();
        }
        let seconds = (bytes - burst) as f64 / READ_RATE as f64;
        let took = begun.elapsed().as_secs_f64();
        assert!(
            (seconds * 0.9..seconds * 1.2).contains(&took),
            "{took} of {seconds} s"
        );
        sleep(Duration::from_secs(60)).await;
        client.write_all(&vec![0; burst]).await.unwrap();
        hears
            .read_exact(&mut heard[..burst])
            .now_or_never()
            .expect("one that paused is as others")
            .unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn messages_that_do_not_become_whole_hold_no_more_than_their_room_and_not_for_long() {
        let memory = Memory::new(Budget::unlimited());
        let mut connections = Vec::new();
        let mut refused = 0;
        for _ in 0..50 {
            let (mut client, edge) = duplex(BODY_MAX);
            let mut edge = Metered::new(edge, PEER, &memory.bodies);
            edge.meter().becomes_socket();
            client.write_all(&vec![0; BODY_MAX - 1]).await.unwrap();
            let mut message = vec![0; BODY_MAX];
            match edge.read_exact(&mut message[1..]).await {
                Ok(_) => connections.push((client, edge)),
                Err(error) => {
                    assert!(error.get_ref().unwrap().is::<NoRoom>());
                    refused += 1;
                }
            }
        }
        assert_eq!((connections.len(), refused), (16, 34));
        assert_eq!(memory.whole.used(), BODIES_BYTES);
        // One becomes whole, and its room is free with the next bytes.
        let (client, edge) = &mut connections[0];
        edge.meter().message();
        client.write_all(&[0]).await.unwrap();
        edge.read_exact(&mut [0]).await.unwrap();
        assert_eq!(memory.whole.used(), BODIES_BYTES - BODY_MAX);
        let begun = Instant::now();
        let error = connections[1].1.read(&mut [0]).await.unwrap_err();
        assert_eq!(
            (error.kind(), begun.elapsed()),
            (io::ErrorKind::TimedOut, BODY_WAIT)
        );
    }

    #[tokio::test(start_paused = true)]
    async fn pings_are_no_message_however_many_they_are() {
        let memory = Memory::new(Budget::unlimited());
        let (mut client, edge) = duplex(1000);
        let mut edge = Metered::new(edge, PEER, &memory.bodies);
        edge.meter().becomes_socket();
        for _ in 0..10_000 {
            client.write_all(&[0; 131]).await.unwrap();
            edge.read_exact(&mut [0; 131]).await.unwrap();
            edge.meter().control(125);
        }
        assert!(edge.coming.bytes <= 131 && memory.whole.used() == 0);
    }

    #[tokio::test(start_paused = true)]
    async fn pongs_that_come_for_days_are_no_message() {
        let memory = Memory::new(Budget::unlimited());
        let (mut client, edge) = duplex(100);
        let mut edge = Metered::new(edge, PEER, &memory.bodies);
        edge.meter().becomes_socket();
        for _ in 0..30_000 {
            client.write_all(&[0; 7]).await.unwrap();
            edge.read_exact(&mut [0; 7]).await.unwrap();
            sleep(crate::config::PING_EVERY).await;
        }
        assert_eq!(memory.whole.used(), 0);
    }
}
