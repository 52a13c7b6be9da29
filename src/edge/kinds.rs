//! `GET /api/kinds`: the kinds of jobs, and how many wait.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use schemars::JsonSchema;
use serde::Serialize;

use super::access::Access;
use super::app::App;
use super::describe::{OPERATION, problems};
use super::error::Problem;
use super::request::Peer;
use crate::auth::Operation;
use crate::config::USAGE_AGE;
use crate::nats::KindUsage;
use crate::wire::RESERVED_KIND;

/// The kinds that workers have served.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Kinds {
    kinds: Vec<KindUsage>,
}

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
    access: Access,
    Peer(from): Peer,
) -> Result<Json<Kinds>, Problem> {
    let _slot = app.shared.requests().acquire(from)?;
    let kinds = app.kinds(&access).await?;
    Ok(Json(Kinds { kinds }))
}

impl App {
    /// The kinds that workers have served and the client may submit.
    pub(super) async fn kinds(&self, access: &Access) -> Result<Vec<KindUsage>, Problem> {
        let report = self.report_cache.of(&self.queue, USAGE_AGE).await?;
        let usages = report.kinds.iter().map(|kind| &kind.usage);
        // The kind of callbacks is internal.
        let usages = usages.filter(|usage| usage.kind.as_str() != RESERVED_KIND);
        let may_submit =
            |usage: &&KindUsage| access.require(Operation::Submit(&usage.kind)).is_ok();
        Ok(usages.filter(may_submit).cloned().collect())
    }
}
