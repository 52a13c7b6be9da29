//! The worker: claims jobs of one kind and runs them, so many at a time, until it is told to stop. It knows
//! `trait Backend`, and no particular backend.

mod attempt;
mod batch;
mod callback;
mod claim;
mod held;
mod job;
mod outcome;
mod owner;
mod report;
mod unbegun;

use std::num::NonZero;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OnceCell, Semaphore};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

pub use batch::Flush;

use self::held::HeldJobs;
use crate::backend::Backend;
use crate::config::{
    ACK_WAIT, ATTEMPT_PAUSE, ATTEMPTS_MAX, BACKEND_BLOCKED, BACKEND_THREADS_MIN,
    BACKEND_WAKE_EVERY, CALLBACK_ATTEMPTS, CALLBACK_CONCURRENCY, CALLBACK_PAUSE, CLAIM_MAX,
    CLAIM_REQUEST_PAUSE, CONCURRENCY, DRAIN_WAIT, GRACE, HAND_BACK_WAIT, STOP_WAIT,
};
use crate::nats::{Claim, Delivery, Log, Nats, NatsError, Options, Queue, Reader, UsageCache};
use crate::runtime::{self, Tasks, WorkThreads};
use crate::source::Unavailable;
use crate::wire::{Kind, Limits, RESERVED_KIND};

/// What a worker is told.
#[derive(Clone, Debug)]
pub struct WorkerSettings {
    /// The jobs that it takes.
    pub kind: Kind,
    /// What it is called in the log.
    pub name: String,
    /// How many jobs it runs at a time.
    pub concurrency: usize,
    /// How many attempts a job has before it fails.
    pub max_attempts: u32,
    /// When to publish what a backend has put out.
    pub flush: Flush,
    /// How long its jobs may take; what a job itself says can only be stricter.
    pub limits: Limits,
    /// The wait after the first failed attempt of a job; doubled with each further one.
    pub pause: Duration,
    /// After what silence of a worker its jobs go to another. Holds when no worker has served the kind before.
    pub ack_wait: Duration,
    /// How long running jobs may go on after the worker was told to stop.
    pub grace: Duration,
    /// On how many threads of their own its backends run.
    pub backend_threads: usize,
}

impl WorkerSettings {
    /// The defaults for jobs of this kind. Callbacks have more attempts, further apart, and more at a time.
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

/// A worker that has made its kind known and is ready to claim.
#[derive(Debug)]
pub struct Worker<B> {
    runner: Runner<B>,
    claim: Claim,
}

/// What the jobs of a worker share.
#[derive(Debug)]
struct Runner<B> {
    log: Log,
    queue: Queue,
    usage_cache: UsageCache,
    /// Opened when a job's past has to be read, which most jobs never need.
    reader: OnceCell<Reader>,
    backend: Arc<B>,
    threads: Arc<WorkThreads>,
    held: HeldJobs,
    settings: WorkerSettings,
    /// How often the queue is told that a job is being worked on.
    keep_every: Duration,
    tasks: Tasks,
}

impl<B> Runner<B> {
    async fn reader(&self) -> Result<&Reader, Unavailable> {
        self.reader
            .get_or_try_init(|| Reader::open(self.log.clone(), &self.tasks))
            .await
    }
}

impl<B: Backend> Worker<B> {
    /// Makes the worker's kind known.
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
        if claim.ack_wait() != settings.ack_wait {
            let (there, wanted) = (claim.ack_wait(), settings.ack_wait);
            info!(kind = %settings.kind, ?there, ?wanted, "the kind's first worker chose another ack wait");
        }
        let keep_every = claim.ack_wait() / 3;
        let (usage_cache, reader, held) =
            (UsageCache::default(), OnceCell::new(), HeldJobs::default());
        let threads = WorkThreads::new(settings.backend_threads);
        let threads =
            Arc::new(threads.map_err(|error| Unavailable(format!("no threads: {error}")))?);
        let (backend, tasks) = (Arc::new(backend), Tasks::new(CancellationToken::new()));
        let runner = Runner {
            queue: Queue::new(log.clone()),
            log,
            usage_cache,
            reader,
            backend,
            threads,
            held,
            settings,
            keep_every,
            tasks,
        };
        Ok(Self { runner, claim })
    }

    /// Claims and runs jobs until `stop` is cancelled; then lets the running ones go on for the grace time and gives back
    /// the rest.
    ///
    /// Backends run on threads of their own. All else, above all telling the queue that jobs are being worked on, runs in
    /// this future: nothing may block the thread that polls it for longer than the kind's ack wait, or other workers take
    /// its jobs.
    pub async fn run(self, stop: CancellationToken) {
        let Self { runner, mut claim } = self;
        let settings = &runner.settings;
        info!(kind = %settings.kind, name = %settings.name, concurrency = settings.concurrency, "worker serves");
        let jobs = Tasks::new(CancellationToken::new());
        let hand_back = jobs.stop().clone();
        let slots = Arc::new(Semaphore::new(settings.concurrency));
        let runner = Arc::new(runner);
        runner
            .tasks
            .spawn_until_stop(wake_regularly(Arc::clone(&runner.threads), jobs.clone()));
        let claiming = async {
            while let Ok(slot) = Arc::clone(&slots).acquire_owned().await {
                let held = loop {
                    let delivery =
                        next(&mut claim, (slots.available_permits() + 1).min(CLAIM_MAX)).await;
                    if let Some(held) = runner.held.hold(delivery) {
                        break held;
                    }
                };
                let (runner, hand_back) = (Arc::clone(&runner), hand_back.clone());
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
        } = &runner.settings;
        info!(%kind, running = jobs.running(), "worker stops");
        claim.close().await;
        let all = u32::try_from(*concurrency).unwrap_or(u32::MAX);
        if timeout(*grace, slots.acquire_many(all)).await.is_err() {
            info!(%kind, running = jobs.running(), "gives back what runs");
        }
        if !jobs.end(STOP_WAIT + HAND_BACK_WAIT + DRAIN_WAIT).await {
            warn!(%kind, "some jobs were not given back; their ack wait will");
        }
        runner.tasks.end(DRAIN_WAIT).await;
    }
}

/// Connects and runs jobs with `backend` until SIGINT or SIGTERM; then stops as a worker stops. A second signal ends it at
/// once. The streams must be there: `tailwater setup` or `tailwater up` makes them.
///
/// # Errors
/// [`NatsError`], before the first job; a worker that serves goes on.
pub async fn serve<B: Backend>(
    nats: &Options,
    backend: B,
    settings: WorkerSettings,
) -> Result<(), NatsError> {
    let nats = Nats::connect(nats).await?;
    let worker = Worker::open(&nats, backend, settings).await?;
    let stop = CancellationToken::new();
    // On the heap: it is the whole program.
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

/// Wakes the backends' threads while jobs run, and says so when each of them is blocked. One wake-up is under way at a time.
async fn wake_regularly(threads: Arc<WorkThreads>, jobs: Tasks) {
    loop {
        sleep(BACKEND_WAKE_EVERY).await;
        if jobs.running() == 0 {
            continue;
        }
        let mut woken = threads.wake();
        if timeout(BACKEND_BLOCKED, &mut woken).await.is_err() {
            warn!(
                "backends block all of their threads, so that no other one goes on; see `Backend::run`"
            );
            // Ends in the same way whether they yield or the worker stops.
            let _ = woken.await;
        }
    }
}

/// The next job, however long the broker is away.
async fn next(claim: &mut Claim, free: usize) -> Delivery {
    loop {
        match claim.next(free).await {
            Ok(delivery) => return delivery,
            Err(error) => {
                warn!(%error, "cannot claim for the moment");
                sleep(CLAIM_REQUEST_PAUSE).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backoff::Backoff;
    use crate::config::ATTEMPT_PAUSE_MAX;

    #[test]
    fn callbacks_are_tried_for_about_half_an_hour_and_other_jobs_for_seconds() {
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
