//! The time limits of a job and of an attempt.

use std::future::pending;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::settings::WorkerSettings;
use crate::nats::Delivery;
use crate::wire::Limits;

/// The time limits of an attempt: for the whole job, and for silence of the backend.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deadlines {
    end: Option<Instant>,
    silence: Option<Duration>,
    /// When the last output arrived or the last event was published.
    active_at: Instant,
}

impl Deadlines {
    pub(super) fn new(limits: Limits, remaining: Option<Duration>) -> Self {
        let active_at = Instant::now();
        let end = remaining.and_then(|remaining| active_at.checked_add(remaining));
        Self {
            end,
            silence: limits.silence_timeout_ms.map(Duration::from_millis),
            active_at,
        }
    }

    /// The job is active: the limit for silence starts again.
    pub(super) fn restart_silence(&mut self, now: Instant) {
        self.active_at = now;
    }

    /// How much of the time for the whole job remains.
    pub(super) fn remaining(&self) -> Option<Duration> {
        self.end
            .map(|end| end.saturating_duration_since(Instant::now()))
    }

    /// Waits until one of them has passed, and returns the message for it. The limit for silence
    /// applies only if `with_silence`.
    pub(super) async fn passed(self, with_silence: bool) -> &'static str {
        let until = |at: Option<Instant>| async move {
            match at {
                Some(at) => sleep_until(at).await,
                None => pending().await,
            }
        };
        let silent = self
            .silence
            .filter(|_| with_silence)
            .and_then(|silence| self.active_at.checked_add(silence));
        tokio::select! {
            () = until(self.end) => "the job exceeded its time limit",
            () = until(silent) => "the job produced no output for too long",
        }
    }
}

/// The stricter of the worker's and the job's time limits.
pub(super) fn limits(settings: &WorkerSettings, delivery: &Delivery) -> Limits {
    settings.limits.and(delivery.submission.limits)
}

/// How much of the time for a job remains. Compares the broker's clock (of the submission) with
/// this machine's, so it is only as exact as they agree.
pub(super) fn time_remaining(settings: &WorkerSettings, delivery: &Delivery) -> Option<Duration> {
    let age = delivery.submitted.elapsed().unwrap_or(Duration::ZERO);
    limits(settings, delivery)
        .timeout_ms
        .map(|ms| Duration::from_millis(ms).saturating_sub(age))
}
