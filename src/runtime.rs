//! Tasks and stopping: the one place that spawns, and the signals that end a process. It knows no work.

use std::future::Future;
use std::io;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

/// The tasks of one owner, who awaits them. Clones share the same tasks.
#[derive(Clone, Debug, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    stop: CancellationToken,
}

impl Tasks {
    /// No tasks yet; they should end when `stop` is cancelled.
    pub fn new(stop: CancellationToken) -> Self {
        Self { tracker: TaskTracker::new(), stop }
    }

    /// Cancelled when the tasks should end.
    pub fn stop(&self) -> &CancellationToken {
        &self.stop
    }

    /// Runs `task` on the current runtime until it ends.
    #[expect(clippy::disallowed_methods, reason = "the one place that spawns")]
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        tokio::spawn(self.tracker.track_future(task));
    }

    /// Runs `task` until it ends or the tasks should end; it must be safe to drop at any await.
    pub fn spawn_until_stop(&self, task: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        self.spawn(async move {
            stop.run_until_cancelled(task).await;
        });
    }

    /// Counts as a task until it is dropped, for work that a library spawns.
    pub fn hold(&self) -> TaskTrackerToken {
        self.tracker.token()
    }

    /// Tells the tasks to end and waits for them, `limit` at the most. Says whether all have ended.
    pub async fn end(&self, limit: Duration) -> bool {
        self.stop.cancel();
        self.tracker.close();
        tokio::time::timeout(limit, self.tracker.wait()).await.is_ok()
    }

    /// How many tasks have not ended.
    pub fn running(&self) -> usize {
        self.tracker.len()
    }
}

/// Does `work` unless `end` is cancelled. What is ready only after that is dropped: nobody waits for it any more.
pub async fn unless_ended<T>(end: &CancellationToken, work: impl Future<Output = T>) -> Option<T> {
    // By itself this prefers what is ready to the token.
    end.run_until_cancelled(work).await.filter(|_| !end.is_cancelled())
}

/// Waits for SIGINT or SIGTERM.
///
/// # Errors
/// When the handlers cannot be installed.
pub async fn interrupted() -> io::Result<()> {
    let (mut int, mut term) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    tokio::select! {
        _ = int.recv() => {}
        _ = term.recv() => {}
    }
    Ok(())
}

/// A runtime with one thread: work stealing wakes a thread for nearly every message, which costs 30 to 40 % more CPU
/// per event on two cores.
///
/// # Errors
/// When the operating system gives no event queue.
pub fn single_threaded() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

/// Runs `work` on as many threads, each with a runtime of its own, and waits for all of them. The first error counts.
///
/// # Errors
/// What `work` returns, or that a runtime cannot be made.
pub fn on_threads<F, W, E>(threads: usize, work: F) -> Result<(), E>
where
    F: Fn(usize) -> W + Sync,
    W: Future<Output = Result<(), E>>,
    E: From<io::Error> + Send,
{
    std::thread::scope(|scope| {
        let begin = |index| {
            scope.spawn({
                let work = &work;
                move || single_threaded()?.block_on(work(index))
            })
        };
        let running: Vec<_> = (0..threads.max(1)).map(begin).collect();
        let ended = |thread: std::thread::ScopedJoinHandle<'_, Result<(), E>>| {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        running.into_iter().map(ended).fold(Ok(()), Result::and)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::poll;

    #[tokio::test]
    async fn what_is_ready_after_the_end_is_dropped() {
        let (end, (tell, told)) = (CancellationToken::new(), tokio::sync::oneshot::channel());
        let mut work = std::pin::pin!(unless_ended(&end, told));
        assert!(poll!(work.as_mut()).is_pending());
        tell.send(()).unwrap();
        end.cancel();
        assert!(work.await.is_none());
        assert_eq!(unless_ended(&CancellationToken::new(), std::future::ready(1)).await, Some(1));
    }
}
