//! The edge: every front door for clients, over the same sessions. The only folder that names axum and socketioxide. An edge
//! keeps nothing that matters: killing it costs its clients one reconnect.

mod error;
mod jobs;
mod ops;
mod rest;
mod shared;
mod socketio;
mod stats;
mod ws;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::routing::{any, get, post};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tower_http::cors::CorsLayer;
use tracing::{info, warn};

use self::error::Problem;
use self::jobs::Loads;
pub use self::shared::Shared;
use self::socketio::meter;
use self::stats::Counts;
use crate::config::{BACKLOG, BODY_MAX, DRAIN_WAIT, SEND_BUFFER};
use crate::hub::Hub;
use crate::nats::{Error, Log, Nats, Reader};
use crate::runtime::Tasks;
use crate::source::Unavailable;
use crate::wire::Code;

/// What the front doors of one edge thread share.
struct App {
    nats: Nats,
    log: Log,
    hub: Arc<Hub<Reader>>,
    tasks: Tasks,
    loads: Loads,
    settings: Settings,
    shared: Shared,
    counts: Arc<Counts>,
    /// The thread's own runtime.
    runtime: Handle,
}

/// What an edge is told.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// The hosts that jobs may call back to, each `name` or `name:port`.
    pub callback_hosts: Vec<String>,
}

/// Listens at `addr`, once for each thread; the kernel spreads connections over them. With port 0 all get the same free
/// port.
///
/// # Errors
/// When the address is in use or not this machine's.
pub fn bind(addr: SocketAddr, threads: usize) -> io::Result<Vec<TcpListener>> {
    // Found out without SO_REUSEPORT: with it, a second edge on the same address would silently take half of the clients.
    let mut addr = addr;
    if addr.port() != 0 {
        drop(socket(addr, false)?);
    }
    let mut listeners = Vec::new();
    for _ in 0..threads.max(1) {
        let listener = TcpListener::from(socket(addr, threads > 1)?);
        addr = listener.local_addr()?;
        listeners.push(listener);
    }
    Ok(listeners)
}

fn socket(addr: SocketAddr, shared: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(shared)?;
    // What is accepted inherits it.
    socket.set_send_buffer_size(SEND_BUFFER)?;
    socket.set_nonblocking(true)?;
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket)
}

/// Serves clients on `listener` until `stop` is cancelled, then tells them to come back and ends. The threads of one edge
/// are given the same `shared`.
///
/// # Errors
/// When the edge cannot begin; an edge that serves goes on.
pub async fn run(
    listener: TcpListener,
    nats: Nats,
    settings: Settings,
    shared: Shared,
    stop: CancellationToken,
) -> Result<(), Error> {
    let log = Log::open(&nats).await?;
    let tasks = Tasks::new(stop);
    let reader = Reader::open(log.clone(), &tasks).await?;
    let hub = Hub::new(reader, tasks.clone());
    let app = Arc::new(App {
        nats: nats.clone(),
        log,
        hub,
        tasks: tasks.clone(),
        loads: Loads::default(),
        settings,
        shared,
        counts: Counts::new(),
        runtime: Handle::current(),
    });
    app.shared.join(&app);
    let broken = |error: io::Error| Error::from(Unavailable(error.to_string()));
    let listener = tokio::net::TcpListener::from_std(listener).map_err(broken)?;
    info!(addr = ?listener.local_addr(), "edge serves");
    let graceful = tasks.stop().clone().cancelled_owned();
    let service = router(app).into_make_service_with_connect_info::<meter::Meter>();
    let serving = axum::serve(meter::Listener(listener), service).with_graceful_shutdown(graceful);
    let serving = serving.into_future();
    let mut serving = std::pin::pin!(serving);
    let stop = tasks.stop().clone();
    tokio::select! {
        outcome = &mut serving => outcome.map_err(broken)?,
        () = stop.cancelled() => {}
    }
    info!("edge stops");
    let drained = tokio::time::timeout(DRAIN_WAIT / 2, serving).await.is_ok();
    if !tasks.end(DRAIN_WAIT / 2).await || !drained {
        warn!(left = tasks.running(), "some connections were cut off");
    }
    Ok(())
}

fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/ws", any(ws::upgrade))
        .route("/api/jobs", post(rest::submit))
        .route("/api/jobs/{id}/cancel", post(rest::cancel))
        .route("/api/jobs/{id}/state", get(rest::state))
        .route("/api/job/{id}/state", get(rest::state))
        // No cookie or other credential is looked at, so a page of any origin may do what any program may.
        .route("/socket.io/", any(socketio::engine).layer(CorsLayer::permissive()))
        .route("/api/socketio/stats", get(stats::socketio))
        .route("/api/stats", get(stats::stats))
        .route("/healthz", get(ops::health))
        .route("/readyz", get(ops::ready))
        .fallback(|| async { Problem::from(Code::NotFound) })
        .method_not_allowed_fallback(|| async { Problem::from(Code::MethodNotAllowed) })
        .layer(DefaultBodyLimit::max(BODY_MAX))
        .with_state(app)
}
