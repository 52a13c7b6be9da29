//! Reads segments instead of the log, as far as there are any and the log proves them. Deleting them
//! loses nothing: the log itself is then read.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::join_all;
use tokio::task::yield_now;

use super::read::Reader;
use super::{api, names};
use crate::config::{DECODE_BYTES, PAGE_BYTES, SEGMENTS_AT_ONCE};
use crate::source::{At, Replica, Span, Unavailable};
use crate::wire::limits::{SEGMENT_BYTES_MAX, SEGMENT_EVENTS};
use crate::wire::{JobId, Segment, Seq, Stored, segment_of};

/// What was read from segments.
#[derive(Debug, Default)]
pub(super) struct SegmentsRead {
    pub(super) events: Vec<Arc<Stored>>,
    /// How many segments to request next; `None` if the next events are not in segments, because one
    /// that was requested is not there.
    pub(super) next: Option<u64>,
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

    /// The events from `from` on, from at most `at_once` consecutive segments that the log proves, up
    /// to one that is missing or not proven.
    pub(super) async fn segments(
        &self,
        job: &JobId,
        from: Seq,
        until: Seq,
        at_once: u64,
    ) -> Result<SegmentsRead, Unavailable> {
        let first = segment_of(from);
        let last = segment_of(until).min(first + at_once.clamp(1, SEGMENTS_AT_ONCE) - 1);
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
                // The others may have got no answer while this one waited.
                let segments = if reader.shard(&job).segments_absence.is_recent() {
                    SegmentsRead::default()
                } else {
                    reader.read_segments(&job, numbers, from, until).await
                };
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
        let mut found = join_all(numbers.clone().map(|number| self.segment(job, number))).await;
        let next = keep_first(&mut found);
        let kept = found.len();
        let mut segments = decode_chain(job, numbers.zip(found)).await;
        let wanted = |event: &&Stored| event.seq >= from;
        let Some(oldest) = segments.iter().flat_map(Segment::events).find(wanted) else {
            return SegmentsRead::default();
        };
        // If the oldest one is still in the log, so are the later ones: a log expires from its
        // beginning.
        let (exists, proven) =
            tokio::join!(self.holds(job, oldest), self.count_proven(job, &segments));
        segments.truncate(if exists { proven } else { 0 });
        let next = (segments.len() == kept).then_some(next);
        let events = segments
            .into_iter()
            .flat_map(Segment::into_events)
            .filter(|event| event.seq >= from && event.seq <= until)
            .map(Arc::new)
            .collect();
        SegmentsRead { events, next }
    }

    /// A segment as it is stored, not decoded.
    async fn segment(&self, job: &JobId, number: u64) -> Option<Bytes> {
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
        answer.status.is_none().then_some(answer.payload)
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

/// Keeps as many of these segments, which were requested together, as one page of the log holds, and at
/// least the first: a client that reads slowly holds what is kept. Returns how many to request next: as
/// many as are likely to be kept.
fn keep_first(found: &mut Vec<Option<Bytes>>) -> u64 {
    let requested = found.len() as u64;
    let mut room = PAGE_BYTES;
    let fitting = found
        .iter()
        .take_while(|segment| {
            let size = segment.as_ref().map_or(0, Bytes::len);
            let fits = size <= room;
            room = room.saturating_sub(size);
            fits
        })
        .count();
    let kept = fitting.max(1);
    if kept < found.len() {
        found.truncate(kept);
        return kept as u64;
    }
    if room >= PAGE_BYTES / 2 {
        requested * 2
    } else {
        requested
    }
}

/// Decodes consecutive segments, up to one that is missing or does not continue the one before.
/// Their digests are computed, so others are served in between.
async fn decode_chain(
    job: &JobId,
    payloads: impl Iterator<Item = (u64, Option<Bytes>)>,
) -> Vec<Segment> {
    let mut segments: Vec<Segment> = Vec::new();
    let mut decoded = 0;
    for (number, payload) in payloads {
        let Some(payload) = payload else { break };
        if decoded >= DECODE_BYTES {
            decoded = 0;
            yield_now().await;
        }
        decoded += payload.len();
        let Some(segment) = Segment::decode(job, number, &payload) else {
            break;
        };
        let before = segments.last();
        if before.is_some_and(|before| !segment.continues(before)) {
            break;
        }
        segments.push(segment);
    }
    segments
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{SegmentBase, SegmentBuilder};
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    fn job() -> JobId {
        "j".parse().unwrap()
    }

    /// This many segments, whose events have a text of this many bytes, with their numbers.
    fn segments(count: u64, bytes: usize) -> Vec<(u64, Option<Bytes>)> {
        let text = "x".repeat(bytes);
        let mut builder = SegmentBuilder::new(&job(), Seq::FIRST, SegmentBase::default());
        let mut out = Vec::new();
        for seq in 1..=count * SEGMENT_EVENTS {
            let payload = format!(r#"{{"type":"x","job":"j","seq":{seq},"text":"{text}"}}"#);
            let digest = builder.digest_with(payload.as_bytes());
            builder.push(seq, payload.as_bytes());
            if seq.is_multiple_of(SEGMENT_EVENTS) {
                let number = builder.number();
                let (stored, next) = builder.complete(&job(), digest);
                out.push((number, stored));
                builder = next;
            }
        }
        out
    }

    /// How many of these segments are decoded, and how often others are served meanwhile.
    fn decode(payloads: Vec<(u64, Option<Bytes>)>) -> (usize, usize) {
        let job = job();
        let mut decoding = pin!(decode_chain(&job, payloads.into_iter()));
        let mut pauses = 0;
        loop {
            let mut context = Context::from_waker(Waker::noop());
            match decoding.as_mut().poll(&mut context) {
                Poll::Ready(decoded) => return (decoded.len(), pauses),
                Poll::Pending => pauses += 1,
            }
        }
    }

    #[test]
    fn others_are_served_between_large_segments() {
        assert_eq!(decode(segments(4, 1500)), (4, 3));
        assert_eq!(decode(segments(4, 10)), (4, 0));
    }

    #[test]
    fn a_read_keeps_no_more_than_a_page_holds_and_then_requests_as_many_as_that() {
        let kept_of = |sizes: &[usize]| {
            let segment = |size: &usize| Some(Bytes::from(vec![0; *size]));
            let mut found: Vec<_> = sizes.iter().map(segment).collect();
            let next = keep_first(&mut found);
            (found.len(), next)
        };
        const LARGE: usize = PAGE_BYTES / 2 - 1;
        assert_eq!(kept_of(&[1000; 8]), (8, 16));
        assert_eq!(kept_of(&[LARGE; 8]), (2, 2));
        assert_eq!(kept_of(&[LARGE; 2]), (2, 2));
        assert_eq!(kept_of(&[LARGE; 1]), (1, 2), "later ones may be smaller");
        assert_eq!(kept_of(&[PAGE_BYTES + 1; 8]), (1, 1), "one is always read");
        assert_eq!(kept_of(&[PAGE_BYTES + 1]), (1, 1));
        let mut missing = vec![None, Some(Bytes::from_static(b"x"))];
        assert_eq!((keep_first(&mut missing), missing.len()), (4, 2));
    }

    #[test]
    fn segments_after_a_missing_one_are_not_used() {
        let mut payloads = segments(3, 10);
        payloads[1].1 = None;
        assert_eq!(decode(payloads), (1, 0));
    }

    #[test]
    fn a_segment_that_does_not_continue_the_one_before_is_not_used() {
        let mut payloads = segments(3, 10);
        let other = segments(2, 20).remove(1);
        payloads[1] = other;
        assert_eq!(decode(payloads), (1, 0));
    }
}
