//! How an attempt ended, the failures that the worker itself reports, and how long a job waits for
//! its next attempt. It does no I/O.

use std::any::Any;
use std::time::Duration;

use crate::backend::{self, Retry};
use crate::backoff::Backoff;
use crate::config::{ATTEMPT_PAUSE_MAX, CLAIM_PAUSE_FACTOR, RETRY_AFTER_MAX};
use crate::runtime::report_panic;
use crate::wire::{Body, FailureCode, JobFailure, JobId};

/// How a worker's attempt ended, which decides the reply to the queue.
#[derive(Debug)]
pub(super) enum AttemptOutcome {
    /// The job's final event is stored, or the job was purged: remove the job from the queue.
    Ended,
    /// Another worker has the job, or the job has ended or was purged: do not reply to the queue,
    /// which would apply the reply to that worker's delivery.
    Lost,
    /// The log can store neither the job nor its final event: remove the job from the queue.
    Abandoned,
    /// The job was not finished: hand it back for another attempt after this pause.
    Unfinished(Duration),
}

impl AttemptOutcome {
    /// The outcome of an attempt whose last event this is.
    pub(super) fn after(last: &Body) -> Self {
        if let Body::Retrying { delay_ms, .. } = last {
            Self::Unfinished(Duration::from_millis(*delay_ms))
        } else {
            Self::Ended
        }
    }
}

/// The event of an attempt that its worker hands back when it stops.
pub(super) fn handed_back() -> Body {
    Body::Retrying {
        code: FailureCode::HandedBack.into(),
        message: "the worker was stopped".into(),
        delay_ms: 0,
    }
}

/// The job exceeded a time limit.
pub(super) fn timed_out(message: &str) -> JobFailure {
    JobFailure {
        code: FailureCode::TimedOut.into(),
        message: message.into(),
        retryable: false,
    }
}

/// The job has used all of its attempts.
pub(super) fn attempts_exhausted(message: String) -> JobFailure {
    JobFailure {
        code: FailureCode::AttemptsExhausted.into(),
        message,
        retryable: false,
    }
}

/// Logs and counts a panic of the backend. Another attempt may succeed.
pub(super) fn panicked(job: &JobId, payload: &(dyn Any + Send)) -> backend::Failure {
    let text = report_panic(format_args!("the backend, in job {job}"), payload);
    backend::Failure::retryable(
        FailureCode::BackendPanicked,
        format!("the backend panicked: {text}"),
    )
}

/// How long the next attempt waits: longer after each attempt, and different for jobs that failed
/// together.
pub(super) fn retry_pause(job: &JobId, attempt: u32, first: Duration, retry: Retry) -> Duration {
    if let Retry::After(pause) = retry {
        return pause.min(RETRY_AFTER_MAX);
    }
    let backoff = Backoff::new(first, ATTEMPT_PAUSE_MAX);
    backoff.pause_after(attempt.saturating_sub(1)) * (192 + job.tag().rotate_left(attempt) % 128)
        / 256
}

/// How long a job whose log cannot be reached waits for its next claim. The pause grows with each
/// delivery, so that other jobs can run, up to a limit, so that jobs continue soon after an outage.
pub(super) fn claim_pause(progress_interval: Duration, deliveries: u32) -> Duration {
    let backoff = Backoff::new(progress_interval, progress_interval * CLAIM_PAUSE_FACTOR);
    backoff.pause_after(deliveries.saturating_sub(1))
}
