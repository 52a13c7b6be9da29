//! What every front door does with a job beside streaming it: submit, cancel, say what it is. It decodes no request and
//! writes no answer.

use std::net::IpAddr;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use schemars::JsonSchema;
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use tokio::time::timeout;

use super::app::App;
use super::error::Problem;
use super::memory::{Held, weight};
use crate::config::OPEN_WAIT;
use crate::nats::{CancelOutcome, QueueUsage, SubmitOutcome};
use crate::session::until_ended;
use crate::source::Unavailable;
use crate::source::{FoldError, fold_within};
use crate::wire::limits::KEY_MAX;
use crate::wire::{
    Code, JobId, JobState, Kind, Seq, Status, Submission, may_call_back, reserved_kind,
};

/// A job that was taken in.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Accepted {
    /// The job.
    pub(super) id: JobId,
    /// The job, under the name that it has in events and frames.
    pub(super) job: JobId,
    /// Its kind.
    pub(super) kind: Kind,
    /// What it is doing.
    pub(super) status: Status,
    /// Whether it is in the queue by this very submission.
    #[serde(skip)]
    pub(super) new: bool,
}

/// The event that asks for a job to be cancelled.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Receipt {
    /// The job.
    pub(super) id: JobId,
    /// The job, under the name that it has in events and frames.
    pub(super) job: JobId,
    /// The number of the event.
    pub(super) seq: Seq,
    /// Whether it was written for this very request.
    #[serde(skip)]
    pub(super) new: bool,
}

impl App {
    /// The room that a submission takes in memory until it is queued: as it was parsed, and twice as it is stored.
    pub(super) fn room_for(&self, submission: &Submission) -> Result<Held, Problem> {
        let bytes = size_of::<Submission>() + 3 * weight(&submission.input);
        Ok(self.shared.memory().submits.hold(bytes)?)
    }

    /// Submits a job, which has this room until that is done. Without an id of its own it has one that follows from the
    /// idempotency key, so that the same key is the same job on every edge, for as long as its log is kept.
    pub(super) async fn submit(
        &self,
        from: IpAddr,
        submission: Submission,
        key: Option<&str>,
        _room: Held,
    ) -> Result<Accepted, Problem> {
        let _place = self.shared.requests().take(from)?;
        let (id, keyed) = match (&submission.id, key) {
            (Some(id), _) => (id.clone(), false),
            (None, Some(key)) => (id_of_key(key)?, true),
            (None, None) => (job_id(nuid::next().as_str())?, false),
        };
        if let Some(callback) = &submission.callback {
            if !may_call_back(callback, &self.settings.callback_hosts) {
                return Err(Code::CallbackNotAllowed.into());
            }
            self.usage(&reserved_kind()).await?;
        }
        let kind = submission.kind.clone();
        let usage = self.usage(&kind).await?;
        if let Some(refusal) = usage.features.refusal(&submission) {
            return Err(Problem::new(Code::NotSupportedByKind, refusal));
        }
        match self.queue.submit_if_room(&id, &submission, &usage).await? {
            SubmitOutcome::New => Ok(Accepted {
                job: id.clone(),
                id,
                kind,
                status: Status::Queued,
                new: true,
            }),
            SubmitOutcome::Same => {
                let status = self
                    .log
                    .last(&id)
                    .await?
                    .map_or(Status::Queued, |last| last.status());
                Ok(Accepted {
                    job: id.clone(),
                    id,
                    kind,
                    status,
                    new: false,
                })
            }
            SubmitOutcome::Other if keyed => Err(Code::KeyReused.into()),
            SubmitOutcome::Other => Err(Code::JobExists.into()),
            SubmitOutcome::Full => Err(Code::QueueFull.into()),
            SubmitOutcome::TooLarge { size, limit } => Err(Problem::new(
                Code::TooLarge,
                Submission::too_large(size, limit),
            )),
        }
    }

    /// How full the queue is for jobs of a kind that some worker has served.
    async fn usage(&self, kind: &Kind) -> Result<QueueUsage, Problem> {
        let unknown = || {
            Problem::new(
                Code::UnknownKind,
                format!("no worker has ever served the kind {kind}"),
            )
        };
        self.usage_cache
            .of(&self.queue, kind)
            .await?
            .ok_or_else(unknown)
    }

    /// Asks for a job to be cancelled.
    pub(super) async fn cancel(
        &self,
        from: IpAddr,
        id: JobId,
        by: Option<String>,
    ) -> Result<Receipt, Problem> {
        let _place = self.shared.requests().take(from)?;
        match self.queue.cancel(&id, by).await? {
            CancelOutcome::Requested(seq) => Ok(Receipt {
                job: id.clone(),
                id,
                seq,
                new: true,
            }),
            CancelOutcome::Already(seq) => Ok(Receipt {
                job: id.clone(),
                id,
                seq,
                new: false,
            }),
            CancelOutcome::Ended => Err(Code::JobEnded.into()),
            CancelOutcome::Unknown => Err(Code::JobNotFound.into()),
            CancelOutcome::Undecodable => Err(Problem::new(
                Code::Internal,
                "the job's log ends with too many undecodable messages",
            )),
        }
    }

    /// Makes sure that there is such a job.
    pub(super) async fn exists(&self, job: &JobId) -> Result<(), Problem> {
        let exists =
            self.log.last(job).await?.is_some() || self.queue.queued_kind(job).await?.is_some();
        if exists {
            Ok(())
        } else {
            Err(Code::JobNotFound.into())
        }
    }

    /// What a job is, and the room that this takes.
    async fn state(&self, job: &JobId) -> Result<(JobState, Held), Problem> {
        let mut room = self.shared.memory().answers.begin(JobState::SIZE_MAX);
        let late = |_| Unavailable("the log was not read in time".into());
        let shown = self.hub.last(job);
        let folding = async {
            let _turn = self.folds.acquire().await;
            fold_within(self.hub.source(), job, |bytes| room.resize(bytes)).await
        };
        if let Some(state) = timeout(OPEN_WAIT, folding).await.map_err(late)?? {
            if shown.is_some_and(|shown| shown.seq > state.seq) {
                return Err(Unavailable("the log lacks what watchers were shown".into()).into());
            }
            room.settle(state.size());
            return Ok((state, room));
        }
        match self.queue.queued_kind(job).await? {
            Some(kind) => Ok((
                JobState {
                    kind: Some(kind),
                    ..JobState::new(job.clone())
                },
                room,
            )),
            None => Err(Code::JobNotFound.into()),
        }
    }

    /// What a job is once it has ended, or `wait` has passed.
    pub(super) async fn state_within(
        &self,
        from: IpAddr,
        job: &JobId,
        wait: Duration,
    ) -> Result<(JobState, Held), Problem> {
        let _place = self.shared.requests().take(from)?;
        if !wait.is_zero() {
            self.until_ended(from, job, wait).await?;
        }
        self.state(job).await
    }

    async fn until_ended(&self, from: IpAddr, job: &JobId, wait: Duration) -> Result<(), Problem> {
        let after = match self.log.last(job).await? {
            Some(last) if last.event_type.is_end() => return Ok(()),
            Some(last) => last.seq,
            None if self.queue.queued_kind(job).await?.is_none() => {
                return Err(Code::JobNotFound.into());
            }
            None => Seq(0),
        };
        let watching = async {
            until_ended(from, &self.hub, job, after).await?;
            Ok(())
        };
        // When the edge stops, who waits is told what the job is now.
        match timeout(wait, self.tasks.stop().run_until_cancelled(watching)).await {
            Ok(Some(ended)) => ended,
            Ok(None) | Err(_) => Ok(()),
        }
    }
}

impl From<FoldError> for Problem {
    fn from(error: FoldError) -> Self {
        match error {
            FoldError::Unavailable(error) => error.into(),
            FoldError::NoRoom(no_room) => no_room.into(),
        }
    }
}

/// Reads a job's id.
pub(super) fn job_id(text: &str) -> Result<JobId, Problem> {
    text.parse()
        .map_err(|error| Problem::new(Code::BadJobId, format!("a job id {error}")))
}

/// The id of the job that was submitted with this key. Nobody can tell the key from it.
fn id_of_key(key: &str) -> Result<JobId, Problem> {
    if key.is_empty() || key.len() > KEY_MAX {
        return Err(Problem::new(
            Code::BadRequest,
            format!("an idempotency key has 1 to {KEY_MAX} bytes"),
        ));
    }
    job_id(&format!("key-{}", BASE64.encode(Sha256::digest(key))))
}
