//! The Socket.IO front door: takes requests of Socket.IO clients to the library, and joins each client to a pump.
//! `wire/SOCKETIO.md` is the contract.

mod engine_session;
mod handshake;
mod in_flight;
mod outbox;
mod pump;
mod request;

use std::convert::Infallible;
use std::fmt;
use std::future::{pending, ready};
use std::sync::Arc;

use axum::body::{Body, to_bytes};
use axum::extract::{ConnectInfo, Request, State};
use axum::http::{Method, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::json;
use socketioxide::extract::{AckSender, SocketRef};
use socketioxide::handler::ConnectHandler as _;
use socketioxide::service::SocketIoService;
use socketioxide::socket::Sid;
use socketioxide::{ParserConfig, SocketIo};
use tower::ServiceExt as _;
use tracing::{Instrument as _, info_span};

use self::engine_session::{EngineSession, EngineSessions};
use self::handshake::Handshakes;
use self::pump::Pump;
use self::request::{Asked, Auth};
use super::App;
use super::body::Bodies;
use super::error::Problem;
use super::meter::Meter;
use super::ws::opening;
use crate::config::{
    ATTACHMENTS_MAX, HANDSHAKE_ANSWER_MAX, JOIN_WAIT, PING_EVERY, PONG_WAIT, READ_BUFFER,
    SOCKET_QUEUE,
};
use crate::wire::Code;
use crate::wire::limits::BODY_MAX;

/// How much of a request's own mark is compared. Clients send some ten characters.
const ONCE_MAX: usize = 64;

/// The library and its sessions, once for all threads of a process: the requests of one session by polling reach any of
/// them. The *service* is shared; layering the library's `SocketIoLayer` twice would make two sets of sessions.
pub(super) struct Engine {
    service: SocketIoService<Router>,
    sessions: EngineSessions,
    handshakes: Handshakes,
}

impl Default for Engine {
    fn default() -> Self {
        let sessions = EngineSessions::default();
        let (service, io) = SocketIo::builder()
            .max_buffer_size(SOCKET_QUEUE)
            .max_payload(BODY_MAX as u64)
            .ws_max_message_size(BODY_MAX)
            .ws_max_frame_size(BODY_MAX)
            .ws_read_buffer_size(READ_BUFFER)
            .ping_interval(PING_EVERY)
            .ping_timeout(PONG_WAIT)
            .connect_timeout(JOIN_WAIT)
            // No request has attachments; those of a client that sends some are taken in to refuse the request in words.
            .with_parser(
                ParserConfig::common()
                    .max_incoming_binaries(ATTACHMENTS_MAX)
                    .max_incoming_binary_buf_size(BODY_MAX),
            )
            .build_with_inner_svc(Router::new());
        let known = sessions.clone();
        let prepared = async move |socket: SocketRef| prepare(&socket, &known);
        io.ns("/", begin.with(prepared));
        Self {
            service,
            sessions,
            handshakes: Handshakes::default(),
        }
    }
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine").finish_non_exhaustive()
    }
}

/// Before the client hears that it has joined: from then on it may ask for something.
fn prepare(socket: &SocketRef, sessions: &EngineSessions) -> Result<(), Infallible> {
    if let Some(session) = session_of_socket(socket) {
        let (sid, sessions, disconnected) =
            (socket.id, sessions.clone(), session.disconnected.clone());
        session.join();
        sessions.insert(sid, &session);
        socket.on_fallback(move |asked: Asked, ack: AckSender| {
            session.queue(asked, ack);
            ready(())
        });
        socket.on_disconnect(move || {
            sessions.remove(sid);
            disconnected.cancel();
            ready(())
        });
    }
    Ok(())
}

/// The client has joined. Its pump runs on the thread that took its first request, where the feeds are.
async fn begin(socket: SocketRef, auth: Auth) {
    let Some(session) = session_of_socket(&socket) else {
        return;
    };
    let (Some(app), Some(asks)) = (session.app.upgrade(), session.receiver()) else {
        return session.traffic.cut();
    };
    let span = info_span!("socketio", id = %socket.id);
    let (tasks, runtime) = (app.tasks.clone(), app.runtime.clone());
    let pump = Pump::new(app, socket, session, asks);
    let _thread = runtime.enter();
    tasks.spawn(pump.run(auth).instrument(span));
}

fn session_of_socket(socket: &SocketRef) -> Option<Arc<EngineSession>> {
    socket
        .req_parts()
        .extensions
        .get::<Arc<EngineSession>>()
        .cloned()
}

/// What the query of a request says.
struct Query {
    is_websocket: bool,
    /// The session, after the first request.
    sid: Option<Sid>,
    /// What tells this request from others. Clients send another value with each, so that no cache answers.
    once: String,
}

impl Query {
    fn of(request: &Request) -> Self {
        let query = request.uri().query().unwrap_or("");
        let value = |name: &str| query.split('&').find_map(|pair| pair.strip_prefix(name));
        let once = value("t=").unwrap_or("").chars().take(ONCE_MAX).collect();
        let sid = value("sid=").and_then(|sid| sid.parse().ok());
        // As the library reads it, which ignores a second `=` and what follows.
        let transport = value("transport=").and_then(|transport| transport.split('=').next());
        Self {
            is_websocket: transport == Some("websocket"),
            sid,
            once,
        }
    }
}

/// A poll that waits. A client that gives it up does not know what it would have brought: it is gone, as for the library's
/// original in JavaScript.
struct Polls(Option<Arc<EngineSession>>);

impl Polls {
    /// Returns when it waits for nothing any more.
    async fn when_cut(&self) {
        match &self.0 {
            Some(session) => session.traffic.when_cut().await,
            None => pending().await,
        }
    }

    fn answered(mut self) {
        self.0 = None;
    }
}

impl Drop for Polls {
    fn drop(&mut self) {
        if let Some(session) = self.0.take() {
            session.disconnected.cancel();
            session.traffic.cut();
        }
    }
}

/// `/socket.io/`: the requests by which a session begins, polls, posts, or becomes a WebSocket.
pub(super) async fn engine(
    State(app): State<Arc<App>>,
    ConnectInfo(meter): ConnectInfo<Meter>,
    request: Request,
) -> Response {
    let query = Query::of(&request);
    // The library would answer 101 to anything that has a key.
    let (mut parts, body) = request.into_parts();
    if query.is_websocket
        && let Err(problem) = opening::check(&mut parts)
    {
        return problem.into_response();
    }
    let request = Request::from_parts(parts, body);
    let engine = app.shared.socketio();
    match query.sid {
        Some(sid) => match engine.sessions.get(sid) {
            Some(session) if query.is_websocket => {
                meter.attach(&session.traffic);
                engine.call(&app, request).await
            }
            Some(session) => engine.polled(&app, session, query, request).await,
            None => unknown_session(),
        },
        None if app.clients.are_leaving() => Problem::from(Code::Restarting).into_response(),
        None => match engine.handshakes.begin(meter.peer()) {
            Ok(handshake) => {
                engine
                    .open(
                        &app,
                        EngineSession::new(&app, handshake),
                        &meter,
                        &query,
                        request,
                    )
                    .await
            }
            Err(no_room) => Problem::from(no_room).into_response(),
        },
    }
}

impl Engine {
    /// The first request of a client.
    async fn open(
        &self,
        app: &App,
        session: Arc<EngineSession>,
        meter: &Meter,
        query: &Query,
        mut request: Request,
    ) -> Response {
        if query.is_websocket {
            meter.attach(&session.traffic);
        }
        request.extensions_mut().insert(Arc::clone(&session));
        let response = self.call(app, request).await;
        if query.is_websocket || response.status() != StatusCode::OK {
            return response;
        }
        // The answer names the session. It has to be known before the client does: its next requests do not say whose
        // they are, and may come over any connection and to any thread.
        let (parts, body) = response.into_parts();
        let Ok(body) = to_bytes(body, HANDSHAKE_ANSWER_MAX).await else {
            return Problem::from(Code::Internal).into_response();
        };
        if let Some(sid) = session_of(&body) {
            self.sessions.insert(sid, &session);
        }
        Response::from_parts(parts, body.into())
    }

    /// A poll or a post of a client.
    async fn polled(
        &self,
        app: &App,
        session: Arc<EngineSession>,
        query: Query,
        request: Request,
    ) -> Response {
        let is_poll = request.method() == Method::GET;
        if is_poll && session.is_repeated(query.once) {
            session.traffic.cut();
        }
        if session.traffic.is_cut() {
            return ended(app);
        }
        if !is_poll {
            return self.posted(app, &session, request).await;
        }
        let polls = Polls(Some(Arc::clone(&session)));
        let response = tokio::select! {
            // What the library has for the client is not held back.
            biased;
            response = self.call(app, request) => response,
            () = polls.when_cut() => return ended(app),
        };
        polls.answered();
        if response.status() == StatusCode::OK {
            let length = response.headers().get(header::CONTENT_LENGTH);
            session.traffic.count_sent(
                length
                    .and_then(|length| length.to_str().ok()?.parse().ok())
                    .unwrap_or(0),
            );
        }
        response
    }

    /// What a client sends by polling. The library would read it without a limit of time, and whatever lies in memory
    /// already.
    async fn posted(&self, app: &App, session: &EngineSession, request: Request) -> Response {
        let (parts, body) = request.into_parts();
        let bodies = Bodies(app.shared.memory().bodies.clone());
        let read = tokio::select! {
            read = bodies.read(&parts.headers, body) => read,
            () = session.traffic.when_cut() => return ended(app),
            () = app.tasks.stop().cancelled() => return ended(app),
        };
        match read {
            Ok((body, _held)) => {
                self.call(app, Request::from_parts(parts, body.into()))
                    .await
            }
            Err(problem) => {
                // What it had to say is lost, so the session cannot go on.
                session.traffic.cut();
                problem.into_response()
            }
        }
    }

    /// What the library answers.
    async fn call(&self, app: &App, request: Request) -> Response {
        tokio::select! {
            biased;
            answered = self.service.clone().oneshot(request) => {
                answered.unwrap_or_else(|never| match never {}).map(Body::new)
            }
            () = app.tasks.stop().cancelled() => ended(app),
        }
    }
}

/// The session that the library's answer to a first request names.
fn session_of(answer: &[u8]) -> Option<Sid> {
    #[derive(Deserialize)]
    struct Open {
        sid: String,
    }
    let json = answer.iter().position(|byte| *byte == b'{')?;
    serde_json::from_slice(&answer[json..])
        .ok()
        .and_then(|Open { sid }| sid.parse().ok())
}

/// What a client is told whose session nobody knows, as the library says it: clients of this protocol begin a new one.
fn unknown_session() -> Response {
    let body = Json(json!({"code": "1", "message": "Session ID unknown"}));
    (StatusCode::BAD_REQUEST, body).into_response()
}

/// What a client is told whose session is over.
fn ended(app: &App) -> Response {
    // Whoever polls an edge that stops should do so elsewhere.
    if app.clients.are_leaving() {
        Problem::from(Code::Restarting).into_response()
    } else {
        Problem::new(Code::BadRequest, "the session has ended").into_response()
    }
}
