//! What every front door does with a job beside streaming it: submit, cancel, say what it is. It decodes no request and
//! writes no answer.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use schemars::JsonSchema;
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use tokio::time::timeout;

use super::App;
use super::error::Problem;
use crate::config::{KEY_MAX, OPEN_WAIT};
use crate::nats::{Cancelled, Load, Submitted};
use crate::session::{Session, Step, fold};
use crate::source::Unavailable;
use crate::wire::{
    Code, JobId, JobState, Kind, Seq, Start, Status, Submission, may_call_back, reserved_kind,
};

/// A job that was taken in.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Accepted {
    /// The job.
    pub(super) id: JobId,
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
    /// The number of the event.
    pub(super) seq: Seq,
    /// Whether it was written for this very request.
    #[serde(skip)]
    pub(super) new: bool,
}

impl App {
    /// Submits a job. Without an id of its own it has one that follows from the idempotency key, so that the same key is
    /// the same job on every edge, for as long as its log is kept.
    pub(super) async fn submit(
        &self,
        submission: Submission,
        key: Option<&str>,
    ) -> Result<Accepted, Problem> {
        let (id, keyed) = match (&submission.id, key) {
            (Some(id), _) => (id.clone(), false),
            (None, Some(key)) => (id_of_key(key)?, true),
            (None, None) => (job_id(nuid::next().as_str())?, false),
        };
        if let Some(callback) = &submission.callback {
            if !may_call_back(callback, &self.settings.callback_hosts) {
                return Err(Code::CallbackNotAllowed.into());
            }
            self.load(&reserved_kind()).await?;
        }
        let kind = submission.kind.clone();
        let load = self.load(&kind).await?;
        match self.log.offer(&id, &submission, &load).await? {
            Submitted::New => Ok(Accepted { id, kind, status: Status::Queued, new: true }),
            Submitted::Same => {
                let status = self.log.last(&id).await?.map_or(Status::Queued, |last| last.status());
                Ok(Accepted { id, kind, status, new: false })
            }
            Submitted::Other if keyed => Err(Code::KeyReused.into()),
            Submitted::Other => Err(Code::JobExists.into()),
            Submitted::Full => Err(Code::QueueFull.into()),
            Submitted::TooLarge { size, limit } => {
                Err(Problem::new(Code::TooLarge, Submission::too_large(size, limit)))
            }
        }
    }

    /// How full the queue is for jobs of a kind that some worker has served.
    async fn load(&self, kind: &Kind) -> Result<Load, Problem> {
        let unknown =
            || Problem::new(Code::UnknownKind, format!("no worker has ever served the kind {kind}"));
        self.loads.of(&self.log, kind).await?.ok_or_else(unknown)
    }

    /// Asks for a job to be cancelled.
    pub(super) async fn cancel(&self, id: JobId, by: Option<String>) -> Result<Receipt, Problem> {
        match self.log.cancel(&id, by).await? {
            Cancelled::Requested(seq) => Ok(Receipt { id, seq, new: true }),
            Cancelled::Already(seq) => Ok(Receipt { id, seq, new: false }),
            Cancelled::Ended => Err(Code::JobEnded.into()),
            Cancelled::Unknown => Err(Code::JobNotFound.into()),
            Cancelled::Buried => {
                Err(Problem::new(Code::Internal, "the job's log ends with too much that is no event"))
            }
        }
    }

    /// What a job is.
    pub(super) async fn state(&self, job: &JobId) -> Result<JobState, Problem> {
        let late = |_| Unavailable("the log was not read in time".into());
        if let Some(state) = timeout(OPEN_WAIT, fold(self.hub.source(), job)).await.map_err(late)?? {
            return Ok(state);
        }
        match self.log.queued_kind(job).await? {
            Some(kind) => Ok(JobState { kind: Some(kind), ..JobState::new(job.clone()) }),
            None => Err(Code::JobNotFound.into()),
        }
    }

    /// What a job is once it has ended, or `wait` has passed.
    pub(super) async fn state_within(&self, job: &JobId, wait: Duration) -> Result<JobState, Problem> {
        if !wait.is_zero() {
            self.until_ended(job, wait).await?;
        }
        self.state(job).await
    }

    async fn until_ended(&self, job: &JobId, wait: Duration) -> Result<(), Problem> {
        let after = match self.log.last(job).await? {
            Some(last) if last.kind.is_end() => return Ok(()),
            Some(last) => last.seq,
            None if self.log.queued_kind(job).await?.is_none() => return Err(Code::JobNotFound.into()),
            None => Seq(0),
        };
        let watching = async {
            let mut session = Session::open(&self.hub, job, Start::After(after)).await?;
            while !matches!(session.next().await, Step::End) {}
            Ok(())
        };
        // When the edge stops, who waits is told what the job is now.
        match timeout(wait, self.tasks.stop().run_until_cancelled(watching)).await {
            Ok(Some(ended)) => ended,
            Ok(None) | Err(_) => Ok(()),
        }
    }
}

/// Reads a job's id.
pub(super) fn job_id(text: &str) -> Result<JobId, Problem> {
    text.parse().map_err(|error| Problem::new(Code::BadJobId, format!("a job id {error}")))
}

/// The id of the job that was submitted with this key. Nobody can tell the key from it.
fn id_of_key(key: &str) -> Result<JobId, Problem> {
    if key.is_empty() || key.len() > KEY_MAX {
        return Err(Problem::new(Code::BadRequest, format!("an idempotency key has 1 to {KEY_MAX} bytes")));
    }
    job_id(&format!("key-{}", BASE64.encode(Sha256::digest(key))))
}
