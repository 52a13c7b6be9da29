//! Tasks and their owners: the only place that spawns.

use std::future::Future;
use std::panic::{AssertUnwindSafe, Location};
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::panics::report_panic;

/// The tasks of one owner, which awaits them. Clones share the same tasks.
#[derive(Clone, Debug, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    stop: CancellationToken,
}

impl Tasks {
    /// No tasks; those that are added should end when `stop` is cancelled.
    pub fn new(stop: CancellationToken) -> Self {
        Self {
            tracker: TaskTracker::new(),
            stop,
        }
    }

    /// Cancelled when the tasks should end.
    pub fn stop(&self) -> &CancellationToken {
        &self.stop
    }

    /// Runs `task` on the current runtime. A panic ends the task, is counted in [`panics`](super::panics()) and is
    /// logged with the source location of this call.
    #[track_caller]
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.spawn_at(Location::caller(), task);
    }

    /// [`Self::spawn`] for a task that is dropped at an await when the tasks should end.
    #[track_caller]
    pub fn spawn_until_stop(&self, task: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        // Boxed, because each future around it would hold it several times.
        let task = Box::pin(task);
        self.spawn_at(Location::caller(), async move {
            stop.run_until_cancelled(task).await;
        });
    }

    /// [`Self::spawn`] for a call at this location. The task is not boxed, and nothing around it
    /// holds it twice: a wake-up of a task that has slept fetches each of its parts from memory.
    #[expect(clippy::disallowed_methods, reason = "the only place that spawns")]
    fn spawn_at(
        &self,
        location: &'static Location<'static>,
        task: impl Future<Output = ()> + Send + 'static,
    ) {
        // Shared state may be inconsistent after a panic; a lock reports that as poisoned.
        let task = AssertUnwindSafe(task).catch_unwind().map(move |ended| {
            if let Err(payload) = ended {
                report_panic(location, payload.as_ref());
            }
        });
        tokio::spawn(self.tracker.track_future(task));
    }

    /// Counts as a task until it is dropped, for tasks that a library spawns.
    pub fn hold(&self) -> TaskTrackerToken {
        self.tracker.token()
    }

    /// Stops the tasks and waits for them, for at most `limit`. Returns whether all have ended.
    pub async fn end(&self, limit: Duration) -> bool {
        self.stop.cancel();
        self.tracker.close();
        tokio::time::timeout(limit, self.tracker.wait())
            .await
            .is_ok()
    }

    /// How many tasks are running.
    pub fn running(&self) -> usize {
        self.tracker.len()
    }
}

/// The result of `work`, or `None` once `end` is cancelled, even if the result is ready.
pub async fn unless_ended<T>(end: &CancellationToken, work: impl Future<Output = T>) -> Option<T> {
    // `run_until_cancelled` alone prefers a ready result to a cancelled token.
    end.run_until_cancelled(work)
        .await
        .filter(|_| !end.is_cancelled())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::panics;
    use crate::wire::limits::MESSAGE_MAX;
    use futures_util::poll;
    use std::io;
    use std::sync::{Arc, Mutex};

    /// Collects log lines as text.
    #[derive(Clone, Default)]
    struct Logged(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Logged {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn a_panic_is_logged_with_its_location_and_counted_and_other_tasks_continue() {
        let logged = Logged::default();
        let into = logged.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_writer(move || into.clone())
            .finish();
        let _guard = tracing::subscriber::set_default(subscriber);
        let before = panics();
        let tasks = Tasks::new(CancellationToken::new());
        let line = line!() + 1;
        tasks.spawn(async { panic!("out of {}", "order") });
        tasks.spawn_until_stop(async { panic!("{}", "long ".repeat(1000)) });
        let (sender, receiver) = tokio::sync::oneshot::channel();
        tasks.spawn(async move { sender.send(1).unwrap() });
        assert_eq!(receiver.await, Ok(1));
        assert!(tasks.end(Duration::from_secs(5)).await);
        assert!(panics() >= before + 2);
        let log = String::from_utf8(logged.0.lock().unwrap().clone()).unwrap();
        assert_eq!(log.matches("ERROR").count(), 2, "{log}");
        assert!(
            log.contains(&format!("{}:{line}:", file!())) && log.contains("out of order"),
            "{log}"
        );
        assert!(
            log.lines().all(|line| line.len() < MESSAGE_MAX + 200),
            "{log}"
        );
    }

    #[tokio::test]
    async fn a_result_that_is_ready_after_the_end_is_dropped() {
        let end = CancellationToken::new();
        let (sender, receiver) = tokio::sync::oneshot::channel();
        let mut work = std::pin::pin!(unless_ended(&end, receiver));
        assert!(poll!(work.as_mut()).is_pending());
        sender.send(()).unwrap();
        end.cancel();
        assert!(work.await.is_none());
        let end = CancellationToken::new();
        assert_eq!(unless_ended(&end, std::future::ready(1)).await, Some(1));
    }
}
