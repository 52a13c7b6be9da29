//! The work queue: submit a job, claim one, keep it, give it back. What a job's log says is not looked at after the
//! claim.

use std::fmt;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use async_nats::jetstream::consumer::{PullConsumer, pull::Batch};
use async_nats::jetstream::{self, AckKind};
use async_nats::{Client, HeaderMap};
use futures_util::{FutureExt as _, StreamExt as _};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};
use tracing::{debug, warn};

use super::api::{self, Published};
use super::connect::Nats;
use super::error::{Error, code};
use super::load::Load;
use super::log::{Log, unavailable};
use super::quorum::Of;
use super::writer::{Refusal, Writer};
use super::{names, setup};
use crate::config::{CLAIM_LATE, CLAIM_WAIT, REQUEST_WAIT};
use crate::source::Unavailable;
use crate::wire::{JobId, Kind, Limits, Submission, Type};

/// A job as it stands in the queue, as JSON.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Queued {
    job: JobId,
    kind: Kind,
    #[serde(default)]
    input: Value,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    timeout_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    silence_timeout_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    callback: Option<String>,
}

impl Queued {
    fn new(job: &JobId, submission: &Submission) -> Self {
        let Submission { kind, input, id: _, limits, callback } = submission.clone();
        let Limits { timeout_ms, silence_timeout_ms } = limits;
        Self { job: job.clone(), kind, input, timeout_ms, silence_timeout_ms, callback }
    }

    fn into_submission(self) -> Submission {
        let Self { job, kind, input, timeout_ms, silence_timeout_ms, callback } = self;
        let limits = Limits { timeout_ms, silence_timeout_ms };
        Submission { kind, input, id: Some(job), limits, callback }
    }
}

/// What became of a submission.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Submitted {
    /// The job is in the queue.
    New,
    /// The very same job was submitted before.
    Same,
    /// The id names another job.
    Other,
    /// The queue takes no more.
    Full,
}

impl Log {
    /// Submits a job if the queue, as full as `load` says, has room for it. What was submitted before is known all the
    /// same.
    ///
    /// # Errors
    /// As [`Self::submit`].
    pub async fn offer(
        &self,
        job: &JobId,
        submission: &Submission,
        load: &Load,
    ) -> Result<Submitted, Unavailable> {
        if load.admits(submission.input.to_string().len()) {
            self.submit(job, submission).await
        } else {
            Ok(self.submitted(job, submission).await?.unwrap_or(Submitted::Full))
        }
    }

    /// Submits a job: first to the queue, then the first event of its log.
    ///
    /// # Errors
    /// [`Unavailable`]: nobody knows whether it was submitted; the same submission again is harmless.
    pub async fn submit(&self, job: &JobId, submission: &Submission) -> Result<Submitted, Unavailable> {
        if let Some(known) = self.known(job, submission).await? {
            return Ok(known);
        }
        let queued = Queued::new(job, submission);
        let payload = serde_json::to_vec(&queued).map_err(|error| Unavailable(error.to_string()))?;
        let mut headers = HeaderMap::new();
        headers.insert(names::MESSAGE_ID, job.as_str());
        let subject = self.nats.names.queued(&submission.kind, job);
        match api::publish(&self.nats.work, subject, headers, payload.into()).await {
            Published::Stored(_) => {}
            // It is there and has no event: another submission with this id was faster, by less than its first event
            // takes, or died before that event, or the event has expired while the job waits.
            Published::Duplicate | Published::InFlight | Published::Taken => {
                let there = self.submitted(job, submission).await?;
                return there.ok_or_else(|| Unavailable("the submission is under way".into()));
            }
            Published::Full => {
                return Ok(self.submitted(job, submission).await?.unwrap_or(Submitted::Full));
            }
            Published::Refused => return Err(Unavailable("the queue refused without a reason".into())),
            Published::Unsure(error) => return Err(error),
        }
        match Writer::new(self.clone(), job.clone(), 0, None).append(submission.queued()).await {
            Ok(()) | Err(Refusal::Superseded | Refusal::CancelRequested) => Ok(Submitted::New),
            // The job is in the queue, so it will run: its worker begins the log.
            Err(Refusal::Unwritable(_) | Refusal::Unavailable(_)) => Ok(Submitted::New),
        }
    }

    /// Whether the log knows the id, and as the same job. It never answers [`Submitted::New`] or [`Submitted::Full`].
    async fn known(&self, job: &JobId, submission: &Submission) -> Result<Option<Submitted>, Unavailable> {
        let Some(first) = self.first(job).await? else { return Ok(None) };
        let same =
            first.kind == Type::Queued && first.event().is_ok_and(|event| event.body == submission.queued());
        Ok(Some(if same { Submitted::Same } else { Submitted::Other }))
    }

    /// Whether the log knows the id or, when it has no event yet, the queue. It answers as [`Self::known`] does.
    async fn submitted(
        &self,
        job: &JobId,
        submission: &Submission,
    ) -> Result<Option<Submitted>, Unavailable> {
        if let Some(known) = self.known(job, submission).await? {
            return Ok(Some(known));
        }
        let Some(there) = self.queued(job).await? else { return Ok(None) };
        let same = there == Queued::new(job, submission);
        Ok(Some(if same { Submitted::Same } else { Submitted::Other }))
    }

    /// The job of this id that waits in the queue, when it has no event yet.
    async fn queued(&self, job: &JobId) -> Result<Option<Queued>, Unavailable> {
        self.proven(Of::Queue, || self.queued_now(job)).await
    }

    async fn queued_now(&self, job: &JobId) -> Result<Option<Queued>, Unavailable> {
        let stream = self.nats.names.jobs_stream();
        let body = json!({"last_by_subj": self.nats.names.queued_of_any_kind(job)});
        let subject = format!("STREAM.MSG.GET.{stream}");
        let answer =
            api::find(&self.nats.work, &subject, &body, &[code::NO_MESSAGE]).await.map_err(unavailable)?;
        Ok(answer.and_then(|answer| {
            use base64::Engine as _;
            let data = answer["message"]["data"].as_str()?.to_owned();
            let raw = base64::engine::general_purpose::STANDARD.decode(data).ok()?;
            serde_json::from_slice(&raw).ok()
        }))
    }

    /// What was submitted, of a job that waits in the queue or runs.
    pub(super) async fn waiting(&self, job: &JobId) -> Result<Option<Submission>, Unavailable> {
        Ok(self.queued(job).await?.map(Queued::into_submission))
    }

    /// The kind of a job that waits in the queue and has no event yet.
    ///
    /// # Errors
    /// [`Unavailable`].
    pub async fn queued_kind(&self, job: &JobId) -> Result<Option<Kind>, Unavailable> {
        Ok(self.queued(job).await?.map(|queued| queued.kind))
    }
}

/// Claims jobs of one kind.
pub struct Claim {
    nats: Nats,
    consumer: PullConsumer,
    asked: Option<Asked>,
}

/// What was asked for and may still come. Whatever comes after this was dropped is handed out again only after the ack
/// wait.
struct Asked {
    batch: Batch,
    /// Over which connection, counted from the first: the broker forgets the request with it.
    connection: u64,
    /// When the broker has answered, or never will.
    until: Instant,
}

impl fmt::Debug for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Claim").field("asked", &self.asked.is_some()).finish_non_exhaustive()
    }
}

impl Claim {
    /// Makes the kind known, with this ack wait when no worker has served it before, and begins to serve it.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn begin(nats: &Nats, kind: &Kind, ack_wait: Duration) -> Result<Self, Error> {
        nats.patiently(|| setup::ensure_kind(&nats.work, &nats.names, kind, ack_wait)).await?;
        let broken = |error: String| Error::Unavailable(Unavailable(error));
        let context = jetstream::new(nats.work.clone());
        let stream = context
            .get_stream_no_info(nats.names.jobs_stream())
            .await
            .map_err(|error| broken(error.to_string()))?;
        let consumer: PullConsumer = nats
            .patiently(|| async {
                stream.get_consumer(kind.as_str()).await.map_err(|error| broken(error.to_string()))
            })
            .await?;
        Ok(Self { nats: nats.clone(), consumer, asked: None })
    }

    /// After what silence of its worker the queue hands a job to another one. Fixed by the kind's first worker.
    pub fn ack_wait(&self) -> Duration {
        self.consumer.cached_info().config.ack_wait
    }

    /// The next job; asks the broker for `free` of them when none was asked for. Safe to drop at any await.
    ///
    /// # Errors
    /// [`Unavailable`]: ask again after a pause.
    pub async fn next(&mut self, free: usize) -> Result<Delivery, Unavailable> {
        loop {
            let Some(asked) = &mut self.asked else {
                self.asked = Some(self.ask(free).await?);
                continue;
            };
            let answer = tokio::select! {
                // What has come is taken before the rest is given up.
                biased;
                answer = asked.batch.next() => answer,
                () = sleep_until(asked.until) => None,
                Ok(()) = self.nats.work_reconnected.changed() => {
                    if asked.connection == connections(&self.nats.work) {
                        continue;
                    }
                    None
                }
            };
            match answer {
                Some(Ok(message)) => {
                    if let Some(delivery) = Delivery::read(self.nats.clone(), message).await {
                        return Ok(delivery);
                    }
                }
                Some(Err(error)) => {
                    self.asked = None;
                    return Err(Unavailable(error.to_string()));
                }
                None => self.asked = None,
            }
        }
    }

    /// Asks the broker for `free` jobs.
    async fn ask(&self, free: usize) -> Result<Asked, Unavailable> {
        // However long the connection is away: what was asked meanwhile would be sent by the next one, and taken for lost.
        self.flush().await?;
        let fetch = self.consumer.fetch().max_messages(free).expires(CLAIM_WAIT).messages();
        let batch =
            timeout(REQUEST_WAIT, fetch).await.map_err(|_| Unavailable("no answer in time".into()))?;
        let batch = batch.map_err(|error| Unavailable(error.to_string()))?;
        // Once sent, it went over the connection that stands now, or is lost; until then, the next one may carry it.
        self.flush().await?;
        let connection = connections(&self.nats.work);
        Ok(Asked { batch, connection, until: Instant::now() + CLAIM_WAIT + CLAIM_LATE })
    }

    /// Waits until all that was asked for so far is sent.
    async fn flush(&self) -> Result<(), Unavailable> {
        self.nats.work.flush().await.map_err(|error| Unavailable(error.to_string()))
    }

    /// Claims no more, and gives back what was handed over and not taken.
    pub async fn end(self) {
        let Some(Asked { mut batch, .. }) = self.asked else { return };
        while let Some(Some(Ok(message))) = batch.next().now_or_never() {
            if let Err(error) = message.ack_with(AckKind::Nak(None)).await {
                debug!(%error, "a job was not given back; it is handed out again after the ack wait");
            }
        }
    }
}

/// How many connections a client has had.
pub(super) fn connections(client: &Client) -> u64 {
    client.statistics().connects.load(Ordering::Relaxed)
}

/// A job that this worker was handed, until it is acked or given back.
#[derive(Debug)]
pub struct Delivery {
    nats: Nats,
    message: jetstream::Message,
    /// The job.
    pub job: JobId,
    /// What was submitted.
    pub submission: Submission,
    /// When, by the broker's clock.
    pub submitted: SystemTime,
}

impl Delivery {
    async fn read(nats: Nats, message: jetstream::Message) -> Option<Self> {
        match serde_json::from_slice(&message.payload) {
            Ok(queued @ Queued { .. }) if names::job_of(&message.subject) == queued.job.as_str() => {
                let submitted =
                    message.info().map_or_else(|_| SystemTime::now(), |info| info.published.into());
                let (job, submission) = (queued.job.clone(), queued.into_submission());
                Some(Self { nats, message, job, submission, submitted })
            }
            _ => {
                warn!(subject = %message.subject, "the queue held something that is no job; it is thrown away");
                if let Err(error) = message.ack_with(AckKind::Term).await {
                    debug!(%error, "it could not be thrown away; it will be handed out again");
                }
                None
            }
        }
    }

    /// Tells the queue that the job is being worked on.
    pub async fn keep(&self) {
        self.tell(AckKind::Progress).await;
    }

    /// Gives the job back: another worker gets it after `delay`.
    pub async fn give_back(&self, delay: Option<Duration>) {
        self.tell(AckKind::Nak(delay)).await;
    }

    /// Takes the job out of the queue. Call it only when its end is in the log.
    ///
    /// # Errors
    /// [`Unavailable`]: it will be handed out again, and found to have ended.
    pub async fn done(&self) -> Result<(), Unavailable> {
        match timeout(REQUEST_WAIT, self.message.double_ack()).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(Unavailable(error.to_string())),
            Err(_) => Err(Unavailable("no answer in time".into())),
        }
    }

    /// Messages that say "look at the log of this job".
    ///
    /// # Errors
    /// [`Unavailable`].
    pub async fn nudges(&self) -> Result<Nudges, Unavailable> {
        let mut reconnected = self.nats.work_reconnected.clone();
        reconnected.mark_unchanged();
        let subject = self.nats.names.control(&self.job);
        let subscribed = self.nats.work.subscribe(subject).await;
        let told = subscribed.map_err(|error| Unavailable(error.to_string()))?;
        Ok(Nudges { told, reconnected })
    }

    async fn tell(&self, kind: AckKind) {
        // While the connection is down the library may wait without a limit.
        match timeout(REQUEST_WAIT, self.message.ack_with(kind)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => debug!(job = %self.job, %error, "the queue was not told"),
            Err(_) => debug!(job = %self.job, "the queue was not told in time"),
        }
    }
}

/// A job's nudges: look at the log, somebody else may have written to it.
#[derive(Debug)]
pub struct Nudges {
    told: async_nats::Subscriber,
    /// What was told while the connection was away is lost.
    reconnected: watch::Receiver<u64>,
}

impl Nudges {
    /// The next nudge; waits for ever after the subscription has ended.
    pub async fn next(&mut self) {
        let told = tokio::select! {
            told = self.told.next() => told.is_some(),
            again = self.reconnected.changed() => again.is_ok(),
        };
        if !told {
            std::future::pending().await
        }
    }
}
