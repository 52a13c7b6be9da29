//! Segments: copies of consecutive events of one job in one message, so that a late reader needs
//! few messages. A segment is never trusted: it counts only if its digest is stored in the log. It
//! reads nothing.

use bytes::Bytes;
use sha2::{Digest as _, Sha256};

use super::cursor::{put_varint, take_varint};
use super::id::{JobId, Seq, StreamSeq};
use super::limits::{SEGMENT_BYTES_MAX, SEGMENT_EVENTS};
use super::stored::Stored;

/// Identifies the content of a segment, and of all segments before it that its writer knew.
pub type SegmentDigest = [u8; 32];

/// The number of the segment that an event belongs to, from 0.
pub const fn segment_of(seq: Seq) -> u64 {
    seq.before().0 / SEGMENT_EVENTS
}

/// The first event of a segment.
pub const fn first_of_segment(number: u64) -> Seq {
    Seq(number.saturating_mul(SEGMENT_EVENTS).saturating_add(1))
}

/// Whether an event is the last one of its segment: the 64th, or the job's final event.
pub const fn completes_segment(seq: Seq, is_end: bool) -> bool {
    is_end || seq.0.is_multiple_of(SEGMENT_EVENTS)
}

/// What a segment continues: the segment before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SegmentBase {
    /// Its digest; zeros if it is not known.
    digest: SegmentDigest,
    /// The stream sequence of its last event; 0 if it is not known.
    stream_seq: StreamSeq,
}

impl SegmentBase {
    /// After a segment with this digest, whose last event is at this stream sequence.
    pub const fn new(digest: SegmentDigest, stream_seq: StreamSeq) -> Self {
        Self { digest, stream_seq }
    }
}

/// A segment that is being written: the events of a log since the segment began.
///
/// The stored form, which is the same whoever writes it:
///
/// ```text
/// version 1 | base digest | varint base stream_seq | varint first seq | varint count
///           | count × ( varint stream_seq after the previous one | varint length | payload )
/// ```
/// The digest is the SHA-256 of the job, the base, the first sequence number, and each payload with
/// its stream sequence, except the last stream sequence: the event that completes the segment
/// carries the digest, and its stream sequence is not known when it is published.
#[derive(Clone, Debug)]
pub struct SegmentBuilder {
    base: SegmentBase,
    first: Seq,
    count: u64,
    last_stream_seq: StreamSeq,
    hash: Sha256,
    /// The stored form of the events; empty if the segment is too large to be stored.
    events: Vec<u8>,
}

/// A segment as it was read.
#[derive(Debug)]
pub struct Segment {
    base: SegmentBase,
    events: Vec<Stored>,
    digest: SegmentDigest,
}

impl SegmentBuilder {
    /// A segment of `job` that begins with `first`, after `base`.
    pub fn new(job: &JobId, first: Seq, base: SegmentBase) -> Self {
        let mut hash = Sha256::new();
        hash.update([VERSION]);
        hash.update((job.as_str().len() as u64).to_le_bytes());
        hash.update(job.as_str());
        hash.update(base.digest);
        hash.update(base.stream_seq.to_le_bytes());
        hash.update(first.0.to_le_bytes());
        Self {
            base,
            first,
            count: 0,
            last_stream_seq: 0,
            hash,
            events: Vec::new(),
        }
    }

    /// The number of the segment.
    pub fn number(&self) -> u64 {
        segment_of(self.first)
    }

    /// The sequence number of the next event.
    pub fn next_seq(&self) -> Seq {
        Seq(self.first.0 + self.count)
    }

    /// The digest if the next event has this payload and completes the segment.
    pub fn digest_with(&self, payload: &[u8]) -> SegmentDigest {
        let mut hash = self.hash.clone();
        add_payload(&mut hash, payload);
        hash.finalize().into()
    }

    /// Adds the next event, as stored at `stream_seq`.
    pub fn push(&mut self, stream_seq: StreamSeq, payload: &[u8]) {
        add_payload(&mut self.hash, payload);
        self.hash.update(stream_seq.to_le_bytes());
        let is_kept = self.count == 0 || !self.events.is_empty();
        if is_kept && self.events.len() + payload.len() <= SEGMENT_BYTES_MAX - HEAD_MAX {
            put_varint(
                &mut self.events,
                stream_seq.saturating_sub(self.last_stream_seq),
            );
            put_varint(&mut self.events, payload.len() as u64);
            self.events.extend_from_slice(payload);
        } else {
            self.events = Vec::new();
        }
        self.count += 1;
        self.last_stream_seq = stream_seq;
    }

    /// Ends the segment, whose digest is known: returns its stored form, unless it is too large,
    /// and the next segment.
    pub fn complete(self, job: &JobId, digest: SegmentDigest) -> (Option<Bytes>, Self) {
        let payload = (!self.events.is_empty()).then(|| {
            let mut out = Vec::with_capacity(self.events.len() + HEAD_MAX);
            out.push(VERSION);
            out.extend_from_slice(&self.base.digest);
            put_varint(&mut out, self.base.stream_seq);
            put_varint(&mut out, self.first.0);
            put_varint(&mut out, self.count);
            out.extend_from_slice(&self.events);
            out.into()
        });
        let base = SegmentBase {
            digest,
            stream_seq: self.last_stream_seq,
        };
        let next = Self::new(job, self.next_seq(), base);
        (payload, next)
    }
}

impl Segment {
    /// Decodes segment `number` of a job; `None` if it is not one.
    pub fn decode(job: &JobId, number: u64, payload: &[u8]) -> Option<Self> {
        let (&version, raw) = payload.split_first()?;
        let (digest, raw) = raw.split_first_chunk()?;
        let (stream_seq, raw) = take_varint(raw)?;
        let (first, raw) = take_varint(raw)?;
        let (count, mut raw) = take_varint(raw)?;
        if version != VERSION || Seq(first) != first_of_segment(number) || count > SEGMENT_EVENTS {
            return None;
        }
        let base = SegmentBase {
            digest: *digest,
            stream_seq,
        };
        let mut builder = SegmentBuilder::new(job, Seq(first), base);
        let mut events: Vec<Stored> = Vec::with_capacity(count as usize);
        let mut at: StreamSeq = 0;
        let mut digest = None;
        for n in 0..count {
            let (stream_seq, event, rest) = take_event(raw, at)?;
            at = stream_seq;
            let event = Stored::decode(job, at, Bytes::copy_from_slice(event)).ok()?;
            let is_last = n + 1 == count;
            let is_end = event.event_type.is_end();
            if event.seq != builder.next_seq() || is_last != completes_segment(event.seq, is_end) {
                return None;
            }
            if is_last {
                digest = Some(builder.digest_with(event.payload()));
            }
            builder.push(at, event.payload());
            events.push(event);
            raw = rest;
        }
        let digest = digest.filter(|_| raw.is_empty())?;
        Some(Self {
            base,
            events,
            digest,
        })
    }

    /// Whether this segment was written after `before` by a writer that knew its content: the
    /// digest of this one then proves both.
    pub fn continues(&self, before: &Self) -> bool {
        let base = SegmentBase {
            digest: before.digest,
            stream_seq: before.last().map_or(0, |last| last.stream_seq),
        };
        self.base == base
    }

    /// Whether the log proves the segment: `stored` is the event that the log holds at the position
    /// of its last event, and `digest` is the digest in its header.
    pub fn is_proven_by(&self, stored: &Stored, digest: SegmentDigest) -> bool {
        self.digest == digest
            && self.last().is_some_and(|last| {
                last.cursor() == stored.cursor() && last.payload() == stored.payload()
            })
    }

    /// Its last event.
    pub fn last(&self) -> Option<&Stored> {
        self.events.last()
    }

    /// Its events.
    pub fn events(&self) -> &[Stored] {
        &self.events
    }

    /// Its events.
    pub fn into_events(self) -> Vec<Stored> {
        self.events
    }
}

const VERSION: u8 = 1;
/// Room for everything before the events, and for the numbers between them.
const HEAD_MAX: usize = 64 + 20 * SEGMENT_EVENTS as usize;

/// The first event of `raw`, which follows the one at `before`, and the bytes after it.
fn take_event(raw: &[u8], before: StreamSeq) -> Option<(StreamSeq, &[u8], &[u8])> {
    let (step, rest) = take_varint(raw)?;
    let (length, rest) = take_varint(rest)?;
    let (payload, rest) = rest.split_at_checked(usize::try_from(length).ok()?)?;
    let stream_seq = before.checked_add(step).filter(|_| step > 0)?;
    Some((stream_seq, payload, rest))
}

fn add_payload(hash: &mut Sha256, payload: &[u8]) {
    hash.update((payload.len() as u64).to_le_bytes());
    hash.update(payload);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Body, Channel, Event};
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn job() -> JobId {
        "j".parse().unwrap()
    }

    fn payload(seq: u64, text: &str, is_end: bool) -> Bytes {
        let body = if is_end {
            Body::Cancelled {}
        } else {
            Body::Chunk {
                text: text.into(),
                channel: Channel::Output,
            }
        };
        let event = Event {
            body,
            job: job(),
            seq: Seq(seq),
            attempt: 1,
            ts: 5,
        };
        event.encode().unwrap()
    }

    /// The segments of a log of `count` events, the last of which is the end: each with its number,
    /// its stored form and its digest.
    fn segments(count: u64, text: &str, step: u64) -> Vec<(u64, Bytes, SegmentDigest)> {
        let mut builder = SegmentBuilder::new(&job(), Seq::FIRST, SegmentBase::default());
        let mut out = Vec::new();
        for seq in 1..=count {
            let is_end = seq == count;
            let payload = payload(seq, text, is_end);
            let digest = builder.digest_with(&payload);
            builder.push(seq * step, &payload);
            if completes_segment(Seq(seq), is_end) {
                let number = builder.number();
                let (stored, next) = builder.complete(&job(), digest);
                out.push((number, stored.unwrap(), digest));
                builder = next;
            }
        }
        out
    }

    fn decoded(count: u64) -> Vec<Segment> {
        let segments = segments(count, "x", 3);
        let decode = |(number, stored, _): &(u64, Bytes, _)| {
            Segment::decode(&job(), *number, stored).unwrap()
        };
        segments.iter().map(decode).collect()
    }

    #[test]
    fn a_log_is_read_back_from_its_segments() {
        for count in [1, 63, 64, 65, 128, 200] {
            let written = segments(count, "x", 3);
            let read = decoded(count);
            assert_eq!(read.len() as u64, count.div_ceil(SEGMENT_EVENTS));
            let seqs: Vec<_> = read
                .iter()
                .flat_map(|segment| &segment.events)
                .map(|event| (event.seq.0, event.stream_seq))
                .collect();
            assert_eq!(
                seqs,
                (1..=count).map(|seq| (seq, seq * 3)).collect::<Vec<_>>()
            );
            for (segment, (.., digest)) in read.iter().zip(&written) {
                assert_eq!(&segment.digest, digest);
            }
            for pair in read.windows(2) {
                assert!(pair[1].continues(&pair[0]) && !pair[0].continues(&pair[1]));
            }
        }
    }

    #[test]
    fn a_segment_is_proven_only_by_the_digest_and_the_last_event_of_the_log() {
        let (_, stored, digest) = segments(64, "x", 3).remove(0);
        let segment = Segment::decode(&job(), 0, &stored).unwrap();
        let last = payload(64, "x", true);
        let at = |stream_seq, payload: &Bytes| {
            Stored::decode(&job(), stream_seq, payload.clone()).unwrap()
        };
        assert!(segment.is_proven_by(&at(192, &last), digest));
        assert!(
            !segment.is_proven_by(&at(193, &last), digest),
            "another position"
        );
        assert!(
            !segment.is_proven_by(&at(192, &payload(64, "y", false)), digest),
            "another event"
        );
        assert!(
            !segment.is_proven_by(&at(192, &last), [0; 32]),
            "another digest"
        );
    }

    #[test]
    fn a_segment_of_large_events_is_not_stored_but_continues_the_digests() {
        let mut builder = SegmentBuilder::new(&job(), Seq::FIRST, SegmentBase::default());
        let text = "x".repeat(SEGMENT_BYTES_MAX / 2);
        for seq in 1..SEGMENT_EVENTS {
            builder.push(seq, &payload(seq, &text, false));
        }
        let last = payload(SEGMENT_EVENTS, "x", false);
        let digest = builder.digest_with(&last);
        builder.push(SEGMENT_EVENTS, &last);
        let (stored, next) = builder.complete(&job(), digest);
        assert_eq!((stored, next.number(), next.base.digest), (None, 1, digest));
    }

    fn hex(bytes: SegmentDigest) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The segments of a shared case: each with its digest, and the hash of its stored form.
    fn segments_of(case: &Value) -> Vec<Value> {
        let job: JobId = case["job"].as_str().unwrap().parse().unwrap();
        let first = Seq(case["first"].as_u64().unwrap());
        let events: Vec<(u64, String)> = case["runs"]
            .as_array()
            .unwrap()
            .iter()
            .flat_map(|run| {
                let number = |name: &str| run[name].as_u64().unwrap();
                let text = run["text"].as_str().unwrap();
                let text = text.repeat(usize::try_from(number("times")).unwrap());
                let step = number("step");
                (0..number("events")).map(move |_| (step, text.clone()))
            })
            .collect();
        let last = Seq(first.0 + events.len() as u64 - 1);
        let mut builder = SegmentBuilder::new(&job, first, SegmentBase::default());
        let mut stream_seq = 0;
        let mut out = Vec::new();
        for (step, text) in events {
            let seq = builder.next_seq();
            let payload = format!("{} {text}", seq.0);
            stream_seq += step;
            let digest = builder.digest_with(payload.as_bytes());
            builder.push(stream_seq, payload.as_bytes());
            if completes_segment(seq, seq == last) {
                let number = builder.number();
                let (stored, next) = builder.complete(&job, digest);
                let sha256 = stored.map(|stored| hex(Sha256::digest(&stored).into()));
                out.push(json!({"number": number, "digest": hex(digest), "sha256": sha256}));
                builder = next;
            }
        }
        out
    }

    /// `tests/clients/python_log.py` runs the same cases.
    #[test]
    fn segments_have_the_same_bytes_as_those_of_the_python_library() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cases/segments.json");
        let cases: Vec<Value> = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
        for case in &cases {
            let expected = case["segments"].as_array().unwrap();
            assert_eq!(&segments_of(case), expected, "{}", case["name"]);
        }
        assert!(cases.len() >= 13, "{} cases", cases.len());
    }

    proptest! {
        #[test]
        fn any_change_of_a_segment_changes_its_digest_or_makes_it_invalid(
            count in 1..65_u64, at in any::<prop::sample::Index>(), flip in 1..=255_u8,
        ) {
            let (_, stored, digest) = segments(count, "text", 3).remove(0);
            let mut forged = stored.to_vec();
            let at = at.index(forged.len());
            forged[at] ^= flip;
            if let Some(segment) = Segment::decode(&job(), 0, &forged) {
                let only_last_position = segment.digest == digest;
                prop_assert!(!only_last_position || segment.last().unwrap().stream_seq != count * 3);
            }
        }

        #[test]
        fn bytes_that_are_no_segment_never_panic(bytes: Vec<u8>, number: u64) {
            let _ = Segment::decode(&job(), number, &bytes);
        }
    }
}
