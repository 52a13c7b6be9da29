//! Jobs over plain HTTP: submit one, ask what it is. It streams nothing.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::Value;

use super::App;
use super::error::Problem;
use super::jobs::job_id;
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

/// `GET /api/jobs/{id}/state`.
pub(super) async fn state(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
) -> Result<Json<JobState>, Problem> {
    Ok(Json(app.state(&job_id(&id)?).await?))
}

/// `POST /api/jobs/{id}/cancel`: 202 with the number of the event that asks for it; 200 when somebody asked before.
pub(super) async fn cancel(State(app): State<Arc<App>>, Path(id): Path<String>) -> Result<Response, Problem> {
    let receipt = app.cancel(job_id(&id)?, None).await?;
    let status = if receipt.new { StatusCode::ACCEPTED } else { StatusCode::OK };
    Ok((status, Json(receipt)).into_response())
}
