//! The kinds of jobs: one consumer each. It lists them with the depth of their queue.

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::api;
use super::info::ConsumerInfo;
use super::queue::Queue;
use crate::config::KINDS_MAX;
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
