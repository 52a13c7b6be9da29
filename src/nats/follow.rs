//! Live copies of one job's events. It does not notice a lost copy; the reader sees the gap.

use std::sync::Arc;
use std::task::{Context, Poll};

use super::disturbances::DisturbanceWatch;
use super::live_queue::{LiveQueue, ReceivedCopy};
use super::live_reader::LiveSubscription;
use super::log::Log;
use super::read::Reader;
use crate::source::{Tail, TailSignal, Unavailable};
use crate::wire::{JobId, Stored};

/// The live subscription of one job.
#[derive(Debug)]
pub struct LiveTail {
    log: Log,
    job: JobId,
    /// `None` after unsubscribing.
    live: Option<LiveSubscription>,
    /// Reports when copies may have been lost, or the log may be a different one.
    disturbed: DisturbanceWatch,
}

impl Reader {
    /// See [`EventSource::follow`](crate::source::EventSource::follow).
    pub(super) async fn follow_live(
        &self,
        job: &JobId,
    ) -> Result<(LiveTail, Option<Arc<Stored>>), Unavailable> {
        let log = &self.log;
        let subject = log.nats.names.live(job.shard(log.shards), job);
        let queue = LiveQueue::new(&subject, &log.subject(job));
        // It is never closed.
        let _opening = self.shard(job).openings.acquire().await;
        let disturbed = self.shard(job).disturbances.watch();
        // The last event is read after the server has seen the subscription.
        let live = self.live_reader.subscribe(queue).await?;
        let last = log.last_of_any(&log.nats.replay, job).await?;
        let tail = LiveTail {
            log: log.clone(),
            job: job.clone(),
            live: Some(live),
            disturbed,
        };
        Ok((tail, last.map(Arc::new)))
    }
}

impl LiveTail {
    fn signal(&self, copy: ReceivedCopy) -> TailSignal {
        let ReceivedCopy {
            stream_seq,
            prev,
            stored_at,
            payload,
        } = copy;
        self.log.record_seen(stream_seq, &self.job);
        let stored_ms = stored_at.and_then(|time| self.log.note_delay(&time));
        match self.log.decode(&self.job, stream_seq, payload, prev) {
            Some(event) => TailSignal::Event(Arc::new(event.stored_at(stored_ms))),
            None => TailSignal::Undecodable { stream_seq, prev },
        }
    }
}

impl Tail for LiveTail {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<TailSignal> {
        // Checked first, so that no copy after a disturbance is delivered before it.
        if self.disturbed.poll(cx).is_ready() {
            return Poll::Ready(TailSignal::Disturbed);
        }
        let Some(live) = &self.live else {
            return Poll::Pending;
        };
        live.poll_next(cx).map(|copy| self.signal(copy))
    }

    fn unsubscribe(&mut self) {
        self.live = None;
    }
}
