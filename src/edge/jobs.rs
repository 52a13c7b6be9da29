//! What every transport does with jobs besides streaming: submit, cancel, purge, read the state. It
//! neither decodes requests nor writes responses.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use futures_util::future::join_all;
use schemars::JsonSchema;
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use tokio::time::timeout;
use tracing::info;

use super::access::Access;
use super::app::App;
use super::error::Problem;
use super::memory::SplitReservation;
use super::quota::{JobInFlight, SubjectUsage};
use crate::auth::Operation;
use crate::budget::LimitReached;
use crate::config::{OPEN_WAIT, QUOTA_PROBES};
use crate::nats::{CancelOutcome, PurgeOutcome, QueueUsage, SubmitOutcome};
use crate::session::until_ended;
use crate::source::{KnownJob, LogFold, Unavailable, fold_until};
use crate::wire::{
    BearerToken, Code, JobId, JobState, KEY_ID, Kind, Refusal, Seq, Status, Submission,
    WatchTokenTerms, check_key, may_call_back, reserved_kind,
};

/// A job that was accepted.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Accepted {
    /// The job's id.
    pub(super) id: JobId,
    /// The job's id again, under its name in events and frames.
    pub(super) job: JobId,
    /// The job's kind.
    pub(super) kind: Kind,
    /// What the job is doing.
    pub(super) status: Status,
    /// A token that allows to watch this job and nothing else; only from an edge that signs tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) watch_token: Option<BearerToken>,
    /// Whether this submission queued it.
    #[serde(skip)]
    pub(super) new: bool,
}

/// A submission, as its client sent it.
pub(super) struct SubmitRequest {
    pub(super) submission: Submission,
    /// The idempotency key.
    pub(super) key: Option<String>,
    pub(super) watch_token: WatchTokenTerms,
    /// The memory that it takes until it is queued.
    pub(super) _reservation: Option<SplitReservation>,
}

/// A request to cancel a job, as an event of its log.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Receipt")]
pub(super) struct CancelReceipt {
    /// The job's id.
    pub(super) id: JobId,
    /// The job's id again, under its name in events and frames.
    pub(super) job: JobId,
    /// The sequence number of the event.
    pub(super) seq: Seq,
    /// Whether this request wrote it.
    #[serde(skip)]
    pub(super) new: bool,
}

/// The memory that a submission takes until it is queued, if its input takes this much: once parsed,
/// and twice as stored or copied.
pub(super) const fn submission_memory(input: usize) -> usize {
    size_of::<Submission>() + 3 * input
}

impl Accepted {
    fn new(id: JobId, kind: Kind, status: Status, new: bool) -> Self {
        Self {
            job: id.clone(),
            id,
            kind,
            status,
            watch_token: None,
            new,
        }
    }
}

impl App {
    /// Reserves [`submission_memory`].
    pub(super) fn reserve_submission(&self, input: usize) -> Result<SplitReservation, Problem> {
        let bytes = submission_memory(input);
        Ok(self.shared.memory().submits.reserve(bytes)?)
    }

    /// The same and `frame` bytes, as the answer to a frame of that size: its other fields are kept, too.
    pub(super) fn admit_submission(
        &self,
        input: usize,
        frame: usize,
    ) -> Result<SplitReservation, Refusal> {
        let bytes = submission_memory(input) + frame;
        let reserved = self.shared.memory().submits.reserve(bytes);
        reserved
            .map_err(|LimitReached| Refusal::new(Code::Overloaded, Code::Overloaded.info().text))
    }

    /// Submits a job, and holds the reservation of the request until it is queued.
    pub(super) async fn submit(
        &self,
        access: &Access,
        client: IpAddr,
        request: SubmitRequest,
    ) -> Result<Accepted, Problem> {
        let SubmitRequest {
            submission,
            key,
            watch_token,
            _reservation,
        } = request;
        self.submit_job(access, client, &submission, key.as_deref(), watch_token)
            .await
    }

    /// Submits a job; its caller holds the memory. Without an id, the job gets one derived from the
    /// idempotency key: the same key of the same subject for the same kind is the same job on every
    /// edge, for as long as its log is kept.
    pub(super) async fn submit_job(
        &self,
        access: &Access,
        client: IpAddr,
        submission: &Submission,
        key: Option<&str>,
        watch_token: WatchTokenTerms,
    ) -> Result<Accepted, Problem> {
        access.require(Operation::Submit(&submission.kind))?;
        // Before the quotas, which may ask NATS about jobs.
        let _slot = self.shared.requests().acquire(client)?;
        let in_flight = match access.usage() {
            None => None,
            Some(usage) => {
                usage.count_submit()?;
                Some(self.begin_job(usage).await?)
            }
        };
        let chose_id = submission.id.is_some();
        let mut accepted = self.queue_job(access, submission, key).await?;
        if let Some(in_flight) = in_flight.filter(|_| accepted.new) {
            in_flight.queued(&accepted.id);
        }
        // Anybody may repeat a submission with an id, so only a new job is surely the subject's.
        let is_own = accepted.new || !chose_id;
        if let Some(subject) = access.subject()
            && (is_own || access.require(Operation::Watch(&accepted.id)).is_ok())
        {
            let cancel = watch_token.cancel
                && (is_own || access.require(Operation::Cancel(&accepted.id)).is_ok());
            let terms = WatchTokenTerms {
                cancel,
                ..watch_token
            };
            accepted.watch_token = self.settings.gate.watch_token(subject, &accepted.id, terms);
        }
        Ok(accepted)
    }

    /// Counts a job of a subject. If the subject has too many in flight, looks whether some of them
    /// have ended: they leave the queue then.
    async fn begin_job(&self, usage: &Arc<SubjectUsage>) -> Result<JobInFlight, Problem> {
        for _ in 0..QUOTA_PROBES {
            let jobs = usage.jobs_to_look_at();
            if jobs.is_empty() {
                break;
            }
            let looks = jobs.iter().map(|job| self.queue.queued_kind(job));
            let found = join_all(looks).await;
            let has_ended = |found: &Result<Option<Kind>, Unavailable>| matches!(found, Ok(None));
            let ended = jobs.into_iter().zip(&found);
            let ended = ended.filter(|(_, found)| has_ended(found));
            let ended: Vec<JobId> = ended.map(|(job, _)| job).collect();
            usage.forget(&ended);
        }
        Ok(usage.begin_job()?)
    }

    async fn queue_job(
        &self,
        access: &Access,
        submission: &Submission,
        key: Option<&str>,
    ) -> Result<Accepted, Problem> {
        // Also one that is not used, because the job has an id. That of a frame was checked before; the
        // header of a request was not.
        check_key(key)?;
        let (id, is_from_key) = match (&submission.id, key) {
            (Some(id), _) => (id.clone(), false),
            (None, Some(key)) => {
                let subject = access.subject().map_or("", |subject| &subject.name);
                (id_of_key(&submission.kind, subject, key)?, true)
            }
            (None, None) => (new_id(&submission.kind, "")?, false),
        };
        let usage = self.check(submission).await?;
        let is_new_id = submission.id.is_none() && key.is_none();
        let failed = |error: Unavailable| {
            if is_new_id {
                Problem::of_uncertain_job(error, &id)
            } else {
                // The same request again finds the job.
                error.into()
            }
        };
        let submitted = self.queue.submit_if_room(&id, submission, &usage);
        let outcome = submitted.await.map_err(failed)?;
        let kind = submission.kind.clone();
        let counters = &self.thread.counters;
        match outcome {
            SubmitOutcome::New => {
                counters.submits_new.fetch_add(1, Ordering::Relaxed);
                Ok(Accepted::new(id, kind, Status::Queued, true))
            }
            SubmitOutcome::Same => {
                counters.submits_same.fetch_add(1, Ordering::Relaxed);
                let last = self.log.last(&id).await.map_err(failed)?;
                let status = last.map_or(Status::Queued, |last| last.status());
                Ok(Accepted::new(id, kind, status, false))
            }
            SubmitOutcome::Other if is_from_key => Err(Code::KeyReused.into()),
            SubmitOutcome::Other => Err(Code::JobExists.into()),
            SubmitOutcome::Removed => Err(Code::JobRemoved.into()),
            SubmitOutcome::OtherKind => Err(Code::BadJobId.into()),
            SubmitOutcome::Full => Err(Code::QueueFull.into()),
            SubmitOutcome::TooLarge { size, limit } => {
                let message = Submission::too_large(size, limit);
                Err(Problem::new(Code::TooLarge, message))
            }
        }
    }

    /// Checks that workers can run the job, and do what the submission asks for. Returns how full the
    /// queue is for its kind.
    async fn check(&self, submission: &Submission) -> Result<QueueUsage, Problem> {
        let is_plain = |id: &JobId| id.kind().is_none();
        if !self.settings.plain_ids && submission.id.as_ref().is_some_and(is_plain) {
            let kind = &submission.kind;
            let message = format!("This edge accepts no plain job ids. Use `{kind}:` and the id.");
            return Err(Problem::new(Code::BadJobId, message));
        }
        if let Some(callback) = &submission.callback {
            if !may_call_back(callback, &self.settings.callback_hosts) {
                return Err(Code::CallbackNotAllowed.into());
            }
            self.usage(&reserved_kind()).await?;
        }
        let usage = self.usage(&submission.kind).await?;
        match usage.features.refusal(submission) {
            Some(refusal) => Err(Problem::new(Code::NotSupportedByKind, refusal)),
            None => Ok(usage),
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

    /// Requests that a job be cancelled. Its log names the subject that did.
    pub(super) async fn cancel(
        &self,
        access: &Access,
        client: IpAddr,
        id: JobId,
    ) -> Result<CancelReceipt, Problem> {
        access.require(Operation::Cancel(&id))?;
        let _slot = self.shared.requests().acquire(client)?;
        let by = access.subject().map(|subject| subject.name.clone());
        let (seq, new) = match self.queue.cancel(&id, by).await? {
            CancelOutcome::Requested(seq) => (seq, true),
            CancelOutcome::Already(seq) => (seq, false),
            CancelOutcome::Ended => return Err(Code::JobEnded.into()),
            CancelOutcome::Unknown => return Err(Code::JobNotFound.into()),
            CancelOutcome::Undecodable => {
                let message = "The job's log ends with too many undecodable messages.";
                return Err(Problem::new(Code::Internal, message));
            }
        };
        self.thread.counters.cancels.fetch_add(1, Ordering::Relaxed);
        Ok(CancelReceipt {
            job: id.clone(),
            id,
            seq,
            new,
        })
    }

    /// Removes everything that is stored about an ended job.
    pub(super) async fn purge(
        &self,
        access: &Access,
        client: IpAddr,
        id: &JobId,
    ) -> Result<(), Problem> {
        access.require(Operation::Purge(id))?;
        let _slot = self.shared.requests().acquire(client)?;
        match self.queue.purge(id).await? {
            PurgeOutcome::Purged => {
                // The signal reaches this thread, too, but perhaps after its answer.
                self.hub.forget(id);
                let by = access.subject().map(|subject| &*subject.name);
                info!(job = %id, by, "a job was purged");
                Ok(())
            }
            PurgeOutcome::NotEnded => Err(Code::JobNotEnded.into()),
            PurgeOutcome::Unknown => Err(Code::JobNotFound.into()),
        }
    }

    /// Checks that the job exists.
    pub(super) async fn exists(&self, job: &JobId) -> Result<(), Problem> {
        match self.queue.find(job).await? {
            Some(_) => Ok(()),
            None => Err(Code::JobNotFound.into()),
        }
    }

    /// A job's state, and the room that it takes.
    async fn state(&self, job: &JobId) -> Result<(JobState, SplitReservation), Problem> {
        let mut reservation = self.shared.memory().answers.empty(JobState::SIZE_MAX);
        let mut state = JobState::new(job.clone());
        let resize = |bytes| reservation.resize(bytes).map_err(Problem::from);
        let queued = self.fold(job, &mut state, resize).await?;
        if queued.is_some() {
            state.kind = queued;
        }
        reservation.settle(state.size());
        Ok((state, reservation))
    }

    /// Folds a job's log. `resize` gets the size of `fold` in bytes after each event and may refuse
    /// it. Returns the kind of a job that waits in the queue and has no event yet.
    pub(super) async fn fold(
        &self,
        job: &JobId,
        fold: &mut impl LogFold,
        resize: impl FnMut(usize) -> Result<(), Problem>,
    ) -> Result<Option<Kind>, Problem> {
        let late = |_| Unavailable("the log was not read in time".into());
        let shown = self.hub.last(job).map(|shown| shown.cursor.seq);
        let folding = async {
            let last = match self.queue.find(job).await? {
                None => return Err(Code::JobNotFound.into()),
                Some(KnownJob::Queued(kind)) => return Ok(Some(kind)),
                Some(KnownJob::Logged(last)) => last.seq,
            };
            if shown.is_some_and(|shown| shown > last) {
                let lacking = "the log lacks events that watchers have seen";
                return Err(Unavailable(lacking.into()).into());
            }
            let waits = self.thread.waiting_states.enter();
            let _permit = self.folds.acquire().await;
            drop(waits);
            fold_until(self.hub.source(), job, last, fold, resize).await?;
            Ok(None)
        };
        timeout(OPEN_WAIT, folding).await.map_err(late)?
    }

    /// A job's state once the job has ended or `wait` has passed.
    pub(super) async fn state_within(
        &self,
        access: &Access,
        client: IpAddr,
        job: &JobId,
        wait: Duration,
    ) -> Result<(JobState, SplitReservation), Problem> {
        access.require(Operation::Watch(job))?;
        let _slot = self.shared.requests().acquire(client)?;
        if !wait.is_zero() {
            self.until_ended(client, job, wait).await?;
        }
        self.state(job).await
    }

    /// Waits until a job has ended or `wait` has passed.
    pub(super) async fn until_ended(
        &self,
        client: IpAddr,
        job: &JobId,
        wait: Duration,
    ) -> Result<(), Problem> {
        let after = match self.queue.find(job).await? {
            None => return Err(Code::JobNotFound.into()),
            Some(KnownJob::Queued(_)) => Seq(0),
            Some(KnownJob::Logged(last)) if last.event_type.is_end() => return Ok(()),
            Some(KnownJob::Logged(last)) => last.seq,
        };
        let watching = async {
            until_ended(client, &self.hub, job, after).await?;
            Ok(())
        };
        // When the edge stops, a waiting client gets the current state.
        match timeout(wait, self.tasks.stop().run_until_cancelled(watching)).await {
            Ok(Some(ended)) => ended,
            Ok(None) | Err(_) => Ok(()),
        }
    }
}

/// A new qualified id, whose name begins with `beginning`.
pub(super) fn new_id(kind: &Kind, beginning: &str) -> Result<JobId, Problem> {
    qualified(kind, &format!("{beginning}{}", nuid::next()))
}

fn qualified(kind: &Kind, name: &str) -> Result<JobId, Problem> {
    JobId::qualified(kind, name).map_err(|_| Code::BadJobId.into())
}

/// The id of the job of this kind that this subject submitted with this key. It does not reveal the
/// key.
fn id_of_key(kind: &Kind, subject: &str, key: &str) -> Result<JobId, Problem> {
    let mut digest = Sha256::new();
    if !subject.is_empty() {
        // The length keeps `a` with the key `bc` apart from `ab` with the key `c`.
        digest.update((subject.len() as u64).to_be_bytes());
        digest.update(subject);
    }
    digest.update(key);
    qualified(
        kind,
        &format!("{KEY_ID}{}", BASE64.encode(digest.finalize())),
    )
}
