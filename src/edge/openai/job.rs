//! Jobs as the requests of the OpenAI API need them: submit one, wait for it, fold its log.

use std::net::IpAddr;
use std::time::Duration;

use axum::http::HeaderMap;
use tokio::time::timeout;

use super::fold::LogFold;
use super::input::ModelRequest;
use crate::config::OPEN_WAIT;
use crate::edge::access::Access;
use crate::edge::app::App;
use crate::edge::error::Problem;
use crate::edge::jobs::SubmitRequest;
use crate::edge::memory::SplitReservation;
use crate::edge::rest::idempotency_key;
use crate::source::{EventSource as _, LogReading, Replica, Unavailable};
use crate::wire::limits::OUTPUT_MAX;
use crate::wire::{Code, JobId, Seq, Submission, WatchTokenTerms, job_id, kind};

/// The memory for a fold of this size: itself, and its JSON.
///
/// # Errors
/// [`Code::TooLarge`] or [`Code::Overloaded`].
pub(super) fn reserve(reservation: &mut SplitReservation, size: usize) -> Result<(), Code> {
    if size > OUTPUT_MAX {
        return Err(Code::TooLarge);
    }
    reservation.resize(2 * size).map_err(|_| Code::Overloaded)
}

/// Submits a job, whose id begins with `prefix`, or depends on the request's idempotency key.
pub(super) async fn submit(
    app: &App,
    access: &Access,
    from: IpAddr,
    headers: &HeaderMap,
    prefix: &str,
    request: ModelRequest,
) -> Result<JobId, Problem> {
    let key = idempotency_key(headers)?;
    let id = match key {
        None => Some(job_id(&format!("{prefix}{}", nuid::next()))?),
        Some(_) => None,
    };
    let submission = Submission {
        id,
        ..Submission::new(kind(&request.model)?, request.input)
    };
    submission.check()?;
    let request = SubmitRequest {
        _reservation: app.reservation_for(&submission)?,
        submission,
        key,
        watch_token: WatchTokenTerms::default(),
    };
    Ok(app.submit(access, from, request).await?.id)
}

/// Waits until a job has ended, and folds its log.
pub(super) async fn wait_and_fold(
    app: &App,
    from: IpAddr,
    job: &JobId,
    wait: Duration,
    fold: &mut impl LogFold,
) -> Result<SplitReservation, Problem> {
    if !wait.is_zero() {
        app.until_ended(from, job, wait).await?;
    }
    let _slot = app.shared.requests().acquire(from)?;
    let late = |_| Unavailable("the log was not read in time".into());
    timeout(OPEN_WAIT, fold_log(app, job, fold))
        .await
        .map_err(late)?
}

async fn fold_log(
    app: &App,
    job: &JobId,
    fold: &mut impl LogFold,
) -> Result<SplitReservation, Problem> {
    let _permit = app.folds.acquire().await;
    let source = app.hub.source();
    let mut reservation = app.shared.memory().answers.empty(2 * OUTPUT_MAX);
    let Some(last) = source.last(job, Replica::Leader).await? else {
        return match app.queue.queued_kind(job).await? {
            Some(_) => Ok(reservation),
            None => Err(Code::JobNotFound.into()),
        };
    };
    let mut reading = LogReading::new(Seq::FIRST, None, last.seq);
    while let Some(events) = reading.next(source, job).await {
        for event in events {
            fold.apply(&event);
            reserve(&mut reservation, fold.size())?;
        }
    }
    Ok(reservation)
}
