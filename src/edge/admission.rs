//! Admits requests: finds the token of a request, on every route, and passes on what it gives access
//! to. Whether that is enough for an operation is asked later, with [`Access::require`].

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{ConnectInfo, Request, State};
use axum::http::{HeaderMap, Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use url::form_urlencoded;

use super::access::Access;
use super::app::App;
use super::error::Problem;
use super::meter::{Meter, network};
use super::session::{self, SESSION_PATH};
use crate::wire::{BearerToken, Code};

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
/// Parameters in which clients of other systems send tokens.
const TOKEN_PARAMETERS: [&str; 4] = ["token", "access_token", "bearer", "jwt"];
/// The beginning of a subprotocol with a token.
pub(super) const BEARER_SUBPROTOCOL: &str = "bearer.";

/// How a request proves who sent it.
enum Credential {
    Token(BearerToken),
    Ticket(BearerToken),
}

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
        let client = app.settings.proxies.client(peer, request.headers());
        request
            .extensions_mut()
            .insert(ClientAddress(network(client)));
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
    match access(&app, credential).await {
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
) -> Result<Option<Access>, Problem> {
    let gate = &app.settings.gate;
    if !gate.is_checked() {
        return Ok(Some(Access::unrestricted()));
    }
    match credential? {
        None => Ok(None),
        Some(Credential::Token(token)) => gate.authenticate(token.expose()).await.map(Some),
        Some(Credential::Ticket(ticket)) => gate.redeem_ticket(ticket.expose()).await.map(Some),
    }
}

fn credential(request: &Request) -> Result<Option<Credential>, Problem> {
    let query = request.uri().query().unwrap_or_default();
    let mut parameters = form_urlencoded::parse(query.as_bytes());
    if parameters.any(|(name, _)| TOKEN_PARAMETERS.contains(&&*name)) {
        return Err(Code::TokenInUrl.into());
    }
    let of_header = authorization(request.headers())?;
    if let Some(token) = of_header.or_else(|| of_subprotocol(request)) {
        return Ok(Some(Credential::Token(BearerToken::new(token))));
    }
    let path = request.uri().path();
    let is_events = request.method() == Method::GET
        && path.starts_with("/api/jobs/")
        && path.ends_with("/events");
    if !is_events {
        return Ok(None);
    }
    let mut parameters = form_urlencoded::parse(query.as_bytes());
    if let Some((_, ticket)) = parameters.find(|(name, _)| name == "ticket") {
        return Ok(Some(Credential::Ticket(BearerToken::new(ticket))));
    }
    let of_cookie = session::token(request.headers())?;
    Ok(of_cookie.map(|token| Credential::Token(BearerToken::new(token))))
}

/// The token of `Authorization: Bearer`.
pub(super) fn authorization(headers: &HeaderMap) -> Result<Option<&str>, Problem> {
    let bad = || {
        let message = "The `Authorization` header is not `Bearer TOKEN`.";
        Problem::new(Code::Unauthorized, message)
    };
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let Some(value) = values.next() else {
        return Ok(None);
    };
    if values.next().is_some() {
        return Err(bad());
    }
    let value = value.to_str().map_err(|_| bad())?;
    let (scheme, token) = value.split_once(' ').ok_or_else(bad)?;
    if scheme.eq_ignore_ascii_case("bearer") {
        Ok(Some(token.trim()))
    } else {
        Err(bad())
    }
}

/// The token in a subprotocol that a WebSocket client offers.
fn of_subprotocol(request: &Request) -> Option<&str> {
    let lists = request
        .headers()
        .get_all(header::SEC_WEBSOCKET_PROTOCOL)
        .iter()
        .filter_map(|list| list.to_str().ok());
    lists
        .flat_map(|list| list.split(','))
        .find_map(|name| name.trim().strip_prefix(BEARER_SUBPROTOCOL))
        .filter(|_| request.uri().path() == "/ws")
}
