//! Reads segments instead of the log, as far as there are any and the log proves them. Deleting them
//! loses nothing: the log itself is then read.

use std::convert::identity;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::join_all;

use super::read::Reader;
use super::{api, names};
use crate::config::SEGMENTS_AT_ONCE;
use crate::source::{At, Replica, Span, Unavailable};
use crate::wire::limits::{SEGMENT_BYTES_MAX, SEGMENT_EVENTS};
use crate::wire::{JobId, Segment, Seq, Stored, segment_of};

/// What was read from segments.
#[derive(Debug, Default)]
pub(super) struct SegmentsRead {
    pub(super) events: Vec<Arc<Stored>>,
    /// Whether the next events may be in segments, too: every segment that was requested is there.
    pub(super) may_have_more: bool,
}

impl Reader {
    /// Whether to look for segments before the log itself is read.
    pub(super) fn wants_segments(&self, job: &JobId, span: Span) -> bool {
        let events = span
            .until
            .map_or(0, |until| until.successor().0.saturating_sub(span.from.0));
        span.replica == Replica::Any
            && events >= SEGMENT_EVENTS
            && !self.shard(job).segments_absence.is_recent()
    }

    /// The events from `from` on, from consecutive segments that the log proves, up to one that is
    /// missing or not proven.
    pub(super) async fn segments(
        &self,
        job: &JobId,
        from: Seq,
        until: Seq,
    ) -> Result<SegmentsRead, Unavailable> {
        let first = segment_of(from);
        let last = segment_of(until).min(first + SEGMENTS_AT_ONCE - 1);
        // Before that, the reader goes on with more segments.
        let is_last_read = last == segment_of(until);
        let numbers = first..last + 1;
        let count = (numbers.end - numbers.start) as usize;
        let read = || {
            let reader = self.clone();
            let job = job.clone();
            let numbers = numbers.clone();
            let expected = is_last_read.then(|| self.shard(&job).scan.expect_reader());
            async move {
                let segments = reader.read_segments(&job, numbers, from, until).await;
                drop(expected);
                Ok(segments)
            }
        };
        self.segment_slots
            .run(count, count * SEGMENT_BYTES_MAX, read)
            .await
    }

    async fn read_segments(
        &self,
        job: &JobId,
        numbers: Range<u64>,
        from: Seq,
        until: Seq,
    ) -> SegmentsRead {
        let requested = numbers.clone().count();
        let found = join_all(numbers.map(|number| self.segment(job, number))).await;
        let mut segments: Vec<Segment> = Vec::new();
        for segment in found.into_iter().map_while(identity) {
            if segments
                .last()
                .is_some_and(|before| !segment.continues(before))
            {
                break;
            }
            segments.push(segment);
        }
        let wanted = |event: &&Stored| event.seq >= from;
        let Some(oldest) = segments.iter().flat_map(Segment::events).find(wanted) else {
            return SegmentsRead::default();
        };
        // If the oldest one is still in the log, so are the later ones: a log expires from its
        // beginning.
        let (exists, proven) =
            tokio::join!(self.holds(job, oldest), self.count_proven(job, &segments));
        segments.truncate(if exists { proven } else { 0 });
        let may_have_more = segments.len() == requested;
        let events = segments
            .into_iter()
            .flat_map(Segment::into_events)
            .filter(|event| event.seq >= from && event.seq <= until)
            .map(Arc::new)
            .collect();
        SegmentsRead {
            events,
            may_have_more,
        }
    }

    /// A segment as it is stored, not proven.
    async fn segment(&self, job: &JobId, number: u64) -> Option<Segment> {
        let shard = job.shard(self.log.shards);
        let names = &self.log.nats.names;
        let stream = names.segments_stream(shard);
        let request = format!("DIRECT.GET.{stream}.{}", names.segment(shard, job, number));
        let subject = names::api(&request);
        let Ok(answer) = api::request(&self.log.nats.replay, subject, None, Bytes::new()).await
        else {
            // No stream has this name, or no server answers.
            self.shard(job).segments_absence.note();
            return None;
        };
        if answer.status.is_some() {
            return None;
        }
        Segment::decode(job, number, &answer.payload)
    }

    /// How many of these consecutive segments the log proves: the last one that it proves, and those
    /// before it.
    async fn count_proven(&self, job: &JobId, segments: &[Segment]) -> usize {
        for (index, segment) in segments.iter().enumerate().rev() {
            let Some(last) = segment.last() else { continue };
            if let Ok(Some((stored, Some(digest)))) = self.log.proof_at(job, last.stream_seq).await
                && segment.is_proven_by(&stored, digest)
            {
                return index + 1;
            }
        }
        0
    }

    /// Whether a replica holds this event.
    async fn holds(&self, job: &JobId, event: &Stored) -> bool {
        let at = self.log.at_any(job, event.stream_seq).await;
        matches!(at, Ok(At::Event(found)) if found.cursor() == event.cursor())
    }
}
