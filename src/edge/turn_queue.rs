//! The clients of a thread that have more to write than one turn allows. A few at a time continue
//! each time that the thread has looked at its sockets, so that clients that catch up do not delay
//! live events, however many they are. It writes nothing.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use tokio::sync::Notify;
use tokio::task::yield_now;

use crate::config::TURNS_AT_ONCE;

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
        let waiting = std::mem::take(&mut state.wakers);
        drop(state);
        waiting.into_iter().for_each(Waker::wake);
    }
}

impl TurnQueue {
    /// Wakes a task when its client's next turn has come; at once if nothing serves the queue.
    pub(super) fn wait(&self, waker: &Waker) {
        let mut state = self.lock();
        if !state.is_served {
            drop(state);
            waker.wake_by_ref();
            return;
        }
        state.wakers.push_back(waker.clone());
        drop(state);
        self.used.notify_one();
    }

    /// Wakes those that wait, until this is dropped.
    pub(super) async fn serve(&self) {
        let _served = Served::new(self);
        loop {
            let next = self.take_next();
            if next.is_empty() {
                self.used.notified().await;
            } else {
                next.into_iter().for_each(Waker::wake);
                // The thread looks at its sockets before this returns.
                yield_now().await;
            }
        }
    }

    fn take_next(&self) -> Vec<Waker> {
        let mut state = self.lock();
        let count = state.wakers.len().min(TURNS_AT_ONCE);
        let next = state.wakers.drain(..count).collect();
        if state.wakers.is_empty() {
            state.wakers.shrink_to(TURNS_AT_ONCE);
        }
        next
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
        for client in &clients {
            queue.wait(&Waker::from(Arc::clone(client)));
        }
        let served = || {
            clients
                .iter()
                .map(|client| client.woken())
                .collect::<Vec<_>>()
        };
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
        }
    }

    #[tokio::test]
    async fn a_client_does_not_wait_for_a_queue_that_nothing_serves() {
        let queue = TurnQueue::default();
        let client = Arc::new(Client::default());
        let waker = Waker::from(Arc::clone(&client));
        queue.wait(&waker);
        assert_eq!(client.woken(), 1);
        {
            let mut serving = pin!(queue.serve());
            assert!(poll!(serving.as_mut()).is_pending());
            queue.wait(&waker);
            assert_eq!(client.woken(), 1);
        }
        assert_eq!(client.woken(), 2, "the end of the queue");
        queue.wait(&waker);
        assert_eq!(client.woken(), 3);
    }
}
