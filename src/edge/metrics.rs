//! `GET /metrics`: the counters of all threads, and what the queue and NATS report, for Prometheus.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use tokio::time::timeout;
use tracing::debug;

use super::access::Access;
use super::app::App;
use super::counters::Transport;
use super::describe::OPERATION;
use super::error::{Problem, refusals};
use super::http2;
use super::metered::pace::read_pauses;
use super::quota::Quota;
use super::slow::SlowPart;
use super::thread::EdgeThread;
use crate::auth::Operation;
use crate::config::{QUEUE_METRICS_AGE, QUEUE_METRICS_WAIT};
use crate::metrics::{Exposition, MetricsFormat, catalog};
use crate::nats::{KindUsage, QueueReport, ReplaySource};
use crate::wire::Code;

/// The metrics of all threads of the edge, and of the queue.
///
/// As text of Prometheus or, if `Accept` prefers it, of OpenMetrics.
#[utoipa::path(
    get, path = "/metrics", tag = OPERATION,
    responses((status = 200, description = "The metrics.", content_type = "text/plain", body = String)),
)]
pub(super) async fn metrics(
    State(app): State<Arc<App>>,
    access: Access,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    access.require(Operation::Observe)?;
    let mut all = Exposition::new();
    for thread in app.shared.threads() {
        add_thread(&mut all, &thread);
    }
    let memory = app.shared.memory();
    all.gauge(
        &catalog::EDGE_MEMORY_LIMIT,
        &[],
        memory.whole.limit() as f64,
    );
    all.gauge(&catalog::EDGE_MEMORY_USED, &[], memory.whole.used() as f64);
    all.counter(&catalog::EDGE_MEMORY_REFUSALS, &[], memory.refused());
    for (code, count) in refusals() {
        all.counter(&catalog::EDGE_REFUSALS, &[code.as_str()], count);
    }
    for quota in Quota::ALL {
        all.counter(&catalog::EDGE_LIMITED, &[quota.as_str()], quota.reached());
    }
    for part in SlowPart::ALL {
        all.counter(&catalog::EDGE_SLOW, &[part.as_str()], part.ended());
    }
    all.counter(&catalog::EDGE_READ_PAUSES, &[], read_pauses());
    all.counter(&catalog::EDGE_HTTP2_FLOODS, &[], http2::floods());
    all.counter(&catalog::EDGE_HTTP2_FULL, &[], http2::full());
    let report = app.report_cache.of(&app.queue, QUEUE_METRICS_AGE);
    match timeout(QUEUE_METRICS_WAIT, report).await {
        Ok(Ok(report)) => add_queue(&mut all, &report),
        Ok(Err(error)) => debug!(%error, "metrics without the queue"),
        Err(_) => debug!("metrics without the queue, which does not answer in time"),
    }
    response(all, &headers)
}

/// A scrape's response, in the format that the request prefers.
pub(super) fn response(all: Exposition, headers: &HeaderMap) -> Result<Response, Problem> {
    let accept = headers
        .get(header::ACCEPT)
        .and_then(|accept| accept.to_str().ok());
    let format = MetricsFormat::accepted(accept.unwrap_or_default());
    let text = all
        .encode(format)
        .map_err(|_| Problem::new(Code::Internal, "The metrics cannot be written."))?;
    Ok(([(header::CONTENT_TYPE, format.content_type())], text).into_response())
}

fn add_thread(all: &mut Exposition, thread: &EdgeThread) {
    let EdgeThread {
        nats,
        hub,
        counters,
        waiting_states,
    } = thread;
    for transport in Transport::ALL {
        let label = &[transport.as_str()];
        let connections = counters.connections(transport);
        all.gauge(&catalog::EDGE_CONNECTIONS, label, connections as f64);
        all.counter(&catalog::EDGE_OPENED, label, counters.opened(transport));
        let delivered = counters.delivered_by(transport);
        all.counter(&catalog::EDGE_DELIVERED, label, delivered);
    }
    for (transport, bytes) in counters.sent.all() {
        all.counter(&catalog::EDGE_SENT, &[transport], bytes);
    }
    let standing = hub.standing();
    let waiting = hub.waiting();
    let live = standing.watches.saturating_sub(standing.reading);
    for (state, watches) in [
        ("live", live),
        ("reading", standing.reading),
        ("waiting", waiting),
    ] {
        all.gauge(&catalog::EDGE_WATCHES, &[state], watches as f64);
    }
    all.gauge(
        &catalog::EDGE_WATCHED_JOBS,
        &[],
        (hub.feeds() + waiting) as f64,
    );
    all.gauge_max(&catalog::EDGE_LAG, &[], standing.lag as f64);
    let live_delay = hub.source().log().live_delay();
    all.histogram(&catalog::EDGE_LIVE_DELAY, &[], &live_delay);
    let delivery_delay = counters.delivery_delay.values();
    all.histogram(&catalog::EDGE_DELIVERY_DELAY, &[], &delivery_delay);
    all.counter(&catalog::EDGE_GAPS, &[], hub.gaps());
    all.counter(&catalog::EDGE_MISSING, &[], hub.missing());
    let replays = hub.source().replay_counts();
    for source in ReplaySource::ALL {
        let label = &[source.as_str()];
        all.histogram(&catalog::EDGE_REPLAYS, label, &replays.took(source));
        all.counter(&catalog::EDGE_REPLAYED, label, replays.events(source));
    }
    for (what, waiting) in [
        ("replay", hub.source().waiting_replays()),
        ("listing", hub.source().waiting_listings()),
        ("state", waiting_states.count()),
    ] {
        all.gauge(&catalog::EDGE_WAITING_READS, &[what], waiting as f64);
    }
    for (outcome, count) in [
        ("new", &counters.submits_new),
        ("same", &counters.submits_same),
    ] {
        let count = count.load(Ordering::Relaxed);
        all.counter(&catalog::EDGE_SUBMITS, &[outcome], count);
    }
    let cancels = counters.cancels.load(Ordering::Relaxed);
    all.counter(&catalog::EDGE_CANCELS, &[], cancels);
    let undecodable = hub.source().log().undecodable();
    all.counter(&catalog::EDGE_UNDECODABLE, &[], undecodable);
    all.counter(&catalog::EDGE_PANICS, &[], hub.panics());
    nats.connections().add_to(all);
}

fn add_queue(all: &mut Exposition, QueueReport { kinds, size }: &QueueReport) {
    all.gauge(&catalog::QUEUE_USED, &[], size.bytes as f64);
    all.gauge(&catalog::QUEUE_LIMIT, &[], size.bytes_max as f64);
    for kind in kinds {
        let KindUsage {
            kind: name,
            waiting,
            running,
            idle_workers,
        } = &kind.usage;
        let label = &[name.as_str()];
        let oldest = kind.oldest.unwrap_or_default();
        all.gauge(&catalog::QUEUE_WAITING, label, *waiting as f64);
        all.gauge(&catalog::QUEUE_RUNNING, label, *running as f64);
        all.gauge(&catalog::QUEUE_OLDEST, label, oldest.as_secs_f64());
        all.gauge(&catalog::QUEUE_IDLE, label, *idle_workers as f64);
    }
}
