//! What may have disturbed the live copies of a shard: a new leader, or a connection that was down.
//! Its readers are woken, and look here before they take a copy.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use slab::Slab;
use tokio::sync::watch;

/// The disturbances of a shard. Clones share them.
#[derive(Clone, Debug)]
pub(super) struct Disturbances {
    shared: Arc<DisturbanceState>,
    /// Changed when a connection was down.
    reconnected: watch::Receiver<u64>,
}

#[derive(Debug, Default)]
struct DisturbanceState {
    /// How many new leaders there were.
    elections: AtomicU64,
    /// The tasks that wait for a disturbance.
    readers: Mutex<Slab<Option<Waker>>>,
}

impl Disturbances {
    pub(super) fn new(reconnected: watch::Receiver<u64>) -> Self {
        Self {
            shared: Arc::default(),
            reconnected,
        }
    }

    /// Counts a new leader.
    pub(super) fn note_election(&self) {
        self.shared.elections.fetch_add(1, Ordering::Release);
        self.wake();
    }

    /// Wakes the readers each time that a connection was down; ends with the connections.
    pub(super) async fn wake_after_reconnects(mut self) {
        while self.reconnected.changed().await.is_ok() {
            self.wake();
        }
    }

    fn wake(&self) {
        let readers = self.shared.lock();
        let wakers = readers.iter().filter_map(|(_, waker)| waker.as_ref());
        wakers.for_each(Waker::wake_by_ref);
    }

    /// Reports the disturbances from now on.
    pub(super) fn watch(&self) -> DisturbanceWatch {
        let mut reconnected = self.reconnected.clone();
        reconnected.mark_unchanged();
        DisturbanceWatch {
            elections: self.shared.elections.load(Ordering::Acquire),
            reconnected,
            key: self.shared.lock().insert(None),
            shared: Arc::clone(&self.shared),
            waker: None,
        }
    }
}

impl DisturbanceState {
    fn lock(&self) -> MutexGuard<'_, Slab<Option<Waker>>> {
        self.readers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reports disturbances to one reader. While there are none, a poll costs two comparisons.
#[derive(Debug)]
pub(super) struct DisturbanceWatch {
    shared: Arc<DisturbanceState>,
    key: usize,
    /// The elections that were reported.
    elections: u64,
    reconnected: watch::Receiver<u64>,
    /// What is registered.
    waker: Option<Waker>,
}

impl DisturbanceWatch {
    /// Ready if there was a disturbance since the last time.
    pub(super) fn poll(&mut self, cx: &Context<'_>) -> Poll<()> {
        if !self
            .waker
            .as_ref()
            .is_some_and(|waker| waker.will_wake(cx.waker()))
        {
            // Registered before anything is checked, so that no disturbance is missed.
            self.shared.lock()[self.key] = Some(cx.waker().clone());
            self.waker = Some(cx.waker().clone());
        }
        let elections = self.shared.elections.load(Ordering::Acquire);
        let was_down = self.reconnected.has_changed().unwrap_or(false);
        if elections == self.elections && !was_down {
            return Poll::Pending;
        }
        self.elections = elections;
        self.reconnected.mark_unchanged();
        Poll::Ready(())
    }
}

impl Drop for DisturbanceWatch {
    fn drop(&mut self) {
        let mut readers = self.shared.lock();
        readers.remove(self.key);
        if readers.is_empty() {
            readers.shrink_to_fit();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::Tasks;
    use futures_util::FutureExt as _;
    use std::future::poll_fn;

    #[tokio::test]
    async fn each_reader_learns_of_each_disturbance_after_it_began_to_watch() {
        let (down, reconnected) = watch::channel(0);
        let disturbances = Disturbances::new(reconnected);
        let tasks = Tasks::default();
        tasks.spawn_until_stop(disturbances.clone().wake_after_reconnects());
        disturbances.note_election();
        let mut first = disturbances.watch();
        let mut second = disturbances.watch();
        for disturb in [true, false, true] {
            for watch in [&mut first, &mut second] {
                assert!(poll_fn(|cx| watch.poll(cx)).now_or_never().is_none());
            }
            let both = async {
                poll_fn(|cx| first.poll(cx)).await;
                poll_fn(|cx| second.poll(cx)).await;
            };
            let disturb = async {
                tokio::task::yield_now().await;
                if disturb {
                    disturbances.note_election();
                } else {
                    down.send_modify(|count| *count += 1);
                }
            };
            tokio::join!(both, disturb);
        }
        drop((first, second));
        assert!(disturbances.shared.lock().is_empty());
    }
}
