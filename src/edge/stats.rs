//! `GET /api/stats` and `GET /api/socketio/stats`: the counters of all threads of the process
//! together. It counts nothing itself.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use schemars::JsonSchema;
use serde::Serialize;

use super::App;
use super::counters::Transport;
use super::describe::OPERATION;
use crate::config::RATE_SECONDS;
use crate::wire::JobId;

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
        let counters = &app.counters;
        stats.connections.websocket += counters.connections(Transport::WebSocket);
        stats.connections.socketio += counters.connections(Transport::SocketIo);
        stats.connections.sse += counters.connections(Transport::Sse);
        stats.watched_jobs += app.hub.feeds() + app.hub.waiting();
        stats.events_delivered += counters.delivered();
        recent += counters.delivered_recently();
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
        stats.connected += app.counters.connections(Transport::SocketIo);
        for (job, watchers) in app.counters.rooms().iter() {
            *stats.rooms.entry(job.clone()).or_default() += watchers;
        }
    }
    Json(stats)
}
