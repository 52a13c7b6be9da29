//! Jobs over plain HTTP: submit one, read its state, cancel it, purge it. Events are in `sse` and `page`.

use std::sync::Arc;

use axum::Json;
use axum::extract::{FromRequestParts, State};
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;

use super::access::Access;
use super::answer;
use super::app::App;
use super::describe::{JOBS, problems};
use super::error::Problem;
use super::jobs::SubmitRequest;
use super::request::{JobPath, JsonBody, Params, Peer, Wait};
use crate::wire::limits::KEY_MAX;
use crate::wire::{Code, SubmitFrame};

/// With this header a client can repeat a submission without creating a second job
/// (draft-ietf-httpapi-idempotency-key-header).
const IDEMPOTENCY_KEY: &str = "idempotency-key";

problems!(NotSubmitted:
    BadJson, BadRequest, BadKind, BadJobId, TooLarge, UnsupportedMediaType, UnknownKind,
    CallbackNotAllowed, NotSupportedByKind, JobExists, JobRemoved, KeyReused, RateLimited, QueueFull,
    Timeout, Overloaded, Unavailable);

/// Submits a job.
///
/// Repeating the submission with the same `id` or the same key returns the existing job.
#[utoipa::path(
    post, path = "/api/jobs", tag = JOBS,
    params((
        "Idempotency-Key" = inline(Option<String>), Header, nullable = false,
        min_length = 1, max_length = 255, pattern = "^[!-~]([ -~]*[!-~])?$",
        description = "Repeating a submission with the same key returns the same job, \
            for as long as its log is kept.",
    )),
    request_body = ref("#/components/schemas/Submission"),
    responses(
        (status = 202, description = "The new job is queued.", body = ref("#/components/schemas/Accepted")),
        (status = 200, description = "The job existed already.", body = ref("#/components/schemas/Accepted")),
        NotSubmitted,
    ),
)]
pub(super) async fn submit(
    State(app): State<Arc<App>>,
    access: Access,
    Peer(from): Peer,
    IdempotencyKey(key): IdempotencyKey,
    JsonBody(body, reservation): JsonBody,
) -> Result<Response, Problem> {
    let (frame, reserved) = SubmitFrame::from_body(&body, |input| app.reserve_submission(input))?;
    drop((body, reservation));
    let SubmitFrame {
        submission,
        watch_token,
        ..
    } = frame;
    let request = SubmitRequest {
        _reservation: Some(reserved),
        submission,
        key,
        watch_token,
    };
    let accepted = app.submit(&access, from, request).await?;
    let status = status_of(accepted.new);
    let location = [(header::LOCATION, format!("/api/jobs/{}", accepted.id))];
    Ok((status, location, Json(accepted)).into_response())
}

/// The idempotency key of a request, if it has one. A handler that waits for the body or for NATS must
/// not hold all headers, which may be far larger.
#[derive(Debug)]
pub(super) struct IdempotencyKey(pub(super) Option<String>);

impl<S: Send + Sync> FromRequestParts<S> for IdempotencyKey {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let bad_key = |_| {
            Problem::new(
                Code::BadRequest,
                "The idempotency key is not visible ASCII.",
            )
        };
        let key = parts.headers.get(IDEMPOTENCY_KEY);
        let key = key.map(|key| key.to_str().map_err(bad_key)).transpose()?;
        // Longer than the longest, so that a longer one is noticed.
        let cut = |key: &str| key.chars().take(KEY_MAX + 1).collect();
        Ok(Self(key.map(cut)))
    }
}

/// 202 if the request has started something, 200 if that existed.
fn status_of(new: bool) -> StatusCode {
    if new {
        StatusCode::ACCEPTED
    } else {
        StatusCode::OK
    }
}

problems!(NoState: BadJobId, BadRequest, JobNotFound, Overloaded, Unavailable);

/// Returns a job's state.
///
/// With `wait`, responds when the job has ended or the time is over; see `status`.
#[utoipa::path(
    get, path = "/api/jobs/{id}", tag = JOBS, params(JobPath, WaitQuery),
    responses(
        (status = 200, description = "The job's current state.", body = ref("#/components/schemas/JobState")),
        NoState,
    ),
)]
pub(super) async fn job(
    app: State<Arc<App>>,
    access: Access,
    peer: Peer,
    id: JobPath,
    waiting: Params<WaitQuery>,
) -> Result<Response, Problem> {
    state(app, access, peer, id, waiting).await
}

/// Returns a job's state; the same as `/api/jobs/{id}`.
#[utoipa::path(
    get, path = "/api/jobs/{id}/state", tag = JOBS, params(JobPath, WaitQuery),
    responses(
        (status = 200, description = "The job's current state.", body = ref("#/components/schemas/JobState")),
        NoState,
    ),
)]
pub(super) async fn state(
    State(app): State<Arc<App>>,
    access: Access,
    Peer(from): Peer,
    JobPath(id): JobPath,
    Params(WaitQuery { wait }): Params<WaitQuery>,
) -> Result<Response, Problem> {
    let (state, reservation) = app.state_within(&access, from, &id, wait.0).await?;
    Ok(answer::state(state, reservation))
}

/// How long to wait for the job's end.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct WaitQuery {
    /// How long to wait for the job's end: whole seconds, `30` or `30s`.
    #[serde(default)]
    #[param(inline, value_type = Option<String>, nullable = false, pattern = "^([0-9]|[1-5][0-9]|60)s?$")]
    wait: Wait,
}

problems!(NotCancelled: BadJobId, JobNotFound, JobEnded, Overloaded, Unavailable);

/// Cancels a job.
///
/// Cancelling appends an event to the job's log and returns its sequence number as a receipt. Only
/// the job's final event can follow it.
#[utoipa::path(
    post, path = "/api/jobs/{id}/cancel", tag = JOBS, params(JobPath),
    responses(
        (status = 202, description = "The job will be cancelled.", body = ref("#/components/schemas/Receipt")),
        (status = 200, description = "The job was cancelled before.", body = ref("#/components/schemas/Receipt")),
        NotCancelled,
    ),
)]
pub(super) async fn cancel(
    State(app): State<Arc<App>>,
    access: Access,
    Peer(from): Peer,
    JobPath(id): JobPath,
) -> Result<Response, Problem> {
    let receipt = app.cancel(&access, from, id).await?;
    let status = status_of(receipt.new);
    Ok((status, Json(receipt)).into_response())
}

problems!(NotPurged: BadJobId, JobNotFound, JobNotEnded, Overloaded, Unavailable);

/// Removes everything that is stored about an ended job.
///
/// Its log, its segments and what is left of it in the queue are gone afterwards, on every edge. Repeating
/// the request is harmless, and completes one that failed.
#[utoipa::path(
    delete, path = "/api/jobs/{id}", tag = JOBS, params(JobPath),
    responses((status = 204, description = "Nothing is stored any more."), NotPurged),
)]
pub(super) async fn purge(
    State(app): State<Arc<App>>,
    access: Access,
    Peer(from): Peer,
    JobPath(id): JobPath,
) -> Result<StatusCode, Problem> {
    app.purge(&access, from, &id).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::{HeaderValue, Request};
    use futures_util::FutureExt as _;

    /// How many bytes a handler holds of a key.
    fn held_of(key: &str) -> Result<Option<usize>, Code> {
        let key = HeaderValue::from_bytes(key.as_bytes()).unwrap();
        let request = Request::builder().header(IDEMPOTENCY_KEY, key);
        let (mut parts, ()) = request.body(()).unwrap().into_parts();
        let key = IdempotencyKey::from_request_parts(&mut parts, &()).now_or_never();
        let key = key.unwrap().map_err(|problem| problem.code())?;
        Ok(key.0.map(|key| key.len()))
    }

    #[test]
    fn a_handler_holds_little_of_a_key_that_is_too_long() {
        assert_eq!(held_of("k"), Ok(Some(1)));
        assert_eq!(held_of(&"k".repeat(KEY_MAX)), Ok(Some(KEY_MAX)));
        assert_eq!(held_of(&"k".repeat(60_000)), Ok(Some(KEY_MAX + 1)));
        assert_eq!(held_of("é"), Err(Code::BadRequest));
    }
}
