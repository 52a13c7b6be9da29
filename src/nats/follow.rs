//! Live copies of one job's events. It does not notice a lost copy; the reader sees the gap.

use std::future::pending;
use std::sync::Arc;

use async_nats::{Message, Subscriber};
use futures_util::{FutureExt as _, StreamExt as _};
use tokio::sync::watch;

use super::log::Log;
use super::message::{header, number};
use super::{api, names};
use crate::config::LIVE_DELAY_EVERY;
use crate::source::{Tail, TailSignal, Unavailable};
use crate::wire::{JobId, Stored};

/// The live subscription of one job.
#[derive(Debug)]
pub struct LiveTail {
    log: Log,
    job: JobId,
    /// `None` after unsubscribing.
    live: Option<Subscriber>,
    /// Incremented when copies may have been lost, or the log may be a different one: a connection
    /// was down, or the shard has a new leader.
    disturbed: [watch::Receiver<u64>; 2],
}

impl Log {
    /// See [`EventSource::follow`](crate::source::EventSource::follow).
    pub(super) async fn follow_live(
        &self,
        job: &JobId,
        elections: watch::Receiver<u64>,
    ) -> Result<(LiveTail, Option<Arc<Stored>>), Unavailable> {
        let subject = self.nats.names.live(job.shard(self.shards), job);
        let mut disturbed = [self.nats.reconnected.clone(), elections];
        for count in &mut disturbed {
            count.mark_unchanged();
        }
        let live = api::subscribe(&self.nats.live, subject).await?;
        // When this request on the same connection is answered, the server has seen the
        // subscription. `flush` would only empty the socket's buffer.
        let last = self.last_of_any(&self.nats.live, job).await?;
        Ok((
            LiveTail {
                log: self.clone(),
                job: job.clone(),
                live: Some(live),
                disturbed,
            },
            last.map(Arc::new),
        ))
    }
}

impl Tail for LiveTail {
    async fn next(&mut self) -> TailSignal {
        let [reconnected, elected] = &mut self.disturbed;
        loop {
            // Checked first, so that no copy after a disturbance is delivered before it.
            tokio::select! {
                biased;
                () = changed(reconnected) => return TailSignal::Disturbed,
                () = changed(elected) => return TailSignal::Disturbed,
                message = next(&mut self.live) => match message {
                    Some(message) => {
                        // The broker's header is the last one: the publisher may have set the same.
                        let Some(stream_seq) = number(&message, names::SEQUENCE) else { continue };
                        self.log.record_seen(stream_seq, &self.job);
                        if stream_seq % LIVE_DELAY_EVERY == 0 {
                            self.log.note_delay(header(&message, names::TIME));
                        }
                        let prev = number(&message, names::LAST_SEQUENCE);
                        return match self.log.decode(&self.job, stream_seq, &message.payload, prev) {
                            Some(event) => TailSignal::Event(Arc::new(event)),
                            None => TailSignal::Undecodable { stream_seq, prev },
                        };
                    }
                    None => return TailSignal::Closed,
                },
            }
        }
    }

    fn ready(&mut self) -> Option<TailSignal> {
        self.next().now_or_never()
    }

    fn unsubscribe(&mut self) {
        self.live = None;
    }
}

async fn next(live: &mut Option<Subscriber>) -> Option<Message> {
    match live {
        Some(live) => live.next().await,
        None => pending().await,
    }
}

async fn changed(count: &mut watch::Receiver<u64>) {
    if count.changed().await.is_err() {
        // The sender ends with the connection, which also closes the subscription.
        pending().await
    }
}
