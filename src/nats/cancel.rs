//! Cancelling a job: an event of its log, written under the same fence as every other one. Stopping
//! a backend that runs is the worker's.

use tokio::time::{Instant, sleep};
use tracing::debug;

use super::queue::Queue;
use super::tip::Tip;
use super::writer::{AppendError, EventWriter};
use crate::config::{CANCEL_WAIT, RETRY_FIRST};
use crate::source::Unavailable;
use crate::wire::{Body, EventType, JobId, Seq, Status};

/// What became of a cancel request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CancelOutcome {
    /// It is in the log, as the event with this sequence number. Only the job's final event can
    /// follow it.
    Requested(Seq),
    /// It was requested before, by the event with this sequence number.
    Already(Seq),
    /// The job had ended before.
    Ended,
    /// There is no such job.
    Unknown,
    /// The log ends with too many undecodable messages to find its last event.
    Undecodable,
}

impl Queue {
    /// Cancels a job: one that waits ends at once, one that runs is ended by its worker, and one
    /// whose worker is dead by the worker that gets it next.
    ///
    /// # Errors
    /// [`Unavailable`] when the request could not be stored within [`CANCEL_WAIT`]. Repeating it is
    /// harmless.
    pub async fn cancel(
        &self,
        job: &JobId,
        by: Option<String>,
    ) -> Result<CancelOutcome, Unavailable> {
        let deadline = Instant::now() + CANCEL_WAIT;
        loop {
            if let Some(outcome) = self.try_cancel(job, by.clone()).await? {
                return Ok(outcome);
            }
            if Instant::now() >= deadline {
                return Err(Unavailable("the job's worker was always faster".into()));
            }
            // The worker then looks at its log, and writes nothing meanwhile.
            self.send_control_signal(job).await;
            sleep(RETRY_FIRST / 5).await;
        }
    }

    /// One try; `None` when another process wrote first.
    async fn try_cancel(
        &self,
        job: &JobId,
        by: Option<String>,
    ) -> Result<Option<CancelOutcome>, Unavailable> {
        let Tip::At { last, .. } = self.log.tip(job).await? else {
            return Ok(Some(CancelOutcome::Undecodable));
        };
        let Some(last) = last else {
            // A server that only believes it leads may lack events that the log has.
            if self.log.last(job).await?.is_some() {
                return Ok(None);
            }
            let Some(submission) = self.submission(job).await? else {
                return Ok(Some(CancelOutcome::Unknown));
            };
            // Submitted, and its first event is still in flight: the log begins the same way
            // whichever process writes it. An input that no log can hold, from a foreign publisher,
            // does not keep its job from being cancelled.
            let mut writer = EventWriter::new(self.log.clone(), job.clone(), 0, None);
            let mut queued = writer.append(submission.queued()).await;
            if let Err(AppendError::Unwritable(_)) = queued {
                queued = writer.append(submission.queued_without_input()).await;
            }
            return written(queued).map(|_| None);
        };
        if last.event_type.is_end() {
            return Ok(Some(CancelOutcome::Ended));
        }
        let mut writer = EventWriter::new(self.log.clone(), job.clone(), last.attempt, Some(&last));
        let asked_before = last.event_type == EventType::CancelRequested;
        if !asked_before && !written(writer.append(Body::CancelRequested { by }).await)? {
            return Ok(None);
        }
        let seq = writer.seq();
        if last.status() == Status::Queued {
            // No worker has it, so no other process would end it soon, and the first one that
            // requested it may have died before it did. A worker that claims the job now is
            // refused, or is faster and ends it itself.
            let ended = writer.append(Body::Cancelled {}).await;
            debug!(%job, ?ended, "cancelled before it began");
        }
        self.send_control_signal(job).await;
        Ok(Some(if asked_before {
            CancelOutcome::Already(seq)
        } else {
            CancelOutcome::Requested(seq)
        }))
    }
}

/// Whether an event was appended; `false` when another process wrote first.
fn written(outcome: Result<(), AppendError>) -> Result<bool, Unavailable> {
    match outcome {
        Ok(()) => Ok(true),
        Err(AppendError::Superseded | AppendError::CancelRequested) => Ok(false),
        Err(AppendError::Unavailable(error)) => Err(error),
        Err(AppendError::Unwritable(error)) => Err(Unavailable(error.to_string())),
    }
}
