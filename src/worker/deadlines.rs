//! The time limits of a job and of an attempt. It does not wait for them.

use std::time::Duration;

use tokio::time::Instant;

use super::settings::WorkerSettings;
use crate::config::SILENCE_LATE_MAX;
use crate::nats::Delivery;
use crate::wire::Limits;

/// The time limits of an attempt: for the whole job, and for silence of the backend.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deadlines {
    end: Option<Instant>,
    silence: Option<Duration>,
    /// When the last output arrived or the last event was published.
    active_at: Instant,
    /// Whether the limit for silence was started again after a pause of the process.
    is_excused: bool,
}

impl Deadlines {
    pub(super) fn new(limits: Limits, remaining: Option<Duration>) -> Self {
        let active_at = Instant::now();
        let end = remaining.and_then(|remaining| active_at.checked_add(remaining));
        Self {
            end,
            silence: limits.silence_timeout_ms.map(Duration::from_millis),
            active_at,
            is_excused: false,
        }
    }

    /// The job is active: the limit for silence starts again.
    pub(super) fn restart_silence(&mut self, now: Instant) {
        self.active_at = now;
        self.is_excused = false;
    }

    /// Starts the limit for silence again if it has passed for so long that this process must have
    /// been paused, or starved, and the backend with it. Only once in a silence: a machine that is
    /// always late must not keep a silent job. Returns whether it did.
    pub(super) fn excuse_pause(&mut self, now: Instant) -> bool {
        let passed_at = self.silence_end();
        let was_paused =
            passed_at.is_some_and(|at| now.saturating_duration_since(at) > SILENCE_LATE_MAX);
        if self.is_excused || !was_paused {
            return false;
        }
        self.active_at = now;
        self.is_excused = true;
        true
    }

    fn silence_end(&self) -> Option<Instant> {
        self.silence
            .and_then(|silence| self.active_at.checked_add(silence))
    }

    /// How much of the time for the whole job remains.
    pub(super) fn remaining(&self) -> Option<Duration> {
        self.end
            .map(|end| end.saturating_duration_since(Instant::now()))
    }

    /// The first of them to pass, and the message for it. The limit for silence applies only if
    /// `with_silence`.
    pub(super) fn first(&self, with_silence: bool) -> Option<(Instant, &'static str)> {
        let end = self.end.map(|at| (at, "the job exceeded its time limit"));
        let silent = self
            .silence_end()
            .filter(|_| with_silence)
            .map(|at| (at, "the job produced no output for too long"));
        end.into_iter().chain(silent).min_by_key(|(at, _)| *at)
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

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::advance;

    #[tokio::test(start_paused = true)]
    async fn the_earlier_limit_comes_first_and_silence_counts_from_the_last_output() {
        let limits = Limits {
            silence_timeout_ms: Some(2_000),
            ..Limits::default()
        };
        let mut deadlines = Deadlines::new(limits, Some(Duration::from_secs(5)));
        let after = |first: Option<(Instant, _)>| first.unwrap().0 - deadlines.active_at;
        assert_eq!(after(deadlines.first(true)), Duration::from_secs(2));
        assert_eq!(after(deadlines.first(false)), Duration::from_secs(5));
        let later = deadlines.active_at + Duration::from_secs(4);
        deadlines.restart_silence(later);
        let (at, message) = deadlines.first(true).unwrap();
        assert_eq!(at - later, Duration::from_secs(1));
        assert_eq!(message, "the job exceeded its time limit");
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_of_the_process_is_not_silence_but_the_silence_after_it_is() {
        let limits = Limits {
            silence_timeout_ms: Some(2_000),
            ..Limits::default()
        };
        let mut deadlines = Deadlines::new(limits, Some(Duration::from_secs(60)));
        // The timer is a little late, as on any machine.
        advance(Duration::from_millis(2_100)).await;
        assert!(!deadlines.excuse_pause(Instant::now()));
        // The process was stopped, and its timer is the first to run.
        advance(Duration::from_secs(10)).await;
        let woke = Instant::now();
        assert!(deadlines.excuse_pause(woke));
        let (at, _) = deadlines.first(true).unwrap();
        assert_eq!(at - woke, Duration::from_secs(2));
        // The backend is silent after it as well.
        advance(Duration::from_secs(10)).await;
        assert!(!deadlines.excuse_pause(Instant::now()));
        // After output, the next pause is excused.
        deadlines.restart_silence(Instant::now());
        advance(Duration::from_secs(10)).await;
        assert!(deadlines.excuse_pause(Instant::now()));
        // The time for the whole job includes pauses.
        advance(Duration::from_secs(30)).await;
        assert_eq!(deadlines.remaining(), Some(Duration::ZERO));
        let (_, message) = deadlines.first(false).unwrap();
        assert_eq!(message, "the job exceeded its time limit");
    }

    #[tokio::test(start_paused = true)]
    async fn a_job_without_limits_never_times_out() {
        let mut deadlines = Deadlines::new(Limits::default(), None);
        assert!(deadlines.first(true).is_none());
        assert!(!deadlines.excuse_pause(Instant::now() + Duration::from_secs(9)));
    }
}
