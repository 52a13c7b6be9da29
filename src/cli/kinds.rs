//! `tailwater kinds`: the kinds of jobs, and how many jobs of each wait and run.

use std::io::{self, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde_json::json;

use super::args::{NatsArgs, block_on};
use super::table;
use crate::nats::{KindStatus, Log, Queue, Role};

/// List the kinds of jobs: how many jobs of each wait and run, and whether workers ask for more.
#[derive(Debug, Args)]
#[command(after_long_help = "Example:\n  tailwater kinds")]
pub(super) struct KindsCommand {
    /// Print one kind per line, as JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    nats: NatsArgs,
}

/// The columns of a table of kinds.
pub(super) const HEAD: [&str; 5] = ["KIND", "WAITING", "RUNNING", "OLDEST", "WORKERS"];

impl KindsCommand {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        block_on(async move {
            let nats = self.nats.connect("kinds", Role::Observer).await?;
            let queue = Queue::new(Log::open(&nats).await?);
            let kinds = queue.report().await?.kinds;
            if self.json {
                let mut out = io::stdout().lock();
                for kind in &kinds {
                    writeln!(out, "{}", line(kind))?;
                }
                out.flush()?;
            } else {
                table::print(HEAD, &kinds.iter().map(cells).collect::<Vec<_>>())?;
            }
            nats.close().await;
            Ok(ExitCode::SUCCESS)
        })
    }
}

/// What is known about a kind's workers: those that are busy do not ask for jobs.
fn workers(kind: &KindStatus) -> &'static str {
    match (kind.usage.idle_workers, kind.usage.running) {
        (1.., _) => "free",
        (0, 1..) => "busy",
        (0, 0) => "none",
    }
}

/// The row of a kind.
pub(super) fn cells(kind: &KindStatus) -> [String; HEAD.len()] {
    let oldest = kind.oldest.map_or_else(
        || "-".to_owned(),
        |age| humantime::format_duration(Duration::from_secs(age.as_secs())).to_string(),
    );
    [
        kind.usage.kind.to_string(),
        kind.usage.waiting.to_string(),
        kind.usage.running.to_string(),
        oldest,
        workers(kind).to_owned(),
    ]
}

fn line(kind: &KindStatus) -> serde_json::Value {
    json!({
        "kind": kind.usage.kind,
        "waiting": kind.usage.waiting,
        "running": kind.usage.running,
        "oldest_waiting_ms": kind.oldest.map(super::args::millis),
        "idle_workers": kind.usage.idle_workers,
        "workers": workers(kind),
        "ack_wait_ms": super::args::millis(kind.ack_wait),
        "callbacks": kind.features.callbacks,
        "limits": kind.features.limits,
    })
}
