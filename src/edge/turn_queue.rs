//! The clients of a thread that have more to write than one turn allows. A few at a time continue
//! each time that the thread has looked at its sockets, so that clients that catch up do not delay
//! live events, however many they are. It writes nothing.

use std::collections::VecDeque;
use std::num::NonZeroU64;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use tokio::sync::Notify;
use tokio::task::yield_now;

use crate::config::TURNS_AT_ONCE;

/// The turn for which a client waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct QueuedTurn(NonZeroU64);

impl QueuedTurn {
    /// The turn with this number: the first one has the number 1, and 0 has always come.
    fn with(number: u64) -> Self {
        Self(NonZeroU64::MIN.saturating_add(number))
    }
}

/// The queue of a thread.
#[derive(Debug, Default)]
pub(super) struct TurnQueue {
    state: Mutex<QueuedTurns>,
    /// Notified when a client waits.
    used: Notify,
}

#[derive(Debug, Default)]
struct QueuedTurns {
    /// What wakes those that wait, in their order.
    wakers: VecDeque<Waker>,
    /// How many turns have come.
    begun: u64,
    /// Whether [`TurnQueue::serve`] runs.
    is_served: bool,
}

/// The queue is served until this is dropped.
struct Served<'a>(&'a TurnQueue);

impl<'a> Served<'a> {
    fn new(queue: &'a TurnQueue) -> Self {
        queue.lock().is_served = true;
        Self(queue)
    }
}

impl Drop for Served<'_> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.is_served = false;
        let waiting = state.begin(usize::MAX);
        drop(state);
        waiting.into_iter().for_each(Waker::wake);
    }
}

impl QueuedTurns {
    /// Begins the turns of at most `max` of those that wait. Returns what wakes them.
    fn begin(&mut self, max: usize) -> Vec<Waker> {
        let count = self.wakers.len().min(max);
        let next = self.wakers.drain(..count).collect();
        self.begun += count as u64;
        if self.wakers.is_empty() {
            self.wakers.shrink_to(TURNS_AT_ONCE);
        }
        next
    }
}

impl TurnQueue {
    /// Wakes a task when its client's next turn has come; at once if nothing serves the queue. A
    /// client waits for one turn at a time.
    pub(super) fn wait(&self, waker: &Waker) -> QueuedTurn {
        let mut state = self.lock();
        if !state.is_served {
            let turn = QueuedTurn::with(state.begun);
            drop(state);
            waker.wake_by_ref();
            return turn;
        }
        state.wakers.push_back(waker.clone());
        let turn = QueuedTurn::with(state.begun + state.wakers.len() as u64);
        drop(state);
        self.used.notify_one();
        turn
    }

    /// Whether this turn has come.
    pub(super) fn has_come(&self, turn: QueuedTurn) -> bool {
        QueuedTurn::with(self.lock().begun) >= turn
    }

    /// Wakes those that wait, until this is dropped.
    pub(super) async fn serve(&self) {
        let _served = Served::new(self);
        loop {
            let next = self.lock().begin(TURNS_AT_ONCE);
            if next.is_empty() {
                self.used.notified().await;
            } else {
                next.into_iter().for_each(Waker::wake);
                // The thread looks at its sockets before this returns.
                yield_now().await;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, QueuedTurns> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::poll;
    use std::pin::pin;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    /// Counts how often a client was woken.
    #[derive(Default)]
    struct Client(AtomicUsize);

    impl Wake for Client {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    impl Client {
        fn woken(&self) -> usize {
            self.0.load(Ordering::Relaxed)
        }
    }

    #[tokio::test]
    async fn a_few_clients_at_a_time_get_a_turn_in_their_order() {
        let queue = TurnQueue::default();
        let mut serving = pin!(queue.serve());
        assert!(poll!(serving.as_mut()).is_pending());
        let clients: Vec<_> = (0..=2 * TURNS_AT_ONCE)
            .map(|_| Arc::new(Client::default()))
            .collect();
        let turns: Vec<_> = clients
            .iter()
            .map(|client| queue.wait(&Waker::from(Arc::clone(client))))
            .collect();
        let served = || {
            clients
                .iter()
                .map(|client| client.woken())
                .collect::<Vec<_>>()
        };
        assert!(turns.iter().all(|turn| !queue.has_come(*turn)));
        for count in [
            TURNS_AT_ONCE,
            2 * TURNS_AT_ONCE,
            clients.len(),
            clients.len(),
        ] {
            assert!(poll!(serving.as_mut()).is_pending());
            let first = |client: usize| usize::from(client < count);
            let expected: Vec<_> = (0..clients.len()).map(first).collect();
            assert_eq!(served(), expected);
            let come = turns.iter().filter(|turn| queue.has_come(**turn));
            assert_eq!(come.count(), count);
        }
    }

    #[tokio::test]
    async fn a_client_does_not_wait_for_a_queue_that_nothing_serves() {
        let queue = TurnQueue::default();
        let client = Arc::new(Client::default());
        let waker = Waker::from(Arc::clone(&client));
        let turn = queue.wait(&waker);
        assert!(client.woken() == 1 && queue.has_come(turn));
        let turn = {
            let mut serving = pin!(queue.serve());
            assert!(poll!(serving.as_mut()).is_pending());
            let turn = queue.wait(&waker);
            assert!(client.woken() == 1 && !queue.has_come(turn));
            turn
        };
        assert!(client.woken() == 2 && queue.has_come(turn), "the end");
        let turn = queue.wait(&waker);
        assert!(client.woken() == 3 && queue.has_come(turn));
    }
}
