//! Finds the stream sequence of an event from its sequence number: a binary search, since both rise
//! together.

use super::log::{FoundMessage, Log};
use super::quorum::StreamId;
use super::read::Reader;
use crate::config::{LOCATE_NEAR, LOCATE_READS, PAGE};
use crate::source::{Chain, Span, Unavailable};
use crate::wire::{JobId, Seq, Stored, StreamSeq};

impl Reader {
    /// The chain from which a span is read: right before its first event, or a few events earlier.
    pub(super) async fn start_of(&self, job: &JobId, span: Span) -> Result<Chain, Unavailable> {
        let from_start = Chain::new(Seq::FIRST, 0);
        match span.stream_seq {
            Some(stream_seq) => Ok(Chain::new(span.from, stream_seq.saturating_sub(1))),
            None if span.from.0 <= PAGE as u64 => Ok(from_start),
            None => Ok(self.locate(job, span.from).await?.unwrap_or(from_start)),
        }
    }

    /// A chain at most [`LOCATE_NEAR`] events before the event `from`, or at the log's end; `None`
    /// when undecodable messages break the search. Costs about `log2(span)` single reads.
    async fn locate(&self, job: &JobId, from: Seq) -> Result<Option<Chain>, Unavailable> {
        let Some(last) = self.log.last_of_any(&self.log.nats.replay, job).await? else {
            return Ok(None);
        };
        if last.seq < from {
            return Ok(Some(Chain::new(last.seq.successor(), last.stream_seq)));
        }
        // The event that is searched for is after `low`, and at or before `high`.
        let mut low: Option<Stored> = None;
        let mut low_stream_seq = 0;
        let mut high_stream_seq = last.stream_seq;
        for _ in 0..LOCATE_READS {
            let near = low
                .as_ref()
                .is_some_and(|low| from.0 - low.seq.0 <= LOCATE_NEAR);
            if near || high_stream_seq - low_stream_seq <= 1 {
                break;
            }
            let middle = low_stream_seq + (high_stream_seq - low_stream_seq) / 2;
            match self.event_from(job, middle).await? {
                Some(event) if event.seq < from && event.stream_seq < high_stream_seq => {
                    low_stream_seq = event.stream_seq;
                    low = Some(event);
                }
                // No earlier event lies between `middle` and what was found.
                _ => high_stream_seq = middle,
            }
        }
        match low {
            Some(low) if self.log.is_proven(job, &low).await? => {
                Ok(Some(Chain::new(low.seq.successor(), low.stream_seq)))
            }
            _ => Ok(None),
        }
    }

    /// The first message at or after `stream_seq` that can be decoded, from any replica; `None`
    /// also after too many undecodable ones.
    async fn event_from(
        &self,
        job: &JobId,
        stream_seq: StreamSeq,
    ) -> Result<Option<Stored>, Unavailable> {
        let mut from = stream_seq;
        for _ in 0..PAGE {
            match self.log.next_of_any(job, from).await? {
                Some(FoundMessage {
                    stream_seq,
                    event: None,
                }) => from = stream_seq + 1,
                found => return Ok(found.and_then(|found| found.event)),
            }
        }
        Ok(None)
    }

    /// The first event of a span, from a leader with a quorum, once there is a slot for the read.
    pub(super) async fn leader_next(
        &self,
        job: &JobId,
        chain: Chain,
        from: Seq,
    ) -> Result<Option<Stored>, Unavailable> {
        let chain = self.advance(job, chain, from).await?;
        let read = || {
            let log = self.log.clone();
            let job = job.clone();
            async move {
                let shard = StreamId::Shard(job.shard(log.shards));
                log.proven(shard, || log.event_at(&job, chain, from)).await
            }
        };
        // Usually the event is small. If its room had to be free, reads of a leader that does not
        // answer would keep the room of those of replicas.
        self.shard(job).leader_slots.run(1, 0, read).await
    }

    /// Advances the chain by pages from any replica, until it is less than a page before `from`.
    async fn advance(
        &self,
        job: &JobId,
        mut chain: Chain,
        from: Seq,
    ) -> Result<Chain, Unavailable> {
        while from.0.saturating_sub(chain.next_seq().0) > PAGE as u64 {
            let page = self.page(job, chain.read() + 1).await?;
            for event in &page.events {
                if !self.log.is_next(job, &chain, event).await? {
                    chain.skip(event.stream_seq);
                } else if event.seq < from {
                    chain.accept(event);
                } else {
                    return Ok(chain);
                }
            }
            match page.last {
                Some(last) if page.more => chain.skip(last),
                _ => break,
            }
        }
        Ok(chain)
    }
}

impl Log {
    /// The first event of the chain from this sequence number on, from the leader.
    async fn event_at(
        &self,
        job: &JobId,
        mut chain: Chain,
        from: Seq,
    ) -> Result<Option<Stored>, Unavailable> {
        loop {
            match self.next_event(job, &mut chain).await? {
                Some(event) if event.seq < from => {}
                found => return Ok(found),
            }
        }
    }
}
