//! The hub: which jobs have a feed. `drive` runs a feed; `waiter` waits for a job without one.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, MutexGuard};

use super::feed::Feed;
use super::siblings::{FeedTable, Siblings};
use super::unpacked::UnpackedFeeds;
use super::waiting::WaitingTable;
use super::watchers::Standing;
use crate::budget::Budget;
use crate::config::{FEEDS_MAX, FEEDS_WITHOUT_EVENTS_MAX};
use crate::fair_slots::{FairSlot, FairSlots};
use crate::runtime::Tasks;
use crate::source::EventSource;
use crate::wire::{EventMeta, JobId};

/// The feeds of one edge thread.
#[derive(Debug)]
pub struct Hub<S> {
    source: S,
    feeds: Arc<FeedTable>,
    pub(super) siblings: Siblings,
    pub(super) tasks: Tasks,
    pub(super) budget: Budget,
    /// Each feed holds one, of the address of its first watcher.
    pub(super) slots: FairSlots,
    panics: AtomicU64,
    /// How many gaps were reported to clients, and how many events were in them.
    gaps: AtomicU64,
    missing: AtomicU64,
    /// Each feed of a job without events also holds one of these.
    eventless: FairSlots,
    pub(super) waiting: WaitingTable,
    pub(super) unpacked: UnpackedFeeds,
}

/// The hub cannot hold another feed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this edge cannot watch another job at the moment")]
pub struct Full;

impl<S: EventSource> Hub<S> {
    /// A hub without feeds, which runs feeds as `tasks`.
    pub fn new(source: S, tasks: Tasks) -> Arc<Self> {
        Self::within(source, tasks, Budget::unlimited(), &Siblings::default())
    }

    /// [`Self::new`] with a memory budget, as one of the hubs of a process. When the budget is used
    /// up, no feed is added, and existing feeds keep shorter histories: only their newest event, and
    /// not even that if it is large.
    pub fn within(source: S, tasks: Tasks, budget: Budget, siblings: &Siblings) -> Arc<Self> {
        let feeds = Arc::default();
        siblings.join(&feeds);
        Arc::new(Self {
            source,
            unpacked: UnpackedFeeds::new(tasks.clone()),
            feeds,
            siblings: siblings.clone(),
            tasks,
            budget,
            slots: FairSlots::new(FEEDS_MAX),
            panics: AtomicU64::new(0),
            gaps: AtomicU64::new(0),
            missing: AtomicU64::new(0),
            eventless: FairSlots::new(FEEDS_WITHOUT_EVENTS_MAX),
            waiting: WaitingTable::new(),
        })
    }

    /// Where the events come from.
    pub fn source(&self) -> &S {
        &self.source
    }

    /// The tasks that run its feeds.
    pub fn tasks(&self) -> &Tasks {
        &self.tasks
    }

    /// How many jobs have a feed, watched or lingering.
    pub fn feeds(&self) -> usize {
        self.lock().len()
    }

    /// How many times a feed's task has panicked.
    pub fn panics(&self) -> u64 {
        self.panics.load(Ordering::Relaxed)
    }

    /// How many gaps were reported to clients.
    pub fn gaps(&self) -> u64 {
        self.gaps.load(Ordering::Relaxed)
    }

    /// How many events were in those gaps.
    pub fn missing(&self) -> u64 {
        self.missing.load(Ordering::Relaxed)
    }

    /// Counts a gap of this many events that is reported to a client.
    pub(crate) fn note_gap(&self, events: u64) {
        self.gaps.fetch_add(1, Ordering::Relaxed);
        self.missing.fetch_add(events, Ordering::Relaxed);
    }

    pub(super) fn note_panic(&self) {
        self.panics.fetch_add(1, Ordering::Relaxed);
    }

    /// A summary of all watchers' read positions.
    pub fn standing(&self) -> Standing {
        // The lock is not held while the positions are read.
        let feeds: Vec<_> = self.lock().values().cloned().collect();
        feeds
            .iter()
            .map(|feed| feed.standing())
            .fold(Standing::default(), |all, one| Standing {
                watches: all.watches + one.watches,
                reading: all.reading + one.reading,
                lag: all.lag.max(one.lag),
            })
    }

    /// Removes a feed if it has no watchers. Returns whether it did.
    pub(super) fn remove_if_unwatched(&self, feed: &Feed) -> bool {
        let mut feeds = self.lock();
        // Watchers join under this lock.
        let idle = feed.watchers() == 0;
        if idle {
            feeds.remove(feed.job());
            let keep = feeds.len() * 2;
            feeds.shrink_to(keep);
        }
        idle
    }

    /// The last event that a job's feed has delivered, if it has one.
    pub fn last(&self, job: &JobId) -> Option<EventMeta> {
        self.feeds.get(job).and_then(|feed| feed.last())
    }

    /// Ends the feed of a job that was purged: nothing more of it is served from memory.
    pub fn forget(&self, job: &JobId) {
        if let Some(feed) = self.feeds.get(job) {
            self.replace(&feed);
        }
    }

    /// Ends a feed whose log was rebuilt. Later watchers start another feed.
    pub(super) fn replace(&self, feed: &Arc<Feed>) {
        self.remove(feed);
        feed.set_rebuilt();
    }

    /// A slot for a feed of a job without events, if one is free.
    pub(super) fn eventless_slot(&self, feed: &Feed) -> Option<FairSlot> {
        self.eventless.acquire(feed.from()).ok()
    }

    /// Removes a feed that no longer serves its watchers; the next watcher starts another.
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
        self.feeds.lock()
    }
}
