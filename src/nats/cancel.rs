//! Cancelling a job: an entry of its log, written under the same fence as everything else. Stopping what runs is the
//! worker's.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use tracing::debug;

use super::log::Log;
use super::tip::Tip;
use super::writer::{AppendError, Writer};
use crate::config::{CANCEL_WAIT, RETRY_FIRST};
use crate::source::Unavailable;
use crate::wire::{Body, EventType, JobId, Seq, Status};

/// What became of a cancel request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cancelled {
    /// It stands in the log, as the event with this number. Nothing but the job's end follows it.
    Requested(Seq),
    /// Somebody asked before, by the event with this number.
    Already(Seq),
    /// The job had ended before.
    Ended,
    /// There is no such job.
    Unknown,
    /// The log ends with too many undecodable messages to find its last event.
    Undecodable,
}

impl Log {
    /// Asks for a job to be cancelled: one that waits ends here and now, one that runs is ended by its worker, and one
    /// whose worker is dead by whoever is handed it next.
    ///
    /// # Errors
    /// [`Unavailable`] when the request could not be stored within [`CANCEL_WAIT`]. Asking again is harmless.
    pub async fn cancel(&self, job: &JobId, by: Option<String>) -> Result<Cancelled, Unavailable> {
        let deadline = Instant::now() + CANCEL_WAIT;
        loop {
            if let Some(outcome) = self.try_cancel(job, by.clone()).await? {
                return Ok(outcome);
            }
            if Instant::now() >= deadline {
                return Err(Unavailable("the job's worker was always faster".into()));
            }
            // The worker looks at its log when it is told to, and writes nothing meanwhile.
            self.send_control_signal(job).await;
            sleep(RETRY_FIRST / 5).await;
        }
    }

    /// One try; `None` when somebody else wrote at the same time.
    async fn try_cancel(
        &self,
        job: &JobId,
        by: Option<String>,
    ) -> Result<Option<Cancelled>, Unavailable> {
        let Tip::At { last, .. } = self.tip(job).await? else {
            return Ok(Some(Cancelled::Undecodable));
        };
        let Some(last) = last else {
            // A server that only believes that it leads may lack events that the log has.
            if self.last(job).await?.is_some() {
                return Ok(None);
            }
            let Some(submission) = self.waiting(job).await? else {
                return Ok(Some(Cancelled::Unknown));
            };
            // Submitted, and its first event is still under way: the log begins the same way whoever writes it. An input
            // that no log can hold, from another publisher, does not keep its job from being cancelled.
            let mut writer = Writer::new(self.clone(), job.clone(), 0, None);
            let mut queued = writer.append(submission.queued()).await;
            if let Err(AppendError::Unwritable(_)) = queued {
                queued = writer.append(submission.queued_without_input()).await;
            }
            return written(queued).map(|_| None);
        };
        if last.event_type.is_end() {
            return Ok(Some(Cancelled::Ended));
        }
        let mut writer = Writer::new(self.clone(), job.clone(), last.attempt, Some(&last));
        let asked_before = last.event_type == EventType::CancelRequested;
        if !asked_before && !written(writer.append(Body::CancelRequested { by }).await)? {
            return Ok(None);
        }
        let seq = writer.seq();
        if last.status() == Status::Queued {
            // No worker has it, so nobody else would end it soon, and whoever asked before may have gone before it did. A
            // worker that claims it now is refused, or is faster and ends it itself.
            let ended = writer.append(Body::Cancelled {}).await;
            debug!(%job, ?ended, "cancelled before it began");
        }
        self.send_control_signal(job).await;
        Ok(Some(if asked_before {
            Cancelled::Already(seq)
        } else {
            Cancelled::Requested(seq)
        }))
    }

    /// Sends the job's worker a [`ControlSignal`](super::ControlSignal): it looks at the log at once.
    pub async fn send_control_signal(&self, job: &JobId) {
        let subject = self.nats.names.control(job);
        let sent = self.nats.work.publish(subject, bytes::Bytes::new());
        if !tokio::time::timeout(Duration::from_secs(1), sent)
            .await
            .is_ok_and(|sent| sent.is_ok())
        {
            debug!(%job, "no control signal was sent; the worker finds out at its next publish");
        }
    }
}

/// Whether an event was appended, or somebody else was faster.
fn written(outcome: Result<(), AppendError>) -> Result<bool, Unavailable> {
    match outcome {
        Ok(()) => Ok(true),
        Err(AppendError::Superseded | AppendError::CancelRequested) => Ok(false),
        Err(AppendError::Unavailable(error)) => Err(error),
        Err(AppendError::Unwritable(error)) => Err(Unavailable(error.to_string())),
    }
}
