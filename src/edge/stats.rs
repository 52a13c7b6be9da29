//! What an edge counts, and how it tells: connections by door, watched jobs, events, replays, lag. Each thread counts for
//! itself, so that nothing is shared on the path of an event; whoever asks gets the sum over the process.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::Json;
use axum::extract::State;
use schemars::JsonSchema;
use serde::Serialize;
use tokio::time::Instant;

use super::App;
use super::openapi::OPERATION;
use crate::config::RATE_SECONDS;
use crate::wire::JobId;

/// By what a client is connected.
#[derive(Clone, Copy, Debug)]
pub(super) enum Transport {
    WebSocket,
    SocketIo,
    Sse,
}

/// What one thread counts.
#[derive(Debug)]
pub(super) struct Counts {
    begun: Instant,
    connections: [AtomicUsize; 3],
    delivered: Rate,
    /// How many Socket.IO clients watch each job.
    rooms: Mutex<HashMap<JobId, usize>>,
}

impl Counts {
    pub(super) fn new() -> Arc<Self> {
        let (connections, delivered, rooms) = Default::default();
        Arc::new(Self {
            begun: Instant::now(),
            connections,
            delivered,
            rooms,
        })
    }

    /// Counts a connection until the guard is dropped.
    pub(super) fn connected(self: &Arc<Self>, transport: Transport) -> Connected {
        self.connections[transport as usize].fetch_add(1, Ordering::Relaxed);
        Connected(Arc::clone(self), transport)
    }

    /// Counts events that were handed to one client.
    pub(super) fn delivered(&self, events: usize) {
        self.delivered
            .add(self.begun.elapsed().as_secs(), events as u64);
    }

    /// Counts a Socket.IO client of a job until the guard is dropped.
    pub(super) fn room(self: &Arc<Self>, job: &JobId) -> Room {
        *self.rooms().entry(job.clone()).or_default() += 1;
        Room(Arc::clone(self), job.clone())
    }

    fn connections(&self, transport: Transport) -> usize {
        self.connections[transport as usize].load(Ordering::Relaxed)
    }

    fn rooms(&self) -> MutexGuard<'_, HashMap<JobId, usize>> {
        self.rooms.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One connection, for as long as it lives.
#[derive(Debug)]
pub(super) struct Connected(Arc<Counts>, Transport);

impl Drop for Connected {
    fn drop(&mut self) {
        self.0.connections[self.1 as usize].fetch_sub(1, Ordering::Relaxed);
    }
}

/// One Socket.IO client's watch of a job, for as long as it lasts.
#[derive(Debug)]
pub(super) struct Room(Arc<Counts>, JobId);

impl Drop for Room {
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

/// How many slots a [`Rate`] has: the seconds that it is taken over and the one under way.
const SLOTS: usize = RATE_SECONDS as usize + 1;

/// A number that grows, and how fast it did of late. One thread adds, any may read.
#[derive(Debug, Default)]
struct Rate {
    total: AtomicU64,
    /// Each second and what was added in it; a slot is used again by the next second that falls on it.
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

/// What `GET /api/stats` answers, for all threads of the process together.
#[derive(Debug, Default, Serialize, JsonSchema)]
pub(super) struct Stats {
    connections: Connections,
    /// How many jobs have a feed: watched, or watched until a moment ago.
    watched_jobs: usize,
    /// Events handed to clients since the process began, each counted for each client.
    events_delivered: u64,
    /// The same for each of the last [`RATE_SECONDS`] seconds, on average.
    events_per_second: f64,
    /// How many watches read the log at the moment.
    replays: usize,
    /// How many events the watch that is furthest behind was not handed yet, of those that this edge knows to be stored.
    /// What was handed over may still be on its way: up to 64 KiB and what the network holds.
    lag: u64,
    /// How many undecodable messages were skipped in the logs of jobs, each counted for each reader.
    undecodable: u64,
    /// How many times the task that keeps a watched job up to date has panicked and was started again.
    feed_panics: u64,
    memory: Memory,
}

/// What the edge holds for its clients. Beyond the limit new requests are refused; those who are there go on.
#[derive(Debug, Default, Serialize, JsonSchema)]
struct Memory {
    /// How many bytes it may hold.
    limit: usize,
    /// How many bytes it holds, as it counts them.
    used: usize,
    /// How many requests found no room since the process began.
    refused: u64,
}

/// How many clients are connected through each door.
#[derive(Debug, Default, Serialize, JsonSchema)]
struct Connections {
    websocket: usize,
    socketio: usize,
    sse: usize,
}

/// What the edge does at the moment.
#[utoipa::path(
    get, path = "/api/stats", tag = OPERATION,
    responses((status = 200, description = "Of all threads of the edge.", body = ref("#/components/schemas/Stats"))),
)]
pub(super) async fn stats(State(app): State<Arc<App>>) -> Json<Stats> {
    let mut stats = Stats::default();
    let mut recent = 0;
    for app in app.shared.threads() {
        let counts = &app.counts;
        stats.connections.websocket += counts.connections(Transport::WebSocket);
        stats.connections.socketio += counts.connections(Transport::SocketIo);
        stats.connections.sse += counts.connections(Transport::Sse);
        stats.watched_jobs += app.hub.feeds() + app.hub.waiting();
        stats.events_delivered += counts.delivered.total.load(Ordering::Relaxed);
        recent += counts.delivered.recent(counts.begun.elapsed().as_secs());
        let standing = app.hub.standing();
        stats.replays += standing.reading;
        stats.lag = stats.lag.max(standing.lag);
        stats.undecodable += app.hub.source().log().undecodable();
        stats.feed_panics += app.hub.panics();
    }
    let memory = app.shared.memory();
    let (limit, used, refused) = (memory.whole.limit(), memory.whole.used(), memory.refused());
    stats.memory = Memory {
        limit,
        used,
        refused,
    };
    stats.events_per_second = recent as f64 / RATE_SECONDS as f64;
    Json(stats)
}

/// What `GET /api/socketio/stats` answers.
#[derive(Debug, Default, Serialize, JsonSchema)]
pub(super) struct SocketIoStats {
    /// How many Socket.IO clients are connected.
    connected: usize,
    /// Each job that one of them watches, and how many do.
    rooms: BTreeMap<JobId, usize>,
}

/// Who is connected over Socket.IO.
#[utoipa::path(
    get, path = "/api/socketio/stats", tag = OPERATION,
    responses((status = 200, description = "Of all threads of the edge.", body = ref("#/components/schemas/SocketIoStats"))),
)]
pub(super) async fn socketio(State(app): State<Arc<App>>) -> Json<SocketIoStats> {
    let mut stats = SocketIoStats::default();
    for app in app.shared.threads() {
        stats.connected += app.counts.connections(Transport::SocketIo);
        for (job, watchers) in app.counts.rooms().iter() {
            *stats.rooms.entry(job.clone()).or_default() += watchers;
        }
    }
    Json(stats)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_that_of_the_last_whole_seconds() {
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
    async fn what_is_counted_ends_with_its_guard() {
        let counts = Counts::new();
        let job: JobId = "j".parse().unwrap();
        let (one, two) = (
            counts.connected(Transport::SocketIo),
            counts.connected(Transport::SocketIo),
        );
        let rooms = [counts.room(&job), counts.room(&job)];
        assert_eq!(
            (
                counts.connections(Transport::SocketIo),
                counts.connections(Transport::WebSocket)
            ),
            (2, 0)
        );
        assert_eq!(counts.rooms()[&job], 2);
        drop((one, two, rooms));
        assert_eq!(
            (
                counts.connections(Transport::SocketIo),
                counts.rooms().len()
            ),
            (0, 0)
        );
    }
}
