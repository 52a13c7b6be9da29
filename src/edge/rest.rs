//! Jobs over plain HTTP: submit one, ask what it is, cancel it. Events are in `sse` and `page`.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;

use super::answer;
use super::app::App;
use super::describe::{JOBS, problems};
use super::error::Problem;
use super::request::{Job, JsonBody, Params, Peer, Wait};
use crate::wire::{Code, Submission};

/// The header by which a client may submit again without submitting twice (draft-ietf-httpapi-idempotency-key-header).
const IDEMPOTENCY_KEY: &str = "idempotency-key";

problems!(NotSubmitted:
    BadJson, BadRequest, BadKind, BadJobId, TooLarge, UnsupportedMediaType, UnknownKind, CallbackNotAllowed,
    NotSupportedByKind, JobExists, KeyReused, QueueFull, Timeout, Overloaded, Unavailable);

/// Submits a job.
///
/// The same submission again, with the same `id` or the same key, is the same job.
#[utoipa::path(
    post, path = "/api/jobs", tag = JOBS,
    params(("Idempotency-Key" = inline(Option<String>), Header, nullable = false, min_length = 1, max_length = 255,
        pattern = "^[!-~]([ -~]*[!-~])?$", description = "The same key is the same job, for as long as its log is kept.")),
    request_body = ref("#/components/schemas/Submission"),
    responses(
        (status = 202, description = "A new job, which is stored.", body = ref("#/components/schemas/Accepted")),
        (status = 200, description = "The job was there.", body = ref("#/components/schemas/Accepted")),
        NotSubmitted,
    ),
)]
pub(super) async fn submit(
    State(app): State<Arc<App>>,
    Peer(from): Peer,
    headers: HeaderMap,
    JsonBody(body, held): JsonBody,
) -> Result<Response, Problem> {
    let submission = Submission::from_json(&body)?;
    drop((body, held));
    let key = headers.get(IDEMPOTENCY_KEY).map(|key| {
        key.to_str()
            .map_err(|_| Problem::new(Code::BadRequest, "an idempotency key is visible ASCII"))
    });
    let room = app.room_for(&submission)?;
    let accepted = app.submit(from, submission, key.transpose()?, room).await?;
    let status = if accepted.new {
        StatusCode::ACCEPTED
    } else {
        StatusCode::OK
    };
    let location = [(header::LOCATION, format!("/api/jobs/{}", accepted.id))];
    Ok((status, location, Json(accepted)).into_response())
}

problems!(NoState: BadJobId, BadRequest, JobNotFound, Overloaded, Unavailable);

/// What a job is.
///
/// With `wait` it is answered once the job has ended or the time is over; `status` tells which.
#[utoipa::path(
    get, path = "/api/jobs/{id}", tag = JOBS, params(Job, WaitQuery),
    responses(
        (status = 200, description = "What the job is now.", body = ref("#/components/schemas/JobState")),
        NoState,
    ),
)]
pub(super) async fn job(
    app: State<Arc<App>>,
    peer: Peer,
    id: Job,
    waiting: Params<WaitQuery>,
) -> Result<Response, Problem> {
    state(app, peer, id, waiting).await
}

/// What a job is, at another address.
#[utoipa::path(
    get, path = "/api/jobs/{id}/state", tag = JOBS, params(Job, WaitQuery),
    responses(
        (status = 200, description = "What the job is now.", body = ref("#/components/schemas/JobState")),
        NoState,
    ),
)]
pub(super) async fn state(
    State(app): State<Arc<App>>,
    Peer(from): Peer,
    Job(id): Job,
    Params(WaitQuery { wait }): Params<WaitQuery>,
) -> Result<Response, Problem> {
    let (state, room) = app.state_within(from, &id, wait.0).await?;
    Ok(answer::state(state, room))
}

/// How long to wait for the end.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct WaitQuery {
    /// How long to wait for the end: whole seconds, `30` or `30s`.
    #[serde(default)]
    #[param(inline, value_type = Option<String>, nullable = false, pattern = "^([0-9]|[1-5][0-9]|60)s?$")]
    wait: Wait,
}

problems!(NotCancelled: BadJobId, JobNotFound, JobEnded, Overloaded, Unavailable);

/// Asks for a job to be cancelled.
///
/// The request is an event of the job; the answer has its number. Nothing but the job's end follows it.
#[utoipa::path(
    post, path = "/api/jobs/{id}/cancel", tag = JOBS, params(Job),
    responses(
        (status = 202, description = "It was asked for.", body = ref("#/components/schemas/Receipt")),
        (status = 200, description = "Somebody asked before.", body = ref("#/components/schemas/Receipt")),
        NotCancelled,
    ),
)]
pub(super) async fn cancel(
    State(app): State<Arc<App>>,
    Peer(from): Peer,
    Job(id): Job,
) -> Result<Response, Problem> {
    let receipt = app.cancel(from, id, None).await?;
    let status = if receipt.new {
        StatusCode::ACCEPTED
    } else {
        StatusCode::OK
    };
    Ok((status, Json(receipt)).into_response())
}
