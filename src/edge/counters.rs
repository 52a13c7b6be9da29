//! What one thread counts: connections, Socket.IO rooms, events. Threads share no counter, which
//! keeps counting cheap; `stats` adds them up.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

use crate::config::RATE_SECONDS;
use crate::wire::JobId;

/// How a client is connected.
#[derive(Clone, Copy, Debug)]
pub(super) enum Transport {
    WebSocket,
    SocketIo,
    Sse,
}

/// What one thread counts.
#[derive(Debug)]
pub(super) struct Counters {
    begun: Instant,
    connections: [AtomicUsize; 3],
    delivered: Rate,
    /// How many Socket.IO clients watch each job.
    rooms: Mutex<HashMap<JobId, usize>>,
}

impl Counters {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            begun: Instant::now(),
            connections: Default::default(),
            delivered: Rate::default(),
            rooms: Mutex::default(),
        })
    }

    /// Counts a connection until the guard is dropped.
    pub(super) fn connect(self: &Arc<Self>, transport: Transport) -> Connected {
        self.connections[transport as usize].fetch_add(1, Ordering::Relaxed);
        Connected(Arc::clone(self), transport)
    }

    /// Counts events that were handed to one client.
    pub(super) fn count_delivered(&self, events: usize) {
        self.delivered
            .add(self.begun.elapsed().as_secs(), events as u64);
    }

    /// How many events were handed to clients.
    pub(super) fn delivered(&self) -> u64 {
        self.delivered.total.load(Ordering::Relaxed)
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

/// Counts a connection until it is dropped.
#[derive(Debug)]
pub(super) struct Connected(Arc<Counters>, Transport);

impl Drop for Connected {
    fn drop(&mut self) {
        self.0.connections[self.1 as usize].fetch_sub(1, Ordering::Relaxed);
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
