//! Limits how many reads of the log run at a time, and how much they hold. Runs each to its end.

use std::future::Future;
use std::sync::Arc;

use tokio::sync::Semaphore;

use crate::budget::Budget;
use crate::metrics::WaitCount;
use crate::runtime::{NoMail, Tasks, mailbox};
use crate::source::Unavailable;

/// Permission to read.
#[derive(Debug)]
pub(super) struct ReadSlots {
    free: Arc<Semaphore>,
    tasks: Tasks,
    budget: Budget,
    pub(super) waiting: WaitCount,
}

impl ReadSlots {
    /// Allows `at_once` reads at a time; they run among `tasks`, and hold room in `budget`.
    pub(super) fn new(at_once: usize, tasks: Tasks, budget: Budget) -> Self {
        Self {
            free: Arc::new(Semaphore::new(at_once)),
            tasks,
            budget,
            waiting: WaitCount::default(),
        }
    }

    /// Runs `read` once this many slots are free and there is room for `bytes`. Dropping this future
    /// while it waits leaves the queue. A read that has started keeps its slots until it ends, even if
    /// no caller waits for it, since the broker is still busy with it. It is a task of its own: a
    /// reader that is not polled, because its client does not read, must not block a slot. The
    /// result of such a reader is soon dropped, and read again when the reader is polled.
    ///
    /// # Errors
    /// Those of `read`.
    pub(super) async fn run<T, R>(
        &self,
        slots: usize,
        bytes: usize,
        read: impl Fn() -> R,
    ) -> Result<T, Unavailable>
    where
        T: Send + 'static,
        R: Future<Output = Result<T, Unavailable>> + Send + 'static,
    {
        let slots = u32::try_from(slots).unwrap_or(u32::MAX);
        loop {
            let (sender, mut results) = mailbox();
            let free = Arc::clone(&self.free);
            let budget = self.budget.clone();
            let read = read();
            let waits = self.waiting.enter();
            // Not ended by the stop signal: requests in flight are still answered, and a read ends
            // soon.
            self.tasks.spawn(async move {
                let started = async {
                    let taken = free.acquire_many_owned(slots).await.ok()?;
                    Some((taken, budget.reserve_in_turn(bytes).await))
                };
                let started = tokio::select! {
                    biased;
                    () = sender.unread() => return,
                    started = started => started,
                };
                let Some((taken, reservation)) = started else {
                    return;
                };
                drop(waits);
                let result = read.await;
                drop(taken);
                // The reader may be gone.
                let _ = sender.deliver((result, reservation), |_, refused| Err(refused));
                sender.until_taken().await;
            });
            match results.take().await {
                Ok((result, _reservation)) => return result,
                Err(NoMail::Expired) => {}
                Err(NoMail::Closed) => return Err(Unavailable("a read was interrupted".into())),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt as _;
    use futures_util::future::BoxFuture;
    use std::pin::pin;
    use std::sync::Mutex;
    use tokio::sync::oneshot;
    use tokio::task::yield_now;

    async fn let_tasks_run() {
        for _ in 0..10 {
            yield_now().await;
        }
    }

    fn slots(tasks: Tasks) -> ReadSlots {
        ReadSlots::new(1, tasks, Budget::new(100))
    }

    /// A read that ends when the sender sends its result, for the first time that it is made.
    fn read() -> (
        oneshot::Sender<u32>,
        impl Fn() -> BoxFuture<'static, Result<u32, Unavailable>>,
    ) {
        let (finish, finished) = oneshot::channel();
        let finished = Mutex::new(Some(finished));
        let read = move || {
            let finished = finished.lock().unwrap().take().expect("made once");
            finished
                .map(|result| result.map_err(|_| Unavailable("never finished".into())))
                .boxed()
        };
        (finish, read)
    }

    #[tokio::test]
    async fn a_started_read_keeps_its_slot_until_it_ends_even_if_no_caller_waits() {
        let slots = slots(Tasks::default());
        let (finish, first) = read();
        let mut first = Box::pin(slots.run(1, 1, first));
        assert!(first.as_mut().now_or_never().is_none());
        let_tasks_run().await;
        drop(first);
        let mut second = pin!(slots.run(1, 1, || async { Ok(2) }));
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
        let slots = slots(tasks.clone());
        let mut first = pin!(slots.run(1, 1, first));
        let mut second = Box::pin(slots.run(1, 1, second));
        assert!(first.as_mut().now_or_never().is_none());
        assert!(second.as_mut().now_or_never().is_none());
        let_tasks_run().await;
        assert_eq!((tasks.running(), slots.waiting.count()), (2, 1));
        drop(second);
        let_tasks_run().await;
        assert!(other.is_closed());
        assert_eq!(slots.waiting.count(), 0);
        finish.send(1).unwrap();
        assert_eq!(first.await.unwrap(), 1);
        let_tasks_run().await;
        assert_eq!(tasks.running(), 0);
    }

    #[tokio::test]
    async fn a_read_of_several_slots_waits_until_all_of_them_are_free() {
        let tasks = Tasks::default();
        let slots = ReadSlots::new(3, tasks.clone(), Budget::new(100));
        let (finish, first) = read();
        let mut first = pin!(slots.run(1, 1, first));
        assert!(first.as_mut().now_or_never().is_none());
        let_tasks_run().await;
        let mut all = pin!(slots.run(3, 1, || async { Ok(3) }));
        assert!(all.as_mut().now_or_never().is_none());
        let_tasks_run().await;
        assert!(all.as_mut().now_or_never().is_none());
        finish.send(1).unwrap();
        assert_eq!((first.await.unwrap(), all.await.unwrap()), (1, 3));
    }

    #[tokio::test]
    async fn a_reader_that_is_not_polled_frees_its_slot_and_finds_its_result_later() {
        let slots = slots(Tasks::default());
        let mut idle = pin!(slots.run(1, 1, || async { Ok(1) }));
        assert!(idle.as_mut().now_or_never().is_none());
        for n in 2..5 {
            let read = slots.run(1, 1, move || async move { Ok(n) });
            assert_eq!(read.await.unwrap(), n);
        }
        assert_eq!(idle.now_or_never().unwrap().unwrap(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn results_that_no_reader_takes_leave_the_budget_and_are_read_again() {
        let slots = slots(Tasks::default());
        let mut reads = 0;
        let mut idle = pin!(slots.run(1, 100, || async { Ok(1) }));
        assert!(idle.as_mut().now_or_never().is_none());
        let_tasks_run().await;
        assert_eq!(slots.budget.used(), 100);
        // There is no room until the idle reader's result is dropped.
        for _ in 0..3 {
            reads += slots.run(1, 100, || async { Ok(1) }).await.unwrap();
        }
        assert_eq!((reads, idle.await.unwrap()), (3, 1));
        let_tasks_run().await;
        assert_eq!(slots.budget.used(), 0);
    }
}
