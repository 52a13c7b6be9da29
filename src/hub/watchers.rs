//! The watchers of one feed: where each of them reads, and how to wake it.

use std::task::Waker;

use slab::Slab;

use crate::wire::Seq;

/// The watchers of a feed.
#[derive(Debug, Default)]
pub(super) struct Watchers(Slab<FeedWatcher>);

/// One watcher.
#[derive(Debug)]
struct FeedWatcher {
    /// The next event to deliver; 0 before the first report.
    next: Seq,
    /// Whether it is reading the log.
    reads: bool,
    /// Wakes its task. It stays registered: a task that is woken for nothing is cheaper than one
    /// that registers again for each event.
    waker: Option<Waker>,
}

/// A summary of the read positions of watchers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// How many watchers there are.
    pub watches: usize,
    /// How many watchers are reading the log.
    pub reading: usize,
    /// By how many events the slowest watcher lags.
    pub lag: u64,
}

impl Watchers {
    /// Adds a watcher. Returns its key.
    pub(super) fn join(&mut self) -> usize {
        self.0.insert(FeedWatcher {
            next: Seq(0),
            reads: false,
            waker: None,
        })
    }

    /// Removes a watcher. Returns whether it was the last one.
    pub(super) fn leave(&mut self, key: usize) -> bool {
        self.0.remove(key);
        let is_last = self.0.is_empty();
        if is_last {
            self.0.shrink_to_fit();
        }
        is_last
    }

    /// Sets where a watcher reads.
    pub(super) fn report(&mut self, key: usize, next: Seq, reads: bool) {
        let watcher = &mut self.0[key];
        watcher.next = next;
        watcher.reads = reads;
    }

    /// Sets what wakes a watcher.
    pub(super) fn register(&mut self, key: usize, waker: &Waker) {
        self.0[key].waker = Some(waker.clone());
    }

    /// Wakes all of them.
    pub(super) fn wake(&self) {
        let wakers = self
            .0
            .iter()
            .filter_map(|(_, watcher)| watcher.waker.as_ref());
        wakers.for_each(Waker::wake_by_ref);
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// A summary, if the feed's next event is `next`.
    pub(super) fn standing(&self, next: Seq) -> Standing {
        let mut standing = Standing::default();
        for (_, watcher) in &self.0 {
            standing.watches += 1;
            standing.reading += usize::from(watcher.reads);
            if watcher.next > Seq(0) {
                standing.lag = standing.lag.max(next.0.saturating_sub(watcher.next.0));
            }
        }
        standing
    }
}
