//! `GET /api/jobs`: the jobs that the log holds, page by page. What a page costs and how pages join is the log's.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use serde::Deserialize;
use tokio::time::timeout;

use super::App;
use super::error::Problem;
use crate::config::{LIST_ROWS, LIST_ROWS_MAX, OPEN_WAIT};
use crate::nats::{JobQuery, ListError};
use crate::source::Unavailable;
use crate::wire::{Code, JobPage, Status};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Params {
    status: Option<Status>,
    kind: Option<String>,
    limit: Option<usize>,
    page: Option<String>,
}

/// `GET /api/jobs?status=&kind=&limit=&page=`: newest first.
pub(super) async fn jobs(
    State(app): State<Arc<App>>,
    params: Result<Query<Params>, QueryRejection>,
) -> Result<Json<JobPage>, Problem> {
    let Query(params) = params.map_err(|error| Problem::new(Code::BadRequest, error.body_text()))?;
    let query = query(params)?;
    let late = |_| Unavailable("the log was not read in time".into());
    // On the heap: it is far larger than what the other requests keep.
    let list = Box::pin(app.hub.source().list(&query));
    match timeout(OPEN_WAIT, list).await.map_err(late)? {
        Ok(page) => Ok(Json(page)),
        Err(ListError::BadPage(_)) => Err(Code::BadPage.into()),
        Err(ListError::Unavailable(error)) => Err(error.into()),
    }
}

fn query(Params { status, kind, limit, page }: Params) -> Result<JobQuery, Problem> {
    let kind = kind.map(|kind| kind.parse()).transpose();
    let kind = kind.map_err(|error| Problem::new(Code::BadKind, format!("a kind {error}")))?;
    let limit = limit.unwrap_or(LIST_ROWS);
    if !(1..=LIST_ROWS_MAX).contains(&limit) {
        return Err(Problem::new(Code::BadRequest, format!("limit: from 1 to {LIST_ROWS_MAX}")));
    }
    let page = page.map(|page| page.parse()).transpose().map_err(|_| Problem::from(Code::BadPage))?;
    Ok(JobQuery { status, kind, limit, page })
}
