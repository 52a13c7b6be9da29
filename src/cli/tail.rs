//! `tailwater tail`: follows a job, directly from the log or as a client of an edge.

use std::process::ExitCode;

use clap::Args;

use super::args::{NatsArgs, block_on, no_job};
use super::client_token::ClientTokenArgs;
use super::edge_client::TailClient;
use super::follow::{finish, follow_with, printer};
use super::show::JobPrinter;
use crate::nats::{Log, Queue, Role};
use crate::wire::{Cursor, JobId, Seq, Start};

/// Follow a job from its first event, or from a later one, until it ends. The exit code is 1 if the
/// job failed and 3 if it was cancelled.
#[derive(Debug, Args)]
#[command(
    after_long_help = "Examples:\n  tailwater tail my-job\n  tailwater tail my-job --after 17 --json\n  \
    tailwater tail my-job --edge http://127.0.0.1:4000 --drop-after 20 --summary"
)]
pub(super) struct TailCommand {
    /// The job's id. If the job does not exist yet, waits for it.
    job: JobId,
    /// Fail if the job does not exist, instead of waiting for it.
    #[arg(long)]
    must_exist: bool,
    /// Start after the event with this sequence number.
    #[arg(long, value_name = "SEQ", default_value_t = 0)]
    #[arg(conflicts_with = "cursor")]
    after: u64,
    /// Start after the event that this cursor names.
    #[arg(long)]
    cursor: Option<Cursor>,
    /// Print one event per line, as JSON.
    #[arg(long)]
    json: bool,
    /// At the end, print the number of events on stderr.
    #[arg(long)]
    summary: bool,
    /// Follow through this edge, as any client does, instead of reading the log from NATS.
    #[arg(long, value_name = "URL", env = "TAILWATER_EDGE")]
    edge: Option<String>,
    /// Drop the connection once, after this many events, to show how the stream resumes.
    #[arg(long, value_name = "N", requires = "edge")]
    drop_after: Option<u64>,
    #[command(flatten)]
    token: ClientTokenArgs,
    #[command(flatten)]
    nats: NatsArgs,
}

impl TailCommand {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let start = self
            .cursor
            .map_or(Start::After(Seq(self.after)), Start::Cursor);
        block_on(async move {
            let Some(edge) = &self.edge else {
                let nats = self.nats.connect("tail", Role::Observer).await?;
                let log = Log::open(&nats).await?;
                return self.follow(log, start).await;
            };
            let mut client = TailClient {
                url: format!(
                    "ws{}/ws",
                    edge.strip_prefix("http")
                        .unwrap_or(edge)
                        .trim_end_matches('/')
                ),
                token: self.token.clone(),
                job: self.job.clone(),
                start,
                must_exist: self.must_exist,
                drop_after: self.drop_after,
                printer: printer(start, self.json),
            };
            client.run().await?;
            finish(&mut client.printer, self.summary)
        })
    }

    async fn follow(&self, log: Log, start: Start) -> anyhow::Result<ExitCode> {
        let queue = Queue::new(log.clone());
        if queue.find(&self.job).await?.is_none() {
            anyhow::ensure!(!self.must_exist, no_job(&self.job));
            JobPrinter::waiting(&self.job);
        }
        let printer = printer(start, self.json);
        follow_with(log, &self.job, start, printer, self.summary).await
    }
}
