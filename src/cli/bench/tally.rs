//! Counts, checks and times the events that arrive over all connections.

use std::time::Duration;

use crate::config::{BENCH_DELAY_MAX, BENCH_SLICE, BENCH_SLICES_MAX};
use hdrhistogram::Histogram;
use tokio::time::Instant;

/// When the events of a run are due.
#[derive(Clone, Copy, Debug)]
pub(super) struct Schedule {
    /// When the first event of the first job is due.
    pub(super) start: Instant,
    /// How many jobs there are; their events are spread evenly over an interval.
    pub(super) jobs: usize,
    /// The time between two events of one job.
    pub(super) interval: Duration,
    /// How many scheduled events each job has.
    pub(super) events: u64,
}

/// The sequence number of a job's first scheduled event. `queued` and `started` precede it.
pub(super) const FIRST_SCHEDULED: u64 = 3;

impl Schedule {
    /// When the event with this sequence number is due; `None` for those outside the schedule.
    pub(super) fn due(&self, job: usize, seq: u64) -> Option<Instant> {
        let index = seq.checked_sub(FIRST_SCHEDULED)?;
        if index >= self.events {
            return None;
        }
        let phase = self.interval.mul_f64(job as f64 / self.jobs.max(1) as f64);
        Some(self.start + phase + self.interval.mul_f64(index as f64))
    }

    /// When the last event of the last job is due.
    pub(super) fn last_due(&self) -> Instant {
        let last_job = self.jobs.saturating_sub(1);
        self.due(last_job, self.last()).unwrap_or(self.start)
    }

    /// The sequence number of the last scheduled event.
    pub(super) fn last(&self) -> u64 {
        FIRST_SCHEDULED + self.events - 1
    }
}

/// Everything that arrived in one run.
#[derive(Debug)]
pub(super) struct Tally {
    /// Events that arrived in order.
    pub(super) deliveries: u64,
    /// Events that a connected client did not receive: those missing before one that arrived and, in
    /// runs that know how many each connection should receive, those missing at the end.
    pub(super) lost: u64,
    /// Events that arrived again, or out of order.
    pub(super) doubled: u64,
    /// Clients whose connection the edge refused or ended early, or that were not done in time.
    pub(super) failed: u64,
    /// The first reason why one failed.
    pub(super) failure: Option<String>,
    /// Delays in microseconds, from when an event was due to its arrival.
    pub(super) delays: Histogram<u64>,
    pub(super) timeline: Vec<TimeSlice>,
    started: Instant,
    /// What was lost before the measurement started.
    lost_before: u64,
}

/// What arrived in one [`BENCH_SLICE`].
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct TimeSlice {
    pub(super) deliveries: u64,
    pub(super) worst_us: u64,
}

impl Tally {
    pub(super) fn new() -> anyhow::Result<Self> {
        Ok(Self {
            deliveries: 0,
            lost: 0,
            doubled: 0,
            failed: 0,
            failure: None,
            delays: delays()?,
            timeline: Vec::new(),
            started: Instant::now(),
            lost_before: 0,
        })
    }

    /// Starts the measurement: resets the deliveries, but keeps losses.
    pub(super) fn restart(&mut self, started: Instant) {
        self.deliveries = 0;
        self.delays.reset();
        self.timeline.clear();
        self.started = started;
        self.lost_before = self.lost;
    }

    /// Ends a measurement in which all connections together should have received `expected` events:
    /// those that are neither delivered nor known as lost never arrived.
    pub(super) fn lose_missing(&mut self, expected: u64) {
        let lost = self.lost - self.lost_before;
        let accounted = self.deliveries.saturating_add(lost);
        self.lost += expected.saturating_sub(accounted);
    }

    /// Checks an event against the one before, and counts it. Returns the new last sequence number.
    pub(super) fn arrived(&mut self, last: u64, seq: u64) -> u64 {
        if seq <= last {
            self.doubled += 1;
            return last;
        }
        self.lost += seq - last - 1;
        self.deliveries += 1;
        seq
    }

    /// Records a delay.
    pub(super) fn delayed(&mut self, now: Instant, delay: Duration) {
        let delay = micros(delay);
        self.delays.saturating_record(delay);
        let since =
            now.saturating_duration_since(self.started).as_millis() / BENCH_SLICE.as_millis();
        let index = usize::try_from(since)
            .unwrap_or(BENCH_SLICES_MAX)
            .min(BENCH_SLICES_MAX - 1);
        if self.timeline.len() <= index {
            self.timeline.resize(index + 1, TimeSlice::default());
        }
        let slice = &mut self.timeline[index];
        slice.deliveries += 1;
        slice.worst_us = slice.worst_us.max(delay);
    }

    /// Counts this many clients as failed.
    pub(super) fn fail(&mut self, clients: usize, reason: String) {
        self.failed += clients as u64;
        self.failure.get_or_insert(reason);
    }
}

/// No delays yet, in microseconds.
pub(super) fn delays() -> anyhow::Result<Histogram<u64>> {
    Ok(Histogram::new_with_max(micros(BENCH_DELAY_MAX), 3)?)
}

/// A time in whole microseconds.
pub(super) fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn jobs_are_spread_over_an_interval_and_their_events_are_one_interval_apart() {
        let schedule = Schedule {
            start: Instant::now(),
            jobs: 4,
            interval: Duration::from_millis(100),
            events: 2,
        };
        let due = |job, seq| {
            let due: Option<Instant> = schedule.due(job, seq);
            due.map(|due| (due - schedule.start).as_millis())
        };
        assert_eq!((due(0, 3), due(0, 4)), (Some(0), Some(100)));
        assert_eq!((due(1, 3), due(3, 4)), (Some(25), Some(175)));
        assert_eq!((due(0, 2), due(0, 5)), (None, None), "outside the schedule");
        assert_eq!(schedule.last(), 4);
        assert_eq!((schedule.last_due() - schedule.start).as_millis(), 175);
    }

    #[tokio::test(start_paused = true)]
    async fn lost_and_doubled_events_are_counted_separately() {
        let mut tally = Tally::new().unwrap();
        let mut last = 0;
        for seq in [1, 2, 2, 5, 4, 6] {
            last = tally.arrived(last, seq);
        }
        assert_eq!(last, 6);
        assert_eq!((tally.deliveries, tally.lost, tally.doubled), (4, 2, 2));
    }

    #[tokio::test(start_paused = true)]
    async fn events_that_never_arrived_are_lost_besides_those_lost_before_the_measurement() {
        let mut tally = Tally::new().unwrap();
        let mut last = tally.arrived(0, 3);
        assert_eq!(tally.lost, 2);
        tally.restart(Instant::now());
        for seq in [4, 4, 6] {
            last = tally.arrived(last, seq);
        }
        assert_eq!((tally.deliveries, tally.lost), (2, 3));
        tally.lose_missing(3);
        assert_eq!(tally.lost, 3, "every event is accounted for");
        tally.lose_missing(8);
        assert_eq!(tally.lost, 8, "those after the last that arrived");
    }

    #[tokio::test(start_paused = true)]
    async fn every_failed_client_counts_and_the_first_reason_stays() {
        let mut tally = Tally::new().unwrap();
        tally.fail(1, "refused".to_owned());
        tally.fail(3, "not done in time".to_owned());
        assert_eq!(tally.failed, 4);
        assert_eq!(tally.failure.as_deref(), Some("refused"));
    }
}
