//! The history of a feed: its recent items without a gap, shared by all watchers. It does not fill gaps itself.

use std::collections::VecDeque;

use super::Item;
use crate::wire::Seq;

/// Recent items in order, without a gap, limited in bytes. Allocates nothing in advance.
///
/// ```text
///   first                      next
///     ▼                         ▼
///   [ 41 ][ 42 ][ 43 ][ 44 ]    45 is awaited; 40 and before were evicted or never here
/// ```
#[derive(Debug)]
pub struct History<T> {
    items: VecDeque<T>,
    next: Seq,
    bytes: usize,
    bytes_max: usize,
}

/// What the history has for a reader.
#[derive(Debug, PartialEq, Eq)]
pub enum Slice<T> {
    /// These come next.
    Items(Vec<T>),
    /// Nothing yet: the reader has everything.
    CaughtUp,
    /// The reader wants older items than there are; `first` is the oldest that there is, or will be.
    TooOld {
        /// Where the history begins.
        first: Seq,
    },
}

impl<T: Item + Clone> History<T> {
    /// An empty history that awaits `next`.
    pub fn new(next: Seq, bytes_max: usize) -> Self {
        Self {
            items: VecDeque::new(),
            next,
            bytes: 0,
            bytes_max,
        }
    }

    /// The number that is awaited.
    pub fn next_seq(&self) -> Seq {
        self.next
    }

    /// The oldest number that can be read, or will be.
    pub fn first_seq(&self) -> Seq {
        self.items.front().map_or(self.next, Item::seq)
    }

    /// The newest item.
    pub fn last(&self) -> Option<&T> {
        self.items.back()
    }

    /// How many bytes the items keep, about.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The item with this number, when it is here.
    pub fn find(&self, seq: Seq) -> Option<&T> {
        let index = seq.0.checked_sub(self.first_seq().0)?;
        self.items.get(usize::try_from(index).ok()?)
    }

    /// Adds the awaited item; the oldest give way. One item always fits.
    ///
    /// # Panics
    /// When the item is not the awaited one: the stitcher before it has a fault.
    pub fn push(&mut self, item: T) {
        assert!(item.seq() == self.next, "a history has no gap");
        self.next = self.next.successor();
        self.bytes += item.size();
        self.items.push_back(item);
        self.shorten(self.bytes_max);
    }

    /// Drops the oldest items until those that are left have at most `bytes_max`, or only the newest is left.
    pub fn shorten(&mut self, bytes_max: usize) {
        while self.bytes > bytes_max && self.items.len() > 1 {
            if let Some(old) = self.items.pop_front() {
                self.bytes = self.bytes.saturating_sub(old.size());
            }
        }
    }

    /// Starts again after a gap, with `next`.
    pub fn restart(&mut self, next: Seq) {
        *self = Self::new(next, self.bytes_max);
    }

    /// What a reader that wants `from` gets, about `bytes_max` of it, at least one item if there is one.
    pub fn read(&self, from: Seq, bytes_max: usize) -> Slice<T> {
        let first = self.first_seq();
        if from < first {
            return Slice::TooOld { first };
        }
        // One item always fits: a reader that is given none has everything.
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

    /// The same, written to be seen through: every item since the last restart.
    struct Naive {
        start: Seq,
        all: Vec<Event>,
        bytes_max: usize,
    }

    impl Naive {
        fn next_seq(&self) -> Seq {
            Seq(self.start.0 + self.all.len() as u64)
        }

        /// The longest tail that fits; the last item always does.
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
            let (mut items, mut bytes) = (Vec::new(), 0);
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
            "bounded, but for one item"
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
            let (start, bytes_max) = (Seq(1 + rng.below(9)), rng.pick(&[0, 1, 10, 50]));
            let mut history = History::new(start, bytes_max);
            let mut naive = Naive {
                start,
                all: Vec::new(),
                bytes_max,
            };
            for _ in 0..rng.below(30) {
                if rng.percent(5) {
                    naive = Naive {
                        start: Seq(1 + rng.below(60)),
                        all: Vec::new(),
                        bytes_max,
                    };
                    history.restart(naive.start);
                } else {
                    let item = Event::sized(naive.next_seq(), 1 + rng.index(15));
                    history.push(item.clone());
                    naive.all.push(item);
                }
                if rng.tells {
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
        history.shorten(50);
        assert_eq!((history.first_seq(), history.bytes()), (Seq(4), 40));
        history.shorten(0);
        assert_eq!(
            (history.first_seq(), history.next_seq(), history.bytes()),
            (Seq(5), Seq(6), 20)
        );
    }

    #[test]
    fn a_history_refuses_every_item_but_the_awaited_one() {
        for seq in [4, 6] {
            let pushed = std::panic::catch_unwind(|| {
                let mut history = History::new(Seq(5), 100);
                history.push(Event::sized(Seq(seq), 1));
            });
            assert!(pushed.is_err(), "{seq}");
        }
    }

    #[test]
    fn a_reader_gets_at_least_one_item_however_little_it_asks_for() {
        let mut history = History::new(Seq(1), 100);
        assert_eq!(history.read(Seq(1), 0), Slice::CaughtUp);
        history.push(Event::sized(Seq(1), 60));
        assert_eq!(
            history.read(Seq(1), 0),
            Slice::Items(vec![Event::sized(Seq(1), 60)])
        );
        history.push(Event::sized(Seq(2), 60));
        assert_eq!(history.read(Seq(1), 0), Slice::TooOld { first: Seq(2) });
    }
}
