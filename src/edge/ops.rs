//! What operators ask: is the process alive, may it get traffic.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::App;
use super::error::Problem;
use crate::wire::Code;

/// `GET /healthz`: the process is alive.
pub(super) async fn health() -> Json<Value> {
    Json(json!({"status": "ok"}))
}

/// `GET /readyz`: the edge may get traffic.
pub(super) async fn ready(State(app): State<Arc<App>>) -> Response {
    if app.clients.are_leaving() {
        Problem::from(Code::Restarting).into_response()
    } else if app.nats.is_connected() {
        Json(json!({"status": "ready"})).into_response()
    } else {
        Problem::new(Code::Unavailable, "a NATS connection is down").into_response()
    }
}
