//! A feed: what an edge holds of one watched job. Its task is in `drive`; here is what watchers see of it.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use crate::budget::Reservation;
use crate::config::{FEED_BYTES, HISTORY_BYTES};
use crate::resume::{History, Slice};
use crate::share::FairSlot;
use crate::wire::{JobId, Seq, Stored};

/// The recent events of one job, kept up to date by one task and read by any number of watchers.
#[derive(Debug)]
pub struct Feed {
    job: JobId,
    /// `None` until the live subscription stands and the last event was read.
    history: Mutex<Option<History<Arc<Stored>>>>,
    /// What the feed and its history hold.
    room: Mutex<Reservation>,
    slot: FairSlot,
    /// Whether the log is no continuation of what was in the history.
    rebuilt: AtomicBool,
    /// Whether there was no room for it: the job has no event yet, and so have too many others.
    refused: AtomicBool,
    changed: Notify,
    /// Where each watcher stands, by the address of its place.
    places: Mutex<HashMap<usize, Arc<Place>>>,
    disconnected: Notify,
}

/// Where one watcher stands.
#[derive(Debug, Default)]
struct Place {
    /// The event that it is handed next; 0 until it has begun.
    next: AtomicU64,
    /// Whether it reads the log.
    reads: AtomicBool,
}

/// Where watchers stand, taken together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// How many of them read the log.
    pub reading: usize,
    /// How many events, of those that are known to be stored, the one that is furthest behind was not handed yet.
    pub lag: u64,
}

impl Feed {
    pub(super) fn new(job: JobId, room: Reservation, slot: FairSlot) -> Self {
        Self {
            job,
            history: Mutex::new(None),
            room: Mutex::new(room),
            slot,
            rebuilt: AtomicBool::new(false),
            refused: AtomicBool::new(false),
            changed: Notify::new(),
            places: Mutex::default(),
            disconnected: Notify::new(),
        }
    }

    /// The job.
    pub fn job(&self) -> &JobId {
        &self.job
    }

    /// The address that asked for it first.
    pub(super) fn from(&self) -> IpAddr {
        self.slot.from()
    }

    /// What a reader that wants `from` gets, about `bytes_max` of it; `None` while the feed is not open.
    pub fn read(&self, from: Seq, bytes_max: usize) -> Option<Slice<Arc<Stored>>> {
        self.lock()
            .as_ref()
            .map(|history| history.read(from, bytes_max))
    }

    /// The newest event, when there is one here.
    pub fn last(&self) -> Option<Arc<Stored>> {
        self.lock()
            .as_ref()
            .and_then(|history| history.last().cloned())
    }

    /// The event with this number, when it is here.
    pub fn find(&self, seq: Seq) -> Option<Arc<Stored>> {
        self.lock()
            .as_ref()
            .and_then(|history| history.find(seq).cloned())
    }

    /// Whether the live subscription stands.
    pub fn is_open(&self) -> bool {
        self.lock().is_some()
    }

    /// Whether the feed never opens, because there is no room for it.
    pub fn is_refused(&self) -> bool {
        self.refused.load(Ordering::Relaxed)
    }

    pub(super) fn refuse(&self) {
        self.refused.store(true, Ordering::Relaxed);
        self.wake();
    }

    /// Wakes at the next change. Enable it, then look, then wait: a change in between is not missed.
    pub fn changed(&self) -> Notified<'_> {
        self.changed.notified()
    }

    /// Whether the log is no continuation of what was read here: it was restored, lost its end, or began anew. Nothing is
    /// read here any more.
    pub fn is_rebuilt(&self) -> bool {
        self.rebuilt.load(Ordering::Acquire)
    }

    /// Returns once the log is known to be another one.
    pub async fn rebuilt(&self) {
        loop {
            let mut changed = std::pin::pin!(self.changed());
            changed.as_mut().enable();
            if self.is_rebuilt() {
                return;
            }
            changed.await;
        }
    }

    pub(super) fn set_rebuilt(&self) {
        *self.lock() = None;
        self.rebuilt.store(true, Ordering::Release);
        self.wake();
    }

    /// Begins the history with `next`.
    pub(super) fn open(&self, next: Seq) {
        self.lock()
            .get_or_insert_with(|| History::new(next, HISTORY_BYTES));
    }

    /// Forgets the history; watchers wait until it is opened again.
    pub(super) fn close(&self) {
        *self.lock() = None;
    }

    pub(super) fn update(&self, change: impl FnOnce(&mut History<Arc<Stored>>)) {
        if let Some(history) = self.lock().as_mut() {
            change(history);
            let mut room = self.room.lock().unwrap_or_else(PoisonError::into_inner);
            if room.resize(FEED_BYTES + history.bytes()).is_err() {
                // Who needs what was dropped reads it from the log.
                history.shorten(0);
                // One that is larger than what was before it goes uncounted until there is room: it has to be delivered.
                let _ = room.resize(FEED_BYTES + history.bytes());
            }
        }
    }

    pub(super) fn wake(&self) {
        self.changed.notify_waiters();
    }

    pub(super) fn watchers(&self) -> usize {
        self.places().len()
    }

    /// Where its watchers stand.
    pub(super) fn standing(&self) -> Standing {
        let next = self.last().map_or(0, |last| last.seq.successor().0);
        let mut standing = Standing::default();
        for place in self.places().values() {
            standing.reading += usize::from(place.reads.load(Ordering::Relaxed));
            let stands = place.next.load(Ordering::Relaxed);
            if stands > 0 {
                standing.lag = standing.lag.max(next.saturating_sub(stands));
            }
        }
        standing
    }

    /// Returns when a watcher has disconnected since the last call.
    pub(super) async fn disconnected(&self) {
        self.disconnected.notified().await;
    }

    fn places(&self) -> MutexGuard<'_, HashMap<usize, Arc<Place>>> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, Option<History<Arc<Stored>>>> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One watcher's hold on a feed. The feed outlives the last one by [`FEED_LINGER`](crate::config::FEED_LINGER).
#[derive(Debug)]
pub struct Watch {
    feed: Arc<Feed>,
    place: Arc<Place>,
}

impl Watch {
    pub(super) fn join(feed: &Arc<Feed>) -> Self {
        let place = Arc::<Place>::default();
        feed.places()
            .insert(Arc::as_ptr(&place) as usize, Arc::clone(&place));
        Self {
            feed: Arc::clone(feed),
            place,
        }
    }

    /// The feed.
    pub fn feed(&self) -> &Feed {
        &self.feed
    }

    /// The watcher is handed `next` next, and reads the log or does not.
    pub fn stands(&self, next: Seq, reads: bool) {
        self.place.next.store(next.0, Ordering::Relaxed);
        self.place.reads.store(reads, Ordering::Relaxed);
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let mut places = self.feed.places();
        places.remove(&(Arc::as_ptr(&self.place) as usize));
        if places.is_empty() {
            drop(places);
            self.feed.disconnected.notify_one();
        }
    }
}
