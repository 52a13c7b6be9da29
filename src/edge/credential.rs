//! How a request proves who sent it: a token in a header or a subprotocol, a ticket, or a cookie.

use axum::extract::Request;
use axum::http::{HeaderMap, Method, header};
use url::form_urlencoded;

use super::cookie;
use super::error::Problem;
use crate::wire::{BearerToken, Code};

/// Parameters in which clients of other systems send tokens.
const TOKEN_PARAMETERS: [&str; 4] = ["token", "access_token", "bearer", "jwt"];
/// The beginning of a subprotocol with a token.
pub(super) const BEARER_SUBPROTOCOL: &str = "bearer.";

/// How a request proves who sent it.
pub(super) enum Credential {
    Token(BearerToken),
    Ticket(BearerToken),
}

/// The credential of a request, if it has one.
pub(super) fn credential(request: &Request) -> Result<Option<Credential>, Problem> {
    let query = request.uri().query().unwrap_or_default();
    let mut parameters = form_urlencoded::parse(query.as_bytes());
    if parameters.any(|(name, _)| TOKEN_PARAMETERS.contains(&&*name)) {
        return Err(Code::TokenInUrl.into());
    }
    let of_header = authorization(request.headers())?;
    if let Some(token) = of_header.or_else(|| of_subprotocol(request)) {
        return Ok(Some(Credential::Token(BearerToken::new(token))));
    }
    if request.method() != Method::GET || !is_event_stream(request.uri().path()) {
        return Ok(None);
    }
    let mut parameters = form_urlencoded::parse(query.as_bytes());
    if let Some((_, ticket)) = parameters.find(|(name, _)| name == "ticket") {
        return Ok(Some(Credential::Ticket(BearerToken::new(ticket))));
    }
    let of_cookie = cookie::token(request.headers())?;
    Ok(of_cookie.map(|token| Credential::Token(BearerToken::new(token))))
}

/// Whether this is the path of a job's events. The state of a job with the id `events` is not.
fn is_event_stream(path: &str) -> bool {
    let job = path.strip_prefix("/api/jobs/");
    job.is_some_and(|job| job.ends_with("/events"))
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
