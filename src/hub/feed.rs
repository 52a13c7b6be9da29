//! A feed: what an edge holds of one watched job. Its task is in `drive`; here is what watchers see of it.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use crate::config::HISTORY_BYTES;
use crate::resume::{History, Slice};
use crate::wire::{JobId, Seq, Stored};

/// The recent events of one job, kept up to date by one task and read by any number of watchers.
#[derive(Debug)]
pub struct Feed {
    job: JobId,
    /// `None` until the live subscription stands and the last event was read.
    history: Mutex<Option<History<Arc<Stored>>>>,
    changed: Notify,
    watchers: AtomicUsize,
    left: Notify,
}

impl Feed {
    pub(super) fn new(job: JobId) -> Self {
        Self {
            job,
            history: Mutex::new(None),
            changed: Notify::new(),
            watchers: AtomicUsize::new(0),
            left: Notify::new(),
        }
    }

    /// The job.
    pub fn job(&self) -> &JobId {
        &self.job
    }

    /// What a reader that wants `from` gets, about `bytes_max` of it; `None` while the feed is not open.
    pub fn read(&self, from: Seq, bytes_max: usize) -> Option<Slice<Arc<Stored>>> {
        self.lock().as_ref().map(|history| history.read(from, bytes_max))
    }

    /// The newest event, when there is one here.
    pub fn last(&self) -> Option<Arc<Stored>> {
        self.lock().as_ref().and_then(|history| history.last().cloned())
    }

    /// The event with this number, when it is here.
    pub fn find(&self, seq: Seq) -> Option<Arc<Stored>> {
        self.lock().as_ref().and_then(|history| history.find(seq).cloned())
    }

    /// Whether the live subscription stands.
    pub fn is_open(&self) -> bool {
        self.lock().is_some()
    }

    /// Wakes at the next change. Enable it, then look, then wait: a change in between is not missed.
    pub fn changed(&self) -> Notified<'_> {
        self.changed.notified()
    }

    /// Begins the history with `next`.
    pub(super) fn open(&self, next: Seq) {
        self.lock().get_or_insert_with(|| History::new(next, HISTORY_BYTES));
    }

    pub(super) fn update(&self, change: impl FnOnce(&mut History<Arc<Stored>>)) {
        if let Some(history) = self.lock().as_mut() {
            change(history);
        }
    }

    pub(super) fn wake(&self) {
        self.changed.notify_waiters();
    }

    pub(super) fn watchers(&self) -> usize {
        self.watchers.load(Ordering::Relaxed)
    }

    /// Returns when a watcher has left since the last call.
    pub(super) async fn left(&self) {
        self.left.notified().await;
    }

    fn lock(&self) -> MutexGuard<'_, Option<History<Arc<Stored>>>> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One watcher's hold on a feed. The feed outlives the last one by [`FEED_LINGER`](crate::config::FEED_LINGER).
#[derive(Debug)]
pub struct Watch(Arc<Feed>);

impl Watch {
    pub(super) fn join(feed: &Arc<Feed>) -> Self {
        feed.watchers.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(feed))
    }

    /// The feed.
    pub fn feed(&self) -> &Feed {
        &self.0
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if self.0.watchers.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.0.left.notify_one();
        }
    }
}
