//! The hub itself: which jobs have a feed. What runs a feed is in `drive`, what makes a watcher wait for a job in `waiter`.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::feed::{Feed, Standing};
use super::waiting::WaitingTable;
use crate::budget::Budget;
use crate::config::{FEEDS_MAX, FEEDS_WITHOUT_EVENTS_MAX};
use crate::runtime::Tasks;
use crate::share::{FairSlot, FairSlots};
use crate::source::EventSource;
use crate::wire::{JobId, Stored};

/// The feeds of one edge thread.
#[derive(Debug)]
pub struct Hub<S> {
    source: S,
    feeds: Mutex<HashMap<JobId, Arc<Feed>>>,
    pub(super) tasks: Tasks,
    pub(super) budget: Budget,
    /// Each feed holds one, of the address that asked for it first.
    pub(super) slots: FairSlots,
    panics: AtomicU64,
    /// Each feed of a job without events holds one of these, too.
    eventless: FairSlots,
    pub(super) waiting: WaitingTable,
}

/// The hub cannot hold another feed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this edge cannot watch another job at the moment")]
pub struct Full;

impl<S: EventSource> Hub<S> {
    /// A hub without feeds, whose feeds run among `tasks`.
    pub fn new(source: S, tasks: Tasks) -> Arc<Self> {
        Self::within(source, tasks, Budget::unlimited())
    }

    /// [`Self::new`] with feeds that hold no more than `budget`: past it, no feed is added, and those that exist keep
    /// shorter histories.
    pub fn within(source: S, tasks: Tasks, budget: Budget) -> Arc<Self> {
        Arc::new(Self {
            source,
            feeds: Mutex::default(),
            tasks,
            budget,
            slots: FairSlots::new(FEEDS_MAX),
            panics: AtomicU64::new(0),
            eventless: FairSlots::new(FEEDS_WITHOUT_EVENTS_MAX),
            waiting: WaitingTable::new(),
        })
    }

    /// Where the events come from.
    pub fn source(&self) -> &S {
        &self.source
    }

    /// How many jobs have a feed, watched or lingering.
    pub fn feeds(&self) -> usize {
        self.lock().len()
    }

    /// How many times a feed's task has panicked.
    pub fn panics(&self) -> u64 {
        self.panics.load(Ordering::Relaxed)
    }

    pub(super) fn note_panic(&self) {
        self.panics.fetch_add(1, Ordering::Relaxed);
    }

    /// The read positions of all watchers, in sum.
    pub fn standing(&self) -> Standing {
        // The lock is not held while the sum is computed.
        let feeds: Vec<_> = self.lock().values().cloned().collect();
        feeds
            .iter()
            .map(|feed| feed.standing())
            .fold(Standing::default(), |all, one| Standing {
                reading: all.reading + one.reading,
                lag: all.lag.max(one.lag),
            })
    }

    /// Forgets a feed without watchers. Returns whether it did.
    pub(super) fn forget(&self, feed: &Feed) -> bool {
        let mut feeds = self.lock();
        // A watcher joins under this lock, so none can join between the check and the removal.
        let idle = feed.watchers() == 0;
        if idle {
            feeds.remove(feed.job());
            let keep = feeds.len() * 2;
            feeds.shrink_to(keep);
        }
        idle
    }

    /// The newest event that was delivered to the watchers of a job, if it has a feed.
    pub fn last(&self, job: &JobId) -> Option<Arc<Stored>> {
        let feed = self.lock().get(job).cloned();
        feed.and_then(|feed| feed.last())
    }

    /// Ends a feed whose log was replaced: its watchers learn of it, and later ones start another feed.
    pub(super) fn replace(&self, feed: &Arc<Feed>) {
        self.remove(feed);
        feed.set_rebuilt();
    }

    /// The slot of a feed of a job without events, if one is free.
    pub(super) fn eventless(&self, feed: &Feed) -> Option<FairSlot> {
        self.eventless.acquire(feed.from()).ok()
    }

    /// Forgets a feed that no longer serves its watchers; the next watcher starts another.
    pub(super) fn remove(&self, feed: &Arc<Feed>) {
        let mut feeds = self.lock();
        if feeds
            .get(feed.job())
            .is_some_and(|there| Arc::ptr_eq(there, feed))
        {
            feeds.remove(feed.job());
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, HashMap<JobId, Arc<Feed>>> {
        self.feeds.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
