//! How full the queue is. Submits jobs only while it has room.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use tokio::time::Instant;

use super::error::unavailable;
use super::features::Features;
use super::info::{self, ConsumerInfo};
use super::queue::{Queue, SubmitOutcome};
use crate::config::{KIND_JOBS_MAX, KINDS_MAX, SMALL_INPUT, USAGE_AGE};
use crate::source::Unavailable;
use crate::wire::{JobId, Kind, Submission, codec};

/// How full the queue is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueUsage {
    /// How many jobs of the kind wait or run.
    pub jobs: u64,
    /// How many bytes the jobs of all kinds take.
    pub bytes: u64,
    /// How many bytes the queue may hold.
    pub bytes_max: u64,
    /// The optional features of the kind's workers.
    pub features: Features,
}

impl QueueUsage {
    /// Whether there is room for another job of the kind with an input of `size` bytes. The jobs of
    /// each kind are limited. Large inputs may use at most half of the bytes, which leaves room for
    /// the small ones of other kinds.
    pub const fn has_room(&self, size: usize) -> bool {
        self.jobs < KIND_JOBS_MAX && (size <= SMALL_INPUT || self.bytes < self.bytes_max / 2)
    }
}

/// A submitter's cache of how full the queue is. Its own submissions are added between reads.
#[derive(Debug, Default)]
pub struct UsageCache(Mutex<HashMap<Kind, (Instant, QueueUsage)>>);

impl UsageCache {
    /// How full the queue is for jobs of `kind`, before one more, which is counted; `None` when no
    /// worker has ever served the kind.
    ///
    /// # Errors
    /// [`Unavailable`].
    pub async fn of(&self, queue: &Queue, kind: &Kind) -> Result<Option<QueueUsage>, Unavailable> {
        if let Some(usage) = self.count(kind) {
            return Ok(Some(usage));
        }
        let usage = queue.usage(kind).await?;
        if let Some(usage) = usage {
            self.remember(kind, usage);
        }
        Ok(usage)
    }

    /// Counts one more job, and returns the cached usage if it is recent.
    fn count(&self, kind: &Kind) -> Option<QueueUsage> {
        let mut usages = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (read_at, usage) = usages.get_mut(kind)?;
        usage.jobs += 1;
        (read_at.elapsed() < USAGE_AGE).then_some(*usage)
    }

    fn remember(&self, kind: &Kind, usage: QueueUsage) {
        let mut usages = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if usages.len() < KINDS_MAX || usages.contains_key(kind) {
            usages.insert(kind.clone(), (Instant::now(), usage));
        }
    }
}

impl Queue {
    /// How full the queue is for jobs of `kind`; `None` when no worker has ever served the kind.
    ///
    /// # Errors
    /// [`Unavailable`].
    pub async fn usage(&self, kind: &Kind) -> Result<Option<QueueUsage>, Unavailable> {
        let nats = &self.log.nats;
        let consumer: Option<ConsumerInfo> = info::find_kind(&nats.work, &nats.names, kind).await?;
        let Some(consumer) = consumer else {
            return Ok(None);
        };
        let stream = info::stream(&nats.work, &nats.names.jobs_stream()).await?;
        Ok(Some(QueueUsage {
            jobs: consumer.num_pending + consumer.num_ack_pending,
            bytes: stream.state.bytes,
            // A negative number means no limit.
            bytes_max: u64::try_from(stream.config.max_bytes).unwrap_or(u64::MAX),
            features: Features::of(&consumer.config.metadata),
        }))
    }

    /// Submits a job if the queue has room for it according to `usage`. A job that was submitted
    /// before is found even if there is no room.
    ///
    /// # Errors
    /// As [`Self::submit`].
    pub async fn submit_if_room(
        &self,
        job: &JobId,
        submission: &Submission,
        usage: &QueueUsage,
    ) -> Result<SubmitOutcome, Unavailable> {
        let size = codec::json_len(&submission.input).map_err(unavailable)?;
        if usage.has_room(size) {
            return self.submit(job, submission).await;
        }
        let known = self.known(job, submission).await?;
        Ok(known.unwrap_or(SubmitOutcome::Full))
    }
}
