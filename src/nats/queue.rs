//! The work queue: submit a job, and claim some of a kind. What becomes of a job that was handed over is not decided here.

use std::fmt;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_nats::jetstream;
use async_nats::jetstream::consumer::{PullConsumer, pull::Batch};
use async_nats::{Client, HeaderMap};
use futures_util::{FutureExt as _, StreamExt as _};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep_until, timeout};

use super::api::{self, Published};
use super::connect::Nats;
use super::delivery::Delivery;
use super::error::{Error, code};
use super::log::{Log, unavailable};
use super::quorum::Of;
use super::usage::QueueUsage;
use super::writer::{AppendError, Writer};
use super::{names, setup};
use crate::config::{CLAIM_LATE, CLAIM_WAIT, REQUEST_WAIT};
use crate::source::Unavailable;
use crate::wire::{EventType, JobId, Kind, Limits, Submission, codec};

/// A job as it stands in the queue, as JSON.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub(super) struct Queued {
    pub(super) job: JobId,
    kind: Kind,
    #[serde(default, deserialize_with = "codec::value")]
    input: Value,
    timeout_ms: Option<u64>,
    silence_timeout_ms: Option<u64>,
    callback: Option<String>,
}

/// A job as it is written to the queue. It borrows: a copy of a large input takes the thread some 10 ms.
#[derive(Serialize)]
struct Entry<'a> {
    job: &'a JobId,
    kind: &'a Kind,
    input: &'a Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    timeout_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    silence_timeout_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    callback: Option<&'a str>,
}

impl<'a> Entry<'a> {
    fn new(job: &'a JobId, submission: &'a Submission) -> Self {
        let Submission {
            kind,
            input,
            id: _,
            limits,
            callback,
        } = submission;
        let Limits {
            timeout_ms,
            silence_timeout_ms,
        } = *limits;
        Self {
            job,
            kind,
            input,
            timeout_ms,
            silence_timeout_ms,
            callback: callback.as_deref(),
        }
    }

    /// How many bytes the job has as it is stored, in the queue or in the first event of its log, whichever is larger.
    fn stored_len(job: &JobId, submission: &Submission) -> Result<usize, codec::Error> {
        let in_queue = codec::json_len(&Entry::new(job, submission))?;
        Ok(submission.event_len()?.max(in_queue))
    }
}

impl Queued {
    /// Whether it is this very submission.
    fn is(&self, job: &JobId, submission: &Submission) -> bool {
        let Submission {
            kind,
            input,
            id: _,
            limits,
            callback,
        } = submission;
        let Limits {
            timeout_ms,
            silence_timeout_ms,
        } = *limits;
        let same_limits =
            (self.timeout_ms, self.silence_timeout_ms) == (timeout_ms, silence_timeout_ms);
        (&self.job, &self.kind, &self.callback) == (job, kind, callback)
            && same_limits
            && self.input == *input
    }

    pub(super) fn into_submission(self) -> Submission {
        let Self {
            job,
            kind,
            input,
            timeout_ms,
            silence_timeout_ms,
            callback,
        } = self;
        let limits = Limits {
            timeout_ms,
            silence_timeout_ms,
        };
        Submission {
            kind,
            input,
            id: Some(job),
            limits,
            callback,
        }
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
    /// No queue or log takes a job of this size: neither holds anything of it.
    TooLarge {
        /// The size as it is stored, in bytes.
        size: usize,
        /// The limit, in bytes.
        limit: usize,
    },
}

impl Log {
    /// Submits a job if the queue, as `usage` reports it, has room for it. What was submitted before is known all the
    /// same.
    ///
    /// # Errors
    /// As [`Self::submit`].
    pub async fn submit_if_room(
        &self,
        job: &JobId,
        submission: &Submission,
        usage: &QueueUsage,
    ) -> Result<Submitted, Unavailable> {
        let size =
            codec::json_len(&submission.input).map_err(|error| Unavailable(error.to_string()))?;
        if usage.has_room(size) {
            self.submit(job, submission).await
        } else {
            Ok(self
                .submitted(job, submission)
                .await?
                .unwrap_or(Submitted::Full))
        }
    }

    /// Submits a job: first to the queue, then the first event of its log.
    ///
    /// # Errors
    /// [`Unavailable`]: nobody knows whether it was submitted; the same submission again is harmless.
    pub async fn submit(
        &self,
        job: &JobId,
        submission: &Submission,
    ) -> Result<Submitted, Unavailable> {
        // Before anything is stored: a job that is queued and has no log can only be ended.
        let size =
            Entry::stored_len(job, submission).map_err(|error| Unavailable(error.to_string()))?;
        let limit = self.event_max();
        if size > limit {
            return Ok(Submitted::TooLarge { size, limit });
        }
        if let Some(known) = self.known(job, submission).await? {
            return Ok(known);
        }
        let payload = serde_json::to_vec(&Entry::new(job, submission))
            .map_err(|error| Unavailable(error.to_string()))?;
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
                return Ok(self
                    .submitted(job, submission)
                    .await?
                    .unwrap_or(Submitted::Full));
            }
            Published::Refused => {
                return Err(Unavailable("the queue refused without a reason".into()));
            }
            Published::Never(reason) => return Err(Unavailable(reason)),
            Published::Rejected(error) | Published::Unsure(error) => return Err(error),
        }
        match Writer::new(self.clone(), job.clone(), 0, None)
            .append(submission.queued())
            .await
        {
            Ok(()) | Err(AppendError::Superseded | AppendError::CancelRequested) => {
                Ok(Submitted::New)
            }
            // The job is in the queue, so it will run: its worker begins the log.
            Err(AppendError::Unwritable(_) | AppendError::Unavailable(_)) => Ok(Submitted::New),
        }
    }

    /// Whether the log knows the id, and as the same job. It never answers [`Submitted::New`] or [`Submitted::Full`].
    async fn known(
        &self,
        job: &JobId,
        submission: &Submission,
    ) -> Result<Option<Submitted>, Unavailable> {
        let Some(first) = self.first(job).await? else {
            return Ok(None);
        };
        let same = first.event_type == EventType::Queued
            && first
                .event()
                .is_ok_and(|event| event.body == submission.queued());
        Ok(Some(if same {
            Submitted::Same
        } else {
            Submitted::Other
        }))
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
        let Some(there) = self.queued(job).await? else {
            return Ok(None);
        };
        let same = there.is(job, submission);
        Ok(Some(if same {
            Submitted::Same
        } else {
            Submitted::Other
        }))
    }

    /// The job of this id that waits in the queue, when it has no event yet.
    async fn queued(&self, job: &JobId) -> Result<Option<Queued>, Unavailable> {
        self.proven(Of::Queue, || self.queued_now(job)).await
    }

    /// Whether a server that leads the queue, or believes that it does, has the job.
    pub(super) async fn is_queued(&self, job: &JobId) -> Result<bool, Unavailable> {
        Ok(self.queued_now(job).await?.is_some())
    }

    async fn queued_now(&self, job: &JobId) -> Result<Option<Queued>, Unavailable> {
        let stream = self.nats.names.jobs_stream();
        let body = json!({"last_by_subj": self.nats.names.queued_of_any_kind(job)});
        let subject = format!("STREAM.MSG.GET.{stream}");
        let answer = api::find(&self.nats.work, &subject, &body, &[code::NO_MESSAGE])
            .await
            .map_err(unavailable)?;
        Ok(answer.and_then(|answer| {
            use base64::Engine as _;
            let data = answer["message"]["data"].as_str()?.to_owned();
            let raw = base64::engine::general_purpose::STANDARD
                .decode(data)
                .ok()?;
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
        f.debug_struct("Claim")
            .field("asked", &self.asked.is_some())
            .finish_non_exhaustive()
    }
}

impl Claim {
    /// Makes the kind known, with this ack wait when no worker has served it before, and begins to serve it.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn begin(nats: &Nats, kind: &Kind, ack_wait: Duration) -> Result<Self, Error> {
        nats.patiently(|| setup::ensure_kind(&nats.work, &nats.names, kind, ack_wait))
            .await?;
        let broken = |error: String| Error::Unavailable(Unavailable(error));
        let context = jetstream::new(nats.work.clone());
        let stream = context
            .get_stream_no_info(nats.names.jobs_stream())
            .await
            .map_err(|error| broken(error.to_string()))?;
        let consumer: PullConsumer = nats
            .patiently(|| async {
                stream
                    .get_consumer(kind.as_str())
                    .await
                    .map_err(|error| broken(error.to_string()))
            })
            .await?;
        Ok(Self {
            nats: nats.clone(),
            consumer,
            asked: None,
        })
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
                Ok(()) = self.nats.work_back.changed() => {
                    if asked.connection == connections(&self.nats.work) {
                        continue;
                    }
                    None
                }
            };
            match answer {
                Some(Ok(message)) => {
                    if let Some(delivery) =
                        Delivery::read(self.nats.clone(), message, self.ack_wait()).await
                    {
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
        let fetch = self
            .consumer
            .fetch()
            .max_messages(free)
            .expires(CLAIM_WAIT)
            .messages();
        let batch = timeout(REQUEST_WAIT, fetch)
            .await
            .map_err(|_| Unavailable("no answer in time".into()))?;
        let batch = batch.map_err(|error| Unavailable(error.to_string()))?;
        // Once sent, it went over the connection that stands now, or is lost; until then, the next one may carry it.
        self.flush().await?;
        let connection = connections(&self.nats.work);
        Ok(Asked {
            batch,
            connection,
            until: Instant::now() + CLAIM_WAIT + CLAIM_LATE,
        })
    }

    /// Waits until all that was asked for so far is sent.
    async fn flush(&self) -> Result<(), Unavailable> {
        self.nats
            .work
            .flush()
            .await
            .map_err(|error| Unavailable(error.to_string()))
    }

    /// Claims no more, and gives back what was handed over and not taken.
    pub async fn end(self) {
        let ack_wait = self.ack_wait();
        let Some(Asked { mut batch, .. }) = self.asked else {
            return;
        };
        while let Some(Some(Ok(message))) = batch.next().now_or_never() {
            if let Some(delivery) = Delivery::read(self.nats.clone(), message, ack_wait).await {
                delivery.give_back(None).await;
            }
        }
    }
}

/// How many connections a client has had.
pub(super) fn connections(client: &Client) -> u64 {
    client.statistics().connects.load(Ordering::Relaxed)
}
