//! The worker: claims jobs of one kind and runs a number of them at a time, until it is stopped. It
//! uses `trait Backend`, and does not know any backend.

mod attempt;
mod attempt_writer;
mod batch;
mod callback;
mod claim;
mod deadlines;
mod held;
mod metrics;
mod not_started;
mod outcome;
mod owner;
mod report;
mod runner;
mod settings;

use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

pub use batch::Flush;
pub use metrics::WorkerMetrics;
pub use settings::WorkerSettings;

use self::claim::Claimer;
use self::held::HeldJobs;
use self::metrics::WorkerCounts;
use self::runner::Runner;
use crate::backend::Backend;
use crate::config::{
    BACKEND_BLOCKED, BACKEND_WAKE_EVERY, CLAIM_MAX, CLAIM_REQUEST_PAUSE, DRAIN_WAIT,
    HAND_BACK_WAIT, STOP_WAIT,
};
use crate::nats::{Claim, Delivery, Log, Nats, NatsError, Options, Queue, UsageCache};
use crate::runtime::{self, Tasks, WakeQueue, WorkThreads};
use crate::source::Unavailable;

/// A worker that is ready to claim jobs.
#[derive(Debug)]
pub struct Worker<B> {
    runner: Runner<B>,
    claim: Claim,
    nats: Nats,
}

impl<B: Backend> Worker<B> {
    /// Opens the worker. From now on, jobs of its kind are accepted.
    ///
    /// # Errors
    /// [`NatsError`].
    pub async fn open(
        nats: &Nats,
        backend: B,
        settings: WorkerSettings,
    ) -> Result<Self, NatsError> {
        let log = Log::open(nats).await?;
        let claim = Claim::open(nats, &settings.kind, settings.ack_wait).await?;
        let ack_wait = claim.ack_wait();
        if ack_wait != settings.ack_wait {
            info!(kind = %settings.kind, ?ack_wait, wanted = ?settings.ack_wait, "the kind's first worker set another ack wait");
        }
        let threads = WorkThreads::new(settings.backend_threads)
            .map_err(|error| Unavailable(format!("no threads: {error}")))?;
        let progress_interval = ack_wait / 3;
        let queue = Queue::new(log);
        let backend = Arc::new(backend);
        let settings = Arc::new(settings);
        let tasks = Tasks::new(CancellationToken::new());
        let counts = Arc::<WorkerCounts>::default();
        let claimer = Claimer::new(
            queue.clone(),
            Arc::clone(&backend),
            Arc::clone(&settings),
            progress_interval,
            Arc::clone(&counts),
            tasks.clone(),
        );
        let runner = Runner {
            claimer,
            queue,
            usage_cache: UsageCache::default(),
            backend,
            threads: Arc::new(threads),
            wakes: WakeQueue::default(),
            held: HeldJobs::default(),
            settings,
            progress_interval,
            counts,
            tasks,
        };
        let nats = nats.clone();
        Ok(Self {
            runner,
            claim,
            nats,
        })
    }

    /// What the worker counts, to be read while it runs.
    pub fn metrics(&self) -> WorkerMetrics {
        let runner = &self.runner;
        WorkerMetrics {
            counts: Arc::clone(&runner.counts),
            kind: runner.settings.kind.clone(),
            concurrency: runner.settings.concurrency,
            nats: self.nats.clone(),
            log: runner.queue.log().clone(),
        }
    }

    /// Claims and runs jobs until `stop` is cancelled. Running jobs may then continue for the grace
    /// time. Jobs that are still running after it are handed back to the queue. Backends run on
    /// their own threads. Everything else runs in this future, most importantly the progress
    /// reports to the queue. Do not block the thread that polls it for longer than the kind's ack
    /// wait: other workers would get its jobs.
    ///
    /// # Examples
    /// ```no_run
    /// use tailwater::backend::demo::Demo;
    /// use tailwater::nats::{Nats, Options};
    /// use tailwater::worker::{Worker, WorkerSettings};
    /// use tokio_util::sync::CancellationToken;
    ///
    /// # async fn demo() -> Result<(), Box<dyn std::error::Error>> {
    /// let nats = Nats::connect(&Options::default()).await?;
    /// let worker = Worker::open(&nats, Demo, WorkerSettings::new("demo".parse()?)).await?;
    /// let stop = CancellationToken::new();
    /// worker.run(stop).await; // Until another task calls `stop.cancel()`.
    /// nats.close().await;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn run(self, stop: CancellationToken) {
        let Self {
            runner, mut claim, ..
        } = self;
        let settings = &runner.settings;
        info!(kind = %settings.kind, name = %settings.name, concurrency = settings.concurrency, "worker started");
        let jobs = Tasks::new(CancellationToken::new());
        let hand_back = jobs.stop().clone();
        let slots = Arc::new(Semaphore::new(settings.concurrency));
        let runner = Arc::new(runner);
        runner
            .tasks
            .spawn_until_stop(wake_regularly(Arc::clone(&runner.threads), jobs.clone()));
        runner
            .tasks
            .spawn_until_stop(runner.wakes.clone().pass_on());
        let claiming = async {
            while let Ok(slot) = Arc::clone(&slots).acquire_owned().await {
                let held = loop {
                    let free = slots.available_permits() + 1;
                    let delivery = next_delivery(&mut claim, free.min(CLAIM_MAX)).await;
                    if let Some(held) = runner.held.hold(delivery) {
                        break held;
                    }
                };
                let runner = Arc::clone(&runner);
                let hand_back = hand_back.clone();
                jobs.spawn(async move {
                    runner.run(held, hand_back).await;
                    drop(slot);
                });
            }
        };
        stop.run_until_cancelled(claiming).await;
        let WorkerSettings {
            grace,
            kind,
            concurrency,
            ..
        } = &*runner.settings;
        info!(%kind, running = jobs.running(), "worker stopping");
        claim.close().await;
        let all = u32::try_from(*concurrency).unwrap_or(u32::MAX);
        if timeout(*grace, slots.acquire_many(all)).await.is_err() {
            info!(%kind, running = jobs.running(), "handing back the running jobs");
        }
        if !jobs.end(STOP_WAIT + HAND_BACK_WAIT + DRAIN_WAIT).await {
            warn!(%kind, "some jobs were not handed back; the queue delivers them again after their ack wait");
        }
        runner.tasks.end(DRAIN_WAIT).await;
    }
}

/// Connects and runs jobs with `backend` until SIGINT or SIGTERM, then stops as [`Worker::run`]
/// does. A second signal stops it at once. The streams must exist: `tailwater setup` or `tailwater
/// up` creates them.
///
/// # Examples
/// ```no_run
/// use tailwater::backend::demo::Demo;
/// use tailwater::nats::Options;
/// use tailwater::worker::{WorkerSettings, serve};
///
/// # async fn demo() -> Result<(), Box<dyn std::error::Error>> {
/// serve(&Options::default(), Demo, WorkerSettings::new("demo".parse()?)).await?;
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// [`NatsError`] at the start. A running worker continues through outages.
pub async fn serve<B: Backend>(
    nats: &Options,
    backend: B,
    settings: WorkerSettings,
) -> Result<(), NatsError> {
    let nats = Nats::connect(nats).await?;
    let worker = Worker::open(&nats, backend, settings).await?;
    let stop = CancellationToken::new();
    // Boxed: the future contains the whole program.
    let mut running = Box::pin(worker.run(stop.clone()));
    let interrupted = || async {
        runtime::interrupted()
            .await
            .map_err(|error| Unavailable(error.to_string()))
    };
    tokio::select! {
        () = &mut running => {}
        signal = interrupted() => signal?,
    }
    stop.cancel();
    tokio::select! {
        () = running => {}
        signal = interrupted() => signal?,
    }
    nats.close().await;
    Ok(())
}

/// Wakes the backends' threads while jobs run, and logs when all of them are blocked. Only one
/// wake-up is in flight.
async fn wake_regularly(threads: Arc<WorkThreads>, jobs: Tasks) {
    loop {
        sleep(BACKEND_WAKE_EVERY).await;
        if jobs.running() == 0 {
            continue;
        }
        let mut woken = threads.wake();
        if timeout(BACKEND_BLOCKED, &mut woken).await.is_err() {
            warn!(
                "backends block all of their threads, so no other backend can run; see `Backend::run`"
            );
            // Returns when they yield, or when the worker stops.
            let _ = woken.await;
        }
    }
}

/// The next job. Waits while the broker is down.
async fn next_delivery(claim: &mut Claim, free: usize) -> Delivery {
    loop {
        match claim.next(free).await {
            Ok(delivery) => return delivery,
            Err(error) => {
                warn!(%error, "cannot claim jobs at the moment");
                sleep(CLAIM_REQUEST_PAUSE).await;
            }
        }
    }
}
