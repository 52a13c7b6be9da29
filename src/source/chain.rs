//! Which messages of a job's log are its events: each has the sequence number after the event
//! before it. It reads nothing: it says which lookups are needed.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::wire::{Seq, Stored, StreamSeq};

/// Follows a log message by message, from a known event or from the log's beginning.
///
/// The event after number `n` is the first one after it, by stream sequence, with the number
/// `n + 1`. Nothing follows a job's end. This depends on the log alone, so every reader finds the
/// same events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chain {
    next: Seq,
    /// The stream sequence of the event before `next`, or where the reading began.
    base: StreamSeq,
    /// The last stream sequence that was read.
    read: StreamSeq,
    /// Whether no event was accepted yet: events after `base` may have expired.
    fresh: bool,
    /// Whether the event before `next` was the job's end.
    ended: bool,
}

/// Whether a message that decodes as an event is the next event of its log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MessageClass {
    /// The next event.
    Next,
    /// Not an event of this log.
    Undecodable,
    /// The next event if the message at one of these stream sequences was removed, because the
    /// events between have then expired. Undecodable otherwise.
    IfExpired([StreamSeq; 2]),
    /// The next event if the message at this stream sequence still exists. Undecodable otherwise:
    /// the event that it follows may have expired.
    IfStored(StreamSeq),
}

impl Chain {
    /// Expects the event `next` of a log that was read up to `read`. That must not be after the
    /// message of this log that `next` directly follows, even if only messages of other jobs are
    /// between: `next` would be undecodable.
    pub const fn new(next: Seq, read: StreamSeq) -> Self {
        Self {
            next,
            base: read,
            read,
            fresh: true,
            ended: false,
        }
    }

    /// Classifies the next message of the log. The caller then calls [`accept`](Self::accept) or
    /// [`skip`](Self::skip).
    pub fn classify(&self, event: &Stored) -> MessageClass {
        if event.stream_seq <= self.read || event.seq < self.next || self.ended {
            return MessageClass::Undecodable;
        }
        let base = self.base.max(1);
        if event.seq == self.next {
            return match event.prev {
                None if self.fresh => MessageClass::IfStored(base),
                Some(prev) if prev > 0 && prev < self.base => MessageClass::Undecodable,
                Some(_) | None => MessageClass::Next,
            };
        }
        match event.prev {
            // The log was empty when this was written: everything before had expired.
            Some(0) => MessageClass::IfExpired([base, base]),
            // A log expires from its beginning: if the event before the gap exists, nothing after
            // it has expired. `prev` covers a log that was purged in part.
            Some(prev) if prev > self.base => MessageClass::IfExpired([base, prev]),
            Some(_) | None => MessageClass::Undecodable,
        }
    }

    /// The message is the next event.
    pub fn accept(&mut self, event: &Stored) {
        *self = Self::after(event);
    }

    /// Continues from an event that was just read.
    pub fn after(event: &Stored) -> Self {
        let ended = event.event_type.is_end();
        Self {
            fresh: false,
            ended,
            ..Self::new(event.seq.successor(), event.stream_seq)
        }
    }

    /// The message at `stream_seq` is undecodable.
    pub fn skip(&mut self, stream_seq: StreamSeq) {
        self.read = self.read.max(stream_seq);
    }

    /// Whether `event` is the next one, and the broker has confirmed that it directly follows what
    /// was read.
    pub fn is_followed_by(&self, event: &Stored) -> bool {
        event.prev == Some(self.read) && event.seq == self.next && !self.ended
    }

    /// The next sequence number.
    pub const fn next_seq(&self) -> Seq {
        self.next
    }

    /// The last stream sequence that was read.
    pub const fn read(&self) -> StreamSeq {
        self.read
    }
}

/// A [`Chain`] over live copies, some of which may be lost: a copy is classified once everything
/// before it is known.
#[derive(Debug)]
pub struct LiveChain {
    chain: Chain,
    /// Copies that arrived before what they follow.
    waiting: BTreeMap<StreamSeq, Arc<Stored>>,
    waiting_max: usize,
    /// The stream sequence of the last copy that arrived.
    seen: StreamSeq,
    /// Whether a copy of every message between the last event and `chain.read` arrived. If not,
    /// one of them may be an event that has expired, and only the log can show that.
    complete: bool,
}

/// What a live copy is.
#[derive(Debug)]
pub enum LiveCopy {
    /// The next event.
    Next(Arc<Stored>),
    /// Not an event of this log.
    Undecodable(Arc<Stored>),
    /// The copy before it did not arrive: the log must be read.
    Waits,
    /// It was read before.
    Old,
}

impl LiveChain {
    /// For a log of which nothing is known. It keeps at most `waiting_max` copies that wait.
    pub fn new(waiting_max: usize) -> Self {
        Self {
            chain: Chain::new(Seq::FIRST, 0),
            waiting: BTreeMap::new(),
            waiting_max,
            seen: 0,
            complete: true,
        }
    }

    /// Applies a live copy.
    pub fn apply(&mut self, event: Arc<Stored>) -> LiveCopy {
        if event.stream_seq <= self.chain.read {
            return LiveCopy::Old;
        }
        self.seen = self.seen.max(event.stream_seq);
        if self.can_classify(&event) {
            return self.classify(event);
        }
        if self.waiting.len() < self.waiting_max {
            self.waiting.insert(event.stream_seq, event);
        }
        LiveCopy::Waits
    }

    /// Skips an undecodable live copy, which follows the message at `prev`.
    pub fn skip(&mut self, stream_seq: StreamSeq, prev: Option<StreamSeq>) {
        if prev == Some(self.chain.read) {
            self.chain.skip(stream_seq);
        }
    }

    /// An event of the log was delivered.
    pub fn delivered(&mut self, event: &Stored) {
        if event.stream_seq > self.chain.read {
            self.chain.accept(event);
            self.complete = true;
        }
    }

    /// The log no longer has anything before `next`.
    pub fn restart(&mut self, next: Seq) {
        self.chain.next = self.chain.next.max(next);
    }

    /// The next copy that waited and can be classified now: [`LiveCopy::Next`] or
    /// [`LiveCopy::Undecodable`].
    pub fn next_waiting(&mut self) -> Option<LiveCopy> {
        while let Some((&stream_seq, first)) = self.waiting.first_key_value() {
            let old = stream_seq <= self.chain.read;
            if !old && !self.can_classify(first) {
                break;
            }
            let first = self.waiting.remove(&stream_seq)?;
            if !old {
                return Some(self.classify(first));
            }
        }
        None
    }

    /// Up to which stream sequence the log is known.
    pub const fn read(&self) -> StreamSeq {
        self.chain.read
    }

    /// The last copy that arrived, if it is not classified yet.
    pub fn unclassified(&self) -> Option<StreamSeq> {
        (self.seen > self.chain.read).then_some(self.seen)
    }

    /// The leader has no next event up to `stream_seq`: the copies up to there are undecodable.
    /// Returns those that waited.
    pub fn abandon(&mut self, stream_seq: StreamSeq) -> Vec<Arc<Stored>> {
        let later = self.waiting.split_off(&stream_seq.saturating_add(1));
        self.chain.skip(stream_seq);
        self.complete = false;
        std::mem::replace(&mut self.waiting, later)
            .into_values()
            .collect()
    }

    fn can_classify(&self, event: &Stored) -> bool {
        event.prev == Some(self.chain.read) && (self.complete || event.seq < self.chain.next)
    }

    fn classify(&mut self, event: Arc<Stored>) -> LiveCopy {
        if event.seq == self.chain.next && !self.chain.ended {
            self.chain.accept(&event);
            self.complete = true;
            LiveCopy::Next(event)
        } else {
            self.chain.skip(event.stream_seq);
            LiveCopy::Undecodable(event)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The event `seq` at `stream_seq`, stored after the message at `prev`.
    fn event(seq: u64, stream_seq: StreamSeq, prev: Option<StreamSeq>) -> Arc<Stored> {
        let payload = format!(r#"{{"type":"x","job":"j","seq":{seq}}}"#);
        Arc::new(
            Stored::decode(&"j".parse().unwrap(), stream_seq, payload.into())
                .unwrap()
                .after(prev),
        )
    }

    fn class(chain: &Chain, seq: u64, stream_seq: StreamSeq, prev: Option<u64>) -> MessageClass {
        chain.classify(&event(seq, stream_seq, prev))
    }

    #[test]
    fn the_next_event_has_the_next_sequence_number() {
        use MessageClass::{IfStored, Next, Undecodable};
        let mut chain = Chain::new(Seq(5), 100);
        for wrong in [1, 4, 6, 7, 120] {
            for prev in [None, Some(50), Some(100)] {
                let found = class(&chain, wrong, 120, prev);
                assert_eq!(found, Undecodable, "{wrong} {prev:?}");
            }
        }
        for prev in [Some(0), Some(100), Some(110)] {
            assert_eq!(class(&chain, 5, 120, prev), Next);
        }
        assert_eq!(class(&chain, 5, 120, Some(99)), Undecodable);
        // It may come after events that have expired.
        assert_eq!(class(&chain, 5, 120, None), IfStored(100));
        chain.accept(&event(5, 120, None));
        assert_eq!(class(&chain, 5, 130, Some(120)), Undecodable);
        // It was read right after the event before it.
        assert_eq!(class(&chain, 6, 130, None), Next);
        chain.skip(130);
        assert_eq!(class(&chain, 6, 130, Some(120)), Undecodable, "skipped");
        assert_eq!(class(&chain, 6, 140, Some(130)), Next);
    }

    #[test]
    fn nothing_follows_the_end() {
        let payload = r#"{"type":"job:cancelled:v1","job":"j","seq":4,"attempt":1,"ts":1}"#;
        let end = Stored::decode(&"j".parse().unwrap(), 50, payload.into()).unwrap();
        let mut chain = Chain::new(Seq(4), 40);
        chain.accept(&end);
        assert_eq!(class(&chain, 5, 60, Some(50)), MessageClass::Undecodable);
        assert!(!chain.is_followed_by(&event(5, 60, Some(50))));
    }

    #[test]
    fn a_jump_is_accepted_only_over_expired_events() {
        use MessageClass::{IfExpired, Undecodable};
        let chain = Chain::new(Seq(5), 100);
        assert_eq!(class(&chain, 9, 200, Some(180)), IfExpired([100, 180]));
        assert_eq!(class(&chain, 9, 200, Some(0)), IfExpired([100, 100]));
        assert_eq!(class(&chain, 3, 200, Some(180)), Undecodable, "never back");
        assert_eq!(class(&chain, 9, 200, None), Undecodable, "prev is unknown");
        let mut chain = Chain::new(Seq::FIRST, 0);
        assert_eq!(class(&chain, 9, 200, Some(0)), IfExpired([1, 1]));
        // An undecodable message may be the first one after the expired events.
        chain.skip(150);
        assert_eq!(class(&chain, 9, 200, Some(150)), IfExpired([1, 150]));
    }

    /// The kind of a copy as one letter.
    fn letter(copy: &LiveCopy) -> char {
        match copy {
            LiveCopy::Next(_) => 'n',
            LiveCopy::Undecodable(_) => 'u',
            LiveCopy::Waits => 'w',
            LiveCopy::Old => 'o',
        }
    }

    #[test]
    fn a_live_copy_is_classified_once_everything_before_it_is_known() {
        let mut live = LiveChain::new(8);
        let mut copies = String::new();
        for (seq, stream_seq, prev) in [
            (1, 10, 0),
            (2, 11, 10),
            (2, 11, 10),
            (9, 12, 11),
            (2, 13, 12),
            (3, 14, 13),
            (5, 16, 15),
            (9, 17, 16),
        ] {
            copies.push(letter(&live.apply(event(seq, stream_seq, Some(prev)))));
        }
        assert_eq!(copies, "nnouunww");
        assert_eq!(live.unclassified(), Some(17));
        live.delivered(&event(4, 15, None));
        let waited: String = std::iter::from_fn(|| live.next_waiting())
            .map(|copy| letter(&copy))
            .collect();
        assert_eq!(waited, "nu");
        assert_eq!(live.unclassified(), None);
        live.skip(18, Some(17));
        assert_eq!(letter(&live.apply(event(6, 19, Some(18)))), 'n');
    }

    #[test]
    fn copies_that_the_leader_does_not_confirm_are_abandoned() {
        let mut live = LiveChain::new(2);
        for stream_seq in [20, 21, 22, 23] {
            let copy = live.apply(event(7, stream_seq, Some(stream_seq - 1)));
            assert_eq!(letter(&copy), 'w');
        }
        let asked = live.unclassified().unwrap();
        assert_eq!(letter(&live.apply(event(1, 24, Some(23)))), 'w');
        assert_eq!(live.abandon(asked).len(), 2);
        assert_eq!(live.unclassified(), Some(24));
        // The abandoned copies may have been events that expired: a jump over them needs the log.
        assert_eq!(letter(&live.apply(event(9, 25, Some(24)))), 'w');
        live.delivered(&event(1, 24, Some(23)));
        assert_eq!(letter(&live.next_waiting().unwrap()), 'u');
        assert!(live.unclassified().is_none() && live.next_waiting().is_none());
    }

    /// The events that a reader finds among the messages of a log that were not removed.
    fn found(
        mut chain: Chain,
        log: &[Arc<Stored>],
        is_removed: impl Fn(StreamSeq) -> bool,
    ) -> Vec<Seq> {
        let mut seqs = Vec::new();
        for message in log {
            if message.stream_seq <= chain.read() || is_removed(message.stream_seq) {
                continue;
            }
            let is_next = match chain.classify(message) {
                MessageClass::Next => true,
                MessageClass::Undecodable => false,
                MessageClass::IfStored(at) => !is_removed(at),
                MessageClass::IfExpired([one, other]) => is_removed(one) || is_removed(other),
            };
            if is_next {
                chain.accept(message);
                seqs.push(message.seq);
            } else {
                chain.skip(message.stream_seq);
            }
        }
        seqs
    }

    proptest! {
        #[test]
        fn a_reader_finds_each_stored_event_among_those_of_expired_and_purged_jobs(
            // The job of each message of the shard, and a sequence number that may be wrong.
            shard in prop::collection::vec((0..3_u8, prop::option::weighted(0.2, 1..9_u64)), 1..40),
            expired in 0..30_u64,
            is_purged in any::<bool>(),
        ) {
            let is_removed = |at: StreamSeq| {
                let message = usize::try_from(at - 1).ok().and_then(|at| shard.get(at));
                at <= expired || is_purged && matches!(message, Some((2, _)))
            };
            let mut log = Vec::new();
            let mut events = Vec::new();
            let mut prev = 0;
            let mut last = 0;
            for ((job, wrong), stream_seq) in shard.iter().zip(1_u64..) {
                if *job != 0 {
                    continue;
                }
                // A sequence number after the stream sequence is not decoded.
                let wrong = wrong.filter(|wrong| *wrong != last + 1 && *wrong <= stream_seq);
                if let Some(wrong) = wrong {
                    log.push(event(wrong, stream_seq, None));
                } else {
                    last += 1;
                    let next = event(last, stream_seq, Some(prev));
                    events.push(Arc::clone(&next));
                    log.push(next);
                }
                prev = stream_seq;
            }
            let stored_after = |seq: Seq| -> Vec<Seq> {
                events
                    .iter()
                    .filter(|event| event.seq > seq && !is_removed(event.stream_seq))
                    .map(|event| event.seq)
                    .collect()
            };
            let from_start = found(Chain::new(Seq::FIRST, 0), &log, is_removed);
            prop_assert_eq!(from_start, stored_after(Seq(0)));
            for event in &events {
                let stored = stored_after(event.seq);
                // The next event, or the first one after a gap that was reported.
                let next = stored.first().copied();
                for next in [Some(event.seq.successor()), next].into_iter().flatten() {
                    let after = found(Chain::new(next, event.stream_seq), &log, is_removed);
                    prop_assert_eq!(&after, &stored, "{} after {}", next, event.seq);
                }
            }
        }
    }
}
