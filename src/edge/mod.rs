//! The edge: every front door for clients, over the same sessions. The only folder that names axum and socketioxide. An edge
//! keeps nothing that matters: killing it costs its clients one reconnect.

mod accept;
mod answer;
mod body;
mod client;
mod counters;
mod describe;
mod drain;
mod error;
mod head;
mod jobs;
mod list;
mod memory;
mod meter;
mod metered;
mod openapi;
mod ops;
mod page;
mod request;
mod rest;
mod serve;
mod shared;
mod socketio;
mod sse;
mod stats;
mod traffic;
mod turn;
mod watches;
mod ws;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::{HeaderName, HeaderValue, Method, header};
use axum::middleware::from_fn;
use axum::routing::{any, get};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tower_http::cors::{Any, CorsLayer};
use tower_http::set_header::SetResponseHeaderLayer;
use tracing::{info, warn};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use self::counters::Counters;
use self::drain::Clients;
use self::error::Problem;
pub use self::shared::Shared;
#[doc(hidden)]
pub use self::ws::serve_echo;
use crate::config::{BACKLOG, DRAIN_WAIT, DRAIN_WINDOW, FOLDS, PREFLIGHT_AGE, SEND_BUFFER};
use crate::hub::Hub;
use crate::nats::{Log, Nats, NatsError, Queue, Reader, UsageCache};
use crate::runtime::Tasks;
use crate::source::Unavailable;
use crate::wire::Code;
use crate::wire::limits::BODY_MAX;

/// What the front doors of one edge thread share.
struct App {
    nats: Nats,
    log: Log,
    queue: Queue,
    hub: Arc<Hub<Reader>>,
    /// What serves the clients. It is told to end once they were told to come back.
    tasks: Tasks,
    clients: Clients,
    usage_cache: UsageCache,
    /// The right to fold a state.
    folds: Semaphore,
    settings: EdgeSettings,
    shared: Shared,
    counters: Arc<Counters>,
    /// The thread's own runtime.
    runtime: Handle,
}

/// What an edge is told.
#[derive(Clone, Debug)]
pub struct EdgeSettings {
    /// The hosts that jobs may call back to, each `name` or `name:port`.
    pub callback_hosts: Vec<String>,
    /// Over what time clients are told to come back when the edge stops.
    pub drain: Duration,
}

impl Default for EdgeSettings {
    fn default() -> Self {
        Self {
            callback_hosts: Vec::new(),
            drain: DRAIN_WINDOW,
        }
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
    // What is accepted inherits it.
    socket.set_send_buffer_size(SEND_BUFFER)?;
    socket.set_nonblocking(true)?;
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket)
}

/// Serves clients on `listener` until `stop` is cancelled; then refuses new ones, tells those there are to come back, each
/// at a moment of its own, and ends. The threads of one edge are given the same
/// `shared`.
///
/// # Errors
/// When the edge cannot begin; an edge that serves goes on.
pub async fn run(
    listener: TcpListener,
    nats: Nats,
    settings: EdgeSettings,
    shared: Shared,
    stop: CancellationToken,
) -> Result<(), NatsError> {
    let log = Log::open(&nats).await?;
    // Clients are served on for a while after `stop`.
    let closing = CancellationToken::new();
    let _close_all = closing.clone().drop_guard();
    let tasks = Tasks::new(closing.clone());
    let reader = Reader::open(log.clone(), &tasks).await?;
    let hub = Hub::within(reader, tasks.clone(), shared.memory().feeds.clone());
    let app = Arc::new(App {
        nats: nats.clone(),
        queue: Queue::new(log.clone()),
        log,
        hub,
        tasks: tasks.clone(),
        clients: Clients::new(stop.clone(), settings.drain),
        usage_cache: UsageCache::default(),
        folds: Semaphore::new(FOLDS),
        settings,
        shared,
        counters: Counters::new(),
        runtime: Handle::current(),
    });
    app.shared.join(&app);
    let broken = |error: io::Error| NatsError::from(Unavailable(error.to_string()));
    let listener = tokio::net::TcpListener::from_std(listener).map_err(broken)?;
    info!(addr = ?listener.local_addr(), "edge serves");
    let leaving = async {
        stop.cancelled().await;
        info!("edge stops");
        let left = app.clients.leave().await;
        closing.cancel();
        left
    };
    let bodies = &app.shared.memory().bodies;
    let serving = serve::serve(
        listener,
        router(Arc::clone(&app)),
        bodies,
        app.shared.connections(),
        &tasks,
    );
    let ((), left) = tokio::join!(serving, leaving);
    if !tasks.end(DRAIN_WAIT).await || !left {
        warn!(left = tasks.running(), "some connections were cut off");
    }
    Ok(())
}

fn router(app: Arc<App>) -> Router {
    let (router, _) = routes().split_for_parts();
    let no_store = HeaderValue::from_static("no-store");
    router
        .route("/", get(ops::index))
        // As a client of an earlier system knows it.
        .route("/api/job/{id}/state", get(rest::state))
        .route("/socket.io/", any(socketio::engine))
        // Some clients and proxies leave the slash out.
        .route("/socket.io", any(socketio::engine))
        .fallback(|| async { Problem::from(Code::NotFound) })
        .method_not_allowed_fallback(|| async { Problem::from(Code::MethodNotAllowed) })
        .layer(DefaultBodyLimit::max(BODY_MAX))
        .layer(from_fn(head::body_is_short_enough))
        .layer(any_origin())
        .layer(from_fn(head::checked))
        // A cache that was told nothing may keep an answer for as long as it likes, and a job would run for ever.
        .layer(SetResponseHeaderLayer::if_not_present(
            header::CACHE_CONTROL,
            no_store,
        ))
        .with_state(app)
}

/// What browsers are told of pages of other origins: they may do what any program may, as over a WebSocket, but without
/// cookies. An edge looks at none; a proxy before it may let people in by one, and would let in every page that they open.
fn any_origin() -> CorsLayer {
    // The star leaves this one out, by which a page gives such a proxy its token.
    let headers = [HeaderName::from_static("*"), header::AUTHORIZATION];
    CorsLayer::new()
        .allow_origin(Any)
        .allow_methods([Method::GET, Method::HEAD, Method::POST])
        .allow_headers(headers)
        .expose_headers(Any)
        .max_age(PREFLIGHT_AGE)
}

/// Every address that is described, each by what stands at its handler.
fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new()
        .routes(routes!(rest::submit, list::jobs))
        .routes(routes!(rest::job))
        .routes(routes!(rest::state))
        .routes(routes!(rest::cancel))
        .routes(routes!(sse::events))
        .routes(routes!(ws::upgrade))
        .routes(routes!(stats::stats))
        .routes(routes!(stats::socketio))
        .routes(routes!(ops::health))
        .routes(routes!(ops::ready))
        .routes(routes!(openapi::document))
}
