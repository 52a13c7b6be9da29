//! Every metric. `docs/metrics.md` has the same table; a test compares them.

use super::{Metric, MetricKind, MetricUnit};

/// Defines the metrics from one table: name, kind, unit, labels, who serves it, meaning.
macro_rules! metrics {
    ($($id:ident: $name:literal, $kind:ident, $unit:ident, [$($label:literal),*], $served_by:literal, $help:literal;)*) => {
        $(
            #[doc = $help]
            pub static $id: Metric = Metric {
                name: $name,
                kind: MetricKind::$kind,
                unit: MetricUnit::$unit,
                labels: &[$($label),*],
                served_by: $served_by,
                help: $help,
            };
        )*

        /// All of them, in the order of the table.
        pub static ALL: &[&Metric] = &[$(&$id),*];
    };
}

metrics! {
    BUILD: "tailwater_build_info", Gauge, None, ["version"], "edge, worker",
        "Always 1; the version is a label";
    EDGE_CONNECTIONS: "tailwater_edge_connections", Gauge, None, ["transport"], "edge",
        "Connected clients";
    EDGE_OPENED: "tailwater_edge_connections_opened", Counter, None, ["transport"], "edge",
        "Clients that have connected";
    EDGE_WATCHES: "tailwater_edge_watches", Gauge, None, ["state"], "edge",
        "Watches that are `live`, that are `reading` stored events, or that are `waiting` for a job that does not exist yet";
    EDGE_WATCHED_JOBS: "tailwater_edge_watched_jobs", Gauge, None, [], "edge",
        "Jobs that have watchers, or had some until 15 s ago";
    EDGE_LAG: "tailwater_edge_lag_events", Gauge, None, [], "edge",
        "How many stored events the slowest watch has not been sent yet";
    EDGE_DELIVERED: "tailwater_edge_events_delivered", Counter, None, ["transport"], "edge",
        "Events sent to clients, counted once for each client";
    EDGE_SENT: "tailwater_edge_sent", Counter, Bytes, ["transport"], "edge",
        "Bytes written to clients' connections; `http` is everything that is not a stream";
    EDGE_LIVE_DELAY: "tailwater_edge_live_delay", Histogram, Seconds, [], "edge",
        "Time from when the broker stored an event until this edge received its live copy, by their clocks; one event in 16 is measured";
    EDGE_DELIVERY_DELAY: "tailwater_edge_delivery_delay", Histogram, Seconds, [], "edge",
        "Time from when the broker stored an event until it was written to the connection of a client that follows the job live, by their clocks; one event in 16 is measured, for each client";
    EDGE_GAPS: "tailwater_edge_gaps", Counter, None, [], "edge",
        "Gaps that were reported to clients, because events had expired";
    EDGE_MISSING: "tailwater_edge_missing_events", Counter, None, [], "edge",
        "Events in those gaps";
    EDGE_REPLAYS: "tailwater_edge_replay", Histogram, Seconds, ["source"], "edge",
        "Duration of a read of stored events, by `pages` of one job, by a `scan` of its shard, or from `segments`";
    EDGE_REPLAYED: "tailwater_edge_replay_events", Counter, None, ["source"], "edge",
        "Events that were read that way";
    EDGE_WAITING_READS: "tailwater_edge_waiting_reads", Gauge, None, ["what"], "edge",
        "Reads that wait, because as many as allowed run: a `replay` of stored events that no scan reads, a `listing` of jobs, or the `state` of a job";
    EDGE_SUBMITS: "tailwater_edge_submits", Counter, None, ["outcome"], "edge",
        "Accepted submissions: `new` jobs, and those of the `same` job again";
    EDGE_CANCELS: "tailwater_edge_cancels", Counter, None, [], "edge",
        "Accepted requests to cancel a job";
    EDGE_REFUSALS: "tailwater_edge_refusals", Counter, None, ["code"], "edge",
        "Requests, frames and WebSocket connections that were refused or failed, by public code";
    EDGE_LIMITED: "tailwater_edge_limited", Counter, None, ["limit"], "edge",
        "Refusals because a client reached a limit of its own: `connections` of its address (`address`), or open `connections`, `submits` per second or `jobs` in flight of its subject";
    EDGE_SLOW: "tailwater_edge_slow_connections", Counter, None, ["part"], "edge",
        "Connections that were ended because their client took too long to complete its TLS `handshake`, the `head` of a request over HTTP/1 or a `message` over a WebSocket that it had begun, or to read any of the `output` that was written to it";
    EDGE_READ_PAUSES: "tailwater_edge_read_pauses", Counter, None, [], "edge",
        "How often reading from a client paused, because it had sent more than a burst of 2 MiB and 4 MiB per second";
    EDGE_HTTP2_FLOODS: "tailwater_edge_http2_floods", Counter, None, [], "edge",
        "Connections over HTTP/2 that were ended because their client only made work, for example by resetting its requests";
    EDGE_HTTP2_FULL: "tailwater_edge_http2_full", Counter, None, [], "edge",
        "How often the requests in progress of one connection over HTTP/2 reached their limit of 128; its further requests are refused";
    EDGE_MEMORY_LIMIT: "tailwater_edge_memory_limit", Gauge, Bytes, [], "edge",
        "How much memory the edge may hold for its clients";
    EDGE_MEMORY_USED: "tailwater_edge_memory_used", Gauge, Bytes, [], "edge",
        "How much of it is used";
    EDGE_MEMORY_REFUSALS: "tailwater_edge_memory_refusals", Counter, None, [], "edge",
        "How often memory was refused to a request or a stream";
    EDGE_UNDECODABLE: "tailwater_edge_undecodable_messages", Counter, None, [], "edge",
        "Messages in the logs of watched jobs that are not valid events, once for each reader";
    EDGE_PANICS: "tailwater_edge_feed_panics", Counter, None, [], "edge",
        "Panics of the tasks that keep watched jobs up to date";
    QUEUE_WAITING: "tailwater_queue_waiting_jobs", Gauge, None, ["kind"], "edge",
        "Jobs that wait for a worker";
    QUEUE_RUNNING: "tailwater_queue_running_jobs", Gauge, None, ["kind"], "edge",
        "Jobs that workers have, including those that wait for their next attempt";
    QUEUE_OLDEST: "tailwater_queue_oldest_waiting", Gauge, Seconds, ["kind"], "edge",
        "Age of the oldest job that waits for a worker; 0 if none waits";
    QUEUE_IDLE: "tailwater_queue_idle_requests", Gauge, None, ["kind"], "edge",
        "Requests of workers for jobs; 0 means that no worker is free, or that none is there";
    QUEUE_USED: "tailwater_queue_used", Gauge, Bytes, [], "edge",
        "Size of the queue of all kinds";
    QUEUE_LIMIT: "tailwater_queue_limit", Gauge, Bytes, [], "edge",
        "How large the queue may become";
    WORKER_SLOTS: "tailwater_worker_slots", Gauge, None, ["kind"], "worker",
        "How many jobs this worker runs at a time";
    WORKER_RUNNING: "tailwater_worker_running_jobs", Gauge, None, ["kind"], "worker",
        "Jobs that it runs";
    WORKER_ATTEMPTS: "tailwater_worker_attempts", Counter, None, ["kind"], "worker",
        "Attempts that it has started";
    WORKER_ENDED: "tailwater_worker_attempts_ended", Counter, None, ["kind", "outcome", "code"], "worker",
        "Attempts that are over. `outcome` is `done`, `failed`, `cancelled`, `retried`, `handed_back`, `superseded` or `abandoned`; `code` is the failure code, `other` for a backend's own code";
    WORKER_DURATION: "tailwater_worker_attempt", Histogram, Seconds, ["kind"], "worker",
        "Duration of an attempt";
    WORKER_FIRST: "tailwater_worker_first_output", Histogram, Seconds, ["kind"], "worker",
        "Time from the start of an attempt until its first output is stored";
    WORKER_CHUNKS: "tailwater_worker_output_events", Counter, None, ["kind"], "worker",
        "Events with output that were stored";
    WORKER_OUTPUT: "tailwater_worker_output", Counter, Bytes, ["kind"], "worker",
        "Output that was stored, in bytes of text, or of data as JSON";
    WORKER_TOKENS: "tailwater_worker_tokens", Counter, None, ["kind", "type"], "worker",
        "Tokens that models report in their usage: `input` and `output`";
    WORKER_PUBLISH: "tailwater_worker_publish", Histogram, Seconds, ["kind"], "worker",
        "Time until the broker has stored an event, including retries";
    WORKER_FENCED: "tailwater_worker_fence_refusals", Counter, None, ["kind"], "worker",
        "Events that the broker refused because another process had written to the log";
    NATS_CONNECTIONS: "tailwater_nats_connections", Gauge, None, ["state"], "edge, worker",
        "Connections to NATS that are `up` or `down`";
    NATS_RECONNECTS: "tailwater_nats_reconnects", Counter, None, [], "edge, worker",
        "How often connections to NATS were made again";
}
