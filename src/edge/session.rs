//! `POST /api/session`: keeps a token in a cookie, for an `EventSource` of the edge's own pages,
//! which can send no header. The cookie opens event streams and nothing else.
//!
//! It protects from other pages in four ways: scripts cannot read it (`HttpOnly`), browsers do not
//! send it with requests of other sites (`SameSite`), the edge accepts it from pages of its own
//! origin only, and a request with it changes nothing.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::IntoResponse;

use super::access::Access;
use super::app::App;
use super::browser::is_of_same_origin;
use super::cookie;
use super::credential::authorization;
use super::describe::{JOBS, problems};
use super::error::Problem;
use crate::wire::Code;

/// The address of this route.
pub(super) const SESSION_PATH: &str = "/api/session";

problems!(NoSession: BadRequest, NotFound, OriginNotAllowed);

/// Keeps the request's token in a cookie, for the event streams of this origin.
///
/// The cookie is valid until the token expires. Browsers send it only with requests of pages of the
/// edge's own origin, and scripts cannot read it.
#[utoipa::path(
    post, path = "/api/session", tag = JOBS,
    responses((status = 204, description = "The cookie is set."), NoSession),
)]
pub(super) async fn begin(
    State(app): State<Arc<App>>,
    access: Access,
    headers: HeaderMap,
) -> Result<impl IntoResponse, Problem> {
    if access.subject().is_none() {
        let message = "This edge checks no tokens, so a stream needs no cookie.";
        return Err(Problem::new(Code::NotFound, message));
    }
    if !is_of_same_origin(&headers) {
        return Err(Code::OriginNotAllowed.into());
    }
    let token = authorization(&headers)?.ok_or(Code::Unauthorized)?;
    let origin = headers.get(header::ORIGIN);
    let is_secure = app.settings.tls.is_some()
        || origin.is_some_and(|origin| origin.as_bytes().starts_with(b"https://"));
    let lifetime = access.expires_in_ms().map(|ms| ms / 1000);
    let cookie = cookie::set(token, is_secure, lifetime)?;
    Ok((StatusCode::NO_CONTENT, [(header::SET_COOKIE, cookie)]))
}

/// Removes the cookie.
#[utoipa::path(
    delete, path = "/api/session", tag = JOBS,
    responses((status = 204, description = "The cookie is removed.")),
)]
pub(super) async fn end(State(app): State<Arc<App>>) -> Result<impl IntoResponse, Problem> {
    let cookie = cookie::set("", app.settings.tls.is_some(), Some(0))?;
    Ok((StatusCode::NO_CONTENT, [(header::SET_COOKIE, cookie)]))
}
