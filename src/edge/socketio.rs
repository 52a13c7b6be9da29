//! The Socket.IO transport: passes HTTP requests to the library, and starts a pump for each client.
//! `wire/SOCKETIO.md` is the contract.

pub(super) mod engine;
mod engine_session;
mod event;
mod handshake;
mod head;
mod in_flight;
mod outbox;
mod packets;
mod poll_answer;
mod pump;
mod request;
mod write_buffer;

use std::future::pending;
use std::net::IpAddr;
use std::sync::Arc;

use axum::Json;
use axum::body::to_bytes;
use axum::extract::{ConnectInfo, Request, State};
use axum::http::{Extensions, Method, StatusCode, Uri};
use axum::response::{IntoResponse as _, Response};
use serde::Deserialize;
use serde_json::json;
use socketioxide::socket::Sid;

use self::engine_session::EngineSession;
use self::handshake::Handshake;
use self::head::reduced;
use self::packets::without_held;
use self::poll_answer::counted;
use super::access::Access;
use super::admission::ClientAddress;
use super::app::App;
use super::body::Bodies;
use super::connection_slots::acquire_for;
use super::error::Problem;
use super::meter::Meter;
use super::ws::opening;
use crate::config::{HANDSHAKE_ANSWER_MAX, POLL_MARK_MAX};
use crate::fair_slots::FairSlot;
use crate::wire::Code;

/// The query of a request.
struct EngineQuery {
    is_websocket: bool,
    /// The session, after the first request.
    sid: Option<Sid>,
    /// A value that clients change with each request, so that no cache answers it.
    mark: String,
}

impl EngineQuery {
    fn of(uri: &Uri) -> Self {
        let query = uri.query().unwrap_or("");
        let value = |name: &str| query.split('&').find_map(|pair| pair.strip_prefix(name));
        // The library ignores a second `=` and the text after it.
        let transport = value("transport=").and_then(|transport| transport.split('=').next());
        Self {
            is_websocket: transport == Some("websocket"),
            sid: value("sid=").and_then(|sid| sid.parse().ok()),
            mark: value("t=")
                .unwrap_or("")
                .chars()
                .take(POLL_MARK_MAX)
                .collect(),
        }
    }
}

/// `/socket.io/`: opens a session, polls, posts, or upgrades to a WebSocket.
pub(super) async fn engine(
    State(app): State<Arc<App>>,
    ConnectInfo(meter): ConnectInfo<Meter>,
    request: Request,
) -> Response {
    let query = EngineQuery::of(request.uri());
    let (mut head, body) = request.into_parts();
    // The library would answer 101 to any request with a key.
    let checked = query.is_websocket.then(|| opening::check(&mut head));
    let key = match checked.transpose() {
        Ok(key) => key,
        Err(problem) => return problem.into_response(),
    };
    let from = address_of(&head.extensions, &meter);
    let access = head.extensions.remove::<Access>();
    let request = Request::from_parts(reduced(head, key), body);
    let engine = app.shared.socketio();
    match query.sid {
        Some(sid) => match engine.sessions.get(sid) {
            Some(session) if query.is_websocket => {
                meter.attach(&session.traffic);
                call(&app, request).await
            }
            Some(session) if request.method() == Method::GET => {
                poll(&app, session, query.mark, request).await
            }
            Some(session) => post(&app, &session, request).await,
            None => unknown_session(),
        },
        None if app.clients.are_leaving() => Problem::from(Code::Restarting).into_response(),
        None => match begin(&app, from) {
            Ok((handshake, slot)) => {
                let host = Arc::downgrade(&app);
                let session = EngineSession::new(host, handshake, slot, access);
                open(&app, session, &meter, query.is_websocket, request).await
            }
            Err(no_room) => no_room.into_response(),
        },
    }
}

/// Counts a client that begins.
fn begin(app: &App, from: IpAddr) -> Result<(Handshake, FairSlot), Problem> {
    let handshake = app.shared.socketio().handshakes.start(from)?;
    Ok((handshake, acquire_for(from, app.shared.connections())?))
}

/// The address of the client.
fn address_of(extensions: &Extensions, meter: &Meter) -> IpAddr {
    let address = extensions.get::<ClientAddress>();
    address.map_or_else(|| meter.peer(), |ClientAddress(address)| *address)
}

/// The first request of a client.
async fn open(
    app: &App,
    session: Arc<EngineSession>,
    meter: &Meter,
    is_websocket: bool,
    mut request: Request,
) -> Response {
    if is_websocket {
        meter.attach(&session.traffic);
    }
    request.extensions_mut().insert(Arc::clone(&session));
    let response = call(app, request).await;
    if is_websocket || response.status() != StatusCode::OK {
        return response;
    }
    // The response names the session. It must be known before the client reads its id: the client's
    // next requests may come over any connection and reach any thread.
    let (parts, body) = response.into_parts();
    let Ok(body) = to_bytes(body, HANDSHAKE_ANSWER_MAX).await else {
        return Problem::from(Code::Internal).into_response();
    };
    if let Some(sid) = sid_of(&body) {
        app.shared.socketio().sessions.insert(sid, &session);
    }
    Response::from_parts(parts, body.into())
}

/// A poll of a client.
async fn poll(app: &App, session: Arc<EngineSession>, mark: String, request: Request) -> Response {
    if session.is_repeated(mark) {
        session.traffic.cut();
    }
    if session.traffic.is_cut() {
        return session_ended(app);
    }
    let waiting = WaitingPoll(Some(Arc::clone(&session)));
    let response = tokio::select! {
        // Packets that are ready are sent even if the session was cut.
        biased;
        response = call(app, request) => response,
        () = waiting.when_cut() => return session_ended(app),
    };
    // The `connect_error` of a client that should connect again may be ready.
    if session.traffic.is_cut() && !session.has_joined() {
        return session_ended(app);
    }
    let response = if response.status() == StatusCode::OK {
        counted(response, &session.traffic).await
    } else {
        response
    };
    waiting.complete();
    response
}

/// A post of a client that polls. The library would read it without a deadline, and into memory
/// that is not counted.
async fn post(app: &App, session: &EngineSession, request: Request) -> Response {
    if session.traffic.is_cut() {
        return session_ended(app);
    }
    let (parts, body) = request.into_parts();
    let bodies = Bodies(app.shared.memory().bodies.clone());
    let read = tokio::select! {
        read = bodies.read(body) => read,
        () = session.traffic.when_cut() => return session_ended(app),
        () = app.tasks.stop().cancelled() => return session_ended(app),
    };
    match read {
        Ok((body, _held)) => {
            let body = without_held(&body).unwrap_or(body);
            call(app, Request::from_parts(parts, body.into())).await
        }
        Err(problem) => {
            // The client's packets are lost, so the session cannot continue.
            session.traffic.cut();
            problem.into_response()
        }
    }
}

/// The library's response, unless the edge stops.
async fn call(app: &App, request: Request) -> Response {
    tokio::select! {
        biased;
        response = app.shared.socketio().call(request) => response,
        () = app.tasks.stop().cancelled() => session_ended(app),
    }
}

/// A waiting poll. If the client drops it, packets may be lost, so the session ends, as in the
/// JavaScript implementation.
struct WaitingPoll(Option<Arc<EngineSession>>);

impl WaitingPoll {
    /// Returns when the client is cut off.
    async fn when_cut(&self) {
        match &self.0 {
            Some(session) => session.traffic.when_cut().await,
            None => pending().await,
        }
    }

    fn complete(mut self) {
        self.0 = None;
    }
}

impl Drop for WaitingPoll {
    fn drop(&mut self) {
        if let Some(session) = self.0.take() {
            session.disconnected.cancel();
            session.traffic.cut();
        }
    }
}

/// The session id in the library's response to a first request.
fn sid_of(answer: &[u8]) -> Option<Sid> {
    #[derive(Deserialize)]
    struct EngineOpen {
        sid: String,
    }
    let json = answer.iter().position(|byte| *byte == b'{')?;
    let open: EngineOpen = serde_json::from_slice(&answer[json..]).ok()?;
    open.sid.parse().ok()
}

/// The library's own response for an unknown session: clients open a new one.
fn unknown_session() -> Response {
    let body = Json(json!({"code": "1", "message": "Session ID unknown"}));
    (StatusCode::BAD_REQUEST, body).into_response()
}

/// The response for a session that has ended.
fn session_ended(app: &App) -> Response {
    // Clients of a stopping edge should reconnect to another one.
    if app.clients.are_leaving() {
        Problem::from(Code::Restarting).into_response()
    } else {
        Problem::new(Code::BadRequest, "the session has ended").into_response()
    }
}
