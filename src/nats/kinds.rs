//! The kinds of jobs: one consumer each. It lists them with the depth of their queue.

use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::api;
use super::info::ConsumerInfo;
use super::queue::Queue;
use crate::config::{KINDS_MAX, USAGE_AGE};
use crate::source::Unavailable;
use crate::wire::{Kind, RESERVED_KIND};

/// A kind that some worker has served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, schemars::JsonSchema)]
pub struct KindUsage {
    /// The kind.
    pub kind: Kind,
    /// How many of its jobs wait for a worker.
    pub waiting: u64,
    /// How many of its jobs workers have.
    pub running: u64,
    /// How many of its workers ask for another job.
    pub idle_workers: u64,
}

/// The last list of kinds, and when it was read. All clients share it, so any number of them costs
/// the broker one request in [`USAGE_AGE`].
#[derive(Debug, Default)]
pub struct KindsCache(Mutex<Option<(Instant, Vec<KindUsage>)>>);

impl KindsCache {
    /// The kinds, at most [`USAGE_AGE`] old.
    ///
    /// # Errors
    /// [`Unavailable`].
    pub async fn of(&self, queue: &Queue) -> Result<Vec<KindUsage>, Unavailable> {
        let mut cached = self.0.lock().await;
        if let Some((read_at, kinds)) = &*cached
            && read_at.elapsed() < USAGE_AGE
        {
            return Ok(kinds.clone());
        }
        let kinds = queue.kinds().await?;
        *cached = Some((Instant::now(), kinds.clone()));
        Ok(kinds)
    }
}

#[derive(Deserialize)]
struct ConsumerPage {
    total: usize,
    consumers: Vec<NamedConsumer>,
}

#[derive(Deserialize)]
struct NamedConsumer {
    name: String,
    #[serde(flatten)]
    info: ConsumerInfo,
    /// How many requests for messages wait.
    #[serde(default)]
    num_waiting: u64,
}

impl Queue {
    /// The first [`KINDS_MAX`] kinds, in the order of their names.
    ///
    /// # Errors
    /// [`Unavailable`].
    pub async fn kinds(&self) -> Result<Vec<KindUsage>, Unavailable> {
        let nats = &self.log.nats;
        let request = format!("CONSUMER.LIST.{}", nats.names.jobs_stream());
        let mut kinds = Vec::new();
        let mut offset = 0;
        while offset < KINDS_MAX {
            let body = json!({"offset": offset}).to_string();
            let page: ConsumerPage = api::call(&nats.work, &request, body).await?;
            offset += page.consumers.len();
            let is_last = page.consumers.is_empty() || offset >= page.total;
            kinds.extend(page.consumers.into_iter().filter_map(usage));
            if is_last {
                break;
            }
        }
        kinds.sort_unstable_by(|a, b| a.kind.as_str().cmp(b.kind.as_str()));
        kinds.truncate(KINDS_MAX);
        Ok(kinds)
    }
}

/// The kind of a consumer. The kind of callbacks is internal, and other consumers are not ours.
fn usage(consumer: NamedConsumer) -> Option<KindUsage> {
    let NamedConsumer {
        name,
        info,
        num_waiting,
    } = consumer;
    Some(KindUsage {
        kind: name.parse().ok().filter(|_| name != RESERVED_KIND)?,
        waiting: info.num_pending,
        running: info.num_ack_pending,
        idle_workers: num_waiting,
    })
}
