//! The history of a feed: the recent items, without a hole, shared by all who watch. It fills no hole itself.

use std::collections::VecDeque;

use super::Item;
use crate::wire::Seq;

/// Recent items in order, without a hole, bounded in bytes. Nothing is allocated ahead.
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
        Self { items: VecDeque::new(), next, bytes: 0, bytes_max }
    }

    /// The number that is awaited.
    pub fn next(&self) -> Seq {
        self.next
    }

    /// The oldest number that can be read, or will be.
    pub fn first(&self) -> Seq {
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
        let index = seq.0.checked_sub(self.first().0)?;
        self.items.get(usize::try_from(index).ok()?)
    }

    /// Adds the awaited item; the oldest give way. One item always fits.
    ///
    /// # Panics
    /// When the item is not the awaited one: the stitcher before it has a fault.
    pub fn push(&mut self, item: T) {
        assert!(item.seq() == self.next, "a history has no hole");
        self.next = self.next.next();
        self.bytes += item.size();
        self.items.push_back(item);
        while self.bytes > self.bytes_max && self.items.len() > 1 {
            if let Some(old) = self.items.pop_front() {
                self.bytes = self.bytes.saturating_sub(old.size());
            }
        }
    }

    /// Begins again behind a hole, with `next`.
    pub fn restart(&mut self, next: Seq) {
        *self = Self::new(next, self.bytes_max);
    }

    /// What a reader that wants `from` gets, about `bytes_max` of it, at least one item if there is one.
    pub fn read(&self, from: Seq, bytes_max: usize) -> Slice<T> {
        let first = self.first();
        if from < first {
            return Slice::TooOld { first };
        }
        let mut room = bytes_max;
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
        if items.is_empty() { Slice::CaughtUp } else { Slice::Items(items) }
    }
}
