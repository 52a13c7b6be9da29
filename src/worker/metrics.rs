//! What a worker counts. Threads share no counter; a scrape adds them up.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::metrics::{Exposition, Histogram, catalog};
use crate::nats::{Log, Nats};
use crate::wire::{Body, FailureCode, Kind};

/// The fields in which models report how many tokens they read and wrote.
const INPUT_TOKENS: [&str; 2] = ["prompt_tokens", "input_tokens"];
const OUTPUT_TOKENS: [&str; 2] = ["completion_tokens", "output_tokens"];
/// In place of a backend's own failure code, so that the number of codes is bounded.
const OTHER_CODE: &str = "other";

/// What one worker counts.
#[derive(Debug, Default)]
pub(super) struct WorkerCounts {
    running: AtomicUsize,
    attempts: AtomicU64,
    /// By outcome and failure code.
    ended: Mutex<BTreeMap<(&'static str, &'static str), u64>>,
    took: Histogram,
    first_output: Histogram,
    publish: Histogram,
    output_events: AtomicU64,
    output_bytes: AtomicU64,
    input_tokens: AtomicU64,
    output_tokens: AtomicU64,
}

/// Counts a running attempt until it is dropped.
#[derive(Debug)]
pub(super) struct RunningAttempt(Arc<WorkerCounts>);

impl Drop for RunningAttempt {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::Relaxed);
    }
}

impl WorkerCounts {
    /// Counts an attempt that starts, until the guard is dropped.
    pub(super) fn start(self: &Arc<Self>) -> RunningAttempt {
        self.attempts.fetch_add(1, Ordering::Relaxed);
        self.running.fetch_add(1, Ordering::Relaxed);
        RunningAttempt(Arc::clone(self))
    }

    /// Counts how an attempt ended.
    pub(super) fn count_end(&self, outcome: &'static str, code: Option<&str>, took: Duration) {
        let code = code.map_or("", |code| {
            let known = FailureCode::ALL.iter().map(|known| known.as_str());
            known
                .into_iter()
                .find(|known| *known == code)
                .unwrap_or(OTHER_CODE)
        });
        self.took.observe(took);
        let mut ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        *ended.entry((outcome, code)).or_default() += 1;
    }

    /// Counts an event with output that was stored.
    pub(super) fn count_output(&self, bytes: usize, took: Duration) {
        self.output_events.fetch_add(1, Ordering::Relaxed);
        self.output_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        self.publish.observe(took);
    }

    /// Counts how long after its start an attempt's first output was stored.
    pub(super) fn count_first_output(&self, after: Duration) {
        self.first_output.observe(after);
    }

    /// Counts the tokens of a job that is done.
    pub(super) fn count_tokens(&self, tokens: TokenUsage) {
        self.input_tokens.fetch_add(tokens.input, Ordering::Relaxed);
        self.output_tokens
            .fetch_add(tokens.output, Ordering::Relaxed);
    }
}

/// How many tokens a model reports in its usage; 0 if it reports none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct TokenUsage {
    input: u64,
    output: u64,
}

impl TokenUsage {
    /// The tokens of an attempt, from its last event.
    pub(super) fn of(last: &Body) -> Self {
        let Body::Done {
            usage: Some(usage), ..
        } = last
        else {
            return Self::default();
        };
        let tokens = |fields: [&str; 2]| {
            let mut fields = fields.iter();
            fields.find_map(|field| usage.get(field)?.as_u64())
        };
        Self {
            input: tokens(INPUT_TOKENS).unwrap_or(0),
            output: tokens(OUTPUT_TOKENS).unwrap_or(0),
        }
    }
}

/// The metrics of one worker, which can be read on any thread.
#[derive(Clone, Debug)]
pub struct WorkerMetrics {
    pub(super) counts: Arc<WorkerCounts>,
    pub(super) kind: Kind,
    pub(super) concurrency: usize,
    pub(super) nats: Nats,
    pub(super) log: Log,
}

impl WorkerMetrics {
    /// Adds the numbers now.
    pub fn add_to(&self, all: &mut Exposition) {
        let kind = self.kind.as_str();
        let counts = &*self.counts;
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let running = counts.running.load(Ordering::Relaxed);
        all.gauge(&catalog::WORKER_SLOTS, &[kind], self.concurrency as f64);
        all.gauge(&catalog::WORKER_RUNNING, &[kind], running as f64);
        all.counter(&catalog::WORKER_ATTEMPTS, &[kind], read(&counts.attempts));
        {
            let ended = counts.ended.lock().unwrap_or_else(PoisonError::into_inner);
            for ((outcome, code), count) in ended.iter() {
                all.counter(&catalog::WORKER_ENDED, &[kind, outcome, code], *count);
            }
        }
        all.histogram(&catalog::WORKER_DURATION, &[kind], &counts.took.values());
        let first_output = counts.first_output.values();
        all.histogram(&catalog::WORKER_FIRST, &[kind], &first_output);
        all.counter(
            &catalog::WORKER_CHUNKS,
            &[kind],
            read(&counts.output_events),
        );
        all.counter(&catalog::WORKER_OUTPUT, &[kind], read(&counts.output_bytes));
        for (direction, count) in [
            ("input", &counts.input_tokens),
            ("output", &counts.output_tokens),
        ] {
            all.counter(&catalog::WORKER_TOKENS, &[kind, direction], read(count));
        }
        all.histogram(&catalog::WORKER_PUBLISH, &[kind], &counts.publish.values());
        let fenced = self.log.fence_refusals();
        all.counter(&catalog::WORKER_FENCED, &[kind], fenced);
        self.nats.connections().add_to(all);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn codes_of_backends_are_counted_together() {
        let counts = WorkerCounts::default();
        for code in [Some("timed_out"), Some("my_code"), Some("your_code"), None] {
            counts.count_end("failed", code, Duration::ZERO);
        }
        let ended = counts.ended.into_inner().unwrap();
        let found: Vec<_> = ended.into_iter().collect();
        let expected = [
            (("failed", ""), 1),
            (("failed", "other"), 2),
            (("failed", "timed_out"), 1),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn tokens_are_found_under_the_names_of_each_api() {
        let counts = WorkerCounts::default();
        for usage in [
            Some(json!({"prompt_tokens": 5, "completion_tokens": 7})),
            Some(json!({"input_tokens": 1, "output_tokens": 2})),
            Some(json!({"words": 3})),
            None,
        ] {
            let finish_reason = None;
            counts.count_tokens(TokenUsage::of(&Body::Done {
                usage,
                finish_reason,
            }));
        }
        counts.count_tokens(TokenUsage::of(&Body::Cancelled {}));
        let found = (
            counts.input_tokens.into_inner(),
            counts.output_tokens.into_inner(),
        );
        assert_eq!(found, (6, 9));
    }
}
