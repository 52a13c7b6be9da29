//! `tailwater state`: shows a job's state.

use std::process::ExitCode;

use clap::Args;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::args::{NatsArgs, block_on, no_job};
use crate::config::OPEN_WAIT;
use crate::nats::{Log, Queue, Reader, Role};
use crate::runtime::Tasks;
use crate::source::fold;
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
            let state = match timeout(OPEN_WAIT, fold(&reader, &self.job)).await?? {
                Some(state) => Some(state),
                None => queue.queued_kind(&self.job).await?.map(|kind| JobState {
                    kind: Some(kind),
                    ..JobState::new(self.job.clone())
                }),
            };
            let Some(state) = state else {
                anyhow::bail!(no_job(&self.job))
            };
            println!("{}", serde_json::to_string_pretty(&state)?);
            Ok(ExitCode::SUCCESS)
        })
    }
}
