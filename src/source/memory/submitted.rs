//! The queue of the memory: which jobs wait in it, and the signals of what is submitted. The log is the source's.

use std::collections::HashSet;

use tokio::sync::{mpsc, watch};

use super::MemoryLog;
use crate::config::LIVE_CAPACITY;
use crate::source::{SubmitSignal, SubmitSignals};
use crate::wire::JobId;

/// What is submitted, and who is told.
#[derive(Debug, Default)]
pub(super) struct Submitted {
    queue: HashSet<JobId>,
    signals: Vec<mpsc::Sender<JobId>>,
    lose: bool,
}

impl Submitted {
    /// Signals that a job is being submitted. As with the broker's client, a full queue drops the signal in silence.
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
    /// Puts a job into the queue, whose first event is not stored yet.
    pub(crate) fn enqueue(&self, job: &JobId) {
        let mut state = self.lock();
        state.submitted.queue.insert(job.clone());
        state.submitted.signal(job);
    }

    /// Whether signals of what is submitted are lost in silence. The first event of a log is one.
    pub(crate) fn lose_signals(&self, yes: bool) {
        self.lock().submitted.lose = yes;
    }

    /// How many subscriptions to submissions stand.
    pub(crate) fn signalled(&self) -> usize {
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
