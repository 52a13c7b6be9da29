//! A histogram of durations with fixed bounds, on plain atomics.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The upper bounds of the buckets, in seconds: from a publish on one machine to a long job.
const BOUNDS: [f64; 17] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
    300.0, 1800.0,
];

/// Counts durations.
#[derive(Debug, Default)]
pub struct Histogram {
    /// How many were at most each bound and above the one before; the last is for all others.
    counts: [AtomicU64; BOUNDS.len() + 1],
    /// The sum of all, in microseconds.
    sum: AtomicU64,
}

/// The numbers of a histogram at one time.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HistogramValues {
    counts: [u64; BOUNDS.len() + 1],
    sum: u64,
}

impl Histogram {
    /// Counts one duration.
    pub fn observe(&self, duration: Duration) {
        let seconds = duration.as_secs_f64();
        let bucket = BOUNDS.partition_point(|bound| *bound < seconds);
        if let Some(count) = self.counts.get(bucket) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        self.sum.fetch_add(micros, Ordering::Relaxed);
    }

    /// The numbers now.
    pub fn values(&self) -> HistogramValues {
        let mut values = HistogramValues {
            sum: self.sum.load(Ordering::Relaxed),
            ..HistogramValues::default()
        };
        for (value, count) in values.counts.iter_mut().zip(&self.counts) {
            *value = count.load(Ordering::Relaxed);
        }
        values
    }
}

impl HistogramValues {
    /// Adds another thread's numbers.
    pub fn add(&mut self, other: &Self) {
        self.sum = self.sum.saturating_add(other.sum);
        for (own, other) in self.counts.iter_mut().zip(other.counts) {
            *own += other;
        }
    }

    /// The sum of all durations, in seconds.
    pub fn sum(&self) -> f64 {
        self.sum as f64 / 1e6
    }

    /// How many durations there are.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Each bound and how many durations are in its bucket only.
    pub fn buckets(&self) -> Vec<(f64, u64)> {
        let bounds = BOUNDS.into_iter().chain([f64::INFINITY]);
        bounds.zip(self.counts).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_counted_in_the_bucket_whose_bound_it_does_not_exceed() {
        let histogram = Histogram::default();
        for ms in [1, 2, 5, 5, 3_600_000] {
            histogram.observe(Duration::from_millis(ms));
        }
        let mut values = histogram.values();
        let filled: Vec<_> = values
            .buckets()
            .into_iter()
            .filter(|(_, count)| *count > 0)
            .collect();
        let expected = [(0.001, 1), (0.0025, 1), (0.005, 2), (f64::INFINITY, 1)];
        assert_eq!(filled, expected);
        assert_eq!(values.count(), 5);
        assert!((values.sum() - 3600.013).abs() < 1e-9, "{}", values.sum());
        values.add(&histogram.values());
        assert_eq!(values.count(), 10);
    }
}
