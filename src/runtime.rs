//! Tasks, threads and stopping: the one place that spawns, what becomes of a panic, and the signals that end a process. It
//! knows no work.

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

/// How many tasks of this process have panicked.
static PANICS: AtomicU64 = AtomicU64::new(0);

/// How many tasks and backends of this process have panicked since it began. Any other number than 0 is a bug.
pub fn panics() -> u64 {
    PANICS.load(Ordering::Relaxed)
}

/// Logs and counts a panic in `what`, and returns its text, cut to [`MESSAGE_MAX`] bytes.
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

/// The tasks of one owner, who awaits them. Clones share the same tasks.
#[derive(Clone, Debug, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    stop: CancellationToken,
}

impl Tasks {
    /// No tasks yet; they should end when `stop` is cancelled.
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

    /// Runs `task` on the current runtime until it ends. A panic ends the task, and is logged with the place that called
    /// this, which names the task, and counted in [`panics`].
    #[track_caller]
    #[expect(clippy::disallowed_methods, reason = "the one place that spawns")]
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let place = Location::caller();
        // What the task shared may be half changed; a lock says so by itself, as it does with any panic of a task.
        let task = AssertUnwindSafe(task).catch_unwind();
        tokio::spawn(self.tracker.track_future(async move {
            if let Err(payload) = task.await {
                report_panic(place, payload.as_ref());
            }
        }));
    }

    /// Runs `task` until it ends or the tasks should end; it must be safe to drop at any await. Panics are treated as by
    /// [`Self::spawn`].
    #[track_caller]
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
        tokio::time::timeout(limit, self.tracker.wait())
            .await
            .is_ok()
    }

    /// How many tasks have not ended.
    pub fn running(&self) -> usize {
        self.tracker.len()
    }
}

/// Does `work` unless `end` is cancelled. What is ready only after that is dropped: nobody waits for it any more.
pub async fn unless_ended<T>(end: &CancellationToken, work: impl Future<Output = T>) -> Option<T> {
    // By itself this prefers what is ready to the token.
    end.run_until_cancelled(work)
        .await
        .filter(|_| !end.is_cancelled())
}

/// Waits for SIGINT or SIGTERM.
///
/// # Errors
/// When the handlers cannot be installed.
pub async fn interrupted() -> io::Result<()> {
    let (mut int, mut term) = (
        signal(SignalKind::interrupt())?,
        signal(SignalKind::terminate())?,
    );
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
pub fn single_threaded() -> io::Result<Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
}

/// Threads of their own for work that may block them, on one runtime. When it is dropped, what runs there ends as soon as it
/// yields, and nobody waits for it.
#[derive(Debug)]
pub(crate) struct WorkThreads(Option<Runtime>);

impl WorkThreads {
    /// This many threads.
    ///
    /// # Errors
    /// When the operating system gives no thread or event queue.
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

    /// Runs `work` there.
    pub(crate) fn spawn<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Work<T> {
        Work(self.0.as_ref().map(|runtime| runtime.spawn(work)))
    }

    /// Wakes a thread that is idle; what is returned is done once one was there. The thread that waits for timers and
    /// sockets may be blocked by the work that it got from them, and an idle one does not wait in its place before it was
    /// woken.
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

/// Work on other threads. When this is dropped the work is, as soon as it yields.
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

    /// What is logged while it stands, as text.
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
    async fn a_task_that_panics_is_logged_with_its_name_and_counted_and_others_go_on() {
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
        let (say, said) = tokio::sync::oneshot::channel();
        tasks.spawn(async move { say.send(1).unwrap() });
        assert_eq!(said.await, Ok(1));
        assert!(
            tasks.end(Duration::from_secs(5)).await,
            "a task that panicked has ended"
        );
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
    async fn what_is_ready_after_the_end_is_dropped() {
        let (end, (tell, told)) = (CancellationToken::new(), tokio::sync::oneshot::channel());
        let mut work = std::pin::pin!(unless_ended(&end, told));
        assert!(poll!(work.as_mut()).is_pending());
        tell.send(()).unwrap();
        end.cancel();
        assert!(work.await.is_none());
        assert_eq!(
            unless_ended(&CancellationToken::new(), std::future::ready(1)).await,
            Some(1)
        );
    }
}
