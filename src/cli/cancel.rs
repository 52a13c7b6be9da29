//! `tailwater cancel`: asks for a job to be ended.

use std::process::ExitCode;

use clap::Args;

use super::args::{NatsArgs, block_on};
use crate::nats::{CancelOutcome, Log, Queue};
use crate::wire::JobId;

/// Cancel a job, whether it waits, runs, or lost its worker. Prints the number of the event that asks for it.
#[derive(Debug, Args)]
#[command(after_long_help = "Example:\n  tailwater cancel my-job --by me")]
pub(super) struct Cancel {
    /// The job's id.
    job: JobId,
    /// Who asks, for people who read the log.
    #[arg(long, value_name = "NAME")]
    by: Option<String>,
    #[command(flatten)]
    nats: NatsArgs,
}

impl Cancel {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        block_on(async move {
            let nats = self.nats.connect("cancel").await?;
            let queue = Queue::new(Log::open(&nats).await?);
            match queue.cancel(&self.job, self.by).await? {
                CancelOutcome::Requested(seq) | CancelOutcome::Already(seq) => println!("{seq}"),
                CancelOutcome::Ended => anyhow::bail!("the job {} has ended already", self.job),
                CancelOutcome::Unknown => {
                    anyhow::bail!("there is no job {}, or all of it has expired", self.job)
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
