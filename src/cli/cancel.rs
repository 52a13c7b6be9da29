//! `tailwater cancel`: requests that a job be cancelled.

use std::process::ExitCode;

use clap::Args;

use super::args::{NatsArgs, block_on, no_job};
use crate::nats::{CancelOutcome, Log, Queue, Role};
use crate::wire::JobId;

/// Cancel a job that is queued, is running, or has lost its worker. Prints the sequence number of
/// the cancel request.
#[derive(Debug, Args)]
#[command(after_long_help = "Example:\n  tailwater cancel my-job --by me")]
pub(super) struct CancelCommand {
    /// The job's id.
    job: JobId,
    /// The name to log for this cancel request.
    #[arg(long, value_name = "NAME")]
    by: Option<String>,
    #[command(flatten)]
    nats: NatsArgs,
}

impl CancelCommand {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        block_on(async move {
            let nats = self.nats.connect("cancel", Role::Recorder).await?;
            let queue = Queue::new(Log::open(&nats).await?);
            match queue.cancel(&self.job, self.by).await? {
                CancelOutcome::Requested(seq) | CancelOutcome::Already(seq) => println!("{seq}"),
                CancelOutcome::Ended => anyhow::bail!("job {} has already ended", self.job),
                CancelOutcome::Unknown => {
                    anyhow::bail!(no_job(&self.job))
                }
                CancelOutcome::Undecodable => {
                    anyhow::bail!(
                        "the log of {} ends with too many undecodable messages",
                        self.job
                    )
                }
            }
            nats.close().await;
            Ok(ExitCode::SUCCESS)
        })
    }
}
