//! The Socket.IO library and its sessions, shared by all threads of a process: the polls of a
//! session may reach any of them. The *service* is shared, because each `SocketIoLayer` of the
//! library would have sessions of its own.

use std::convert::Infallible;
use std::fmt;
use std::future::ready;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use socketioxide::adapter::Adapter;
use socketioxide::extract::{AckSender, SocketRef};
use socketioxide::handler::{ConnectHandler as _, FromConnectParts, Value as Payload};
use socketioxide::service::SocketIoService;
use socketioxide::socket::Socket;
use socketioxide::{ParserConfig, SocketIo};
use tower::ServiceExt as _;

use super::engine_session::{EngineSession, EngineSessions};
use super::handshake::Handshakes;
use super::request::{Emit, JoinRequest, JoinToken};
use crate::config::{ATTACHMENTS_MAX, JOIN_WAIT, PING_EVERY, PONG_WAIT, READ_BUFFER, SOCKET_QUEUE};
use crate::wire::limits::BODY_MAX;
use crate::wire::{BearerToken, Code};

/// The library, its sessions, and the handshakes in progress.
pub(in crate::edge) struct Engine {
    service: SocketIoService<Router>,
    pub(super) sessions: EngineSessions,
    pub(super) handshakes: Handshakes,
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
            // No request has attachments. They are parsed so that the refusal can name the reason. Those of
            // a client that polls do not reach the library.
            .with_parser(
                ParserConfig::common()
                    .max_incoming_binaries(ATTACHMENTS_MAX)
                    .max_incoming_binary_buf_size(BODY_MAX),
            )
            .build_with_inner_svc(Router::new());
        let known = sessions.clone();
        let prepared =
            async move |socket: SocketRef, JoinToken(token): JoinToken, auth: AuthSize| {
                admit(&socket, token, auth).await?;
                prepare(&socket, &known);
                Ok::<_, JoinRefused>(())
            };
        io.ns("/", serve.with(prepared));
        Self {
            service,
            sessions,
            handshakes: Handshakes::default(),
        }
    }
}

impl Engine {
    /// The library's response to a request.
    pub(super) async fn call(&self, request: Request) -> Response {
        let answer = self.service.clone().oneshot(request).await;
        answer.unwrap_or_else(|never| match never {}).map(Body::new)
    }
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine").finish_non_exhaustive()
    }
}

/// Why a client may not join. The library sends the text as the message of `connect_error`.
#[derive(Debug)]
struct JoinRefused(Code);

impl fmt::Display for JoinRefused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.as_str())
    }
}

/// How many bytes the `auth` of a client that joins has. The library holds it until the client has
/// joined or is refused.
struct AuthSize(usize);

impl<A: Adapter> FromConnectParts<A> for AuthSize {
    type Error = Infallible;

    fn from_connect_parts(_: &Arc<Socket<A>>, auth: &Option<Payload>) -> Result<Self, Infallible> {
        let text = auth.as_ref().and_then(Payload::as_str);
        Ok(Self(text.map_or(0, |text| text.as_str().len())))
    }
}

/// Checks the token of a client that joins, unless its first request had one.
async fn admit(
    socket: &SocketRef,
    token: Option<BearerToken>,
    AuthSize(auth): AuthSize,
) -> Result<(), JoinRefused> {
    let Some(session) = session_of_socket(socket) else {
        return Ok(());
    };
    if session.access.get().is_some() {
        return Ok(());
    }
    let admitted = match session.host.upgrade() {
        Some(host) => host.admit(token, auth).await,
        None => Err(Code::Restarting),
    };
    let access = admitted.map_err(|code| {
        if code.info().retry {
            // After a `connect_error`, the client's library would not connect again by itself.
            session.traffic.cut();
        }
        JoinRefused(code)
    })?;
    // A client joins once.
    let _ = session.access.set(access);
    Ok(())
}

/// Runs before the client is notified that it has joined, because it may send requests from then
/// on.
fn prepare(socket: &SocketRef, sessions: &EngineSessions) {
    if let Some(session) = session_of_socket(socket) {
        let sid = socket.id;
        let sessions = sessions.clone();
        let disconnected = session.disconnected.clone();
        session.join();
        sessions.insert(sid, &session);
        socket.on_fallback(move |emit: Emit, ack: AckSender| {
            session.queue(emit, ack);
            ready(())
        });
        socket.on_disconnect(move || {
            sessions.remove(sid);
            disconnected.cancel();
            ready(())
        });
    }
}

/// Serves a client that has joined.
async fn serve(socket: SocketRef, join: JoinRequest) {
    let Some(session) = session_of_socket(&socket) else {
        return;
    };
    let (Some(host), Some(requests)) = (session.host.upgrade(), session.receiver()) else {
        return session.traffic.cut();
    };
    host.serve(socket, session, requests, join);
}

fn session_of_socket(socket: &SocketRef) -> Option<Arc<EngineSession>> {
    socket
        .req_parts()
        .extensions
        .get::<Arc<EngineSession>>()
        .cloned()
}
