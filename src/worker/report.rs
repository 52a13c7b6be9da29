//! Log lines about failed attempts.

use tracing::warn;

use crate::wire::{Body, FailureCode, JobId};

/// Why an attempt failed, copied from its event before that is appended.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Report {
    event: &'static str,
    code: String,
    message: String,
}

impl Report {
    /// The report of an event; `None` when nothing failed. A job that was handed back did not fail.
    pub(super) fn of(event: &Body) -> Option<Self> {
        let (event, code, message) = if let Body::Failed(failure) = event {
            ("failed", &failure.code, &failure.message)
        } else if let Body::Retrying { code, message, .. } = event
            && *code != FailureCode::HandedBack
        {
            ("to be retried", code, message)
        } else {
            return None;
        };
        Some(Self {
            event,
            code: code.clone(),
            message: message.clone(),
        })
    }

    /// Logs it once the event is stored.
    pub(super) fn log(self, job: &JobId) {
        let Self {
            event,
            code,
            message,
        } = self;
        // As a field, which is quoted: the message may have several lines.
        warn!(%job, code, reason = message, "{event}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::JobFailure;

    #[test]
    fn only_failures_are_reported() {
        let retrying = |code: &str| Body::Retrying {
            code: code.into(),
            message: "m".into(),
            delay_ms: 5,
        };
        let report = |event| {
            Some(Report {
                event,
                code: "c".into(),
                message: "m".into(),
            })
        };
        let failure = JobFailure {
            code: "c".into(),
            message: "m".into(),
            retryable: false,
        };
        assert_eq!(Report::of(&Body::Failed(failure)), report("failed"));
        assert_eq!(Report::of(&retrying("c")), report("to be retried"));
        assert_eq!(
            Report::of(&retrying(FailureCode::HandedBack.as_str())),
            None
        );
        assert_eq!(Report::of(&Body::Cancelled {}), None);
        assert_eq!(
            Report::of(&Body::Done {
                usage: None,
                finish_reason: None
            }),
            None
        );
    }
}
