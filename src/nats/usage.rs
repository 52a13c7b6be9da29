//! How full the queue is, asked now and then. Who is then turned away is decided by whoever submits.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use serde_json::Value;
use tokio::time::Instant;

use super::features::Features;
use super::log::{Log, unavailable};
use super::setup;
use crate::config::{KIND_JOBS_MAX, SMALL_INPUT, USAGE_AGE};
use crate::source::Unavailable;
use crate::wire::Kind;

/// How full the queue is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueUsage {
    /// How many jobs of the kind wait or run.
    pub jobs: u64,
    /// How many bytes the jobs of all kinds take.
    pub bytes: u64,
    /// How many bytes they may take.
    pub bytes_max: u64,
    /// What the workers of the kind do besides running its jobs.
    pub features: Features,
}

impl QueueUsage {
    /// Whether another job of the kind, with an input of `size` bytes, has room. No kind gets more than its share of
    /// the jobs; large inputs get no more than half of the bytes, so that they leave room for other kinds' small ones.
    pub const fn has_room(&self, size: usize) -> bool {
        self.jobs < KIND_JOBS_MAX && (size <= SMALL_INPUT || self.bytes < self.bytes_max / 2)
    }
}

/// How full the queue is, as one submitter knows it: asked now and then, and its own submissions counted in between.
#[derive(Debug, Default)]
pub struct UsageCache(Mutex<HashMap<Kind, (Instant, QueueUsage)>>);

/// How many kinds a submitter remembers; past it, it asks each time.
const KINDS_MAX: usize = 1000;

impl UsageCache {
    /// How full the queue is for one job more of `kind`, which is counted; `None` when no worker has ever served it.
    ///
    /// # Errors
    /// [`Unavailable`].
    pub async fn of(&self, log: &Log, kind: &Kind) -> Result<Option<QueueUsage>, Unavailable> {
        if let Some(usage) = self.count(kind) {
            return Ok(Some(usage));
        }
        let usage = log.usage(kind).await?;
        if let Some(usage) = usage {
            self.learn(kind, usage);
        }
        Ok(usage)
    }

    /// What is known and recent, and counts one job more.
    fn count(&self, kind: &Kind) -> Option<QueueUsage> {
        let mut usages = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (asked, usage) = usages.get_mut(kind)?;
        usage.jobs += 1;
        (asked.elapsed() < USAGE_AGE).then_some(*usage)
    }

    fn learn(&self, kind: &Kind, usage: QueueUsage) {
        let mut usages = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if usages.len() < KINDS_MAX || usages.contains_key(kind) {
            usages.insert(kind.clone(), (Instant::now(), usage));
        }
    }
}

impl Log {
    /// How full the queue is for jobs of `kind`; `None` when no worker has ever served it.
    ///
    /// # Errors
    /// [`Unavailable`].
    pub async fn usage(&self, kind: &Kind) -> Result<Option<QueueUsage>, Unavailable> {
        let consumer = setup::kind_info(&self.nats.work, &self.nats.names, kind)
            .await
            .map_err(unavailable)?;
        let Some(consumer) = consumer else {
            return Ok(None);
        };
        let stream = self.nats.names.jobs_stream();
        let info = setup::stream_info(&self.nats.work, &stream)
            .await
            .map_err(unavailable)?;
        let info = info.ok_or_else(|| Unavailable(format!("stream {stream} is gone")))?;
        let number = |value: &Value| value.as_u64().unwrap_or(0);
        Ok(Some(QueueUsage {
            jobs: number(&consumer["num_pending"]) + number(&consumer["num_ack_pending"]),
            bytes: number(&info["state"]["bytes"]),
            bytes_max: number(&info["config"]["max_bytes"]),
            features: Features::of(&consumer),
        }))
    }
}
