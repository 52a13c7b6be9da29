//! A live subscription in memory.

use std::future::pending;
use std::sync::Arc;

use tokio::sync::{mpsc, watch};

use crate::source::{Tail, TailSignal};
use crate::wire::Stored;

/// The live copies of one job.
#[derive(Debug)]
pub(crate) struct MemoryTail {
    /// `None` after [`Tail::unsubscribe`].
    pub(super) live: Option<mpsc::Receiver<Arc<Stored>>>,
    pub(super) disturbed: watch::Receiver<u64>,
}

impl Tail for MemoryTail {
    async fn next(&mut self) -> TailSignal {
        let live = async {
            match &mut self.live {
                Some(live) => live
                    .recv()
                    .await
                    .map_or(TailSignal::Closed, TailSignal::Event),
                None => pending().await,
            }
        };
        tokio::select! {
            biased;
            // The sender lives as long as any clone of the source.
            Ok(()) = self.disturbed.changed() => TailSignal::Disturbed,
            signal = live => signal,
        }
    }

    fn ready(&mut self) -> Option<TailSignal> {
        if self.disturbed.has_changed().unwrap_or(false) {
            self.disturbed.mark_unchanged();
            return Some(TailSignal::Disturbed);
        }
        match self.live.as_mut()?.try_recv() {
            Ok(event) => Some(TailSignal::Event(event)),
            Err(mpsc::error::TryRecvError::Disconnected) => Some(TailSignal::Closed),
            Err(mpsc::error::TryRecvError::Empty) => None,
        }
    }

    fn unsubscribe(&mut self) {
        self.live = None;
    }
}
