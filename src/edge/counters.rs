//! What one thread counts: connections, Socket.IO rooms, events, bytes, requests. Threads share no
//! counter, which keeps counting cheap; `stats` and `metrics` add them up.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

use crate::config::RATE_SECONDS;
use crate::metrics::Histogram;
use crate::wire::JobId;

/// How a client is connected.
#[derive(Clone, Copy, Debug)]
pub(super) enum Transport {
    WebSocket,
    SocketIo,
    Sse,
}

impl Transport {
    /// Every transport.
    pub(super) const ALL: [Self; 3] = [Self::WebSocket, Self::SocketIo, Self::Sse];

    /// Its name in metrics.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::WebSocket => "websocket",
            Self::SocketIo => "socketio",
            Self::Sse => "sse",
        }
    }
}

/// Counts bytes by transport; the last is for everything that is not a stream.
#[derive(Debug, Default)]
pub(super) struct SentBytes([AtomicU64; 4]);

impl SentBytes {
    /// Counts bytes that were written over a transport.
    pub(super) fn count(&self, transport: Option<Transport>, bytes: usize) {
        let index = transport.map_or(Transport::ALL.len(), |transport| transport as usize);
        if let Some(sent) = self.0.get(index) {
            sent.fetch_add(bytes as u64, Ordering::Relaxed);
        }
    }

    /// The name of each transport and how many bytes were written.
    pub(super) fn all(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let names = Transport::ALL.map(Transport::as_str).into_iter();
        let counts = self.0.iter().map(|sent| sent.load(Ordering::Relaxed));
        names.chain(["http"]).zip(counts)
    }
}

/// What one thread counts.
#[derive(Debug)]
pub(super) struct Counters {
    begun: Instant,
    connections: [Arc<AtomicUsize>; 3],
    opened: [AtomicU64; 3],
    delivered: Rate,
    delivered_by: [AtomicU64; 3],
    pub(super) sent: Arc<SentBytes>,
    /// How long after they were stored events were written to clients that follow live.
    pub(super) delivery_delay: Histogram,
    pub(super) submits_new: AtomicU64,
    pub(super) submits_same: AtomicU64,
    pub(super) cancels: AtomicU64,
    /// How many Socket.IO clients watch each job.
    rooms: Mutex<HashMap<JobId, usize>>,
}

impl Counters {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            begun: Instant::now(),
            connections: Default::default(),
            opened: Default::default(),
            delivered: Rate::default(),
            delivered_by: Default::default(),
            sent: Arc::default(),
            delivery_delay: Histogram::default(),
            submits_new: AtomicU64::new(0),
            submits_same: AtomicU64::new(0),
            cancels: AtomicU64::new(0),
            rooms: Mutex::default(),
        })
    }

    /// Counts a connection until the guard is dropped.
    pub(super) fn connect(&self, transport: Transport) -> Connected {
        let connections = &self.connections[transport as usize];
        connections.fetch_add(1, Ordering::Relaxed);
        self.opened[transport as usize].fetch_add(1, Ordering::Relaxed);
        Connected(Arc::clone(connections))
    }

    /// How many clients have connected.
    pub(super) fn opened(&self, transport: Transport) -> u64 {
        self.opened[transport as usize].load(Ordering::Relaxed)
    }

    /// Counts events that were handed to one client.
    pub(super) fn count_delivered(&self, transport: Transport, events: usize) {
        self.delivered_by[transport as usize].fetch_add(events as u64, Ordering::Relaxed);
        self.delivered
            .add(self.begun.elapsed().as_secs(), events as u64);
    }

    /// How many events were handed to clients.
    pub(super) fn delivered(&self) -> u64 {
        self.delivered.total.load(Ordering::Relaxed)
    }

    /// How many events were handed to clients of a transport.
    pub(super) fn delivered_by(&self, transport: Transport) -> u64 {
        self.delivered_by[transport as usize].load(Ordering::Relaxed)
    }

    /// How many events were handed to clients in the last [`RATE_SECONDS`] whole seconds.
    pub(super) fn delivered_recently(&self) -> u64 {
        self.delivered.recent(self.begun.elapsed().as_secs())
    }

    /// Counts a Socket.IO client that watches a job until the guard is dropped. Other transports
    /// have no rooms.
    pub(super) fn enter_room(
        self: &Arc<Self>,
        transport: Transport,
        job: &JobId,
    ) -> Option<RoomMember> {
        match transport {
            Transport::SocketIo => {
                *self.rooms().entry(job.clone()).or_default() += 1;
                Some(RoomMember(Arc::clone(self), job.clone()))
            }
            Transport::WebSocket | Transport::Sse => None,
        }
    }

    pub(super) fn connections(&self, transport: Transport) -> usize {
        self.connections[transport as usize].load(Ordering::Relaxed)
    }

    /// How many Socket.IO clients watch each job.
    pub(super) fn rooms(&self) -> MutexGuard<'_, HashMap<JobId, usize>> {
        self.rooms.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Counts a connection, in this number, until it is dropped.
#[derive(Debug)]
pub(super) struct Connected(Arc<AtomicUsize>);

impl Drop for Connected {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Counts a Socket.IO client's watch of a job until it is dropped.
#[derive(Debug)]
pub(super) struct RoomMember(Arc<Counters>, JobId);

impl Drop for RoomMember {
    fn drop(&mut self) {
        let mut rooms = self.0.rooms();
        if let Some(watchers) = rooms.get_mut(&self.1) {
            *watchers -= 1;
            if *watchers == 0 {
                rooms.remove(&self.1);
            }
        }
    }
}

/// How many slots a [`Rate`] has: the seconds that it covers and the current one.
const SLOTS: usize = RATE_SECONDS as usize + 1;

/// A number that grows, and how fast it did recently. One thread adds, any thread may read.
#[derive(Debug, Default)]
struct Rate {
    total: AtomicU64,
    /// Seconds, and what was added in each. Slots are reused.
    slots: [(AtomicU64, AtomicU64); SLOTS],
}

impl Rate {
    fn add(&self, second: u64, n: u64) {
        self.total.fetch_add(n, Ordering::Relaxed);
        let (of, sum) = &self.slots[(second % SLOTS as u64) as usize];
        if of.load(Ordering::Relaxed) == second {
            sum.fetch_add(n, Ordering::Relaxed);
        } else {
            sum.store(n, Ordering::Relaxed);
            of.store(second, Ordering::Relaxed);
        }
    }

    /// What was added in the [`RATE_SECONDS`] whole seconds before `now`.
    fn recent(&self, now: u64) -> u64 {
        let counts = |of: u64| of < now && of + RATE_SECONDS >= now;
        let slots = self
            .slots
            .iter()
            .map(|(of, sum)| (of.load(Ordering::Relaxed), sum.load(Ordering::Relaxed)));
        slots
            .filter(|(of, _)| counts(*of))
            .map(|(_, sum)| sum)
            .sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_covers_the_last_whole_seconds() {
        let rate = Rate::default();
        for second in 0..100 {
            rate.add(second, second);
            rate.add(second, 1);
            let expected: u64 = (second.saturating_sub(RATE_SECONDS)..second)
                .map(|second| second + 1)
                .sum();
            assert_eq!(rate.recent(second), expected, "at {second}");
        }
        assert_eq!(rate.recent(99 + RATE_SECONDS), 100);
        assert_eq!(rate.recent(100 + RATE_SECONDS), 0);
        assert_eq!(rate.total.into_inner(), (1..=100).sum::<u64>());
    }

    #[tokio::test]
    async fn a_guard_counts_until_it_is_dropped() {
        let counters = Counters::new();
        let job: JobId = "j".parse().unwrap();
        let transport = Transport::SocketIo;
        let connected = [counters.connect(transport), counters.connect(transport)];
        let rooms = [(); 2].map(|()| counters.enter_room(transport, &job));
        assert_eq!(counters.connections(transport), 2);
        assert_eq!(counters.connections(Transport::WebSocket), 0);
        assert_eq!(counters.rooms()[&job], 2);
        assert!(counters.enter_room(Transport::WebSocket, &job).is_none());
        drop((connected, rooms));
        assert_eq!(counters.connections(transport), 0);
        assert!(counters.rooms().is_empty());
    }
}
