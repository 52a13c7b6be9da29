//! The settings of a worker.

use std::num::NonZero;
use std::time::Duration;

use super::batch::Flush;
use crate::config::{
    ACK_WAIT, ATTEMPT_PAUSE, ATTEMPTS_MAX, BACKEND_THREADS_MIN, CALLBACK_ATTEMPTS,
    CALLBACK_CONCURRENCY, CALLBACK_PAUSE, CONCURRENCY, GRACE,
};
use crate::wire::{Kind, Limits, RESERVED_KIND};

/// The settings of a worker.
#[derive(Clone, Debug)]
pub struct WorkerSettings {
    /// The kind of its jobs.
    pub kind: Kind,
    /// Its name in the log.
    pub name: String,
    /// How many jobs it runs at a time.
    pub concurrency: usize,
    /// How many attempts a job has before it fails.
    pub max_attempts: u32,
    /// When to publish a backend's output.
    pub flush: Flush,
    /// How long its jobs may take. A job's own limits can only be stricter.
    pub limits: Limits,
    /// The pause after the first failed attempt of a job; doubled after each further one.
    pub pause: Duration,
    /// How long a worker may be silent before its jobs go to another one. Used if no worker has
    /// served the kind before.
    pub ack_wait: Duration,
    /// How long running jobs may continue after the worker was stopped.
    pub grace: Duration,
    /// The number of threads for its backends.
    pub backend_threads: usize,
}

impl WorkerSettings {
    /// The defaults for jobs of this kind. Callbacks have more attempts, further apart, and more at
    /// a time.
    pub fn new(kind: Kind) -> Self {
        let (concurrency, max_attempts, pause) = match kind.as_str() {
            RESERVED_KIND => (CALLBACK_CONCURRENCY, CALLBACK_ATTEMPTS, CALLBACK_PAUSE),
            _ => (CONCURRENCY, ATTEMPTS_MAX, ATTEMPT_PAUSE),
        };
        let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
        Self {
            kind,
            name: format!("{}-{}", std::process::id(), nuid::next()),
            concurrency,
            max_attempts,
            flush: Flush::default(),
            limits: Limits::default(),
            pause,
            ack_wait: ACK_WAIT,
            grace: GRACE,
            backend_threads: cores.max(BACKEND_THREADS_MIN),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backoff::Backoff;
    use crate::config::ATTEMPT_PAUSE_MAX;

    #[test]
    fn callbacks_are_retried_for_about_half_an_hour_and_other_jobs_for_seconds() {
        let tried = |kind: &str| {
            let WorkerSettings {
                max_attempts,
                pause,
                ..
            } = WorkerSettings::new(kind.parse().unwrap());
            let backoff = Backoff::new(pause, ATTEMPT_PAUSE_MAX);
            let pauses = (0..max_attempts - 1).map(|attempts| backoff.pause_after(attempts));
            pauses.sum::<Duration>()
        };
        let minutes =
            |from: u64, to: u64| Duration::from_secs(from * 60)..Duration::from_secs(to * 60);
        assert!(
            minutes(25, 35).contains(&tried(RESERVED_KIND)),
            "{:?}",
            tried(RESERVED_KIND)
        );
        assert_eq!(tried("demo"), Duration::from_secs(1 + 2 + 4 + 8));
    }
}
