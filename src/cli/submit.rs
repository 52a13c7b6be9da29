//! `tailwater submit`: queues a job.

use std::io::Read as _;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use serde_json::Value;

use super::args::{NatsArgs, block_on, millis};
use super::tail;
use crate::nats::{Log, Queue, QueueUsage, SubmitOutcome};
use crate::wire::limits::INPUT_MAX;
use crate::wire::{JobId, Kind, Limits, Seq, Start, Submission, reserved_kind};

/// Queue a job, and print its id or, with --watch, its output.
#[derive(Debug, Args)]
#[command(
    after_long_help = "Example:\n  tailwater submit --kind demo --input '{\"words\": 50, \"rate\": 20}' --watch\n  \
        tailwater submit --kind demo --input '{\"words\": 50}' --wait"
)]
pub(super) struct Submit {
    /// Which workers may take it.
    #[arg(long, env = "TAILWATER_KIND")]
    kind: Kind,
    /// What the worker is given: JSON, or `-` to read JSON from stdin.
    #[arg(long, value_name = "JSON", default_value = "null")]
    input: String,
    /// The job's id; made up when there is none. The same id with the same kind and input is the same job.
    #[arg(long)]
    id: Option<JobId>,
    /// Follow the job until it ends.
    #[arg(long)]
    watch: bool,
    /// Wait until the job has ended, and print its output then. The exit code is 0 when it is done, 1 when it failed and
    /// 3 when it was cancelled.
    #[arg(long, conflicts_with = "watch")]
    wait: bool,
    /// With --watch: print one event per line, as JSON. With --wait: print the job's state, as JSON.
    #[arg(long)]
    json: bool,
    /// How long the job may take, from now to its end; then it fails.
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    timeout: Option<Duration>,
    /// How long an attempt may put out nothing; then the job fails.
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    silence_timeout: Option<Duration>,
    /// An address that is told how the job ended, by a worker of the kind `callback`.
    #[arg(long, value_name = "URL")]
    callback: Option<String>,
    #[command(flatten)]
    nats: NatsArgs,
}

impl Submit {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let submission = self.submission()?;
        let id = match &self.id {
            Some(id) => id.clone(),
            None => nuid::next().as_str().parse()?,
        };
        block_on(async move {
            let nats = self.nats.connect("submit").await?;
            let log = Log::open(&nats).await?;
            let queue = Queue::new(log.clone());
            if submission.callback.is_some() {
                usage(&queue, &reserved_kind()).await?;
            }
            let usage = usage(&queue, &self.kind).await?;
            if let Some(refusal) = usage.features.refusal(&submission) {
                anyhow::bail!(refusal);
            }
            match queue.submit_if_room(&id, &submission, &usage).await? {
                SubmitOutcome::New | SubmitOutcome::Same => {}
                SubmitOutcome::Other => anyhow::bail!("the id {id} names another job"),
                SubmitOutcome::Full => anyhow::bail!("the queue is full; try again later"),
                SubmitOutcome::TooLarge { size, limit } => {
                    anyhow::bail!(Submission::too_large(size, limit))
                }
            }
            if self.wait {
                return tail::wait(log, &id, self.json).await;
            }
            if self.watch {
                return tail::follow(log, &id, Start::After(Seq(0)), self.json).await;
            }
            println!("{id}");
            nats.close().await;
            Ok(ExitCode::SUCCESS)
        })
    }

    fn submission(&self) -> anyhow::Result<Submission> {
        let limits = Limits {
            timeout_ms: self.timeout.map(millis),
            silence_timeout_ms: self.silence_timeout.map(millis),
        };
        let (id, callback) = (self.id.clone(), self.callback.clone());
        let submission = Submission {
            id,
            limits,
            callback,
            ..Submission::new(self.kind.clone(), self.read_input()?)
        };
        submission
            .check()
            .map_err(|refusal| anyhow::anyhow!("{}", refusal.message))?;
        Ok(submission)
    }

    fn read_input(&self) -> anyhow::Result<Value> {
        let mut text = String::new();
        if self.input == "-" {
            // One byte more than is allowed, so that too much is told from just enough.
            std::io::stdin()
                .lock()
                .take(INPUT_MAX as u64 + 1)
                .read_to_string(&mut text)?;
        } else {
            text.clone_from(&self.input);
        }
        anyhow::ensure!(
            text.len() <= INPUT_MAX,
            "the input is larger than {INPUT_MAX} bytes"
        );
        serde_json::from_str(&text).context("the input is not JSON")
    }
}

async fn usage(queue: &Queue, kind: &Kind) -> anyhow::Result<QueueUsage> {
    let hint = if *kind == reserved_kind() {
        String::new()
    } else {
        format!(": start one, or declare the kind with `tailwater setup --kind {kind}`")
    };
    queue
        .usage(kind)
        .await?
        .with_context(|| format!("no worker has ever served the kind {kind}{hint}"))
}
