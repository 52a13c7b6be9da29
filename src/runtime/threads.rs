//! Runtimes with one thread each, and how a process runs several of them.

use std::future::Future;
use std::io;

use tokio::runtime::Runtime;

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
