//! Writes the segments of a job's log beside it: the owner of the job does, after each 64th event
//! and after the last one. Losing a segment loses nothing.

use std::sync::Arc;

use async_nats::HeaderMap;
use bytes::Bytes;
use futures_util::FutureExt as _;
use tokio::task::coop::unconstrained;
use tokio::time::timeout;
use tracing::debug;

use super::log::Log;
use super::names;
use crate::config::REQUEST_WAIT;
use crate::source::At;
use crate::wire::{
    JobId, SegmentBase, SegmentBuilder, SegmentDigest, Seq, Stored, StreamSeq, completes_segment,
    first_of_segment, segment_of,
};

/// Follows the events that the owner of a job appends.
#[derive(Debug)]
pub(super) struct SegmentWriter {
    /// `None` while earlier events of the current segment are not known.
    builder: Option<SegmentBuilder>,
}

/// The position of an event in its log.
#[derive(Clone, Copy, Debug)]
pub(super) struct EventPosition {
    pub(super) seq: Seq,
    pub(super) stream_seq: StreamSeq,
}

impl SegmentWriter {
    /// Continues after `last`, the log's last event.
    pub(super) fn new(job: &JobId, last: Option<&Stored>) -> Self {
        let builder = match last {
            None => Some(SegmentBuilder::new(job, Seq::FIRST, SegmentBase::default())),
            Some(last) if last.seq == Seq::FIRST => {
                let mut builder = SegmentBuilder::new(job, Seq::FIRST, SegmentBase::default());
                builder.push(last.stream_seq, last.payload());
                Some(builder)
            }
            Some(_) => None,
        };
        Self { builder }
    }

    /// The digest that the event after `last` carries; `None` unless it completes a segment.
    pub(super) async fn digest_for(
        &mut self,
        log: &Log,
        job: &JobId,
        last: EventPosition,
        payload: &Bytes,
        is_end: bool,
    ) -> Option<SegmentDigest> {
        if !completes_segment(last.seq.successor(), is_end) {
            return None;
        }
        if self.builder.is_none() {
            // Boxed: it is rarely needed, and would be in the future of each append.
            let read = Box::pin(read_back(log, job, last));
            self.builder = timeout(REQUEST_WAIT, read).await.ok().flatten();
        }
        Some(self.builder.as_ref()?.digest_with(payload))
    }

    /// Adds an event that was stored. Publishes the segment that it completes.
    pub(super) fn stored(
        &mut self,
        log: &Log,
        job: &JobId,
        at: EventPosition,
        payload: &Bytes,
        is_end: bool,
    ) {
        let builder = self.builder.take();
        let completes = completes_segment(at.seq, is_end);
        let Some(mut builder) = builder.filter(|builder| builder.next_seq() == at.seq) else {
            let next = || SegmentBuilder::new(job, at.seq.successor(), SegmentBase::default());
            self.builder = completes.then(next);
            return;
        };
        let digest = completes.then(|| builder.digest_with(payload));
        builder.push(at.stream_seq, payload);
        let Some(digest) = digest else {
            self.builder = Some(builder);
            return;
        };
        let number = builder.number();
        let (segment, next) = builder.complete(job, digest);
        self.builder = Some(next);
        if let Some(segment) = segment {
            log.publish_segment(job, number, segment);
        }
    }
}

/// Reads the events up to `last` of the segment that the next event belongs to, and the base of
/// that segment. `None` if the broker did not confirm what precedes one of them.
async fn read_back(log: &Log, job: &JobId, last: EventPosition) -> Option<SegmentBuilder> {
    let first = first_of_segment(segment_of(last.seq.successor()));
    let mut at = last;
    let mut events = Vec::new();
    while at.seq >= first {
        let event = event_at(log, job, at).await?;
        at = EventPosition {
            seq: event.seq.before(),
            stream_seq: event.prev?,
        };
        events.push(event);
    }
    let mut base = SegmentBase::default();
    if at.seq > Seq(0)
        && let Some((before, Some(digest))) = log.proof_at(job, at.stream_seq).await.ok()?
        && before.seq == at.seq
    {
        base = SegmentBase::new(digest, at.stream_seq);
    }
    let mut builder = SegmentBuilder::new(job, first, base);
    for event in events.iter().rev() {
        builder.push(event.stream_seq, event.payload());
    }
    Some(builder)
}

async fn event_at(log: &Log, job: &JobId, at: EventPosition) -> Option<Arc<Stored>> {
    let found = log.at(job, at.stream_seq).await;
    let Ok(At::Event(event)) = found else {
        return None;
    };
    Some(event).filter(|event| event.seq == at.seq)
}

impl Log {
    /// Publishes a segment, unless there is one with its number. Waits for nothing: if it is lost,
    /// readers read the log.
    fn publish_segment(&self, job: &JobId, number: u64, segment: Bytes) {
        let subject = self.nats.names.segment(job.shard(self.shards), job, number);
        let mut headers = HeaderMap::new();
        headers.insert(names::EXPECTED_LAST, "0");
        let published = self
            .nats
            .work
            .publish_with_headers(subject, headers, segment);
        // The budget of a task that has done much would refuse it, too.
        if unconstrained(published).now_or_never().is_none() {
            debug!(%job, number, "no room to publish a segment");
        }
    }
}
