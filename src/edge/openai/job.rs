//! Jobs as the requests of the OpenAI API need them: submit one, wait for it, fold its log.

use std::net::IpAddr;
use std::time::Duration;

use axum::response::Response;
use serde_json::Value;

use super::input::ModelRequest;
use crate::edge::access::Access;
use crate::edge::answer;
use crate::edge::app::App;
use crate::edge::error::Problem;
use crate::edge::jobs::{SubmitRequest, new_id, submission_memory};
use crate::edge::json_pieces::JsonPieces;
use crate::edge::memory::{SplitReservation, weight};
use crate::source::LogFold;
use crate::wire::limits::OUTPUT_MAX;
use crate::wire::{Code, JobId, Submission, WatchTokenTerms, kind};

/// Reserves the memory of a fold of this size, whose texts have up to twice as much room while they
/// grow.
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
    key: Option<String>,
    prefix: &str,
    request: ModelRequest,
    mut reservation: SplitReservation,
) -> Result<SubmittedJob, Problem> {
    if app.clients.are_leaving() {
        // After the submission it would be too late: the request must not be sent again then.
        return Err(Code::Restarting.into());
    }
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
    reservation.settle(2 * fold.size());
    Ok(reservation)
}

/// A response with this JSON of a fold, which takes the fold's reservation.
pub(super) fn respond(
    json: JsonPieces,
    mut reservation: SplitReservation,
) -> Result<Response, Problem> {
    // Many short texts take more than the fold did.
    reservation.at_least(json.size())?;
    Ok(answer::json(json, reservation))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::budget::Budget;
    use crate::edge::memory::Memory;
    use axum::body::to_bytes;
    use futures_util::StreamExt as _;
    use serde_json::json;

    #[tokio::test]
    async fn an_answer_is_written_in_pieces_and_holds_its_room_until_the_last_one() {
        let memory = Memory::new(Budget::unlimited());
        let values = [
            json!({"content": "\u{1}".repeat(OUTPUT_MAX)}),
            json!(vec!["short enough to be copied"; 100_000]),
            json!({"status": "completed"}),
        ];
        for value in values {
            let reservation = memory.answers.reserve(2 * held(&value)).unwrap();
            let pieces = JsonPieces::of(value.clone());
            let body = respond(pieces, reservation).unwrap().into_body();
            assert!(memory.whole.used() > 0);
            let pieces: Vec<_> = body.into_data_stream().collect().await;
            let pieces = pieces.into_iter().map(Result::unwrap);
            let all: Vec<u8> = pieces
                .inspect(|piece| assert!(piece.len() < 64 * 1024))
                .flatten()
                .collect();
            assert_eq!(serde_json::from_slice::<Value>(&all).unwrap(), value);
            assert_eq!(memory.whole.used(), 0);
        }
    }

    #[tokio::test]
    async fn an_answer_without_room_is_refused() {
        let memory = Memory::new(Budget::new(crate::config::MEMORY_MIN));
        let held = memory.answers.reserve(2 * OUTPUT_MAX).unwrap();
        let text = json!("x".repeat(OUTPUT_MAX));
        let refused = respond(JsonPieces::of(text), memory.answers.empty(0));
        assert_eq!(refused.unwrap_err().code(), Code::Overloaded);
        drop(held);
        let small = respond(JsonPieces::of(json!("x")), memory.answers.empty(0)).unwrap();
        let body = to_bytes(small.into_body(), 100).await.unwrap();
        assert_eq!(&body[..], b"\"x\"");
    }

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
