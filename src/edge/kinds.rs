//! `GET /api/kinds`: the kinds of jobs, and how many wait.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use schemars::JsonSchema;
use serde::Serialize;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::app::App;
use super::describe::{OPERATION, problems};
use super::error::Problem;
use super::request::Peer;
use crate::config::USAGE_AGE;
use crate::nats::KindUsage;

/// The kinds that workers have served.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub(super) struct Kinds {
    kinds: Vec<KindUsage>,
}

/// The last list, and when it was read. All clients share it, so any number of them costs the
/// broker one request in [`USAGE_AGE`].
#[derive(Debug, Default)]
pub(super) struct KindsCache(Mutex<Option<(Instant, Kinds)>>);

problems!(NoKinds: Overloaded, Unavailable);

/// Lists the kinds that workers have served, with the depth of their queues.
#[utoipa::path(
    get, path = "/api/kinds", tag = OPERATION,
    responses(
        (status = 200, description = "At most 1000 kinds, in the order of their names.", body = ref("#/components/schemas/Kinds")),
        NoKinds,
    ),
)]
pub(super) async fn kinds(
    State(app): State<Arc<App>>,
    Peer(from): Peer,
) -> Result<Json<Kinds>, Problem> {
    let _slot = app.shared.requests().acquire(from)?;
    let mut cached = app.kinds_cache.0.lock().await;
    if let Some((read_at, kinds)) = &*cached
        && read_at.elapsed() < USAGE_AGE
    {
        return Ok(Json(kinds.clone()));
    }
    let kinds = Kinds {
        kinds: app.queue.kinds().await?,
    };
    *cached = Some((Instant::now(), kinds.clone()));
    Ok(Json(kinds))
}
