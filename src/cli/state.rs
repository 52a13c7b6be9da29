//! `tailwater state`: shows a job's state.

use std::process::ExitCode;

use clap::Args;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::args::{NatsArgs, block_on, no_job};
use crate::config::OPEN_WAIT;
use crate::nats::{Log, Queue, Reader, Role};
use crate::runtime::Tasks;
use crate::source::{KnownJob, Unavailable, fold};
use crate::wire::{JobId, JobState};

/// Show a job's state as JSON: its status, attempt, output so far and times.
#[derive(Debug, Args)]
#[command(after_long_help = "Example:\n  tailwater state my-job | jq .status")]
pub(super) struct StateCommand {
    /// The job's id.
    job: JobId,
    #[command(flatten)]
    nats: NatsArgs,
}

impl StateCommand {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        block_on(async move {
            let nats = self.nats.connect("state", Role::Observer).await?;
            let log = Log::open(&nats).await?;
            let queue = Queue::new(log.clone());
            let reader = Reader::open(log, &Tasks::new(CancellationToken::new())).await?;
            let read = read_state(&queue, &reader, &self.job);
            let Some(state) = timeout(OPEN_WAIT, read).await?? else {
                anyhow::bail!(no_job(&self.job))
            };
            println!("{}", serde_json::to_string_pretty(&state)?);
            Ok(ExitCode::SUCCESS)
        })
    }
}

/// The state of a job; `None` if it does not exist.
async fn read_state(
    queue: &Queue,
    reader: &Reader,
    job: &JobId,
) -> Result<Option<JobState>, Unavailable> {
    match queue.find(job).await? {
        None => Ok(None),
        Some(KnownJob::Queued(kind)) => Ok(Some(JobState {
            kind: Some(kind),
            ..JobState::new(job.clone())
        })),
        Some(KnownJob::Logged(_)) => fold(reader, job).await,
    }
}
