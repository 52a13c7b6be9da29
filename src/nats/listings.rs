//! How many listings are made at a time, and what part of the time they may take. It reads nothing.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, sleep_until};

use crate::config::{LIST_QUEUE, LIST_REST, LISTINGS};

/// Too many listings wait already.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too many listings wait")]
pub struct Busy;

/// Who may list jobs now. After listings there is a rest of [`LIST_REST`] times as long as they took, so that they have no
/// more than a part of the time, however many are asked for.
#[derive(Debug)]
pub(super) struct Listings {
    slots: Semaphore,
    /// When the rest is over.
    rests_until: Mutex<Instant>,
    waiting: AtomicUsize,
}

/// A listing that is made, until it is dropped.
pub(super) struct Listing<'a> {
    listings: &'a Listings,
    begun: Instant,
    _slot: SemaphorePermit<'a>,
}

/// One that waits, until it is dropped.
struct Waiting<'a>(&'a AtomicUsize);

impl Listings {
    pub(super) fn new() -> Self {
        let rests_until = Mutex::new(Instant::now());
        Self {
            slots: Semaphore::new(LISTINGS),
            rests_until,
            waiting: AtomicUsize::new(0),
        }
    }

    /// Waits until a listing may begin, if not too many wait already.
    pub(super) async fn begin(&self) -> Result<Listing<'_>, Busy> {
        let before = self.waiting.fetch_add(1, Ordering::Relaxed);
        let _waits = Waiting(&self.waiting);
        if before >= LIST_QUEUE {
            return Err(Busy);
        }
        let slot = self.slots.acquire().await.map_err(|_| Busy)?;
        // Those that end meanwhile prolong the rest.
        while self.rests_until() > Instant::now() {
            sleep_until(self.rests_until()).await;
        }
        Ok(Listing {
            listings: self,
            begun: Instant::now(),
            _slot: slot,
        })
    }

    fn rests_until(&self) -> Instant {
        *self
            .rests_until
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Listing<'_> {
    fn drop(&mut self) {
        let now = Instant::now();
        let rest = (now - self.begun) * LIST_REST / LISTINGS as u32;
        let mut until = self
            .listings
            .rests_until
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *until = now.max(*until) + rest;
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::OPEN_WAIT;
    use futures_util::FutureExt as _;
    use futures_util::future::join_all;
    use std::time::Duration;
    use tokio::time::{sleep, timeout};

    const TOOK: Duration = Duration::from_millis(200);

    async fn list(listings: &Listings) -> Result<Duration, Busy> {
        let listing = listings.begin().await?;
        sleep(TOOK).await;
        drop(listing);
        Ok(TOOK)
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_of_listings_has_a_part_of_the_time_and_the_rest_is_refused_at_once() {
        let (listings, begun) = (Listings::new(), Instant::now());
        let flood = join_all((0..100).map(|_| list(&listings))).await;
        let made = flood.iter().flatten().count();
        assert_eq!(
            made,
            LISTINGS + LIST_QUEUE,
            "and those that were refused waited for nothing"
        );
        let part = TOOK * made as u32 / LISTINGS as u32;
        assert!(
            begun.elapsed() >= part + LIST_REST * (part - TOOK),
            "{:?}",
            begun.elapsed()
        );
        assert!(begun.elapsed() < OPEN_WAIT, "who waits is served in time");
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_comes_alone_waits_for_nobody_and_one_that_is_given_up_leaves_its_place() {
        let listings = Listings::new();
        list(&listings).await.unwrap();
        sleep(TOOK * LIST_REST).await;
        let held: Vec<_> = (0..LISTINGS)
            .map(|_| listings.begin().now_or_never().unwrap().unwrap())
            .collect();
        let given_up = join_all((0..LIST_QUEUE).map(|_| listings.begin()));
        assert!(timeout(TOOK, given_up).await.is_err());
        assert_eq!(listings.waiting.load(Ordering::Relaxed), 0);
        drop(held);
        list(&listings).await.unwrap();
    }
}
