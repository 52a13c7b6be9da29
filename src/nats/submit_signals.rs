//! Signals of submissions by any process: receives each message of the queue as it is published. It
//! does not notice a lost one.

use std::sync::Arc;

use async_nats::Subscriber;
use futures_util::StreamExt as _;
use tokio::sync::watch;

use super::names::Names;
use super::queue::Queue;
use super::ready::subscribe_confirmed;
use crate::source::{SubmitSignal, SubmitSignals, Unavailable};

/// The subscription to submissions.
#[derive(Debug)]
pub struct LiveSubmitSignals {
    names: Arc<Names>,
    live: Subscriber,
    /// Incremented when the connection was down.
    reconnected: watch::Receiver<u64>,
}

impl Queue {
    /// See [`EventSource::submit_signals`](crate::source::EventSource::submit_signals).
    pub(super) async fn submit_signals(&self) -> Result<LiveSubmitSignals, Unavailable> {
        let nats = &self.log.nats;
        let mut reconnected = nats.reconnected.clone();
        reconnected.mark_unchanged();
        let subject = nats.names.submitted();
        let live = subscribe_confirmed(&nats.live, subject, &nats.names.ready()).await?;
        Ok(LiveSubmitSignals {
            names: nats.names.clone(),
            live,
            reconnected,
        })
    }
}

impl SubmitSignals for LiveSubmitSignals {
    async fn next(&mut self) -> SubmitSignal {
        loop {
            tokio::select! {
                biased;
                Ok(()) = self.reconnected.changed() => return SubmitSignal::Disturbed,
                message = self.live.next() => match message {
                    // The message may be large; only its subject is decoded.
                    Some(message) => match self.names.job_of_queued(&message.subject) {
                        Some(job) => return SubmitSignal::Job(job),
                        None => continue,
                    },
                    None => return SubmitSignal::Closed,
                },
            }
        }
    }
}
