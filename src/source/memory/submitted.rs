//! The queue in memory: its jobs, and the signals of submissions.

use std::collections::HashSet;

use tokio::sync::{mpsc, watch};

use super::MemoryLog;
use crate::config::LIVE_CAPACITY;
use crate::source::{SubmitSignal, SubmitSignals};
use crate::wire::JobId;

/// The submitted jobs, and the subscriptions to submissions.
#[derive(Debug, Default)]
pub(super) struct Submitted {
    queue: HashSet<JobId>,
    signals: Vec<mpsc::Sender<JobId>>,
    lose: bool,
}

impl Submitted {
    /// Signals that a job is submitted. Like the broker's client, a full queue drops it silently.
    pub(super) fn signal(&mut self, job: &JobId) {
        if !self.lose {
            self.signals.retain(|signals| !signals.is_closed());
            self.signals
                .iter()
                .for_each(|signals| drop(signals.try_send(job.clone())));
        }
    }

    pub(super) fn subscribe(&mut self) -> mpsc::Receiver<JobId> {
        let (sender, signals) = mpsc::channel(LIVE_CAPACITY);
        self.signals.push(sender);
        signals
    }

    pub(super) fn is_queued(&self, job: &JobId) -> bool {
        self.queue.contains(job)
    }

    pub(super) fn close(&mut self) {
        self.signals.clear();
    }
}

impl MemoryLog {
    /// Adds a job without events to the queue.
    pub(crate) fn enqueue(&self, job: &JobId) {
        let mut state = self.lock();
        state.submitted.queue.insert(job.clone());
        state.submitted.signal(job);
    }

    /// Whether signals of submissions are lost. The first event of a log also causes a signal.
    pub(crate) fn lose_signals(&self, yes: bool) {
        self.lock().submitted.lose = yes;
    }

    /// How many subscriptions to submissions are open.
    pub(crate) fn submit_subscriptions(&self) -> usize {
        self.lock()
            .submitted
            .signals
            .iter()
            .filter(|signals| !signals.is_closed())
            .count()
    }
}

/// A subscription to submissions.
#[derive(Debug)]
pub(crate) struct MemorySubmitSignals {
    pub(super) signals: mpsc::Receiver<JobId>,
    pub(super) disturbed: watch::Receiver<u64>,
}

impl SubmitSignals for MemorySubmitSignals {
    async fn next(&mut self) -> SubmitSignal {
        tokio::select! {
            biased;
            Ok(()) = self.disturbed.changed() => SubmitSignal::Disturbed,
            signal = self.signals.recv() => signal.map_or(SubmitSignal::Closed, SubmitSignal::Job),
        }
    }
}
