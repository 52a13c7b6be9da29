//! `/v1/models`: the kinds as models.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use serde_json::{Value, json};

use super::error::{ModelProblems, OpenAiProblems};
use crate::edge::access::Access;
use crate::edge::app::App;
use crate::edge::describe::OPENAI;
use crate::edge::error::Problem;
use crate::edge::request::Peer;
use crate::wire::{Code, Kind, kind};

/// Lists the kinds that workers have served.
#[utoipa::path(
    get, path = "/v1/models", tag = OPENAI,
    responses(
        (status = 200, description = "A list of models.", body = inline(Object)),
        OpenAiProblems,
    ),
)]
pub(in crate::edge) async fn models(
    State(app): State<Arc<App>>,
    access: Access,
    Peer(from): Peer,
) -> Result<Json<Value>, Problem> {
    let _slot = app.shared.requests().acquire(from)?;
    let kinds = app.kinds(&access).await?;
    let models: Vec<_> = kinds
        .iter()
        .map(|usage| model_object(&usage.kind))
        .collect();
    Ok(Json(json!({"object": "list", "data": models})))
}

/// Describes a kind.
#[utoipa::path(
    get, path = "/v1/models/{id}", tag = OPENAI,
    params(("id" = String, Path, description = "The kind.")),
    responses(
        (status = 200, description = "The model.", body = inline(Object)),
        ModelProblems,
    ),
)]
pub(in crate::edge) async fn model(
    State(app): State<Arc<App>>,
    access: Access,
    Peer(from): Peer,
    Path(name): Path<String>,
) -> Result<Json<Value>, Problem> {
    let kind = kind(&name)?;
    let _slot = app.shared.requests().acquire(from)?;
    let kinds = app.kinds(&access).await?;
    if kinds.iter().any(|usage| usage.kind == kind) {
        Ok(Json(model_object(&kind)))
    } else {
        Err(Code::UnknownKind.into())
    }
}

fn model_object(kind: &Kind) -> Value {
    json!({"id": kind, "object": "model", "created": 0, "owned_by": "tailwater"})
}
