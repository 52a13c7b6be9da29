//! The worker: claims jobs of one kind and runs them, so many at a time, until it is told to stop. It knows
//! `trait Backend`, and no particular backend.

mod batch;
mod job;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

pub use batch::Flush;

use crate::backend::Backend;
use crate::config::{CLAIM_MAX, DRAIN_WAIT, STOP_WAIT};
use crate::nats::{Claim, Delivery, Error, Log, Nats};
use crate::runtime::Tasks;
use crate::wire::Kind;

/// What a worker is told.
#[derive(Clone, Debug)]
pub struct Settings {
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
    /// How often it tells the queue that a job is being worked on; well below the ack wait of 10 s.
    pub keep_every: Duration,
    /// How long running jobs may go on after the worker was told to stop.
    pub grace: Duration,
}

impl Settings {
    /// The defaults for jobs of this kind.
    pub fn new(kind: Kind) -> Self {
        Self {
            kind,
            name: format!("{}-{}", std::process::id(), nuid::next()),
            concurrency: 16,
            max_attempts: 5,
            flush: Flush::default(),
            keep_every: Duration::from_secs(3),
            grace: Duration::from_secs(10),
        }
    }
}

/// A worker that has made its kind known and is ready to claim.
#[derive(Debug)]
pub struct Worker<B> {
    log: Log,
    claim: Claim,
    backend: B,
    settings: Settings,
}

impl<B: Backend> Worker<B> {
    /// Makes the worker's kind known.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn open(nats: &Nats, backend: B, settings: Settings) -> Result<Self, Error> {
        let log = Log::open(nats).await?;
        let claim = Claim::begin(nats, &settings.kind).await?;
        Ok(Self { log, claim, backend, settings })
    }

    /// Claims and runs jobs until `stop` is cancelled; then lets the running ones go on for the grace time and gives back
    /// the rest.
    pub async fn run(self, stop: CancellationToken) {
        let Self { log, mut claim, backend, settings } = self;
        info!(kind = %settings.kind, name = %settings.name, concurrency = settings.concurrency, "worker serves");
        let jobs = Tasks::new(CancellationToken::new());
        let hand_back = jobs.stop().clone();
        let slots = Arc::new(Semaphore::new(settings.concurrency));
        let shared = Arc::new((log, settings, backend));
        let claiming = async {
            while let Ok(slot) = Arc::clone(&slots).acquire_owned().await {
                let delivery = next(&mut claim, (slots.available_permits() + 1).min(CLAIM_MAX)).await;
                let (shared, hand_back) = (Arc::clone(&shared), hand_back.clone());
                jobs.spawn(async move {
                    let (log, settings, backend) = &*shared;
                    job::run(log, settings, backend, delivery, hand_back).await;
                    drop(slot);
                });
            }
        };
        stop.run_until_cancelled(claiming).await;
        let grace = shared.1.grace;
        info!(kind = %shared.1.kind, running = jobs.running(), "worker stops");
        claim.end().await;
        let all = u32::try_from(shared.1.concurrency).unwrap_or(u32::MAX);
        if timeout(grace, slots.acquire_many(all)).await.is_err() {
            info!(kind = %shared.1.kind, running = jobs.running(), "gives back what runs");
        }
        if !jobs.end(STOP_WAIT + DRAIN_WAIT).await {
            warn!(kind = %shared.1.kind, "some jobs were not given back; their ack wait will");
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
                sleep(Duration::from_millis(500)).await;
            }
        }
    }
}
