//! How an attempt ended: one line in the log that says why, and the numbers for metrics. It never
//! contains a job's input or output. A program's stderr, and what a backend writes into the message of
//! its failure, are neither.

use std::sync::Arc;

use tokio::time::Instant;
use tracing::{info, warn};

use super::metrics::WorkerCounts;
use crate::wire::{Body, FailureCode, JobId, Kind};

/// The attempt that reports are about, and where they are counted.
#[derive(Clone, Debug)]
pub(super) struct AttemptRecord {
    pub(super) job: JobId,
    pub(super) kind: Kind,
    pub(super) attempt: u32,
    /// When it started, or when the job was claimed.
    pub(super) since: Instant,
    pub(super) counts: Arc<WorkerCounts>,
}

/// How an attempt ended, copied from its event before that is appended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum AttemptReport {
    Done,
    Cancelled,
    Failed {
        code: String,
        message: String,
    },
    Retried {
        code: String,
        message: String,
        delay_ms: u64,
    },
    HandedBack,
    /// Another worker has the job.
    Superseded,
    /// Its end could not be stored: the log could not be reached, or not in time.
    Abandoned(String),
    /// The log can store neither the job nor its final event.
    Removed(String),
}

impl AttemptReport {
    /// The report of an attempt's last event.
    pub(super) fn of(last: &Body) -> Self {
        match last {
            Body::Failed(failure) => Self::Failed {
                code: failure.code.clone(),
                message: without_output(&failure.code, &failure.message).to_owned(),
            },
            Body::Retrying { code, .. } if *code == FailureCode::HandedBack => Self::HandedBack,
            Body::Retrying {
                code,
                message,
                delay_ms,
            } => Self::Retried {
                code: code.clone(),
                message: without_output(code, message).to_owned(),
                delay_ms: *delay_ms,
            },
            Body::Cancelled {} => Self::Cancelled,
            Body::Done { .. }
            | Body::Queued { .. }
            | Body::Started { .. }
            | Body::Chunk { .. }
            | Body::Data { .. }
            | Body::CancelRequested { .. }
            | Body::Unknown => Self::Done,
        }
    }

    /// The name of the outcome in metrics, and its failure code.
    fn outcome(&self) -> (&'static str, Option<&str>) {
        match self {
            Self::Done => ("done", None),
            Self::Cancelled => ("cancelled", None),
            Self::Failed { code, .. } => ("failed", Some(code)),
            Self::Retried { code, .. } => ("retried", Some(code)),
            Self::HandedBack => ("handed_back", None),
            Self::Superseded => ("superseded", None),
            Self::Abandoned(_) | Self::Removed(_) => ("abandoned", None),
        }
    }
}

/// The part of a failure's message that may be logged: after its first line, that of bad output quotes
/// the output.
fn without_output<'a>(code: &str, message: &'a str) -> &'a str {
    if code == FailureCode::BadOutput.as_str() {
        message.lines().next().unwrap_or_default()
    } else {
        message
    }
}

impl AttemptRecord {
    /// Logs and counts how the attempt ended, once its last event is stored or abandoned.
    pub(super) fn record(&self, report: &AttemptReport) {
        let Self {
            job,
            kind,
            attempt,
            since,
            counts,
        } = self;
        let took = since.elapsed();
        let (outcome, failure_code) = report.outcome();
        // The reason is a field, which is quoted: a message may have several lines. Where there is
        // no failure code, the code is the name of the outcome.
        match report {
            AttemptReport::Done => info!(%job, %kind, attempt, duration = ?took, "done"),
            AttemptReport::Cancelled => {
                let reason = "the job was cancelled";
                info!(%job, %kind, attempt, code = outcome, reason, duration = ?took, "cancelled");
            }
            AttemptReport::HandedBack => {
                let reason = "the worker was stopped";
                info!(%job, %kind, attempt, code = outcome, reason, duration = ?took, "handed back");
            }
            AttemptReport::Failed { code, message } => {
                warn!(%job, %kind, attempt, code, reason = message, duration = ?took, "failed");
            }
            AttemptReport::Retried {
                code,
                message,
                delay_ms,
            } => {
                warn!(%job, %kind, attempt, code, reason = message, delay_ms, duration = ?took, "to be retried");
            }
            AttemptReport::Superseded => {
                let reason = "another worker has the job, or it was purged";
                warn!(%job, %kind, attempt, code = outcome, reason, duration = ?took, "superseded");
            }
            AttemptReport::Abandoned(error) => {
                warn!(%job, %kind, attempt, error, duration = ?took, "abandoned: the queue delivers the job again");
            }
            AttemptReport::Removed(error) => {
                warn!(%job, %kind, attempt, error, duration = ?took, "abandoned: the job is removed from the queue without a final event");
            }
        }
        counts.count_end(outcome, failure_code, took);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::JobFailure;

    #[test]
    fn the_report_of_an_attempt_follows_from_its_last_event() {
        let retrying = |code: &str| Body::Retrying {
            code: code.into(),
            message: "m".into(),
            delay_ms: 5,
        };
        let failure = JobFailure {
            code: "c".into(),
            message: "m".into(),
            retryable: false,
        };
        let failed = AttemptReport::of(&Body::Failed(failure));
        assert_eq!(failed.outcome(), ("failed", Some("c")));
        let retried = AttemptReport::of(&retrying("c"));
        assert_eq!(retried.outcome(), ("retried", Some("c")));
        let back = AttemptReport::of(&retrying(FailureCode::HandedBack.as_str()));
        assert_eq!(back, AttemptReport::HandedBack);
        assert_eq!(
            AttemptReport::of(&Body::Cancelled {}),
            AttemptReport::Cancelled
        );
        let done = Body::Done {
            usage: None,
            finish_reason: None,
        };
        assert_eq!(AttemptReport::of(&done), AttemptReport::Done);
    }

    #[test]
    fn only_the_first_line_about_bad_output_is_reported() {
        let message = |code: FailureCode| {
            let failure = JobFailure {
                code: code.into(),
                message: "why\nmore".into(),
                retryable: false,
            };
            match AttemptReport::of(&Body::Failed(failure)) {
                AttemptReport::Failed { message, .. } => message,
                other @ (AttemptReport::Done
                | AttemptReport::Cancelled
                | AttemptReport::Retried { .. }
                | AttemptReport::HandedBack
                | AttemptReport::Superseded
                | AttemptReport::Abandoned(_)
                | AttemptReport::Removed(_)) => panic!("{other:?}"),
            }
        };
        assert_eq!(message(FailureCode::BadOutput), "why");
        assert_eq!(message(FailureCode::ExitStatus), "why\nmore");
    }
}
