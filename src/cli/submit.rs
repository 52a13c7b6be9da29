//! `tailwater submit`: queues a job.

use std::io::Read as _;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;
use serde_json::Value;

use super::args::{NatsArgs, block_on};
use super::tail;
use crate::config::INPUT_MAX;
use crate::nats::{Log, Submitted};
use crate::wire::{JobId, Kind, Seq, Start};

/// Queue a job, and print its id or, with --watch, its output.
#[derive(Debug, Args)]
#[command(
    after_long_help = "Example:\n  tailwater submit --kind demo --input '{\"words\": 50, \"rate\": 20}' --watch"
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
    /// With --watch: print one event per line, as JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    nats: NatsArgs,
}

impl Submit {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let input = self.read_input()?;
        let id = match self.id {
            Some(id) => id,
            None => nuid::next().as_str().parse()?,
        };
        block_on(async move {
            let nats = self.nats.connect("submit").await?;
            let log = Log::open(&nats).await?;
            anyhow::ensure!(
                log.has_kind(&self.kind).await?,
                "no worker has ever served the kind {}",
                self.kind
            );
            match log.submit(&id, &self.kind, &input).await? {
                Submitted::New | Submitted::Same => {}
                Submitted::Other => anyhow::bail!("the id {id} names another job"),
                Submitted::Full => anyhow::bail!("the queue is full; try again later"),
            }
            if self.watch {
                return tail::follow(log, &id, Start::After(Seq(0)), self.json).await;
            }
            println!("{id}");
            nats.close().await;
            Ok(ExitCode::SUCCESS)
        })
    }

    fn read_input(&self) -> anyhow::Result<Value> {
        let mut text = String::new();
        if self.input == "-" {
            // One byte more than is allowed, so that too much is told from just enough.
            std::io::stdin().lock().take(INPUT_MAX as u64 + 1).read_to_string(&mut text)?;
        } else {
            text.clone_from(&self.input);
        }
        anyhow::ensure!(text.len() <= INPUT_MAX, "the input is larger than {INPUT_MAX} bytes");
        serde_json::from_str(&text).context("the input is not JSON")
    }
}
