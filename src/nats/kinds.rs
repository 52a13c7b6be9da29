//! The kinds of jobs: one consumer each. It lists them with the depth of their queue.

use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::api;
use super::features::Features;
use super::info::{self, ConsumerInfo};
use super::message::{GetMessage, ask_leader};
use super::queue::Queue;
use crate::config::KINDS_MAX;
use crate::source::Unavailable;
use crate::wire::{Kind, StreamSeq};

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

/// A kind as an operator looks at it.
#[derive(Clone, Debug)]
pub struct KindStatus {
    /// The depth of its queue.
    pub usage: KindUsage,
    /// How long the oldest job has been waiting for a worker; `None` if none waits.
    pub oldest: Option<Duration>,
    /// How long a worker may be silent before its jobs go to another one.
    pub ack_wait: Duration,
    /// The optional features of its workers.
    pub features: Features,
}

/// The kinds, that of callbacks included, and the size of the queue.
#[derive(Clone, Debug)]
pub struct QueueReport {
    /// The first [`KINDS_MAX`] kinds, in the order of their names.
    pub kinds: Vec<KindStatus>,
    /// How full the queue is.
    pub size: QueueSize,
}

/// How full the queue is, whatever the kinds.
#[derive(Clone, Copy, Debug)]
pub struct QueueSize {
    /// How many bytes the jobs take.
    pub bytes: u64,
    /// How many bytes they may take.
    pub bytes_max: u64,
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
    delivered: Delivered,
    /// How many requests for messages wait.
    #[serde(default)]
    num_waiting: u64,
}

#[derive(Deserialize)]
struct Delivered {
    stream_seq: StreamSeq,
}

impl Queue {
    /// The kinds, and how full the queue is.
    ///
    /// # Errors
    /// [`Unavailable`].
    pub async fn report(&self) -> Result<QueueReport, Unavailable> {
        let nats = &self.log.nats;
        let stream = info::stream(&nats.work, &nats.names.jobs_stream()).await?;
        let now = stream.time();
        let mut kinds = Vec::new();
        for consumer in self.consumers().await? {
            let Some(usage) = usage(&consumer) else {
                continue;
            };
            let since = if usage.waiting == 0 {
                None
            } else {
                let from = consumer.delivered.stream_seq + 1;
                self.waiting_since(&usage.kind, from).await?
            };
            let age = |(since, now): (SystemTime, SystemTime)| now.duration_since(since);
            let config = &consumer.info.config;
            kinds.push(KindStatus {
                oldest: since.zip(now).map(age).map(Result::unwrap_or_default),
                ack_wait: Duration::from_nanos(config.ack_wait),
                features: Features::of(&config.metadata),
                usage,
            });
        }
        let size = QueueSize {
            bytes: stream.state.bytes,
            // A negative number means no limit.
            bytes_max: u64::try_from(stream.config.max_bytes).unwrap_or(u64::MAX),
        };
        Ok(QueueReport { kinds, size })
    }

    /// The first [`KINDS_MAX`] consumers of the queue, in the order of their names.
    async fn consumers(&self) -> Result<Vec<NamedConsumer>, Unavailable> {
        let nats = &self.log.nats;
        let request = format!("CONSUMER.LIST.{}", nats.names.jobs_stream());
        let mut consumers = Vec::new();
        while consumers.len() < KINDS_MAX {
            let body = json!({"offset": consumers.len()}).to_string();
            let page: ConsumerPage = api::call(&nats.work, &request, body).await?;
            let is_empty = page.consumers.is_empty();
            consumers.extend(page.consumers);
            if is_empty || consumers.len() >= page.total {
                break;
            }
        }
        Ok(in_order(consumers))
    }

    /// When the first job of a kind at or after this stream sequence was submitted.
    async fn waiting_since(
        &self,
        kind: &Kind,
        from: StreamSeq,
    ) -> Result<Option<SystemTime>, Unavailable> {
        let nats = &self.log.nats;
        let subject = nats.names.queued_jobs(kind);
        let get = GetMessage::next_of(&subject, from);
        let message = ask_leader(&nats.work, &nats.names.jobs_stream(), &get).await?;
        Ok(message.and_then(|message| message.time))
    }
}

/// The first [`KINDS_MAX`] of these consumers, in the order of their names. A consumer that is created
/// between two pages may move another one onto both: that one counts once.
fn in_order(mut consumers: Vec<NamedConsumer>) -> Vec<NamedConsumer> {
    consumers.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    consumers.dedup_by(|next, before| next.name == before.name);
    consumers.truncate(KINDS_MAX);
    consumers
}

/// The kind of a consumer; `None` for one that somebody made for another purpose.
fn usage(consumer: &NamedConsumer) -> Option<KindUsage> {
    Some(KindUsage {
        kind: consumer.name.parse().ok()?,
        waiting: consumer.info.num_pending,
        running: consumer.info.num_ack_pending,
        idle_workers: consumer.num_waiting,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_consumer_on_two_pages_is_listed_once() {
        let consumer = |name: &str| -> NamedConsumer {
            let listed = json!({
                "name": name,
                "config": {},
                "num_pending": 1,
                "num_ack_pending": 0,
                "delivered": {"stream_seq": 0},
            });
            serde_json::from_value(listed).unwrap()
        };
        let pages = ["a", "c", "d", "d", "e"].map(consumer);
        let names = in_order(pages.into()).into_iter().map(|found| found.name);
        assert_eq!(names.collect::<Vec<_>>(), ["a", "c", "d", "e"]);
    }
}
