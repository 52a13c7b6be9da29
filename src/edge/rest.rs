//! Jobs over plain HTTP: submit one, ask what it is. It streams nothing.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::time::timeout;

use super::App;
use super::error::Problem;
use crate::config::{INPUT_MAX, OPEN_WAIT};
use crate::nats::{Cancelled, Submitted};
use crate::session::fold;
use crate::source::Unavailable;
use crate::wire::{Code, JobId, JobState, Kind, Seq, Status};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Submission {
    kind: String,
    #[serde(default)]
    input: Value,
    id: Option<String>,
}

#[derive(Serialize)]
struct Accepted {
    id: JobId,
    kind: Kind,
    status: Status,
}

/// `POST /api/jobs`: 202 for a new job, 200 for the same one again.
pub(super) async fn submit(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Problem> {
    let Submission { kind, input, id } = parse(&headers, body)?;
    let kind: Kind = kind.parse().map_err(|error| Problem::new(Code::BadKind, format!("a kind {error}")))?;
    let id = match id {
        Some(id) => job_id(&id)?,
        None => job_id(nuid::next().as_str())?,
    };
    let size = input.to_string().len();
    if size > INPUT_MAX {
        return Err(Problem::new(
            Code::TooLarge,
            format!("the input has {size} bytes, the limit is {INPUT_MAX}"),
        ));
    }
    if !app.knows(&kind).await? {
        return Err(Problem::new(Code::UnknownKind, format!("no worker has ever served the kind {kind}")));
    }
    let status = match app.log.submit(&id, &kind, &input).await? {
        Submitted::New => StatusCode::ACCEPTED,
        Submitted::Same => StatusCode::OK,
        Submitted::Other => return Err(Code::JobExists.into()),
        Submitted::Full => return Err(Code::QueueFull.into()),
    };
    Ok((status, Json(Accepted { id, kind, status: Status::Queued })).into_response())
}

fn parse(headers: &HeaderMap, body: Result<Bytes, BytesRejection>) -> Result<Submission, Problem> {
    let content = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("");
    let content = content.split(';').next().unwrap_or("").trim();
    if !content.eq_ignore_ascii_case("application/json") {
        return Err(Problem::new(Code::UnsupportedMediaType, "send the job as application/json"));
    }
    let body = body.map_err(|error| {
        let code =
            if error.status() == StatusCode::PAYLOAD_TOO_LARGE { Code::TooLarge } else { Code::BadRequest };
        Problem::new(code, error.body_text())
    })?;
    let value: Value =
        serde_json::from_slice(&body).map_err(|error| Problem::new(Code::BadJson, error.to_string()))?;
    serde_json::from_value(value).map_err(|error| Problem::new(Code::BadRequest, error.to_string()))
}

/// `GET /api/jobs/{id}/state`.
pub(super) async fn state(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
) -> Result<Json<JobState>, Problem> {
    let job = job_id(&id)?;
    let late = |_| Unavailable("the log was not read in time".into());
    if let Some(state) = timeout(OPEN_WAIT, fold(app.hub.source(), &job)).await.map_err(late)?? {
        return Ok(Json(state));
    }
    match app.log.queued_kind(&job).await? {
        Some(kind) => Ok(Json(JobState { kind: Some(kind), ..JobState::new(job) })),
        None => Err(Code::JobNotFound.into()),
    }
}

#[derive(Serialize)]
struct CancelReceipt {
    id: JobId,
    seq: Seq,
}

/// `POST /api/jobs/{id}/cancel`: 202 with the number of the event that asks for it; 200 when somebody asked before.
pub(super) async fn cancel(State(app): State<Arc<App>>, Path(id): Path<String>) -> Result<Response, Problem> {
    let id = job_id(&id)?;
    let (status, seq) = match app.log.cancel(&id, None).await? {
        Cancelled::Requested(seq) => (StatusCode::ACCEPTED, seq),
        Cancelled::Already(seq) => (StatusCode::OK, seq),
        Cancelled::Ended => return Err(Code::JobEnded.into()),
        Cancelled::Unknown => return Err(Code::JobNotFound.into()),
    };
    Ok((status, Json(CancelReceipt { id, seq })).into_response())
}

fn job_id(text: &str) -> Result<JobId, Problem> {
    text.parse().map_err(|error| Problem::new(Code::BadJobId, format!("a job id {error}")))
}
