//! Limits how many listings are made at a time, and what share of the time they take. It reads
//! nothing itself.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, sleep_until};

use crate::config::{LIST_QUEUE, LIST_REST, LISTINGS};
use crate::metrics::WaitCount;

/// Too many listings are waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too many listings are waiting")]
pub struct Busy;

/// Permission to list jobs. Listings are followed by a pause of [`LIST_REST`] times their duration,
/// which limits their share of the time however many are requested.
#[derive(Debug)]
pub(super) struct ListingSlots {
    slots: Semaphore,
    /// When the pause is over.
    paused_until: Mutex<Instant>,
    pub(super) waiting: WaitCount,
}

/// A listing that is being made, until it is dropped.
pub(super) struct ListingSlot<'a> {
    slots: &'a ListingSlots,
    started: Instant,
    _slot: SemaphorePermit<'a>,
}

impl ListingSlots {
    pub(super) fn new() -> Self {
        Self {
            slots: Semaphore::new(LISTINGS),
            paused_until: Mutex::new(Instant::now()),
            waiting: WaitCount::default(),
        }
    }

    /// Waits until a listing may start, unless too many are waiting.
    pub(super) async fn acquire(&self) -> Result<ListingSlot<'_>, Busy> {
        let _waits = self.waiting.enter();
        if self.waiting.count() > LIST_QUEUE {
            return Err(Busy);
        }
        let slot = self.slots.acquire().await.map_err(|_| Busy)?;
        // Listings that end meanwhile extend the pause.
        while self.paused_until() > Instant::now() {
            sleep_until(self.paused_until()).await;
        }
        Ok(ListingSlot {
            slots: self,
            started: Instant::now(),
            _slot: slot,
        })
    }

    fn paused_until(&self) -> Instant {
        *self.lock()
    }

    fn lock(&self) -> MutexGuard<'_, Instant> {
        self.paused_until
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for ListingSlot<'_> {
    fn drop(&mut self) {
        let now = Instant::now();
        let pause = (now - self.started) * LIST_REST / LISTINGS as u32;
        let mut until = self.slots.lock();
        *until = now.max(*until) + pause;
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

    async fn list(slots: &ListingSlots) -> Result<Duration, Busy> {
        let slot = slots.acquire().await?;
        sleep(TOOK).await;
        drop(slot);
        Ok(TOOK)
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_of_listings_gets_a_limited_share_of_the_time_and_the_excess_is_refused_at_once()
     {
        let slots = ListingSlots::new();
        let started = Instant::now();
        let flood = join_all((0..100).map(|_| list(&slots))).await;
        let made = flood.iter().flatten().count();
        assert_eq!(
            made,
            LISTINGS + LIST_QUEUE,
            "the others are refused without waiting"
        );
        let part = TOOK * made as u32 / LISTINGS as u32;
        assert!(
            started.elapsed() >= part + LIST_REST * (part - TOOK),
            "{:?}",
            started.elapsed()
        );
        assert!(
            started.elapsed() < OPEN_WAIT,
            "the waiting listings are served in time"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_single_listing_does_not_wait_and_an_abandoned_one_leaves_the_queue() {
        let slots = ListingSlots::new();
        list(&slots).await.unwrap();
        sleep(TOOK * LIST_REST).await;
        let held: Vec<_> = (0..LISTINGS)
            .map(|_| slots.acquire().now_or_never().unwrap().unwrap())
            .collect();
        let abandoned = join_all((0..LIST_QUEUE).map(|_| slots.acquire()));
        assert!(timeout(TOOK, abandoned).await.is_err());
        assert_eq!(slots.waiting.count(), 0);
        drop(held);
        list(&slots).await.unwrap();
    }
}
