//! Says when events are due.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{Builder, JoinHandle};

use anyhow::Context as _;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::tally::{FIRST_SCHEDULED, Schedule};
use crate::config::BENCH_PACE;

/// A thread that waits until each event of a schedule is due, or [`BENCH_PACE`] later: timers of the
/// runtime fire up to two milliseconds late. Dropping it ends the thread.
#[derive(Debug)]
pub(super) struct Pacer {
    /// For each job, a permit for each event that is due.
    due: Arc<[Semaphore]>,
    running: Option<(Sender<()>, JoinHandle<()>)>,
}

impl Pacer {
    pub(super) fn start(schedule: Schedule, jobs: usize) -> anyhow::Result<Self> {
        let due: Arc<[Semaphore]> = (0..jobs).map(|_| Semaphore::new(0)).collect();
        let (dropped, ends) = channel();
        let permits = Arc::clone(&due);
        let thread = Builder::new().name("pacer".to_owned());
        let thread = thread.spawn(move || pace(schedule, &permits, &ends))?;
        Ok(Self {
            due,
            running: Some((dropped, thread)),
        })
    }

    /// Waits until the job's next event is due.
    pub(super) async fn next(&self, job: usize) -> anyhow::Result<()> {
        let due = self.due.get(job).context("no such job")?;
        due.acquire().await?.forget();
        Ok(())
    }
}

impl Drop for Pacer {
    fn drop(&mut self) {
        if let Some((dropped, thread)) = self.running.take() {
            drop(dropped);
            // It cannot panic: a plan's limits of events and seconds bound the due times and the
            // permits of each job.
            let _ = thread.join();
        }
    }
}

fn pace(schedule: Schedule, permits: &[Semaphore], ends: &Receiver<()>) {
    let mut earliest = schedule.start;
    for seq in FIRST_SCHEDULED..=schedule.last() {
        for (job, permits) in permits.iter().enumerate() {
            let Some(due) = schedule.due(job, seq) else {
                continue;
            };
            let now = Instant::now();
            if due > now {
                let rest = due.max(earliest) - now;
                if ends.recv_timeout(rest) != Err(RecvTimeoutError::Timeout) {
                    return;
                }
                earliest = Instant::now() + BENCH_PACE;
            }
            permits.add_permits(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn schedule(events: u64) -> Schedule {
        Schedule {
            start: Instant::now(),
            jobs: 2,
            interval: Duration::from_millis(10),
            events,
        }
    }

    #[tokio::test]
    async fn each_event_is_announced_once_and_not_before_it_is_due() {
        let schedule = schedule(3);
        let pacer = Pacer::start(schedule, 2).unwrap();
        for seq in FIRST_SCHEDULED..=schedule.last() {
            for job in [1, 0] {
                pacer.next(job).await.unwrap();
                assert!(Instant::now() >= schedule.due(job, seq).unwrap());
            }
        }
        let left: usize = pacer.due.iter().map(Semaphore::available_permits).sum();
        assert_eq!(left, 0);
    }

    #[tokio::test]
    async fn a_pacer_that_is_dropped_ends_at_once() {
        let begun = Instant::now();
        drop(Pacer::start(schedule(360_000), 2).unwrap());
        assert!(begun.elapsed() < Duration::from_mins(1));
    }
}
