//! The work queue: submits jobs, and looks up jobs in the queue. `claim` delivers them to workers.

use async_nats::HeaderMap;
use serde::{Deserialize, Serialize};

use super::error::unavailable;
use super::log::Log;
use super::names;
use super::publish::{Published, publish};
use super::queued::{QueuedJob, stored_len};
use super::recording::{Recording, ask};
use super::writer::{AppendError, EventWriter};
use crate::runtime::LazyTimer;
use crate::source::{KnownJob, Unavailable, find_job};
use crate::wire::{EventType, JobId, Kind, Stored, StreamSeq, Submission};

/// The work queue, with the logs of its jobs.
#[derive(Clone, Debug)]
pub struct Queue {
    pub(super) log: Log,
    /// Whether recorders write for this process.
    pub(super) asks_recorder: bool,
}

/// The result of a submission.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SubmitOutcome {
    /// The job is in the queue.
    New,
    /// The same job was submitted before.
    Same,
    /// The id names another job.
    Other,
    /// The broker stored a submission with this id a short time ago, and nothing of the job is stored
    /// any more: it was purged, or has expired. The broker accepts the id again once it has forgotten
    /// that submission.
    Removed,
    /// The id names another kind than the job's. Nothing was stored.
    OtherKind,
    /// The queue is full.
    Full,
    /// The job is too large for the queue or for its log. Nothing was stored.
    TooLarge {
        /// The size as stored, in bytes.
        size: usize,
        /// The limit, in bytes.
        limit: usize,
    },
}

impl Queue {
    /// The queue of the jobs whose logs these are.
    pub fn new(log: Log) -> Self {
        Self {
            log,
            asks_recorder: false,
        }
    }

    /// The same for a process that may not write: recorders submit, cancel and purge jobs for it.
    pub fn through_recorders(log: Log) -> Self {
        Self {
            log,
            asks_recorder: true,
        }
    }

    /// The logs of the queue's jobs.
    pub fn log(&self) -> &Log {
        &self.log
    }

    /// Submits a job: publishes it to the queue, then the first event of its log.
    ///
    /// # Errors
    /// [`Unavailable`]: it is not known whether the job was submitted. Repeating the submission is
    /// harmless.
    pub async fn submit(
        &self,
        job: &JobId,
        submission: &Submission,
    ) -> Result<SubmitOutcome, Unavailable> {
        if !job.may_be_of(&submission.kind) {
            return Ok(SubmitOutcome::OtherKind);
        }
        // Checked before anything is stored: a queued job whose log cannot be written can only be
        // ended.
        let size = stored_len(job, submission).map_err(unavailable)?;
        let limit = self.log.event_max();
        if size > limit {
            return Ok(SubmitOutcome::TooLarge { size, limit });
        }
        if self.asks_recorder {
            let queued = QueuedJob::new(job, submission);
            return ask(&self.log.nats, Recording::Submit, &queued).await;
        }
        if let Some(known) = self.known_to_log(job, submission).await? {
            return Ok(known);
        }
        let payload = serde_json::to_vec(&QueuedJob::new(job, submission)).map_err(unavailable)?;
        let mut headers = HeaderMap::new();
        headers.insert(names::MESSAGE_ID, job.as_str());
        let nats = &self.log.nats;
        let subject = nats.names.queued(&submission.kind, job);
        let mut timer = LazyTimer::default();
        match publish(&nats.work, subject, headers, payload.into(), &mut timer).await {
            Published::Stored(_) => {}
            // The queue has the job, but its log has no event. Either another submission with this
            // id came first and its first event is still in flight, or its submitter died before
            // that event, or the event expired while the job waits.
            Published::InFlight | Published::SubjectTaken => {
                let known = self.known(job, submission).await?;
                return known.ok_or_else(in_flight);
            }
            // The same, unless the job was removed since.
            Published::Duplicate(stream_seq) => {
                return self.known_duplicate(job, submission, stream_seq).await;
            }
            Published::Full => {
                let known = self.known(job, submission).await?;
                return Ok(known.unwrap_or(SubmitOutcome::Full));
            }
            Published::WrongLast => {
                return Err(Unavailable(
                    "the queue refused the job for an unexpected reason".into(),
                ));
            }
            Published::Never(reason) => return Err(Unavailable(reason)),
            Published::Rejected(error) | Published::Unknown(error) => return Err(error),
        }
        let mut writer = EventWriter::new(self.log.clone(), job.clone(), 0, None);
        match writer.append(submission.queued()).await {
            Ok(()) | Err(AppendError::Superseded | AppendError::CancelRequested) => {}
            // The job is in the queue, so it will run. Its worker writes the first event.
            Err(AppendError::Unwritable(_) | AppendError::Unavailable(_)) => {}
        }
        Ok(SubmitOutcome::New)
    }

    /// Looks the id up in the log: [`SubmitOutcome::Same`] or [`SubmitOutcome::Other`]; `None` when
    /// it is unknown.
    async fn known_to_log(
        &self,
        job: &JobId,
        submission: &Submission,
    ) -> Result<Option<SubmitOutcome>, Unavailable> {
        let Some(first) = self.log.first(job).await? else {
            return Ok(None);
        };
        let is_same = first.event_type == EventType::Queued
            && first
                .event()
                .is_ok_and(|event| submission.is_queued_by(event.body));
        Ok(Some(same_or_other(is_same)))
    }

    /// As [`Self::known_to_log`], but also finds a job whose log has no event yet.
    pub(super) async fn known(
        &self,
        job: &JobId,
        submission: &Submission,
    ) -> Result<Option<SubmitOutcome>, Unavailable> {
        let found = find_job(
            || self.known_to_log(job, submission),
            || self.log.queued(job),
        );
        Ok(found.await?.map(|found| match found {
            KnownJob::Logged(outcome) => outcome,
            KnownJob::Queued(queued) => same_or_other(queued == QueuedJob::new(job, submission)),
        }))
    }

    /// As [`Self::known`], for a job whose submission the queue stored before, at `stream_seq`.
    async fn known_duplicate(
        &self,
        job: &JobId,
        submission: &Submission,
        stream_seq: StreamSeq,
    ) -> Result<SubmitOutcome, Unavailable> {
        if let Some(known) = self.known(job, submission).await? {
            return Ok(known);
        }
        if !self.log.left_queue(job, Some(stream_seq)).await? {
            return Err(in_flight());
        }
        // A job that ended has left the queue after its log had its final event. It may have ended
        // since the log was read.
        let known = self.known_to_log(job, submission).await?;
        Ok(known.unwrap_or(SubmitOutcome::Removed))
    }

    /// Finds a job: its last event, or its kind while its log has no event. `None` if it does not
    /// exist.
    ///
    /// # Errors
    /// [`Unavailable`].
    pub async fn find(&self, job: &JobId) -> Result<Option<KnownJob<Stored, Kind>>, Unavailable> {
        find_job(|| self.log.last(job), || self.queued_kind(job)).await
    }

    /// Whether a server that leads the queue, or believes that it does, has the job in it.
    pub(super) async fn is_queued(&self, job: &JobId) -> Result<bool, Unavailable> {
        Ok(self.log.queued_kind_now(job).await?.is_some())
    }

    /// The submission of a job that waits in the queue or runs.
    pub(super) async fn submission(&self, job: &JobId) -> Result<Option<Submission>, Unavailable> {
        Ok(self.log.queued(job).await?.map(QueuedJob::into_submission))
    }

    /// The kind of a job that waits in the queue or runs.
    ///
    /// # Errors
    /// [`Unavailable`].
    pub async fn queued_kind(&self, job: &JobId) -> Result<Option<Kind>, Unavailable> {
        self.log.queued_kind(job).await
    }
}

fn in_flight() -> Unavailable {
    Unavailable("the submission is in flight".into())
}

fn same_or_other(is_same: bool) -> SubmitOutcome {
    if is_same {
        SubmitOutcome::Same
    } else {
        SubmitOutcome::Other
    }
}
