//! Turns: so many reads of a shard go on at a time, and each goes on to its end. What is read is the caller's.

use std::future::Future;
use std::sync::Arc;

use tokio::sync::{Semaphore, oneshot};

use crate::runtime::Tasks;
use crate::source::Unavailable;

/// The turns of one shard.
#[derive(Debug)]
pub(super) struct Turns {
    free: Arc<Semaphore>,
    tasks: Tasks,
}

impl Turns {
    /// Turns for as many reads at once, which are among the tasks.
    pub(super) fn new(at_once: usize, tasks: Tasks) -> Self {
        Self {
            free: Arc::new(Semaphore::new(at_once)),
            tasks,
        }
    }

    /// Runs `read` at its turn. Dropping this before gives up the place in the queue. A read that was begun keeps its
    /// turn until it ends, whether anybody waits for it or not: the broker is busy with it all the same. So it is a task
    /// of its own: a reader that is not polled, because its client takes nothing, keeps no turn from the others.
    ///
    /// # Errors
    /// What `read` gives.
    pub(super) async fn take<T: Send + 'static>(
        &self,
        read: impl Future<Output = Result<T, Unavailable>> + Send + 'static,
    ) -> Result<T, Unavailable> {
        let (mut answer, answered) = oneshot::channel();
        let free = Arc::clone(&self.free);
        // Not only until the stop: requests that are under way then are answered, and a read ends soon by itself.
        self.tasks.spawn(async move {
            let turn = tokio::select! {
                biased;
                () = answer.closed() => return,
                turn = free.acquire() => turn,
            };
            let read = read.await;
            drop(turn);
            // Whoever has gone does not need it.
            let _ = answer.send(read);
        });
        answered
            .await
            .map_err(|_| Unavailable("a read was cut off".into()))?
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt as _;
    use std::pin::pin;
    use tokio::task::yield_now;

    /// Lets all tasks do what they can.
    async fn settle() {
        for _ in 0..10 {
            yield_now().await;
        }
    }

    /// A read that is answered when the sender says what.
    fn read() -> (
        oneshot::Sender<u32>,
        impl Future<Output = Result<u32, Unavailable>>,
    ) {
        let (say, said) = oneshot::channel();
        (
            say,
            said.map(|said| said.map_err(|_| Unavailable("nothing was said".into()))),
        )
    }

    #[tokio::test]
    async fn a_read_that_was_begun_keeps_its_turn_until_it_ends_though_nobody_waits_for_it() {
        let turns = Turns::new(1, Tasks::default());
        let (say, first) = read();
        let mut first = Box::pin(turns.take(first));
        assert!(first.as_mut().now_or_never().is_none());
        settle().await;
        drop(first);
        let mut second = pin!(turns.take(async { Ok(2) }));
        for _ in 0..3 {
            assert!(second.as_mut().now_or_never().is_none());
            settle().await;
        }
        say.send(1).unwrap();
        assert_eq!(second.await.unwrap(), 2);
    }

    #[tokio::test]
    async fn a_read_that_nobody_waits_for_is_not_begun() {
        let (tasks, (say, first), (other, second)) = (Tasks::default(), read(), read());
        let turns = Turns::new(1, tasks.clone());
        let mut first = pin!(turns.take(first));
        let mut second = Box::pin(turns.take(second));
        assert!(first.as_mut().now_or_never().is_none());
        assert!(second.as_mut().now_or_never().is_none());
        settle().await;
        assert_eq!(tasks.running(), 2);
        drop(second);
        settle().await;
        assert!(other.is_closed());
        say.send(1).unwrap();
        assert_eq!(first.await.unwrap(), 1);
        settle().await;
        assert_eq!(tasks.running(), 0);
    }

    #[tokio::test]
    async fn a_reader_that_does_not_look_keeps_no_turn_from_the_others_and_has_its_answer_later() {
        let turns = Turns::new(1, Tasks::default());
        let mut idle = pin!(turns.take(async { Ok(1) }));
        assert!(idle.as_mut().now_or_never().is_none());
        for n in 2..5 {
            assert_eq!(turns.take(async move { Ok(n) }).await.unwrap(), n);
        }
        assert_eq!(idle.now_or_never().unwrap().unwrap(), 1);
    }
}
