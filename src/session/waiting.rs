//! A session of a job that neither the log nor the queue knows: it waits until the job has a feed.

use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::future::BoxFuture;
use tokio::time::sleep;

use super::start::until_open;
use crate::config::REREAD_MAX;
use crate::hub::{FeedWatch, Full, Hub, Waiter};
use crate::source::EventSource;
use crate::wire::JobId;

/// A session of an unknown job.
pub(super) struct Waiting<S: EventSource> {
    pub(super) hub: Arc<Hub<S>>,
    pub(super) job: JobId,
    pub(super) live_sent: bool,
    known: BoxFuture<'static, FeedWatch>,
}

impl<S: EventSource> Waiting<S> {
    pub(super) fn new(waiter: Waiter<S>) -> Self {
        Self {
            hub: Arc::clone(waiter.hub()),
            job: waiter.job().clone(),
            live_sent: false,
            known: Box::pin(watch_known(waiter)),
        }
    }

    /// Watches the job once it is known and there is room for its feed.
    pub(super) fn poll_known(&mut self, cx: &mut Context<'_>) -> Poll<FeedWatch> {
        self.known.as_mut().poll(cx)
    }
}

async fn watch_known<S: EventSource>(mut waiter: Waiter<S>) -> FeedWatch {
    loop {
        let found = waiter.until_known().await;
        if let Ok(watch) = waiter.watch(found)
            && until_open(&watch).await.is_ok()
        {
            return watch;
        }
        match waiter.rejoin() {
            Ok(rejoined) => waiter = rejoined,
            Err(Full) => sleep(REREAD_MAX).await,
        }
    }
}

impl<S: EventSource> fmt::Debug for Waiting<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Waiting")
            .field("job", &self.job)
            .finish_non_exhaustive()
    }
}
