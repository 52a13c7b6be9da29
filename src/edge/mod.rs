//! The edge: all transports for clients, over the same sessions. The only folder that names axum
//! and socketioxide. An edge stores nothing: if it is killed, its clients only reconnect.

mod accept;
mod access;
mod admission;
mod alarm;
mod answer;
mod app;
mod body;
mod browser;
mod chat;
mod client;
mod client_stream;
mod client_task;
mod connection_slots;
mod console;
mod cookie;
mod counters;
mod credential;
mod describe;
mod drain;
mod error;
mod files;
mod forwarded;
mod gate;
mod head;
mod http2;
mod jobs;
mod json;
mod json_pieces;
mod kinds;
mod link;
mod list;
mod listen;
mod memory;
mod meter;
mod metered;
mod metrics;
mod metrics_server;
mod openai;
mod openapi;
mod ops;
mod output;
mod page;
mod quota;
mod request;
mod rest;
mod revoked;
mod router;
mod serve;
mod session;
mod shared;
mod slow;
mod socketio;
mod sse;
mod stats;
mod takeover;
mod thread;
mod tickets;
mod tls;
mod traffic;
mod turn;
mod turn_queue;
mod watches;
mod ws;

use std::io;
use std::net::TcpListener;
use std::sync::Arc;

use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use self::alarm::Alarms;
use self::app::App;
pub use self::app::EdgeSettings;
pub use self::browser::{AllowedOrigins, BrowserPolicy};
use self::connection_slots::ConnectionSlots;
use self::counters::Counters;
use self::drain::Clients;
pub use self::files::raise_file_limit;
pub use self::forwarded::TrustedProxies;
pub use self::gate::{Gate, KeySource};
pub use self::listen::bind;
pub use self::metrics_server::serve_metrics;
pub use self::quota::SubjectLimits;
pub use self::shared::EdgeShared;
use self::thread::EdgeThread;
pub use self::tls::{Tls, TlsError};
#[doc(hidden)]
pub use self::ws::serve_echo;
use crate::config::{DRAIN_WAIT, FOLDS};
use crate::hub::Hub;
use crate::metrics::WaitCount;
use crate::nats::{Log, Nats, NatsError, PurgeSignals, Queue, Reader, ReportCache, UsageCache};
use crate::runtime::{Tasks, return_free_memory};
use crate::source::Unavailable;

/// The most verbose level at which the library of Socket.IO's WebSockets may log, whatever filter is
/// set. Below it, it logs whole messages, with tokens.
pub const SOCKETIO_LOG_LIMIT: (&str, tracing::Level) = ("tungstenite", tracing::Level::DEBUG);

/// Serves clients on `listener` until `stop` is cancelled. Then it refuses new clients, asks the
/// others to reconnect one after another, and returns. All threads of one edge have the same
/// `shared`.
///
/// # Errors
/// When the edge cannot start. An edge that serves clients does not fail.
pub async fn run(
    listener: TcpListener,
    nats: Nats,
    settings: EdgeSettings,
    shared: EdgeShared,
    stop: CancellationToken,
) -> Result<(), NatsError> {
    let log = Log::open(&nats).await?;
    // Clients are still served for a while after `stop`.
    let closing = CancellationToken::new();
    let _close_all = closing.clone().drop_guard();
    let tasks = Tasks::new(closing.clone());
    settings.gate.start(&nats, &tasks).await?;
    let reads = shared.memory().reads.clone();
    let reader = Reader::within(log.clone(), &tasks, reads).await?;
    let feeds = shared.memory().feeds.clone();
    let hub = Hub::within(reader, tasks.clone(), feeds, shared.hubs());
    let thread = Arc::new(EdgeThread {
        nats,
        hub: Arc::clone(&hub),
        counters: Counters::new(),
        waiting_states: WaitCount::default(),
    });
    tasks.spawn_until_stop(forget_purged(
        Queue::new(log.clone()).purge_signals().await?,
        Arc::clone(&hub),
    ));
    shared.join(&thread);
    tasks.spawn_until_stop(return_free_memory());
    let alarms = Alarms::new();
    tasks.spawn(alarms.clone().run(stop.clone(), closing.clone()));
    let app = Arc::new(App {
        alarms,
        queue: settings.queue(log.clone()),
        log,
        hub,
        tasks: tasks.clone(),
        clients: Clients::new(stop.clone(), settings.drain, closing.clone()),
        usage_cache: UsageCache::default(),
        report_cache: ReportCache::default(),
        folds: Semaphore::new(FOLDS),
        settings,
        shared,
        thread,
        runtime: Handle::current(),
    });
    let broken = |error: io::Error| NatsError::from(Unavailable(error.to_string()));
    let listener = tokio::net::TcpListener::from_std(listener).map_err(broken)?;
    info!(addr = ?listener.local_addr(), "edge serves");
    let drain = async {
        stop.cancelled().await;
        info!("edge stops");
        let all_disconnected = app.clients.disconnect().await;
        closing.cancel();
        all_disconnected
    };
    let bodies = &app.shared.memory().bodies;
    let slots = ConnectionSlots::new(
        app.shared.connections().clone(),
        app.settings.proxies.clone(),
    );
    let serving = serve::serve(
        listener,
        app.settings.tls.as_ref(),
        router::router(Arc::clone(&app)),
        bodies,
        &slots,
        &app.thread.counters.sent,
        &tasks,
    );
    let ((), all_disconnected) = tokio::join!(serving, drain);
    if !tasks.end(DRAIN_WAIT).await || !all_disconnected {
        warn!(remaining = tasks.running(), "some connections were cut off");
    }
    Ok(())
}

/// Drops what the hub holds of each job that is purged.
async fn forget_purged(mut signals: PurgeSignals, hub: Arc<Hub<Reader>>) {
    while let Some(job) = signals.next().await {
        hub.forget(&job);
    }
}
