//! `GET /api/jobs`: lists the jobs in the log in pages, which the log reads and merges.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use serde::Deserialize;
use tokio::time::timeout;
use utoipa::openapi::Ref;

use super::access::Access;
use super::app::App;
use super::describe::{JOBS, problems};
use super::error::Problem;
use super::request::{self, Params};
use crate::auth::Operation;
use crate::config::{LIST_ROWS, LIST_ROWS_MAX, OPEN_WAIT};
use crate::nats::{JobQuery, ListError};
use crate::source::Unavailable;
use crate::wire::{self, Code, Status};

/// Which jobs, and how many. Unknown parameters are refused: a mistyped filter would list all jobs.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct ListQuery {
    /// Only jobs with this status.
    #[param(value_type = Option<String>, nullable = false, schema_with = status)]
    status: Option<Status>,
    /// Only jobs of this kind.
    #[param(nullable = false, pattern = "^[A-Za-z0-9_-]{1,64}$")]
    kind: Option<String>,
    /// The maximum number of jobs.
    #[param(nullable = false, minimum = 1, maximum = 100, default = 20)]
    limit: Option<usize>,
    /// The `next` of the previous page.
    #[param(nullable = false, format = "page")]
    page: Option<String>,
}

fn status() -> Ref {
    Ref::from_schema_name("Status")
}

problems!(NoList: BadRequest, BadKind, BadPage, Overloaded, Unavailable);

/// Lists the jobs in the log, newest first.
///
/// A page may be short and still have a `next`.
#[utoipa::path(
    get, path = "/api/jobs", tag = JOBS, params(ListQuery),
    responses(
        (status = 200, description = "Jobs, each as of its last event.", body = ref("#/components/schemas/JobPage")),
        NoList,
    ),
)]
pub(super) async fn jobs(
    State(app): State<Arc<App>>,
    access: Access,
    Params(query): Params<ListQuery>,
) -> Result<Response, Problem> {
    access.require(Operation::List)?;
    let query = JobQuery {
        visible: access.watchable(),
        ..job_query(query)?
    };
    let late = |_| Unavailable("the log was not read in time".into());
    // Boxed, since it is far larger than the futures of other requests.
    let list = Box::pin(app.hub.source().list(&query));
    match timeout(OPEN_WAIT, list).await.map_err(late)? {
        Ok(page) => {
            let json = serde_json::to_vec(&page)
                .unwrap_or_else(|_| unreachable!("text and numbers are always JSON"));
            Ok(app
                .shared
                .memory()
                .answers
                .reserve(json.len())?
                .respond(json))
        }
        Err(ListError::BadPage(_)) => Err(Code::BadPage.into()),
        Err(ListError::Unavailable(error)) => Err(error.into()),
        Err(ListError::Busy(busy)) => Err(Problem::new(Code::Overloaded, busy.to_string())),
    }
}

fn job_query(
    ListQuery {
        status,
        kind,
        limit,
        page,
    }: ListQuery,
) -> Result<JobQuery, Problem> {
    let page = page
        .map(|page| page.parse())
        .transpose()
        .map_err(|_| Problem::from(Code::BadPage))?;
    Ok(JobQuery {
        status,
        kind: kind.as_deref().map(wire::kind).transpose()?,
        limit: request::limit(limit, LIST_ROWS, LIST_ROWS_MAX)?,
        page,
        visible: None,
    })
}
