//! The history of a feed: its newest events as they are served, shared by all watchers, and the
//! older ones packed.

use std::sync::Arc;

use super::archive::Archive;
use crate::config::{ARCHIVE_EVENTS, NEWEST_EVENTS};
use crate::resume::{History, Slice};
use crate::wire::{EventMeta, JobId, Seq, Stored};

/// Recent events of one job in order and without a gap, limited in bytes.
///
/// ```text
///   [ 33 … 40 ][ 41 … 48 ]    49  50  51  52  53    54 is expected
///           packed                 newest
/// ```
#[derive(Debug)]
pub(super) struct FeedHistory {
    archive: Archive,
    newest: History<Arc<Stored>>,
    bytes_max: usize,
    /// What remains of the newest event after [`Self::evict`].
    evicted: Option<EventMeta>,
}

impl FeedHistory {
    /// An empty history that expects `next`.
    pub(super) fn new(job: JobId, next: Seq, bytes_max: usize) -> Self {
        Self {
            archive: Archive::new(job),
            newest: History::new(next, bytes_max),
            bytes_max,
            evicted: None,
        }
    }

    /// The first sequence number that it has, or will have.
    fn first_seq(&self) -> Seq {
        let first = self.newest.first_seq();
        self.archive.first_seq().unwrap_or(first)
    }

    /// The next sequence number that it expects.
    pub(super) fn next_seq(&self) -> Seq {
        self.newest.next_seq()
    }

    /// The newest event, also if it was evicted.
    pub(super) fn last(&self) -> Option<EventMeta> {
        let last = self.newest.last().map(|last| last.meta());
        last.or(self.evicted)
    }

    /// The approximate size of its events in memory.
    pub(super) fn bytes(&self) -> usize {
        self.archive.bytes() + self.newest.bytes()
    }

    /// The approximate size in memory of the events that are unpacked for readers.
    pub(super) fn unpacked_bytes(&self) -> usize {
        self.archive.unpacked_bytes()
    }

    /// The event with this sequence number, if the history has it.
    pub(super) fn find(&mut self, seq: Seq) -> Option<Arc<Stored>> {
        match self.newest.find(seq) {
            Some(event) => Some(Arc::clone(event)),
            None => self.archive.find(seq),
        }
    }

    /// A copy of the events before one of the log, and this event: `last`, or a newer one that the
    /// history has. `None` if the history does not lead to `last`.
    pub(super) fn copy_before(&self, last: &Arc<Stored>) -> Option<(Self, Arc<Stored>)> {
        let is_next = self.next_seq() == last.seq
            && self
                .last()
                .is_some_and(|before| last.prev == Some(before.cursor.stream_seq));
        let known = self.newest.find(last.seq);
        if !is_next && !known.is_some_and(|known| known.cursor() == last.cursor()) {
            return None;
        }
        let mut copy = Self {
            archive: self.archive.copy(),
            newest: self.newest.clone(),
            bytes_max: self.bytes_max,
            evicted: None,
        };
        let event = if is_next {
            Arc::clone(last)
        } else {
            copy.newest.pop_newest()?
        };
        Some((copy, event))
    }

    /// Adds the next event, packs older ones and evicts the oldest. One event always fits.
    ///
    /// # Panics
    /// If the event is not the next one, which is a bug in the caller.
    pub(super) fn push(&mut self, event: Arc<Stored>) {
        if self.newest.len() >= NEWEST_EVENTS {
            let older: Vec<_> = std::iter::from_fn(|| self.newest.pop_oldest())
                .take(ARCHIVE_EVENTS)
                .collect();
            self.archive.push(&older);
        }
        let first = self.newest.first_seq();
        self.newest.push(event);
        // Usually there is room, and nothing of the older events is looked at.
        if self.newest.first_seq() != first || self.bytes() > self.bytes_max {
            self.shorten(self.bytes_max);
        }
    }

    /// Evicts the oldest events until at most `bytes_max` or only the newest event remains.
    pub(super) fn shorten(&mut self, bytes_max: usize) {
        self.newest.shorten(bytes_max);
        let first = self.newest.first_seq();
        if self.archive.next_seq().is_some_and(|next| next != first) {
            self.archive.clear();
        }
        self.archive
            .shorten(bytes_max.saturating_sub(self.newest.bytes()));
    }

    /// Evicts all events, also the newest one: readers read it from the log.
    pub(super) fn evict(&mut self) {
        let last = self.last();
        self.restart(self.next_seq());
        self.evicted = last;
    }

    /// Starts again with `next`, after a gap.
    pub(super) fn restart(&mut self, next: Seq) {
        self.archive.clear();
        self.newest.restart(next);
        self.evicted = None;
    }

    /// Packs the events that were unpacked for readers.
    pub(super) fn pack(&mut self) {
        self.archive.pack();
    }

    /// Reads about `bytes_max` from `from` on, but at least one event if there is one.
    pub(super) fn read(&mut self, from: Seq, bytes_max: usize) -> Slice<Arc<Stored>> {
        // First what almost every reader needs.
        if from >= self.newest.first_seq() {
            return self.newest.read(from, bytes_max);
        }
        let first = self.first_seq();
        if from < first {
            return Slice::TooOld { first };
        }
        let mut events = Vec::new();
        self.archive.read(from, bytes_max, &mut events);
        Slice::Items(events)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Body, Channel, Event};
    use proptest::prelude::*;

    fn job() -> JobId {
        "j".parse().unwrap()
    }

    fn event(seq: u64, text: usize) -> Arc<Stored> {
        let event = Event {
            body: Body::Chunk {
                text: "x".repeat(text),
                channel: Channel::Output,
            },
            job: job(),
            seq: Seq(seq),
            attempt: 1,
            ts: seq,
        };
        let stored = Stored::decode(&job(), seq * 7, event.encode().unwrap()).unwrap();
        let prev = (!seq.is_multiple_of(3)).then_some(seq * 7 - 7);
        Arc::new(stored.after(prev))
    }

    fn seqs(slice: &Slice<Arc<Stored>>) -> Vec<u64> {
        match slice {
            Slice::Items(events) => events.iter().map(|event| event.seq.0).collect(),
            Slice::CaughtUp | Slice::TooOld { .. } => Vec::new(),
        }
    }

    #[test]
    fn packed_events_are_read_back_unchanged_and_shared_by_those_who_read_them_together() {
        let mut history = FeedHistory::new(job(), Seq(1), 1 << 20);
        for seq in 1..=200 {
            history.push(event(seq, 50));
        }
        for seq in [1, 8, 9, 100, 184, 185, 200] {
            let found = history.find(Seq(seq)).unwrap();
            let expected = event(seq, 50);
            assert_eq!(found.payload(), expected.payload());
            assert_eq!(
                (found.cursor(), found.prev),
                (expected.cursor(), expected.prev)
            );
            assert!(
                Arc::ptr_eq(&found, &history.find(Seq(seq)).unwrap()),
                "{seq}"
            );
        }
        history.pack();
        assert!(history.archive.bytes() < 190 * (event(1, 50).payload().len() + 40));
        assert!(history.find(Seq(201)).is_none() && history.find(Seq(0)).is_none());
    }

    #[test]
    fn a_copy_leads_to_an_event_of_the_log_or_to_a_newer_one() {
        let mut history = FeedHistory::new(job(), Seq(1), 1 << 20);
        let empty = history.copy_before(&event(1, 50));
        assert!(empty.is_none());
        for seq in 1..=40 {
            history.push(event(seq, 50));
        }
        let following = |last: Arc<Stored>| {
            let (mut copy, event) = history.copy_before(&last)?;
            assert_eq!(copy.next_seq(), event.seq);
            copy.push(Arc::clone(&event));
            for seq in 1..=event.seq.0 {
                let found = copy.find(Seq(seq)).unwrap();
                assert_eq!(found.seq, Seq(seq));
            }
            Some(event.seq.0)
        };
        for known in [40, 39, 30] {
            assert_eq!(following(event(known, 50)), Some(40));
        }
        // Packed: the log's last event is seldom that old.
        assert_eq!(following(event(20, 50)), None);
        assert_eq!(following(event(41, 50)), Some(41));
        assert_eq!(following(event(42, 50)), None, "one is missing");
        let unconfirmed = Arc::into_inner(event(41, 50)).unwrap().after(None);
        assert_eq!(following(Arc::new(unconfirmed)), None);
        for other in [event(40, 51), event(39, 51)] {
            assert_eq!(following(other), None, "of another log");
        }
    }

    #[test]
    fn a_large_event_evicts_all_older_ones() {
        let mut history = FeedHistory::new(job(), Seq(1), 10_000);
        for seq in 1..=60 {
            history.push(event(seq, 10));
        }
        assert!(history.first_seq() < Seq(40));
        history.push(event(61, 20_000));
        let read = history.read(Seq(60), 1);
        assert!(matches!(read, Slice::TooOld { first: Seq(61) }));
        history.push(event(62, 1));
        assert_eq!(history.first_seq(), Seq(62));
    }

    #[test]
    fn the_newest_event_can_be_evicted_and_is_still_known() {
        let mut history = FeedHistory::new(job(), Seq(1), 1 << 20);
        for seq in 1..=40 {
            history.push(event(seq, 50));
        }
        history.evict();
        assert_eq!((history.bytes(), history.next_seq()), (0, Seq(41)));
        assert_eq!(history.last(), Some(event(40, 50).meta()));
        assert!(history.find(Seq(40)).is_none());
        let read = history.read(Seq(40), 1);
        assert!(matches!(read, Slice::TooOld { first: Seq(41) }));
        assert!(matches!(history.read(Seq(41), 1), Slice::CaughtUp));
        let (copy, following) = history.copy_before(&event(41, 50)).unwrap();
        assert_eq!((copy.next_seq(), following.seq), (Seq(41), Seq(41)));
        history.push(event(41, 50));
        assert_eq!(history.last(), Some(event(41, 50).meta()));
        assert_eq!(seqs(&history.read(Seq(41), 1)), [41]);
        history.evict();
        history.restart(Seq(50));
        assert_eq!(history.last(), None, "it is not before the next one");
    }

    proptest! {
        #[test]
        fn any_read_returns_the_events_from_there_on(
            texts in prop::collection::vec(prop_oneof![9 => 0..60_usize, 1 => 100..4000_usize], 1..150),
            bytes_max in 500..60_000_usize, from in 0..160_u64, step in prop_oneof![0..10_usize, 100..5000_usize],
        ) {
            let mut history = FeedHistory::new(job(), Seq(1), bytes_max);
            for (n, text) in texts.iter().enumerate() {
                history.push(event(n as u64 + 1, *text));
                prop_assert!(history.bytes() <= bytes_max || history.first_seq() == Seq(n as u64 + 1));
            }
            let next = texts.len() as u64 + 1;
            let first = history.first_seq().0;
            let mut from = from.min(next);
            if from < first {
                let read = history.read(Seq(from), step);
                let is_too_old = matches!(read, Slice::TooOld { first: Seq(at) } if at == first);
                prop_assert!(is_too_old);
                from = first;
            }
            while from < next {
                let read = seqs(&history.read(Seq(from), step));
                prop_assert!(!read.is_empty());
                prop_assert_eq!(&read, &(from..from + read.len() as u64).collect::<Vec<_>>());
                from += read.len() as u64;
            }
            let read = history.read(Seq(next), step);
            let has_all = matches!(read, Slice::CaughtUp);
            prop_assert!(has_all);
        }
    }
}
