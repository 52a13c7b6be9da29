//! The hubs of one process. A client that connects again may reach another thread, whose feed then
//! starts with the history that the first thread has, instead of reading the log.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::feed::Feed;
use super::history::FeedHistory;
use crate::wire::{JobId, Stored};

/// The feeds of one hub.
#[derive(Debug, Default)]
pub(super) struct FeedTable(Mutex<HashMap<JobId, Arc<Feed>>>);

impl FeedTable {
    /// Access to the feeds.
    pub(super) fn lock(&self) -> MutexGuard<'_, HashMap<JobId, Arc<Feed>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The feed of a job, if it has one.
    pub(super) fn get(&self, job: &JobId) -> Option<Arc<Feed>> {
        self.lock().get(job).cloned()
    }
}

/// The hubs of one process, whose feeds start with one another's histories.
#[derive(Clone, Debug, Default)]
pub struct Siblings(Arc<Mutex<Vec<Weak<FeedTable>>>>);

impl Siblings {
    /// Adds the feeds of a hub.
    pub(super) fn join(&self, table: &Arc<FeedTable>) {
        let mut tables = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        tables.retain(|table| table.strong_count() > 0);
        tables.push(Arc::downgrade(table));
    }

    /// A history that leads to `last`, the log's last event, and the event that follows it; see
    /// [`FeedHistory::copy_before`].
    pub(super) fn copy_before(
        &self,
        job: &JobId,
        last: &Arc<Stored>,
    ) -> Option<(FeedHistory, Arc<Stored>)> {
        // The hubs are not locked while a history is copied.
        let tables = self
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let mut feeds = tables
            .iter()
            .filter_map(Weak::upgrade)
            .filter_map(|table| table.get(job));
        feeds.find_map(|feed| feed.copy_before(last))
    }
}
