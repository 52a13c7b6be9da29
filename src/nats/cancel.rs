//! Cancels a job by appending an event to its log, under the same fence as any other event. The
//! worker that runs the job stops its backend.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};
use tracing::debug;

use super::error::unavailable;
use super::queue::Queue;
use super::recording::{JobToCancel, Recording, ask};
use super::tip::Tip;
use super::writer::{AppendError, EventWriter};
use crate::config::{CANCEL_WAIT, RETRY_FIRST};
use crate::source::{KnownJob, Unavailable, find_job};
use crate::wire::{Body, EventType, JobId, Seq, Status};

/// The result of a cancel request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CancelOutcome {
    /// It is in the log, as the event with this sequence number. Only the job's final event can
    /// follow it.
    Requested(Seq),
    /// It was requested before, by the event with this sequence number.
    Already(Seq),
    /// The job had already ended.
    Ended,
    /// No job has this id.
    Unknown,
    /// The log ends with too many undecodable messages to find its last event.
    Undecodable,
}

impl Queue {
    /// Cancels a job. A waiting job ends at once; a running job is ended by its worker or, if that
    /// worker is dead, by the next one that claims the job.
    ///
    /// # Errors
    /// [`Unavailable`] when the request could not be stored within [`CANCEL_WAIT`]. Repeating it is
    /// harmless.
    pub async fn cancel(
        &self,
        job: &JobId,
        by: Option<String>,
    ) -> Result<CancelOutcome, Unavailable> {
        if self.asks_recorder {
            let job = Cow::Borrowed(job);
            return ask(&self.log.nats, Recording::Cancel, &JobToCancel { job, by }).await;
        }
        let deadline = Instant::now() + CANCEL_WAIT;
        loop {
            if let Some(outcome) = self.try_cancel(job, by.clone()).await? {
                return Ok(outcome);
            }
            if Instant::now() >= deadline {
                return Err(Unavailable("the job's worker wrote first each time".into()));
            }
            // Makes the worker look at the log, which it does not write to meanwhile.
            self.send_control_signal(job).await;
            sleep(RETRY_FIRST / 5).await;
        }
    }

    /// Tries once. `None` when another process wrote first.
    async fn try_cancel(
        &self,
        job: &JobId,
        by: Option<String>,
    ) -> Result<Option<CancelOutcome>, Unavailable> {
        let Tip::At { last, .. } = self.log.tip(job).await? else {
            return Ok(Some(CancelOutcome::Undecodable));
        };
        let Some(last) = last else {
            let found = find_job(|| self.log.last(job), || self.submission(job));
            let submission = match found.await? {
                None => return Ok(Some(CancelOutcome::Unknown)),
                // Its first event is new, or a server that wrongly believes that it leads lacked it.
                Some(KnownJob::Logged(_)) => return Ok(None),
                Some(KnownJob::Queued(submission)) => submission,
            };
            // The job was submitted and its first event is still in flight. Every process writes
            // the same first event. An input that does not fit into the log (another program
            // published it) is omitted.
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
        let was_requested = last.event_type == EventType::CancelRequested;
        if !was_requested && !written(writer.append(Body::CancelRequested { by }).await)? {
            return Ok(None);
        }
        let seq = writer.seq();
        if last.status() == Status::Queued {
            // No worker would end the job soon, and the process that requested it before may have
            // died. If a worker claims the job now, either its append or this one is refused; if
            // this one is, the worker ends the job.
            let ended = writer.append(Body::Cancelled {}).await;
            debug!(%job, ?ended, "cancelled before it started");
        }
        self.send_control_signal(job).await;
        Ok(Some(if was_requested {
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
        Err(AppendError::Unwritable(error)) => Err(unavailable(error)),
    }
}
