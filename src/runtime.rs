//! Tasks, threads and stopping: the only place that spawns, how panics are reported, and the
//! signals that end a process.

use std::any::Any;
use std::fmt::Display;
use std::future::Future;
use std::io;
use std::panic::{AssertUnwindSafe, Location};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;
use tracing::error;

use crate::wire::limits::MESSAGE_MAX;

static PANICS: AtomicU64 = AtomicU64::new(0);

/// How many tasks and backends of this process have panicked. Each panic is a bug.
pub fn panics() -> u64 {
    PANICS.load(Ordering::Relaxed)
}

/// Logs and counts a panic of `what`. Returns its message, cut to [`MESSAGE_MAX`] bytes.
pub(crate) fn report_panic(what: impl Display, payload: &(dyn Any + Send)) -> String {
    PANICS.fetch_add(1, Ordering::Relaxed);
    let text = payload.downcast_ref::<&str>().copied();
    let text = text
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no text");
    let text = &text[..text.floor_char_boundary(MESSAGE_MAX)];
    error!(%what, panic = text, "panicked");
    text.to_owned()
}

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

    /// Runs `task` on the current runtime. A panic ends the task, is counted in [`panics`] and is
    /// logged with the source location of this call.
    #[track_caller]
    #[expect(clippy::disallowed_methods, reason = "the only place that spawns")]
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let location = Location::caller();
        // Shared state may be inconsistent after a panic; a lock reports that as poisoned.
        let task = AssertUnwindSafe(task).catch_unwind();
        tokio::spawn(self.tracker.track_future(async move {
            if let Err(payload) = task.await {
                report_panic(location, payload.as_ref());
            }
        }));
    }

    /// [`Self::spawn`] for a task that is dropped at an await when the tasks should end.
    #[track_caller]
    pub fn spawn_until_stop(&self, task: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        self.spawn(async move {
            stop.run_until_cancelled(task).await;
        });
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

/// Waits for SIGINT or SIGTERM.
///
/// # Errors
/// If the handlers cannot be installed.
pub async fn interrupted() -> io::Result<()> {
    let mut int = signal(SignalKind::interrupt())?;
    let mut term = signal(SignalKind::terminate())?;
    tokio::select! {
        _ = int.recv() => {}
        _ = term.recv() => {}
    }
    Ok(())
}

/// A runtime with one thread. Work stealing would wake a thread for nearly every message, which
/// costs 30 to 40 % more CPU per event on two cores.
///
/// # Errors
/// If the operating system cannot provide an event queue.
pub fn single_threaded() -> io::Result<Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
}

/// A runtime for work that may block its threads. When this is dropped, the work ends at its next
/// await, without waiting for it.
#[derive(Debug)]
pub(crate) struct WorkThreads(Option<Runtime>);

impl WorkThreads {
    /// A runtime with this many threads.
    ///
    /// # Errors
    /// If the operating system cannot provide a thread or an event queue.
    pub(crate) fn new(threads: usize) -> io::Result<Self> {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        builder
            .worker_threads(threads.max(1))
            .thread_name("backends")
            .enable_all()
            .build()
            .map(Some)
            .map(Self)
    }

    /// Runs `work` on these threads.
    pub(crate) fn spawn<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Work<T> {
        Work(self.0.as_ref().map(|runtime| runtime.spawn(work)))
    }

    /// Wakes an idle thread. The result completes once a thread was woken.
    ///
    /// One thread of the runtime waits for timers and sockets. If work blocks that thread, an idle
    /// one takes over only after it was woken.
    pub(crate) fn wake(&self) -> Work<()> {
        self.spawn(std::future::ready(()))
    }
}

impl Drop for WorkThreads {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// Work on other threads. Dropping this ends the work at its next await.
#[derive(Debug)]
pub(crate) struct Work<T>(Option<JoinHandle<T>>);

/// Why work has no result.
#[derive(Debug)]
pub(crate) enum WorkError {
    /// It panicked, with this payload.
    Panicked(Box<dyn Any + Send>),
    /// It was dropped with its threads.
    Dropped,
}

impl<T> Future for Work<T> {
    type Output = Result<T, WorkError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(handle) = &mut self.0 else {
            return Poll::Ready(Err(WorkError::Dropped));
        };
        Pin::new(handle)
            .poll(context)
            .map_err(|error| match error.try_into_panic() {
                Ok(payload) => WorkError::Panicked(payload),
                Err(_) => WorkError::Dropped,
            })
    }
}

impl<T> Drop for Work<T> {
    fn drop(&mut self) {
        if let Some(handle) = &self.0 {
            handle.abort();
        }
    }
}

/// Runs `work` on each of `threads` threads with its own runtime, and waits for all of them.
///
/// # Errors
/// The first error of `work`, or that a runtime cannot be created.
pub fn on_threads<F, W, E>(threads: usize, work: F) -> Result<(), E>
where
    F: Fn(usize) -> W + Sync,
    W: Future<Output = Result<(), E>>,
    E: From<io::Error> + Send,
{
    std::thread::scope(|scope| {
        let start = |index| {
            scope.spawn({
                let work = &work;
                move || single_threaded()?.block_on(work(index))
            })
        };
        let running: Vec<_> = (0..threads.max(1)).map(start).collect();
        let ended = |thread: std::thread::ScopedJoinHandle<'_, Result<(), E>>| {
            thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        running.into_iter().map(ended).fold(Ok(()), Result::and)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::poll;
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
