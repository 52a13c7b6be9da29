//! The edge: every front door for clients, over the same sessions. The only folder that names axum. An edge keeps nothing
//! that matters: killing it costs its clients one reconnect.

mod drain;
mod error;
mod jobs;
mod list;
mod ops;
mod rest;
mod ws;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::routing::{any, get, post};
use axum::serve::ListenerExt as _;
use socket2::{Domain, Protocol, Socket, Type};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use self::drain::Clients;
use self::error::Problem;
use self::jobs::Loads;
#[doc(hidden)]
pub use self::ws::serve_echo;
use crate::config::{BACKLOG, BODY_MAX, DRAIN_WAIT, DRAIN_WINDOW};
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
    /// What serves the clients. It is told to end once they were told to come back.
    tasks: Tasks,
    clients: Clients,
    loads: Loads,
    settings: Settings,
}

/// What an edge is told.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The hosts that jobs may call back to, each `name` or `name:port`.
    pub callback_hosts: Vec<String>,
    /// Over what time clients are told to come back when the edge stops.
    pub drain: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self { callback_hosts: Vec::new(), drain: DRAIN_WINDOW }
    }
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
    socket.set_nonblocking(true)?;
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket)
}

/// Serves clients on `listener` until `stop` is cancelled; then refuses new ones, tells those there are to come back, each
/// at a moment of its own, and ends.
///
/// # Errors
/// When the edge cannot begin; an edge that serves goes on.
pub async fn run(
    listener: TcpListener,
    nats: Nats,
    settings: Settings,
    stop: CancellationToken,
) -> Result<(), Error> {
    let log = Log::open(&nats).await?;
    // Clients are served on for a while after `stop`.
    let closing = CancellationToken::new();
    let _close_all = closing.clone().drop_guard();
    let tasks = Tasks::new(closing.clone());
    let reader = Reader::open(log.clone(), &tasks).await?;
    let hub = Hub::new(reader, tasks.clone());
    let app = Arc::new(App {
        nats: nats.clone(),
        log,
        hub,
        tasks: tasks.clone(),
        clients: Clients::new(stop.clone(), settings.drain),
        loads: Loads::default(),
        settings,
    });
    let broken = |error: io::Error| Error::from(Unavailable(error.to_string()));
    let listener = tokio::net::TcpListener::from_std(listener).map_err(broken)?;
    info!(addr = ?listener.local_addr(), "edge serves");
    let listener = listener.tap_io(|stream| {
        if let Err(error) = stream.set_nodelay(true) {
            debug!(%error, "a connection without TCP_NODELAY");
        }
    });
    let graceful = closing.clone().cancelled_owned();
    let serving =
        axum::serve(listener, router(Arc::clone(&app))).with_graceful_shutdown(graceful).into_future();
    let mut serving = std::pin::pin!(serving);
    let leave = async {
        stop.cancelled().await;
        info!("edge stops");
        app.clients.leave().await
    };
    let left = tokio::select! {
        outcome = &mut serving => return outcome.map_err(broken),
        left = leave => left,
    };
    closing.cancel();
    let drained = tokio::time::timeout(DRAIN_WAIT / 2, serving).await.is_ok();
    if !tasks.end(DRAIN_WAIT / 2).await || !left || !drained {
        warn!(left = tasks.running(), "some connections were cut off");
    }
    Ok(())
}

fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/ws", any(ws::upgrade))
        .route("/api/jobs", post(rest::submit).get(list::jobs))
        .route("/api/jobs/{id}/cancel", post(rest::cancel))
        .route("/api/jobs/{id}/state", get(rest::state))
        .route("/api/job/{id}/state", get(rest::state))
        .route("/healthz", get(ops::health))
        .route("/readyz", get(ops::ready))
        .fallback(|| async { Problem::from(Code::NotFound) })
        .method_not_allowed_fallback(|| async { Problem::from(Code::MethodNotAllowed) })
        .layer(DefaultBodyLimit::max(BODY_MAX))
        .with_state(app)
}
