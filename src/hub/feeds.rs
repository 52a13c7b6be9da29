//! The feeds of one edge thread, as their tasks see them: the table of feeds and the log they read. Starting a feed is
//! the hub's.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::feed::{Feed, Standing};
use crate::config::FEEDS_UNBORN_MAX;
use crate::share::{FairSlot, FairSlots};
use crate::source::EventSource;
use crate::wire::{JobId, Stored};

/// The feeds, by job.
#[derive(Debug)]
pub(super) struct Feeds<S> {
    pub(super) source: S,
    feeds: Mutex<HashMap<JobId, Arc<Feed>>>,
    panics: AtomicU64,
    /// Each feed of a job that has no event yet has one.
    unborn: FairSlots,
}

impl<S: EventSource> Feeds<S> {
    pub(super) fn new(source: S) -> Self {
        Self {
            source,
            feeds: Mutex::default(),
            panics: AtomicU64::new(0),
            unborn: FairSlots::new(FEEDS_UNBORN_MAX),
        }
    }

    /// How many times a feed's task has panicked.
    pub(super) fn panics(&self) -> u64 {
        self.panics.load(Ordering::Relaxed)
    }

    pub(super) fn note_panic(&self) {
        self.panics.fetch_add(1, Ordering::Relaxed);
    }

    /// Where the watchers of all feeds stand, taken together.
    pub(super) fn standing(&self) -> Standing {
        // Nobody who comes or goes waits for the sum.
        let feeds: Vec<_> = self.lock().values().cloned().collect();
        feeds
            .iter()
            .map(|feed| feed.standing())
            .fold(Standing::default(), |all, one| Standing {
                reading: all.reading + one.reading,
                lag: all.lag.max(one.lag),
            })
    }

    /// Forgets a feed that nobody watches. Says whether it did.
    pub(super) fn forget(&self, feed: &Feed) -> bool {
        let mut feeds = self.lock();
        // A watch joins under this lock, so nobody can join between the question and the removal.
        let idle = feed.watchers() == 0;
        if idle {
            feeds.remove(feed.job());
            let keep = feeds.len() * 2;
            feeds.shrink_to(keep);
        }
        idle
    }

    /// The newest event that watchers of a job were handed, when it has a feed.
    pub(super) fn last(&self, job: &JobId) -> Option<Arc<Stored>> {
        let feed = self.lock().get(job).cloned();
        feed.and_then(|feed| feed.last())
    }

    /// Ends a feed whose log was replaced: its watchers are told, and those to come begin another one.
    pub(super) fn replace(&self, feed: &Arc<Feed>) {
        self.remove(feed);
        feed.set_rebuilt();
    }

    /// A place for a feed of a job that has no event yet, while there are some.
    pub(super) fn unborn(&self, feed: &Feed) -> Option<FairSlot> {
        self.unborn.take(feed.from()).ok()
    }

    /// Forgets a feed that serves its watchers no longer; the next one begins another.
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
