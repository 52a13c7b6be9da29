//! Jobs as the requests of the OpenAI API need them: submit one, wait for it, fold its log.

use std::net::IpAddr;
use std::time::Duration;

use axum::http::HeaderMap;
use serde_json::Value;

use super::input::ModelRequest;
use crate::edge::access::Access;
use crate::edge::app::App;
use crate::edge::error::Problem;
use crate::edge::jobs::{SubmitRequest, new_id, submission_memory};
use crate::edge::memory::{SplitReservation, weight};
use crate::edge::rest::idempotency_key;
use crate::source::LogFold;
use crate::wire::limits::OUTPUT_MAX;
use crate::wire::{Code, JobId, Submission, WatchTokenTerms, kind};

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

/// About how many bytes a fold holds for a JSON value.
pub(super) fn held(value: &Value) -> usize {
    size_of::<Value>() + weight(value)
}

/// What is known about a job after its submission.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum SubmittedJob {
    /// It is submitted.
    Queued(JobId),
    /// It may have been submitted, and the same request again would start another job.
    Uncertain(JobId),
}

/// Submits a job, whose id begins with `prefix` after the kind, or depends on the request's
/// idempotency key.
pub(super) async fn submit(
    app: &App,
    access: &Access,
    from: IpAddr,
    headers: &HeaderMap,
    prefix: &str,
    request: ModelRequest,
    mut reservation: SplitReservation,
) -> Result<SubmittedJob, Problem> {
    if app.clients.are_leaving() {
        // After the submission it would be too late: the request must not be sent again then.
        return Err(Code::Restarting.into());
    }
    let key = idempotency_key(headers)?;
    let kind = kind(&request.model)?;
    let new_id = match key {
        None => Some(new_id(&kind, prefix)?),
        Some(_) => None,
    };
    let submission = Submission {
        id: new_id.clone(),
        ..Submission::new(kind, request.input)
    };
    // A response's items are smaller or larger than the messages that they become.
    reservation.resize(submission_memory(weight(&submission.input)))?;
    submission.check()?;
    let request = SubmitRequest {
        submission,
        key,
        watch_token: WatchTokenTerms::default(),
        _reservation: Some(reservation),
    };
    let accepted = app.submit(access, from, request).await;
    outcome(new_id, accepted.map(|accepted| accepted.id))
}

/// What the result of a submission says about its job. A job with a new id cannot be found by sending
/// the request again, which would get another id.
fn outcome(
    new_id: Option<JobId>,
    submitted: Result<JobId, Problem>,
) -> Result<SubmittedJob, Problem> {
    match (submitted, new_id) {
        (Err(problem), Some(id)) if problem.code() == Code::Unavailable => {
            Ok(SubmittedJob::Uncertain(id))
        }
        (submitted, _) => submitted.map(SubmittedJob::Queued),
    }
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
    let mut reservation = app.shared.memory().answers.empty(2 * OUTPUT_MAX);
    let resize = |size| reserve(&mut reservation, size).map_err(Problem::from);
    app.fold(job, fold, resize).await?;
    Ok(reservation)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_submission_that_may_have_succeeded_can_be_repeated_only_with_a_key() {
        let job: JobId = "resp_1".parse().unwrap();
        let outcome_of = |new_id: Option<&JobId>, submitted: Result<&JobId, Code>| {
            let submitted = submitted.cloned().map_err(Problem::from);
            outcome(new_id.cloned(), submitted).map_err(|problem| problem.code())
        };
        let uncertain = SubmittedJob::Uncertain(job.clone());
        assert_eq!(
            outcome_of(Some(&job), Err(Code::Unavailable)),
            Ok(uncertain)
        );
        assert_eq!(
            outcome_of(None, Err(Code::Unavailable)),
            Err(Code::Unavailable)
        );
        for new_id in [None, Some(&job)] {
            let queued = SubmittedJob::Queued(job.clone());
            assert_eq!(outcome_of(new_id, Ok(&job)), Ok(queued));
            // Nothing was submitted.
            for code in [Code::Overloaded, Code::RateLimited, Code::QueueFull] {
                assert_eq!(outcome_of(new_id, Err(code)), Err(code));
            }
        }
    }
}
