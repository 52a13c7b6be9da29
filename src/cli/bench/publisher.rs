//! Appends the jobs' events when they are due, on its own thread: busy watchers must not delay what
//! they measure.

use std::cell::Cell;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use hdrhistogram::Histogram;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use super::job_writer::{JobWriter, PublishTarget, TargetConnections};
use super::pacer::Pacer;
use super::report::Delays;
use super::tally::{Schedule, delays, micros};
use crate::config::{BENCH_AT_ONCE, BENCH_GRACE, BENCH_ORDER_WAIT, BENCH_STOP_WAIT};
use crate::runtime;
use crate::wire::{Body, Channel, JobId, Kind};

/// A thread that owns the jobs' writers. Dropping it ends the thread.
#[derive(Debug)]
pub(super) struct Publisher {
    orders: mpsc::Sender<PlacedOrder>,
    /// How the thread has ended; closed without a value if it panicked.
    ended: oneshot::Receiver<anyhow::Result<()>>,
    appends: Appends,
}

/// An order, and where its outcome goes.
type PlacedOrder = (Order, oneshot::Sender<anyhow::Result<()>>);

/// How long appends took, in microseconds; only scheduled and steady ones are measured.
type Appends = Arc<Mutex<Histogram<u64>>>;

/// What to write next.
#[derive(Clone, Debug)]
pub(super) enum Order {
    /// The first two events of each job: queued, started.
    Begin,
    /// This many events of each of the first `jobs` jobs, as fast as the broker accepts them.
    Burst { jobs: usize, events: u64 },
    /// Each job's events when they are due.
    Scheduled(Schedule),
    /// Events of the last job, each due an interval after the one before.
    Steady {
        interval: Duration,
        until: CancellationToken,
    },
    /// `events` of the first job, spread evenly among `others` events of all other jobs.
    Interleaved { events: u64, others: u64 },
    /// Each job's final event.
    End,
}

impl Order {
    /// By when all events of an order that is sent now must be stored.
    fn deadline(&self) -> Instant {
        match self {
            Self::Scheduled(schedule) => schedule.last_due() + BENCH_GRACE,
            Self::Begin
            | Self::Burst { .. }
            | Self::Steady { .. }
            | Self::Interleaved { .. }
            | Self::End => Instant::now() + BENCH_ORDER_WAIT,
        }
    }
}

impl Publisher {
    /// Connects to `target` on a new thread. `text` is the size of each chunk's text in bytes.
    pub(super) fn start(
        target: PublishTarget,
        jobs: Vec<JobId>,
        text: usize,
    ) -> anyhow::Result<Self> {
        let appends = Arc::new(Mutex::new(delays()?));
        let measured = Arc::clone(&appends);
        let (orders, received) = mpsc::channel(1);
        let (ends, ended) = oneshot::channel();
        let thread = std::thread::Builder::new().name("publisher".to_owned());
        thread.spawn(move || {
            let outcome = publish(target, jobs, text, received, &measured);
            // A run that has failed does not wait for the thread.
            let _ = ends.send(outcome);
        })?;
        Ok(Self {
            orders,
            ended,
            appends,
        })
    }

    /// Sends an order, and waits until all its events are stored.
    ///
    /// # Errors
    /// If an event is not stored, or not before the order's deadline.
    pub(super) async fn order(&self, order: Order) -> anyhow::Result<()> {
        let deadline = order.deadline();
        let executed = async {
            let (done, outcome) = oneshot::channel();
            let sent = self.orders.send((order, done)).await;
            sent.map_err(|_| anyhow!("cannot connect to publish"))?;
            outcome.await.context("the publisher has ended")?
        };
        timeout_at(deadline, executed)
            .await
            .context("the events are not stored in time: the broker is too slow, or hangs")?
    }

    /// How long the broker took for each measured append since the last call.
    pub(super) fn appends(&self) -> Option<Delays> {
        let mut appends = self.appends.lock().unwrap_or_else(PoisonError::into_inner);
        let delays = Delays::of(&appends);
        appends.reset();
        delays
    }

    /// Ends the thread.
    ///
    /// # Errors
    /// If it has failed, or does not end in time: then it ends with the process.
    pub(super) async fn stop(self) -> anyhow::Result<()> {
        drop(self.orders);
        let ended = timeout(BENCH_STOP_WAIT, self.ended).await;
        let ended = ended.context("the publisher does not end in time")?;
        ended.context("the publisher panicked")?
    }
}

/// Connects, and executes orders until no more can come.
fn publish(
    target: PublishTarget,
    jobs: Vec<JobId>,
    text: usize,
    mut orders: mpsc::Receiver<PlacedOrder>,
    appends: &Appends,
) -> anyhow::Result<()> {
    runtime::single_threaded()?.block_on(async move {
        let connected = TargetConnections::to(target).await?;
        let writers = jobs.into_iter().enumerate();
        let mut jobs: Vec<_> = writers
            .map(|(index, job)| connected.writer(index, job))
            .collect();
        while let Some((order, done)) = orders.recv().await {
            let mut outcome = execute(order, &mut jobs, text, appends).await;
            if outcome.is_ok() {
                outcome = connected.settle().await;
            }
            // The sender of the order may have been dropped.
            let _ = done.send(outcome);
        }
        connected.close().await;
        anyhow::Ok(())
    })
}

async fn execute(
    order: Order,
    jobs: &mut [JobWriter],
    text: usize,
    appends: &Appends,
) -> anyhow::Result<()> {
    match order {
        Order::Begin => {
            let mut starting = futures_util::stream::iter(jobs.iter_mut())
                .map(start_job)
                .buffer_unordered(BENCH_AT_ONCE);
            while let Some(started) = starting.next().await {
                started?;
            }
            Ok(())
        }
        Order::Burst {
            jobs: count,
            events,
        } => {
            all(jobs.iter_mut().take(count).map(async |job| {
                for _ in 0..events {
                    job.append(chunk(text)).await?;
                }
                Ok(())
            }))
            .await
        }
        Order::Scheduled(schedule) => {
            let pacer = Pacer::start(schedule, jobs.len())?;
            all(jobs.iter_mut().enumerate().map(async |(index, job)| {
                for _ in 0..schedule.events {
                    pacer.next(index).await?;
                    append_measured(job, text, Instant::now(), appends).await?;
                }
                Ok(())
            }))
            .await
        }
        Order::Steady { interval, until } => {
            let job = jobs.last_mut().context("no job")?;
            let mut due = Instant::now();
            let mut is_late = false;
            while !until.is_cancelled() {
                // One that waits for another counts from when it was due, and not how late a timer is.
                let begun = if is_late { due } else { Instant::now() };
                append_measured(job, text, begun, appends).await?;
                due = due
                    .checked_add(interval)
                    .context("--appends is too small")?;
                is_late = Instant::now() > due;
                until.run_until_cancelled(sleep_until(due)).await;
            }
            Ok(())
        }
        Order::Interleaved { events, others } => interleave(jobs, text, events, others).await,
        Order::End => {
            let done = || Body::Done {
                usage: None,
                finish_reason: None,
            };
            all(jobs.iter_mut().map(async |job| job.append(done()).await)).await
        }
    }
}

/// Waits for all; the first error ends the wait.
async fn all(
    work: impl Iterator<Item = impl Future<Output = anyhow::Result<()>>>,
) -> anyhow::Result<()> {
    let mut work: FuturesUnordered<_> = work.collect();
    while let Some(outcome) = work.next().await {
        outcome?;
    }
    Ok(())
}

async fn start_job(job: &mut JobWriter) -> anyhow::Result<()> {
    let kind: Kind = "bench".parse()?;
    job.append(Body::Queued {
        kind: kind.clone(),
        input: serde_json::Value::Null,
        timeout_ms: None,
        silence_timeout_ms: None,
        callback_digest: None,
    })
    .await?;
    job.append(Body::Started {
        kind,
        worker: "bench".to_owned(),
        continues: false,
    })
    .await?;
    Ok(())
}

/// Appends an event, and measures how long that takes since `begun`.
async fn append_measured(
    job: &mut JobWriter,
    text: usize,
    begun: Instant,
    appends: &Appends,
) -> anyhow::Result<()> {
    job.append(chunk(text)).await?;
    let mut appends = appends.lock().unwrap_or_else(PoisonError::into_inner);
    appends.saturating_record(micros(begun.elapsed()));
    Ok(())
}

async fn interleave(
    jobs: &mut [JobWriter],
    text: usize,
    events: u64,
    others: u64,
) -> anyhow::Result<()> {
    let (late, jobs) = jobs.split_first_mut().context("no job")?;
    let written = Cell::new(0);
    let due = Semaphore::new(0);
    let stride = others.div_ceil(events.max(1)).max(1);
    let fill = all(jobs.iter_mut().map(async |job| {
        while written.get() < others {
            written.set(written.get() + 1);
            if written.get().is_multiple_of(stride) {
                due.add_permits(1);
            }
            job.append(chunk(text)).await?;
        }
        due.add_permits(usize::try_from(events)?);
        Ok(())
    }));
    let sparse = async {
        for _ in 0..events {
            due.acquire().await?.forget();
            late.append(chunk(text)).await?;
        }
        Ok(())
    };
    futures_util::try_join!(fill, sparse).map(|_| ())
}

fn chunk(text: usize) -> Body {
    Body::Chunk {
        text: "x".repeat(text.max(1)),
        channel: Channel::Output,
    }
}

/// The time between two events of a job at this rate.
pub(super) fn interval(rate: f64) -> Duration {
    Duration::try_from_secs_f64(1.0 / rate).unwrap_or(Duration::MAX)
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_publisher_that_hangs_is_an_error_and_is_not_waited_for() {
        // It never says that the events are published.
        let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = PublishTarget::Lines(silent.local_addr().unwrap());
        let publisher = Publisher::start(target, Vec::new(), 1).unwrap();
        let error = publisher.order(Order::Begin).await.unwrap_err();
        assert!(error.to_string().contains("not stored in time"), "{error}");
        let error = publisher.stop().await.unwrap_err();
        assert!(error.to_string().contains("not end in time"), "{error}");
    }

    #[tokio::test(start_paused = true)]
    async fn an_order_has_until_a_while_after_its_last_event_is_due() {
        let schedule = Schedule {
            start: Instant::now(),
            jobs: 2,
            interval: Duration::from_secs(10),
            events: 100,
        };
        let last = schedule.start + Duration::from_secs(995);
        let scheduled = Order::Scheduled(schedule);
        assert_eq!(scheduled.deadline(), last + BENCH_GRACE);
        let burst = Order::Burst { jobs: 2, events: 5 };
        assert_eq!(burst.deadline(), Instant::now() + BENCH_ORDER_WAIT);
    }
}
