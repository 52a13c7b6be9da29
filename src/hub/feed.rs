//! A feed: the recent events of one watched job, as its watchers see it. Its task is in `drive`.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker};

use futures_util::task::AtomicWaker;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use super::history::FeedHistory;
use super::unpacked::{Pack, UnpackedFeeds};
use super::watchers::{Standing, Watchers};
use crate::budget::{LimitReached, Reservation};
use crate::config::{FEED_BYTES, FEED_STEP};
use crate::fair_slots::FairSlot;
use crate::resume::Slice;
use crate::wire::{EventMeta, JobId, Seq, Stored};

/// The recent events of one job, kept up to date by one task and read by any number of watchers.
#[derive(Debug)]
pub struct Feed {
    job: JobId,
    /// `None` until the live subscription is established and the last event was read.
    history: Mutex<Option<FeedHistory>>,
    /// The memory of the feed and its history.
    reservation: Mutex<Reservation>,
    slot: FairSlot,
    /// Whether the log may have been rebuilt. Until it is checked, nothing is delivered, no copy
    /// postpones the probe, and no other feed starts with this history.
    may_be_rebuilt: AtomicBool,
    /// Whether the log was rebuilt.
    rebuilt: AtomicBool,
    /// Whether there is no room for it, because too many watched jobs have no event.
    refused: AtomicBool,
    changed: Notify,
    watchers: Mutex<Watchers>,
    /// Whether the last watcher has disconnected since the driver looked.
    disconnected: AtomicBool,
    driver: AtomicWaker,
    unpacked: UnpackedFeeds,
    me: Weak<Self>,
}

impl Feed {
    pub(super) fn new(
        job: JobId,
        reservation: Reservation,
        slot: FairSlot,
        unpacked: UnpackedFeeds,
    ) -> Arc<Self> {
        Arc::new_cyclic(|me| Self {
            unpacked,
            me: me.clone(),
            job,
            history: Mutex::new(None),
            reservation: Mutex::new(reservation),
            slot,
            may_be_rebuilt: AtomicBool::new(false),
            rebuilt: AtomicBool::new(false),
            refused: AtomicBool::new(false),
            changed: Notify::new(),
            watchers: Mutex::default(),
            disconnected: AtomicBool::new(false),
            driver: AtomicWaker::new(),
        })
    }

    /// The job.
    pub fn job(&self) -> &JobId {
        &self.job
    }

    /// The address of its first watcher.
    pub(super) fn from(&self) -> IpAddr {
        self.slot.from()
    }

    /// Reads about `bytes_max` of events from `from` on; `None` while the feed is not open.
    pub fn read(&self, from: Seq, bytes_max: usize) -> Option<Slice<Arc<Stored>>> {
        self.unpacking(|history| history.read(from, bytes_max))
    }

    /// The newest event, if there is one. It is not in the history if there was no room for it.
    pub fn last(&self) -> Option<EventMeta> {
        self.lock().as_ref().and_then(FeedHistory::last)
    }

    /// The event with this sequence number, if it is in the history.
    pub fn find(&self, seq: Seq) -> Option<Arc<Stored>> {
        self.unpacking(|history| history.find(seq)).flatten()
    }

    /// Reads the history. If that unpacks events, they stay so for other watchers, if there are any
    /// and there is room; otherwise they are packed again at once.
    fn unpacking<R>(&self, read: impl FnOnce(&mut FeedHistory) -> R) -> Option<R> {
        let mut history = self.lock();
        let history = history.as_mut()?;
        let before = history.unpacked_bytes();
        let result = read(history);
        if history.unpacked_bytes() > before {
            if self.watchers() < 2 || self.reserve(history).is_err() {
                history.pack();
            } else if before == 0 {
                self.unpacked.add(self.me.clone());
            }
        }
        Some(result)
    }

    /// Reserves the memory that the history takes, rounded up; never less than at first, see
    /// [`FEED_STEP`].
    fn reserve(&self, history: &FeedHistory) -> Result<(), LimitReached> {
        let bytes = history.bytes() + history.unpacked_bytes();
        let bytes = FEED_BYTES + bytes.next_multiple_of(FEED_STEP).max(FEED_STEP);
        self.reservation
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .resize(bytes)
    }

    /// Whether the live subscription is established.
    pub fn is_open(&self) -> bool {
        self.lock().is_some()
    }

    /// Whether the feed will not open, because there is no room for it.
    pub fn is_refused(&self) -> bool {
        self.refused.load(Ordering::Relaxed)
    }

    pub(super) fn refuse(&self) {
        self.refused.store(true, Ordering::Relaxed);
        self.wake();
    }

    /// Completes at the next change. Enable it, then check, then wait, to miss no change.
    pub fn changed(&self) -> Notified<'_> {
        self.changed.notified()
    }

    /// Whether the log does not continue the delivered events: it was restored, lost its end,
    /// started again, or was purged. The feed then returns nothing more.
    pub fn is_rebuilt(&self) -> bool {
        self.rebuilt.load(Ordering::Acquire)
    }

    pub(super) fn may_be_rebuilt(&self) -> bool {
        self.may_be_rebuilt.load(Ordering::Relaxed)
    }

    pub(super) fn set_may_be_rebuilt(&self, yes: bool) {
        self.may_be_rebuilt.store(yes, Ordering::Relaxed);
    }

    pub(super) fn set_rebuilt(&self) {
        *self.lock() = None;
        self.rebuilt.store(true, Ordering::Release);
        self.wake();
        // Its task ends, too.
        self.disconnected.store(true, Ordering::Release);
        self.driver.wake();
    }

    /// Starts with this history, if it has none.
    pub(super) fn open(&self, history: FeedHistory) {
        self.lock().get_or_insert(history);
    }

    /// See [`FeedHistory::copy_before`]. `None` also while the log may have been rebuilt.
    pub(super) fn copy_before(&self, last: &Arc<Stored>) -> Option<(FeedHistory, Arc<Stored>)> {
        if self.may_be_rebuilt() {
            return None;
        }
        self.lock().as_ref()?.copy_before(last)
    }

    /// Drops the history; watchers wait until it is opened again.
    pub(super) fn close(&self) {
        *self.lock() = None;
        self.set_may_be_rebuilt(false);
    }

    pub(super) fn update(&self, change: impl FnOnce(&mut FeedHistory)) {
        if let Some(history) = self.lock().as_mut() {
            change(history);
            if self.reserve(history).is_err() {
                // Watchers read the evicted events from the log.
                history.shorten(0);
                if self.reserve(history).is_err() {
                    // Also the newest one: of many feeds, these would be most of the memory.
                    history.evict();
                    // It is what the feed reserved at first.
                    let _ = self.reserve(history);
                }
            }
        }
    }

    pub(super) fn wake(&self) {
        self.changed.notify_waiters();
        self.lock_watchers().wake();
    }

    pub(super) fn watchers(&self) -> usize {
        self.lock_watchers().len()
    }

    /// A summary of its watchers' read positions.
    pub(super) fn standing(&self) -> Standing {
        let last = self.last();
        let next = last.map_or(Seq(0), |last| last.cursor.seq.successor());
        self.lock_watchers().standing(next)
    }

    /// Ready once the last watcher has disconnected. Only the feed's task may call it.
    pub(super) fn poll_disconnected(&self, cx: &Context<'_>) -> Poll<()> {
        self.driver.register(cx.waker());
        if self.disconnected.swap(false, Ordering::AcqRel) {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }

    fn lock_watchers(&self) -> MutexGuard<'_, Watchers> {
        self.watchers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, Option<FeedHistory>> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pack for Feed {
    fn pack(&self) {
        if let Some(history) = self.lock().as_mut() {
            history.pack();
            // It is less than before.
            let _ = self.reserve(history);
        }
    }
}

/// Keeps a feed alive for one watcher. The feed outlives its last watcher by
/// [`FEED_LINGER`](crate::config::FEED_LINGER).
#[derive(Debug)]
pub struct FeedWatch {
    feed: Arc<Feed>,
    key: usize,
    /// What was registered, and reported last: only a change of it needs the lock.
    waker: Option<Waker>,
    position: (Seq, bool),
}

impl FeedWatch {
    pub(super) fn join(feed: &Arc<Feed>) -> Self {
        Self {
            feed: Arc::clone(feed),
            key: feed.lock_watchers().join(),
            waker: None,
            position: (Seq(0), false),
        }
    }

    /// The feed.
    pub fn feed(&self) -> &Arc<Feed> {
        &self.feed
    }

    /// Wakes this task at every change of the feed from now on. Register, then check, to miss no
    /// change.
    pub fn register(&mut self, waker: &Waker) {
        let known = self.waker.as_ref();
        if !known.is_some_and(|known| known.will_wake(waker)) {
            self.feed.lock_watchers().register(self.key, waker);
            self.waker = Some(waker.clone());
        }
    }

    /// Reports the watcher's position: the event it gets next, and whether it is reading the log.
    pub fn report(&mut self, next: Seq, reads: bool) {
        if self.position != (next, reads) {
            self.position = (next, reads);
            self.feed.lock_watchers().report(self.key, next, reads);
        }
    }
}

impl Drop for FeedWatch {
    fn drop(&mut self) {
        let was_last = self.feed.lock_watchers().leave(self.key);
        if was_last {
            self.feed.disconnected.store(true, Ordering::Release);
            self.feed.driver.wake();
        }
    }
}
