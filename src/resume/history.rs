//! The history of a feed: its recent items, shared by all watchers. It does not fill gaps.

use std::collections::VecDeque;

use super::Item;
use crate::wire::Seq;

/// Recent items in order and without a gap, limited in bytes.
///
/// ```text
///   first                      next
///     ▼                         ▼
///   [ 41 ][ 42 ][ 43 ][ 44 ]    45 is expected; 40 and before were evicted or never added
/// ```
#[derive(Clone, Debug)]
pub struct History<T> {
    items: VecDeque<T>,
    next: Seq,
    bytes: usize,
    bytes_max: usize,
}

/// The result of reading the history.
#[derive(Debug, PartialEq, Eq)]
pub enum Slice<T> {
    /// The next items.
    Items(Vec<T>),
    /// The reader has everything.
    CaughtUp,
    /// The reader needs older items than the history has.
    TooOld {
        /// The first item of the history, or the first that it will have.
        first: Seq,
    },
}

impl<T: Item + Clone> History<T> {
    /// An empty history that expects `next`.
    pub fn new(next: Seq, bytes_max: usize) -> Self {
        Self {
            items: VecDeque::new(),
            next,
            bytes: 0,
            bytes_max,
        }
    }

    /// The next sequence number that it expects.
    pub fn next_seq(&self) -> Seq {
        self.next
    }

    /// The first sequence number that it has, or will have.
    pub fn first_seq(&self) -> Seq {
        // Counted, because the oldest item itself is rarely in the processor's cache.
        Seq(self.next.0 - self.items.len() as u64)
    }

    /// The newest item.
    pub fn last(&self) -> Option<&T> {
        self.items.back()
    }

    /// The approximate size of its items in memory.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The item with this sequence number, if the history has it.
    pub fn find(&self, seq: Seq) -> Option<&T> {
        let index = seq.0.checked_sub(self.first_seq().0)?;
        self.items.get(usize::try_from(index).ok()?)
    }

    /// How many items it has.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Whether it has no items.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Removes and returns the oldest item.
    pub fn pop_oldest(&mut self) -> Option<T> {
        let oldest = self.items.pop_front()?;
        self.bytes -= oldest.size().min(self.bytes);
        Some(oldest)
    }

    /// Removes and returns the newest item, which is then expected again.
    pub fn pop_newest(&mut self) -> Option<T> {
        let newest = self.items.pop_back()?;
        self.bytes -= newest.size().min(self.bytes);
        self.next = newest.seq();
        Some(newest)
    }

    /// Adds the next item and evicts the oldest ones. One item always fits.
    ///
    /// # Panics
    /// If the item is not the next one, which is a bug in the caller.
    pub fn push(&mut self, item: T) {
        assert!(item.seq() == self.next, "a history has no gap");
        self.next = self.next.successor();
        self.bytes += item.size();
        self.items.push_back(item);
        self.shorten(self.bytes_max);
    }

    /// Evicts the oldest items until at most `bytes_max` or only the newest item remains.
    pub fn shorten(&mut self, bytes_max: usize) {
        while self.bytes > bytes_max && self.items.len() > 1 {
            if let Some(old) = self.items.pop_front() {
                self.bytes = self.bytes.saturating_sub(old.size());
            }
        }
    }

    /// Starts again with `next`, after a gap.
    pub fn restart(&mut self, next: Seq) {
        *self = Self::new(next, self.bytes_max);
    }

    /// Reads about `bytes_max` from `from` on, but at least one item if there is one.
    pub fn read(&self, from: Seq, bytes_max: usize) -> Slice<T> {
        let first = self.first_seq();
        if from < first {
            return Slice::TooOld { first };
        }
        // One item always fits: a reader that gets none has everything.
        let mut room = bytes_max.max(1);
        let skip = usize::try_from(from.0 - first.0).unwrap_or(usize::MAX);
        let items: Vec<T> = self
            .items
            .iter()
            .skip(skip)
            .take_while(|item| {
                let fits = room > 0;
                room = room.saturating_sub(item.size());
                fits
            })
            .cloned()
            .collect();
        if items.is_empty() {
            Slice::CaughtUp
        } else {
            Slice::Items(items)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resume::tests::{Event, Rng, run_schedules};

    /// A simple reference implementation: keeps every item since the last restart.
    struct Naive {
        start: Seq,
        all: Vec<Event>,
        bytes_max: usize,
    }

    impl Naive {
        fn next_seq(&self) -> Seq {
            Seq(self.start.0 + self.all.len() as u64)
        }

        /// The longest tail that fits; the last item always fits.
        fn kept(&self) -> &[Event] {
            let fits = |from: &usize| {
                self.all[*from..]
                    .iter()
                    .map(|item| item.size)
                    .sum::<usize>()
                    <= self.bytes_max
            };
            let last = self.all.len().saturating_sub(1);
            let from = (0..last).find(fits).unwrap_or(last);
            &self.all[from..]
        }

        fn read(&self, from: Seq, bytes_max: usize) -> Slice<Event> {
            let kept = self.kept();
            let first = kept
                .first()
                .map_or_else(|| self.next_seq(), |item| item.seq);
            if from < first {
                return Slice::TooOld { first };
            }
            let mut items = Vec::new();
            let mut bytes = 0;
            for item in kept.iter().filter(|item| item.seq >= from) {
                if items.is_empty() || bytes < bytes_max {
                    items.push(item.clone());
                    bytes += item.size;
                }
            }
            if items.is_empty() {
                Slice::CaughtUp
            } else {
                Slice::Items(items)
            }
        }
    }

    fn check(history: &History<Event>, naive: &Naive, rng: &mut Rng) {
        let kept = naive.kept();
        assert_eq!(history.next_seq(), naive.next_seq());
        assert_eq!(
            history.first_seq(),
            kept.first()
                .map_or_else(|| naive.next_seq(), |item| item.seq)
        );
        assert_eq!(history.last(), kept.last());
        assert_eq!(
            history.bytes(),
            kept.iter().map(|item| item.size).sum::<usize>()
        );
        assert!(
            history.bytes() <= naive.bytes_max || kept.len() == 1,
            "limited, except for one item"
        );
        let around = naive.start.0.saturating_sub(3)..naive.next_seq().0 + 3;
        for seq in around.chain([0, u64::MAX]).map(Seq) {
            assert_eq!(history.find(seq), kept.iter().find(|item| item.seq == seq));
            let bytes_max = rng.pick(&[0, 1, 5, 20, usize::MAX]);
            assert_eq!(
                history.read(seq, bytes_max),
                naive.read(seq, bytes_max),
                "{seq}, {bytes_max}"
            );
        }
    }

    #[test]
    fn a_history_is_the_longest_gapless_tail_that_fits() {
        run_schedules(2_000, |mut rng| {
            let start = Seq(1 + rng.below(9));
            let bytes_max = rng.pick(&[0, 1, 10, 50]);
            let mut history = History::new(start, bytes_max);
            let mut naive = Naive {
                start,
                all: Vec::new(),
                bytes_max,
            };
            for _ in 0..rng.below(30) {
                if rng.percent(5) {
                    naive.start = Seq(1 + rng.below(60));
                    naive.all.clear();
                    history.restart(naive.start);
                } else {
                    let item = Event::sized(naive.next_seq(), 1 + rng.index(15));
                    history.push(item.clone());
                    naive.all.push(item);
                }
                if rng.verbose {
                    println!("{history:?}");
                }
                check(&history, &naive, &mut rng);
            }
        });
    }

    #[test]
    fn a_history_can_be_shortened_to_its_newest_item() {
        let mut history = History::new(Seq(1), 100);
        for seq in 1..=5 {
            history.push(Event::sized(Seq(seq), 20));
        }
        for (bytes_max, first, bytes) in [(50, 4, 40), (0, 5, 20)] {
            history.shorten(bytes_max);
            assert_eq!((history.first_seq(), history.bytes()), (Seq(first), bytes));
        }
        assert_eq!(history.next_seq(), Seq(6));
    }

    #[test]
    fn a_history_panics_on_any_item_but_the_next() {
        for seq in [4, 6] {
            let pushed = std::panic::catch_unwind(|| {
                let mut history = History::new(Seq(5), 100);
                history.push(Event::sized(Seq(seq), 1));
            });
            assert!(pushed.is_err(), "{seq}");
        }
    }

    #[test]
    fn a_read_returns_at_least_one_item() {
        let mut history = History::new(Seq(1), 100);
        assert_eq!(history.read(Seq(1), 0), Slice::CaughtUp);
        history.push(Event::sized(Seq(1), 60));
        let first = vec![Event::sized(Seq(1), 60)];
        assert_eq!(history.read(Seq(1), 0), Slice::Items(first));
        history.push(Event::sized(Seq(2), 60));
        assert_eq!(history.read(Seq(1), 0), Slice::TooOld { first: Seq(2) });
    }
}
