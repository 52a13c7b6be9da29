//! The hub of one edge thread: a feed for every watched job that is known, shared by all its watchers,
//! and a table of watched jobs that are not known yet. The position of a client, and what it receives,
//! is the session's.

mod check;
mod drive;
mod driver;
mod feed;
mod feeds;
#[cfg(test)]
mod tests;
mod waiter;
mod waiting;

use std::collections::hash_map::Entry;
use std::net::IpAddr;
use std::sync::Arc;

pub use feed::{Feed, Standing, Watch};
pub use waiter::Waiter;

use feeds::Feeds;
use waiting::Waiting;

use crate::budget::{Budget, NoRoom};
use crate::config::{FEED_BYTES, FEEDS_MAX};
use crate::runtime::Tasks;
use crate::share::FairSlots;
use crate::source::EventSource;
use crate::wire::{JobId, Stored};

/// The feeds of one edge thread.
#[derive(Debug)]
pub struct Hub<S> {
    feeds: Arc<Feeds<S>>,
    tasks: Tasks,
    budget: Budget,
    /// Each feed has one, of the address that asked for it first.
    places: FairSlots,
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
            feeds: Arc::new(Feeds::new(source)),
            tasks,
            budget,
            places: FairSlots::new(FEEDS_MAX),
            waiting: Waiting::new(),
        })
    }

    /// Where the events come from.
    pub fn source(&self) -> &S {
        &self.feeds.source
    }

    /// How many jobs have a feed, watched or lingering.
    pub fn feeds(&self) -> usize {
        self.feeds.lock().len()
    }

    /// How many times a feed's task has panicked.
    pub fn panics(&self) -> u64 {
        self.feeds.panics()
    }

    /// Where the watchers of all feeds stand, taken together.
    pub fn standing(&self) -> Standing {
        self.feeds.standing()
    }

    /// The newest event that watchers of a job were handed, when it has a feed.
    pub fn last(&self, job: &JobId) -> Option<Arc<Stored>> {
        self.feeds.last(job)
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
        let mut feeds = self.feeds.lock();
        match feeds.entry(job.clone()) {
            Entry::Occupied(entry) => Ok(Watch::join(entry.get())),
            Entry::Vacant(entry) => {
                let place = self.places.take(from).map_err(|NoRoom| Full)?;
                let room = self.budget.reserve(FEED_BYTES).map_err(|NoRoom| Full)?;
                let feed = entry.insert(Arc::new(Feed::new(job.clone(), room, place)));
                let watch = Watch::join(feed);
                self.tasks.spawn_until_stop(drive::drive(
                    Arc::clone(&self.feeds),
                    Arc::clone(feed),
                    last,
                ));
                Ok(watch)
            }
        }
    }
}
