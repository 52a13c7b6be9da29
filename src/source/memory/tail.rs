//! A live subscription in memory.

use std::fmt;
use std::future::pending;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::future::BoxFuture;
use tokio::sync::{mpsc, watch};

use crate::source::{Tail, TailSignal};
use crate::wire::Stored;

/// The live copies of one job.
pub(crate) struct MemoryTail {
    /// `None` after [`Tail::unsubscribe`].
    live: Option<mpsc::Receiver<Arc<Stored>>>,
    /// Completes at the next disturbance.
    disturbed: BoxFuture<'static, watch::Receiver<u64>>,
}

impl MemoryTail {
    pub(super) fn new(
        live: mpsc::Receiver<Arc<Stored>>,
        disturbances: watch::Receiver<u64>,
    ) -> Self {
        Self {
            live: Some(live),
            disturbed: Box::pin(changed(disturbances)),
        }
    }
}

async fn changed(mut disturbances: watch::Receiver<u64>) -> watch::Receiver<u64> {
    if disturbances.changed().await.is_err() {
        pending::<()>().await;
    }
    disturbances
}

impl Tail for MemoryTail {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<TailSignal> {
        if let Poll::Ready(disturbances) = self.disturbed.as_mut().poll(cx) {
            self.disturbed = Box::pin(changed(disturbances));
            return Poll::Ready(TailSignal::Disturbed);
        }
        let Some(live) = &mut self.live else {
            return Poll::Pending;
        };
        live.poll_recv(cx)
            .map(|event| event.map_or(TailSignal::Closed, TailSignal::Event))
    }

    fn unsubscribe(&mut self) {
        self.live = None;
    }
}

impl fmt::Debug for MemoryTail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MemoryTail")
    }
}
