//! `GET /api/stats` and `GET /api/socketio/stats`: the sums of the counters of all threads.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use schemars::JsonSchema;
use serde::Serialize;

use super::access::Access;
use super::app::App;
use super::counters::Transport;
use super::describe::OPERATION;
use super::error::Problem;
use super::thread::EdgeThread;
use crate::auth::Operation;
use crate::config::RATE_SECONDS;
use crate::wire::JobId;

/// The numbers of all threads of the process together.
#[derive(Debug, Default, Serialize, JsonSchema)]
pub(super) struct Stats {
    connections: Connections,
    /// How many jobs have a feed, because they are or recently were watched.
    watched_jobs: usize,
    /// Events delivered to clients since the process started, counted once for each client.
    events_delivered: u64,
    /// The average per second over the last 5 seconds.
    events_per_second: f64,
    /// How many watches are reading the log.
    replays: usize,
    /// How many events the slowest watch is behind the events that this edge knows to be stored.
    /// Events that were handed over may still be on their way: up to 64 KiB and what the network
    /// holds.
    lag: u64,
    /// How many undecodable messages were skipped in the logs of jobs, counted once for each
    /// reader.
    undecodable: u64,
    /// How often the task that keeps a watched job up to date has panicked and was restarted.
    feed_panics: u64,
    memory: MemoryStats,
}

/// Memory that the edge holds for its clients. Beyond the limit new requests are refused; connected
/// clients continue.
#[derive(Debug, Default, Serialize, JsonSchema)]
#[schemars(rename = "Memory")]
struct MemoryStats {
    /// How many bytes it may hold.
    limit: usize,
    /// How many bytes it holds, as it counts them.
    used: usize,
    /// How often memory was refused since the process started: to a request, or to an event stream,
    /// which then tries again.
    refused: u64,
}

/// How many clients are connected over each transport.
#[derive(Debug, Default, Serialize, JsonSchema)]
struct Connections {
    websocket: usize,
    socketio: usize,
    sse: usize,
}

/// Current numbers of the edge.
#[utoipa::path(
    get, path = "/api/stats", tag = OPERATION,
    responses((status = 200, description = "The numbers of all threads of the edge together.", body = ref("#/components/schemas/Stats"))),
)]
pub(super) async fn stats(
    State(app): State<Arc<App>>,
    access: Access,
) -> Result<Json<Stats>, Problem> {
    access.require(Operation::Observe)?;
    let memory = app.shared.memory();
    let mut stats = Stats {
        memory: MemoryStats {
            limit: memory.whole.limit(),
            used: memory.whole.used(),
            refused: memory.refused(),
        },
        ..Stats::default()
    };
    let mut recent = 0;
    for thread in app.shared.threads() {
        let EdgeThread { hub, counters, .. } = &*thread;
        stats.connections.websocket += counters.connections(Transport::WebSocket);
        stats.connections.socketio += counters.connections(Transport::SocketIo);
        stats.connections.sse += counters.connections(Transport::Sse);
        stats.watched_jobs += hub.feeds() + hub.waiting();
        stats.events_delivered += counters.delivered();
        recent += counters.delivered_recently();
        let standing = hub.standing();
        stats.replays += standing.reading;
        stats.lag = stats.lag.max(standing.lag);
        stats.undecodable += hub.source().log().undecodable();
        stats.feed_panics += hub.panics();
    }
    stats.events_per_second = recent as f64 / RATE_SECONDS as f64;
    Ok(Json(stats))
}

/// The Socket.IO clients of all threads of the process together.
#[derive(Debug, Default, Serialize, JsonSchema)]
pub(super) struct SocketIoStats {
    /// How many Socket.IO clients are connected.
    connected: usize,
    /// How many of them watch each job.
    rooms: BTreeMap<JobId, usize>,
}

/// The clients connected over Socket.IO.
#[utoipa::path(
    get, path = "/api/socketio/stats", tag = OPERATION,
    responses((status = 200, description = "The numbers of all threads of the edge together.", body = ref("#/components/schemas/SocketIoStats"))),
)]
pub(super) async fn socketio(
    State(app): State<Arc<App>>,
    access: Access,
) -> Result<Json<SocketIoStats>, Problem> {
    access.require(Operation::Observe)?;
    let mut stats = SocketIoStats::default();
    for thread in app.shared.threads() {
        stats.connected += thread.counters.connections(Transport::SocketIo);
        for (job, watchers) in thread.counters.rooms().iter() {
            *stats.rooms.entry(job.clone()).or_default() += watchers;
        }
    }
    Ok(Json(stats))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_description_of_the_rate_names_the_time_over_which_it_is_averaged() {
        let schema = serde_json::to_value(schemars::schema_for!(Stats)).unwrap();
        let described = &schema["properties"]["events_per_second"]["description"];
        let period = format!("the last {RATE_SECONDS} seconds");
        assert!(described.as_str().unwrap().contains(&period), "{described}");
    }
}
