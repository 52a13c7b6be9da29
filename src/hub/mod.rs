//! The hub of one edge thread: a feed for every watched job that is known, shared by all its watchers, and a table of the
//! others. Who watches from where, and
//! what a client is told, is the session's.

mod check;
mod drive;
mod driver;
mod feed;
#[cfg(test)]
mod tests;
mod waiting;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use feed::{Feed, Standing, Watch};
pub use waiting::Waiter;
use waiting::Waiting;

use crate::budget::{Budget, NoRoom};
use crate::config::{FEED_BYTES, FEEDS_MAX, FEEDS_UNBORN_MAX};
use crate::runtime::Tasks;
use crate::share::{FairSlot, FairSlots};
use crate::source::EventSource;
use crate::wire::{JobId, Stored};

/// The feeds of one edge thread.
#[derive(Debug)]
pub struct Hub<S> {
    source: S,
    feeds: Mutex<HashMap<JobId, Arc<Feed>>>,
    tasks: Tasks,
    budget: Budget,
    /// Each feed has one, of the address that asked for it first.
    places: FairSlots,
    panics: AtomicU64,
    /// Each feed of a job that has no event yet has one, too.
    unborn: FairSlots,
    waiting: Waiting,
}

/// The hub holds as many feeds as it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this edge watches as many jobs as it may")]
pub struct Full;

impl<S: EventSource> Hub<S> {
    /// A hub without feeds; `tasks` owns those to come.
    pub fn new(source: S, tasks: Tasks) -> Arc<Self> {
        Self::within(source, tasks, Budget::unlimited())
    }

    /// The same, whose feeds hold no more than `budget`: past it there are no new ones, and those that are there keep
    /// shorter histories.
    pub fn within(source: S, tasks: Tasks, budget: Budget) -> Arc<Self> {
        Arc::new(Self {
            source,
            feeds: Mutex::default(),
            tasks,
            budget,
            places: FairSlots::new(FEEDS_MAX),
            panics: AtomicU64::new(0),
            unborn: FairSlots::new(FEEDS_UNBORN_MAX),
            waiting: Waiting::new(),
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

    fn note_panic(&self) {
        self.panics.fetch_add(1, Ordering::Relaxed);
    }

    /// Where the watchers of all feeds stand, taken together.
    pub fn standing(&self) -> Standing {
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

    /// Watches a job for a client at this address: joins its feed, or begins one.
    ///
    /// # Errors
    /// [`Full`].
    pub fn watch(self: &Arc<Self>, job: &JobId, from: IpAddr) -> Result<Watch, Full> {
        self.watch_known(job, from, None)
    }

    /// The same; a feed that begins takes `last` for the last event while the replica that it asks does not have it.
    ///
    /// # Errors
    /// [`Full`].
    pub fn watch_known(
        self: &Arc<Self>,
        job: &JobId,
        from: IpAddr,
        last: Option<Arc<Stored>>,
    ) -> Result<Watch, Full> {
        let mut feeds = self.lock();
        match feeds.entry(job.clone()) {
            Entry::Occupied(entry) => Ok(Watch::join(entry.get())),
            Entry::Vacant(entry) => {
                let place = self.places.take(from).map_err(|NoRoom| Full)?;
                let room = self.budget.reserve(FEED_BYTES).map_err(|NoRoom| Full)?;
                let feed = entry.insert(Arc::new(Feed::new(job.clone(), room, place)));
                let watch = Watch::join(feed);
                self.tasks
                    .spawn_until_stop(drive::drive(Arc::clone(self), Arc::clone(feed), last));
                Ok(watch)
            }
        }
    }

    /// Forgets a feed that nobody watches. Says whether it did.
    fn forget(&self, feed: &Feed) -> bool {
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
    pub fn last(&self, job: &JobId) -> Option<Arc<Stored>> {
        let feed = self.lock().get(job).cloned();
        feed.and_then(|feed| feed.last())
    }

    /// Ends a feed whose log was replaced: its watchers are told, and those to come begin another one.
    fn replace(&self, feed: &Arc<Feed>) {
        self.remove(feed);
        feed.set_rebuilt();
    }

    /// A place for a feed of a job that has no event yet, while there are some.
    fn unborn(&self, feed: &Feed) -> Option<FairSlot> {
        self.unborn.take(feed.from()).ok()
    }

    /// Forgets a feed that serves its watchers no longer; the next one begins another.
    fn remove(&self, feed: &Arc<Feed>) {
        let mut feeds = self.lock();
        if feeds
            .get(feed.job())
            .is_some_and(|there| Arc::ptr_eq(there, feed))
        {
            feeds.remove(feed.job());
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<JobId, Arc<Feed>>> {
        self.feeds.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
