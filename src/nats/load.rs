//! How full the queue is, asked now and then. Who is then turned away is decided by whoever submits.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use serde_json::Value;
use tokio::time::Instant;

use super::features::Features;
use super::log::{Log, unavailable};
use super::setup;
use crate::config::{KIND_JOBS_MAX, LOAD_AGE, SMALL_INPUT};
use crate::source::Unavailable;
use crate::wire::Kind;

/// How full the queue is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// How many jobs of the kind wait or run.
    pub jobs: u64,
    /// How many bytes the jobs of all kinds take.
    pub bytes: u64,
    /// How many bytes they may take.
    pub bytes_max: u64,
    /// What the workers of the kind do besides running its jobs.
    pub features: Features,
}

impl Load {
    /// Whether another job of the kind, with an input of `size` bytes, has room. No kind gets more than its share of
    /// the jobs; large inputs get no more than half of the bytes, so that they leave room for other kinds' small ones.
    pub const fn admits(&self, size: usize) -> bool {
        self.jobs < KIND_JOBS_MAX && (size <= SMALL_INPUT || self.bytes < self.bytes_max / 2)
    }
}

/// How full the queue is, as one submitter knows it: asked now and then, and its own submissions counted in between.
#[derive(Debug, Default)]
pub struct Loads(Mutex<HashMap<Kind, (Instant, Load)>>);

/// How many kinds a submitter remembers; past it, it asks each time.
const KINDS_MAX: usize = 1000;

impl Loads {
    /// How full the queue is for one job more of `kind`, which is counted; `None` when no worker has ever served it.
    ///
    /// # Errors
    /// [`Unavailable`].
    pub async fn of(&self, log: &Log, kind: &Kind) -> Result<Option<Load>, Unavailable> {
        if let Some(load) = self.count(kind) {
            return Ok(Some(load));
        }
        let load = log.load(kind).await?;
        if let Some(load) = load {
            self.learn(kind, load);
        }
        Ok(load)
    }

    /// What is known and recent, and counts one job more.
    fn count(&self, kind: &Kind) -> Option<Load> {
        let mut loads = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (asked, load) = loads.get_mut(kind)?;
        load.jobs += 1;
        (asked.elapsed() < LOAD_AGE).then_some(*load)
    }

    fn learn(&self, kind: &Kind, load: Load) {
        let mut loads = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if loads.len() < KINDS_MAX || loads.contains_key(kind) {
            loads.insert(kind.clone(), (Instant::now(), load));
        }
    }
}

impl Log {
    /// How full the queue is for jobs of `kind`; `None` when no worker has ever served it.
    ///
    /// # Errors
    /// [`Unavailable`].
    pub async fn load(&self, kind: &Kind) -> Result<Option<Load>, Unavailable> {
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
        Ok(Some(Load {
            jobs: number(&consumer["num_pending"]) + number(&consumer["num_ack_pending"]),
            bytes: number(&info["state"]["bytes"]),
            bytes_max: number(&info["config"]["max_bytes"]),
            features: Features::of(&consumer),
        }))
    }
}
