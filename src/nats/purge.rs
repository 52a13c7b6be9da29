//! Removes everything that is stored about an ended job, and tells the edges to forget it.
//!
//! A purged job is like one that has expired, so readers need no new state. What edges hold in memory
//! cannot be seen in the log, so they hear of a purge by a signal. An edge that missed the signal
//! was disconnected, and checks its feeds once it is connected again.

use async_nats::Subscriber;
use async_nats::jetstream::ErrorCode;
use bytes::Bytes;
use futures_util::StreamExt as _;
use serde::de::IgnoredAny;
use serde_json::json;
use tokio::time::sleep;

use super::queue::Queue;
use super::ready::answers;
use super::{api, info, names};
use crate::config::PURGE_AGAIN;
use crate::source::Unavailable;
use crate::wire::JobId;

/// The result of a purge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PurgeOutcome {
    /// Nothing is stored any more.
    Purged,
    /// The job waits in the queue or runs. Nothing was removed.
    NotEnded,
    /// No job has this id.
    Unknown,
}

/// The subscription to the signals of purges.
#[derive(Debug)]
pub struct PurgeSignals {
    live: Subscriber,
}

impl Queue {
    /// Removes an ended job: its message in the queue, its log and its segments. Then makes every
    /// edge forget it.
    ///
    /// # Errors
    /// [`Unavailable`]. Repeating it completes a purge that failed.
    pub async fn purge(&self, job: &JobId) -> Result<PurgeOutcome, Unavailable> {
        let names = &self.log.nats.names;
        let shard = job.shard(self.log.shards);
        let last = self.log.last(job).await?;
        match &last {
            Some(last) if last.event_type.is_end() => {
                // The queue comes first: without a log, a worker would run the job again.
                let queued = names.queued_of_any_kind(job);
                self.remove(&names.jobs_stream(), &queued).await?;
                self.remove(&self.log.stream(job), &self.log.subject(job))
                    .await?;
            }
            Some(_) => return Ok(PurgeOutcome::NotEnded),
            None if self.queued_kind(job).await?.is_some() => return Ok(PurgeOutcome::NotEnded),
            None => {}
        }
        // Also for an unknown job: this may be the repetition of a purge that failed here.
        let segments = names.segments_stream(shard);
        self.remove(&segments, &names.segments_of(shard, job))
            .await?;
        self.send_purged(job).await?;
        if last.is_none() {
            return Ok(PurgeOutcome::Unknown);
        }
        let log = info::stream(&self.log.nats.work, &self.log.stream(job)).await?;
        if !log.cluster.replicas.is_empty() {
            // An edge may just have read a replica that lagged.
            sleep(PURGE_AGAIN).await;
            self.send_purged(job).await?;
        }
        Ok(PurgeOutcome::Purged)
    }

    /// Removes the messages of a subject from a stream. A stream that does not exist has none.
    async fn remove(&self, stream: &str, subject: &str) -> Result<(), Unavailable> {
        let request = format!("STREAM.PURGE.{stream}");
        let body = json!({"filter": subject}).to_string();
        let absent = ErrorCode::STREAM_NOT_FOUND;
        api::find::<IgnoredAny>(&self.log.nats.work, &request, body, absent).await?;
        Ok(())
    }

    /// Makes every edge forget a job. Returns once the server has the signal.
    async fn send_purged(&self, job: &JobId) -> Result<(), Unavailable> {
        let nats = &self.log.nats;
        let sent = nats.work.publish(nats.names.purged(job), Bytes::new());
        // The answer comes over the same connection, after the signal was processed.
        if sent.await.is_ok() && answers(&nats.work, &nats.names.ready()).await {
            Ok(())
        } else {
            Err(Unavailable(
                "the edges could not be told of the purge".into(),
            ))
        }
    }

    /// Subscribes to the signals of purges, and waits until the subscription is established.
    ///
    /// # Errors
    /// [`Unavailable`].
    pub async fn purge_signals(&self) -> Result<PurgeSignals, Unavailable> {
        let nats = &self.log.nats;
        let live = api::subscribe(&nats.live, nats.names.purged_jobs()).await?;
        if answers(&nats.live, &nats.names.ready()).await {
            Ok(PurgeSignals { live })
        } else {
            Err(Unavailable(
                "the connection for live messages does not answer".into(),
            ))
        }
    }
}

impl PurgeSignals {
    /// The next purged job; `None` once the connection is closed permanently.
    pub async fn next(&mut self) -> Option<JobId> {
        loop {
            let message = self.live.next().await?;
            if let Ok(job) = names::job_of(&message.subject).parse() {
                return Some(job);
            }
        }
    }
}
