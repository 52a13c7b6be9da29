//! `tailwater purge`: removes everything that is stored about ended jobs.

use std::process::ExitCode;

use clap::Args;
use futures_util::{StreamExt as _, stream};

use super::args::{FAILED, NatsArgs, block_on, no_job};
use crate::config::PURGES;
use crate::nats::{Log, PurgeOutcome, Queue, Role};
use crate::wire::JobId;

/// Remove everything that is stored about ended jobs, and make every edge forget them. Prints the id
/// of each purged job.
#[derive(Debug, Args)]
#[command(after_long_help = "Example:\n  tailwater purge my-job another-job")]
pub(super) struct PurgeCommand {
    /// The ids of the jobs.
    #[arg(required = true, value_name = "JOB")]
    jobs: Vec<JobId>,
    #[command(flatten)]
    nats: NatsArgs,
}

impl PurgeCommand {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        block_on(async move {
            let nats = self.nats.connect("purge", Role::Recorder).await?;
            let queue = Queue::new(Log::open(&nats).await?);
            let mut code = ExitCode::SUCCESS;
            let purges = stream::iter(&self.jobs).map(|job| queue.purge(job));
            // In the order of the arguments.
            let mut outcomes = stream::iter(&self.jobs).zip(purges.buffered(PURGES));
            while let Some((job, outcome)) = outcomes.next().await {
                let refusal = match outcome? {
                    PurgeOutcome::Purged => {
                        println!("{job}");
                        continue;
                    }
                    PurgeOutcome::NotEnded => {
                        format!("job {job} has not ended: cancel it, or wait for its end")
                    }
                    PurgeOutcome::Unknown => no_job(job),
                };
                eprintln!("tailwater: {refusal}");
                code = ExitCode::from(FAILED);
            }
            nats.close().await;
            Ok(code)
        })
    }
}
