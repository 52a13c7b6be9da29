//! Admits requests: finds the token of a request, on every route, and passes on what it gives access
//! to. Whether that is enough for an operation is asked later, with [`Access::require`].

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{ConnectInfo, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};

use super::access::Access;
use super::app::App;
use super::connection_slots::Proxied;
use super::credential::{Credential, credential};
use super::error::Problem;
use super::meter::{Meter, network};
use super::session::SESSION_PATH;
use crate::wire::Code;

/// The address of a client, which may be behind trusted proxies.
#[derive(Clone, Copy, Debug)]
pub(super) struct ClientAddress(pub(super) IpAddr);

/// What needs no token: pages without data, and what load balancers ask.
const PUBLIC: [&str; 6] = [
    "/",
    "/console.js",
    "/console.css",
    CLIENT_PATH,
    "/healthz",
    "/readyz",
];
const CLIENT_PATH: &str = "/client.js";
/// What may come without a token: a WebSocket sends it in an `auth` frame, Socket.IO when it joins,
/// and a session may be ended without one.
const LATER: [&str; 4] = ["/ws", "/socket.io", "/socket.io/", SESSION_PATH];
/// Refuses a request of a page that may not use the edge, or that names another host. Notes the
/// client's address.
pub(super) async fn browser(
    State(app): State<Arc<App>>,
    mut request: Request,
    next: Next,
) -> Response {
    let policy = &app.settings.browsers;
    let mut checked = policy.check_host(request.headers());
    // The client's code is public, and pages of all origins import it.
    if request.uri().path() != CLIENT_PATH {
        checked = checked.and_then(|()| policy.check_origin(request.headers()));
    }
    if let Err(code) = checked {
        return Problem::from(code).into_response();
    }
    if let Some(ConnectInfo(meter)) = request.extensions().get::<ConnectInfo<Meter>>() {
        let peer = meter.address();
        let is_proxied = app.settings.proxies.are(peer);
        let client = app.settings.proxies.client(peer, request.headers());
        request
            .extensions_mut()
            .insert(ClientAddress(network(client)));
        if is_proxied {
            request.extensions_mut().insert(Proxied);
        }
    }
    next.run(request).await
}

/// Admits a request with a valid token, and ends it when the token is not valid any more.
pub(super) async fn admit(
    State(app): State<Arc<App>>,
    mut request: Request,
    next: Next,
) -> Response {
    let path = request.uri().path();
    if PUBLIC.contains(&path) {
        return next.run(request).await;
    }
    let may_come_later = LATER.contains(&path);
    let credential = if app.settings.gate.is_checked() {
        credential(&request)
    } else {
        Ok(None)
    };
    let from = request.extensions().get::<ClientAddress>().copied();
    match access(&app, credential, from).await {
        Ok(Some(access)) => {
            request.extensions_mut().insert(access.clone());
            tokio::select! {
                response = next.run(request) => response,
                code = access.ended() => Problem::from(code).into_response(),
            }
        }
        Ok(None) if may_come_later => next.run(request).await,
        Ok(None) => {
            let message = "Send a token: `Authorization: Bearer TOKEN`.";
            Problem::new(Code::Unauthorized, message).into_response()
        }
        Err(problem) => problem.into_response(),
    }
}

/// What a credential gives access to; `None` without one, on an edge that checks tokens.
async fn access(
    app: &App,
    credential: Result<Option<Credential>, Problem>,
    from: Option<ClientAddress>,
) -> Result<Option<Access>, Problem> {
    let gate = &app.settings.gate;
    if !gate.is_checked() {
        return Ok(Some(Access::unrestricted()));
    }
    match credential? {
        None => Ok(None),
        Some(Credential::Token(token)) => gate.authenticate(token.expose()).await.map(Some),
        Some(Credential::Ticket(ticket)) => {
            // Any client can send one, and each is read from the broker.
            let ClientAddress(from) = from.ok_or(Code::Internal)?;
            let _slot = app.shared.requests().acquire(from)?;
            gate.redeem_ticket(ticket.expose()).await.map(Some)
        }
    }
}
