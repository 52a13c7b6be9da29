//! Jobs over plain HTTP: submit one, ask what it is, cancel it. Events are in `sse` and `page`.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::Value;

use super::App;
use super::error::Problem;
use super::request::{Job, Params, Wait};
use crate::wire::{Code, JobState, Submission};

/// The header by which a client may submit again without submitting twice (draft-ietf-httpapi-idempotency-key-header).
const IDEMPOTENCY_KEY: &str = "idempotency-key";

/// `POST /api/jobs`: 202 for a new job, 200 for the same one again.
pub(super) async fn submit(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Problem> {
    let submission = Submission::from_value(json(&headers, body)?)?;
    let key = headers.get(IDEMPOTENCY_KEY).map(|key| {
        key.to_str().map_err(|_| Problem::new(Code::BadRequest, "an idempotency key is visible ASCII"))
    });
    let accepted = app.submit(submission, key.transpose()?).await?;
    let status = if accepted.new { StatusCode::ACCEPTED } else { StatusCode::OK };
    Ok((status, Json(accepted)).into_response())
}

fn json(headers: &HeaderMap, body: Result<Bytes, BytesRejection>) -> Result<Value, Problem> {
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
    serde_json::from_slice(&body).map_err(|error| Problem::new(Code::BadJson, error.to_string()))
}

/// `GET /api/jobs/{id}`, also `…/state`: what the job is; with `wait`, as soon as it has ended or so long has passed.
pub(super) async fn state(
    State(app): State<Arc<App>>,
    Job(id): Job,
    Params(Waiting { wait }): Params<Waiting>,
) -> Result<Json<JobState>, Problem> {
    Ok(Json(app.state_within(&id, wait.0).await?))
}

/// How long to wait for the end.
#[derive(Debug, Deserialize)]
pub(super) struct Waiting {
    #[serde(default)]
    wait: Wait,
}

/// `POST /api/jobs/{id}/cancel`: 202 with the number of the event that asks for it; 200 when somebody asked before.
pub(super) async fn cancel(State(app): State<Arc<App>>, Job(id): Job) -> Result<Response, Problem> {
    let receipt = app.cancel(id, None).await?;
    let status = if receipt.new { StatusCode::ACCEPTED } else { StatusCode::OK };
    Ok((status, Json(receipt)).into_response())
}
