//! Threads for work that may block them.

use std::any::Any;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

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
