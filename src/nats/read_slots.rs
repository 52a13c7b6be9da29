//! Limits how many reads of a shard run at a time, and runs each to its end.

use std::future::Future;
use std::sync::Arc;

use tokio::sync::{Semaphore, oneshot};

use crate::runtime::Tasks;
use crate::source::Unavailable;

/// Permission to read one shard.
#[derive(Debug)]
pub(super) struct ReadSlots {
    free: Arc<Semaphore>,
    tasks: Tasks,
}

impl ReadSlots {
    /// Allows `at_once` reads at a time; they run among `tasks`.
    pub(super) fn new(at_once: usize, tasks: Tasks) -> Self {
        Self {
            free: Arc::new(Semaphore::new(at_once)),
            tasks,
        }
    }

    /// Runs `read` once a slot is free. Dropping this future while it waits leaves the queue. A
    /// read that has started keeps its slot until it ends, even if no caller waits for it, since
    /// the broker is still busy with it. It is a task of its own: a reader that is not polled,
    /// because its client does not read, must not block a slot.
    ///
    /// # Errors
    /// Those of `read`.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        read: impl Future<Output = Result<T, Unavailable>> + Send + 'static,
    ) -> Result<T, Unavailable> {
        let (mut answer, answered) = oneshot::channel();
        let free = Arc::clone(&self.free);
        // Not ended by the stop signal: requests in flight are still answered, and a read ends
        // soon.
        self.tasks.spawn(async move {
            let slot = tokio::select! {
                biased;
                () = answer.closed() => return,
                slot = free.acquire() => slot,
            };
            let result = read.await;
            drop(slot);
            // The caller may have been dropped meanwhile.
            let _ = answer.send(result);
        });
        answered
            .await
            .map_err(|_| Unavailable("a read was interrupted".into()))?
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt as _;
    use std::pin::pin;
    use tokio::task::yield_now;

    async fn let_tasks_run() {
        for _ in 0..10 {
            yield_now().await;
        }
    }

    /// A read that ends when the sender sends its result.
    fn read() -> (
        oneshot::Sender<u32>,
        impl Future<Output = Result<u32, Unavailable>>,
    ) {
        let (finish, finished) = oneshot::channel();
        let read = finished.map(|result| result.map_err(|_| Unavailable("never finished".into())));
        (finish, read)
    }

    #[tokio::test]
    async fn a_started_read_keeps_its_slot_until_it_ends_even_if_no_caller_waits() {
        let slots = ReadSlots::new(1, Tasks::default());
        let (finish, first) = read();
        let mut first = Box::pin(slots.run(first));
        assert!(first.as_mut().now_or_never().is_none());
        let_tasks_run().await;
        drop(first);
        let mut second = pin!(slots.run(async { Ok(2) }));
        for _ in 0..3 {
            assert!(second.as_mut().now_or_never().is_none());
            let_tasks_run().await;
        }
        finish.send(1).unwrap();
        assert_eq!(second.await.unwrap(), 2);
    }

    #[tokio::test]
    async fn a_read_that_is_dropped_while_it_waits_never_starts() {
        let tasks = Tasks::default();
        let (finish, first) = read();
        let (other, second) = read();
        let slots = ReadSlots::new(1, tasks.clone());
        let mut first = pin!(slots.run(first));
        let mut second = Box::pin(slots.run(second));
        assert!(first.as_mut().now_or_never().is_none());
        assert!(second.as_mut().now_or_never().is_none());
        let_tasks_run().await;
        assert_eq!(tasks.running(), 2);
        drop(second);
        let_tasks_run().await;
        assert!(other.is_closed());
        finish.send(1).unwrap();
        assert_eq!(first.await.unwrap(), 1);
        let_tasks_run().await;
        assert_eq!(tasks.running(), 0);
    }

    #[tokio::test]
    async fn a_reader_that_is_not_polled_frees_its_slot_and_finds_its_result_later() {
        let slots = ReadSlots::new(1, Tasks::default());
        let mut idle = pin!(slots.run(async { Ok(1) }));
        assert!(idle.as_mut().now_or_never().is_none());
        for n in 2..5 {
            assert_eq!(slots.run(async move { Ok(n) }).await.unwrap(), n);
        }
        assert_eq!(idle.now_or_never().unwrap().unwrap(), 1);
    }
}
