//! Starts feeds: one task drives each feed until it is removed, and continues after a panic. The
//! updates are in `driver`.

use std::collections::hash_map::Entry;
use std::net::IpAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures_util::FutureExt as _;
use tokio::time::{Instant, sleep};
use tracing::{debug, error, warn};

use super::driver::Driver;
use super::feed::{Feed, FeedWatch};
use super::feeds::{Full, Hub};
use crate::budget::LimitReached;
use crate::config::{FEED_BYTES, FEED_LINGER, FEED_STEP, REREAD_MAX};
use crate::source::EventSource;
use crate::wire::{JobId, Stored};

impl<S: EventSource> Hub<S> {
    /// Watches a job for a client at this address: joins its feed, or starts one.
    ///
    /// # Errors
    /// [`Full`].
    pub fn watch(self: &Arc<Self>, job: &JobId, from: IpAddr) -> Result<FeedWatch, Full> {
        self.watch_known(job, from, None)
    }

    /// [`Self::watch`] with a known event of the log, which a lagging replica may not have yet.
    ///
    /// # Errors
    /// [`Full`].
    pub fn watch_known(
        self: &Arc<Self>,
        job: &JobId,
        from: IpAddr,
        last: Option<Arc<Stored>>,
    ) -> Result<FeedWatch, Full> {
        let mut feeds = self.lock();
        match feeds.entry(job.clone()) {
            Entry::Occupied(entry) => Ok(FeedWatch::join(entry.get())),
            Entry::Vacant(entry) => {
                let slot = self.slots.acquire(from).map_err(|LimitReached| Full)?;
                let reservation = self
                    .budget
                    .reserve(FEED_BYTES + FEED_STEP)
                    .map_err(|LimitReached| Full)?;
                let unpacked = self.unpacked.clone();
                let feed = entry.insert(Feed::new(job.clone(), reservation, slot, unpacked));
                let watch = FeedWatch::join(feed);
                self.tasks
                    .spawn_until_stop(drive(Arc::clone(self), Arc::clone(feed), last));
                Ok(watch)
            }
        }
    }
}

/// Drives a feed until it is removed. After a panic, which is a bug, it continues with an empty
/// history after a pause, so that a bug that one event always triggers does not occupy the thread.
/// `known` is the log's last event, if that is known before the feed starts.
async fn drive<S: EventSource>(hub: Arc<Hub<S>>, feed: Arc<Feed>, mut known: Option<Arc<Stored>>) {
    let mut again = false;
    loop {
        let driven = AssertUnwindSafe(drive_once(
            Arc::clone(&hub),
            Arc::clone(&feed),
            known.take(),
            again,
        ))
        .catch_unwind()
        .await;
        if driven.is_ok() {
            return;
        }
        hub.note_panic();
        error!(job = %feed.job(), "a feed's task panicked and is started again");
        feed.close();
        again = true;
        sleep(REREAD_MAX).await;
    }
}

async fn drive_once<S: EventSource>(
    hub: Arc<Hub<S>>,
    feed: Arc<Feed>,
    known: Option<Arc<Stored>>,
    again: bool,
) {
    debug!(job = %feed.job(), "feed starts");
    let mut driver = Driver::new(Arc::clone(&hub), Arc::clone(&feed));
    driver.may_refuse = !again;
    driver.known = known;
    if again && feed.watchers() == 0 {
        // Their disconnection is not reported again.
        driver.linger_until = Some(Instant::now() + FEED_LINGER);
    }
    loop {
        driver.step().await;
        if feed.is_rebuilt() {
            // The job was purged.
            break;
        }
        driver.act();
        if driver.rebuilt {
            warn!(job = %feed.job(), "the log was rebuilt: its watchers must start again");
            hub.replace(&feed);
            break;
        }
        if feed.is_refused() {
            hub.remove(&feed);
            break;
        }
        if driver.linger_over() && hub.remove_if_unwatched(&feed) {
            break;
        }
    }
    debug!(job = %feed.job(), "feed ends");
}
