//! Removes everything that is stored about a job that no worker continues, and makes the edges
//! forget it.
//!
//! A purged job is like one that has expired, so readers need no new state. What edges hold in memory
//! cannot be seen in the log, so they hear of a purge by a signal. An edge that missed the signal
//! was disconnected, and checks its feeds once it is connected again.

use std::borrow::Cow;
use std::sync::Arc;

use async_nats::Subscriber;
use async_nats::jetstream::ErrorCode;
use bytes::Bytes;
use futures_util::StreamExt as _;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::time::sleep;

use super::api;
use super::delivery::Delivery;
use super::names::Names;
use super::queue::Queue;
use super::ready::{answers, subscribe_confirmed};
use super::recording::{JobToPurge, Recording, ask};
use super::tip::Tip;
use crate::config::PURGE_AGAIN;
use crate::source::{KnownJob, Unavailable, find_job};
use crate::wire::JobId;

/// The result of a purge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PurgeOutcome {
    /// Nothing is stored any more.
    Purged,
    /// The job waits in the queue or runs. Nothing was removed.
    NotEnded,
    /// No job has this id.
    Unknown,
}

/// The answer to the removal of a subject's messages.
#[derive(Deserialize)]
struct RemovedCount {
    /// How many there were.
    #[serde(default)]
    purged: u64,
}

/// The subscription to the signals of purges.
#[derive(Debug)]
pub struct PurgeSignals {
    names: Arc<Names>,
    live: Subscriber,
}

impl Queue {
    /// Removes a job that has ended, or that was abandoned: its log has no final event, the queue
    /// does not hold it any more, and no worker runs it. Removes its message in the queue, its log
    /// and its segments, and makes every edge forget it.
    ///
    /// # Errors
    /// [`Unavailable`]. Repeating it completes a purge that failed.
    pub async fn purge(&self, job: &JobId) -> Result<PurgeOutcome, Unavailable> {
        if self.asks_recorder {
            let job = Cow::Borrowed(job);
            return ask(&self.log.nats, Recording::Purge, &JobToPurge { job }).await;
        }
        let names = &self.log.nats.names;
        let found = find_job(|| self.tip_of_messages(job), || self.queued_kind(job));
        let has_log = match found.await? {
            None => false,
            Some(KnownJob::Queued(_)) => return Ok(PurgeOutcome::NotEnded),
            Some(KnownJob::Logged(tip)) => {
                if self.may_continue(job, &tip).await? {
                    return Ok(PurgeOutcome::NotEnded);
                }
                true
            }
        };
        let mut removed = 0;
        // Without a log, another process may be submitting the job at this moment.
        if has_log {
            // The queue comes first: without a log, a worker would run the job again.
            let queued = names.queued_of_any_kind(job);
            removed += self.remove(&names.jobs_stream(), &queued).await?;
            removed += self
                .remove(&self.log.stream(job), &self.log.subject(job))
                .await?;
        }
        // Also without a log: this may be the repetition of a purge that failed here.
        removed += self.remove_segments(job).await?;
        self.send_purged(job).await?;
        if removed == 0 {
            return Ok(PurgeOutcome::Unknown);
        }
        // Meanwhile the worker may have stored the last segment, and an edge may have read a replica
        // that lagged.
        sleep(PURGE_AGAIN).await;
        self.remove_segments(job).await?;
        self.send_purged(job).await?;
        Ok(PurgeOutcome::Purged)
    }

    /// The end of a log; `None` if it has no messages.
    async fn tip_of_messages(&self, job: &JobId) -> Result<Option<Tip>, Unavailable> {
        let tip = self.log.proven_tip(job).await?;
        let is_empty = matches!(tip, Tip::At { fence: 0, .. });
        Ok((!is_empty).then_some(tip))
    }

    /// Whether a job with this end of its log waits in the queue, or may be run by a worker.
    async fn may_continue(&self, job: &JobId, tip: &Tip) -> Result<bool, Unavailable> {
        if let Tip::At {
            last: Some(last), ..
        } = tip
            && last.event_type.is_end()
        {
            return Ok(false);
        }
        // Asked after the log: a job that ends in between has left the queue because it ended.
        if self.queued_kind(job).await?.is_some() {
            return Ok(true);
        }
        // The queue may have lost a job that runs: it was emptied, or restored from a backup.
        Ok(match tip {
            Tip::At {
                last: Some(last), ..
            } => last.attempt > 0 && self.is_owner_alive(job, last.attempt).await,
            // No attempt has begun.
            Tip::At { last: None, .. } => false,
            // The log does not show which attempt is the last one.
            Tip::Undecodable => self.living_attempt(job).await.is_some(),
        })
    }

    /// Whether the queue has removed a job that it delivered: it has ended, or was purged.
    ///
    /// # Errors
    /// [`Unavailable`], also when the queue's leader may not have stored the job yet, because it is
    /// slower than the server that delivered the job.
    pub async fn has_removed(&self, delivery: &Delivery) -> Result<bool, Unavailable> {
        self.log
            .left_queue(&delivery.job, delivery.stream_seq)
            .await
    }

    /// Removes the segments of a job. Returns how many there were.
    async fn remove_segments(&self, job: &JobId) -> Result<u64, Unavailable> {
        let names = &self.log.nats.names;
        let shard = job.shard(self.log.shards);
        let subject = names.segments_of(shard, job);
        self.remove(&names.segments_stream(shard), &subject).await
    }

    /// Removes the messages of a subject from a stream. Returns how many there were: none when the
    /// stream does not exist.
    async fn remove(&self, stream: &str, subject: &str) -> Result<u64, Unavailable> {
        let request = format!("STREAM.PURGE.{stream}");
        let body = json!({"filter": subject}).to_string();
        let absent = ErrorCode::STREAM_NOT_FOUND;
        let removed: Option<RemovedCount> =
            api::find(&self.log.nats.work, &request, body, absent).await?;
        Ok(removed.map_or(0, |removed| removed.purged))
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
                "the signal of the purge did not reach the server".into(),
            ))
        }
    }

    /// Subscribes to the signals of purges, and waits until the subscription is established.
    ///
    /// # Errors
    /// [`Unavailable`].
    pub async fn purge_signals(&self) -> Result<PurgeSignals, Unavailable> {
        let nats = &self.log.nats;
        let subject = nats.names.purged_jobs();
        let live = subscribe_confirmed(&nats.live, subject, &nats.names.ready()).await?;
        Ok(PurgeSignals {
            names: nats.names.clone(),
            live,
        })
    }
}

impl PurgeSignals {
    /// The next purged job; `None` once the connection is closed permanently.
    pub async fn next(&mut self) -> Option<JobId> {
        loop {
            let message = self.live.next().await?;
            if let Some(job) = self.names.job_of_purged(&message.subject) {
                return Some(job);
            }
        }
    }
}
