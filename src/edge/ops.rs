//! Routes for operators: whether the process is alive, and whether it can take traffic.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use futures_util::future::join_all;
use serde_json::{Value, json};

use super::app::App;
use super::describe::{OPERATION, problems};
use super::error::Problem;
use crate::wire::Code;

/// Whether the process is alive.
#[utoipa::path(
    get, path = "/healthz", tag = OPERATION,
    responses((status = 200, description = "The process is alive.", body = inline(Object))),
)]
pub(super) async fn health() -> Json<Value> {
    Json(json!({"status": "ok"}))
}

problems!(NotReady: Restarting, Unavailable);

/// Whether the edge can take traffic.
#[utoipa::path(
    get, path = "/readyz", tag = OPERATION,
    responses((status = 200, description = "The edge can take traffic.", body = inline(Object)), NotReady),
)]
pub(super) async fn ready(State(app): State<Arc<App>>) -> Response {
    if app.clients.are_leaving() {
        Problem::from(Code::Restarting).into_response()
    } else if every_connection_answers(&app).await {
        Json(json!({"status": "ready"})).into_response()
    } else {
        Problem::new(
            Code::Unavailable,
            "A NATS connection is down or does not answer.",
        )
        .into_response()
    }
}

/// Whether NATS answers all threads of the edge: a probe reaches only one of them.
async fn every_connection_answers(app: &App) -> bool {
    let threads = app.shared.threads();
    join_all(threads.iter().map(|thread| thread.nats.is_answering()))
        .await
        .into_iter()
        .all(|answers| answers)
}
