//! `tailwater conformance`: runs a worker through everything that a worker must bear, on a NATS server
//! of its own, and checks what it left in the log.

mod check_result;
mod lab;
mod rules;
mod steps;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::Args;
use serde_json::Value;

use self::check_result::CheckResult;
use self::lab::{Lab, LabSettings};
use super::args::block_on;
use super::table;
use crate::config::{CONFORMANCE_ACK_WAIT, CONFORMANCE_JOBS};
use crate::runtime;
use crate::wire::{Kind, Submission};

/// Test a worker, written in any language: start it, give it several jobs at a time, cancel one, kill
/// it and freeze it, and check what it wrote. Uses a NATS server of its own. The exit code is 1 if a
/// check failed.
#[derive(Debug, Args)]
#[command(
    after_long_help = "Example:\n  tailwater conformance --kind shout --input '\"a text that takes the worker ten seconds\"' -- \
        python3 worker.py\n\nThe worker finds the server by the variable TAILWATER_NATS, and gets TAILWATER_PREFIX."
)]
pub(super) struct ConformanceCommand {
    /// The kind of the jobs that the worker runs.
    #[arg(long)]
    kind: Kind,
    /// The input of each job, as JSON. The worker should take at least twice --ack-wait for it, and
    /// produce output from the start.
    #[arg(long, value_name = "JSON", value_parser = json)]
    input: Value,
    /// How many jobs to submit at a time.
    #[arg(long, value_name = "N", default_value_t = CONFORMANCE_JOBS, value_parser = clap::value_parser!(u16).range(1..=64))]
    jobs: u16,
    /// How long the worker may be silent before its jobs go to another one.
    #[arg(long, value_name = "TIME", default_value_t = CONFORMANCE_ACK_WAIT.into())]
    ack_wait: humantime::Duration,
    /// The nats-server program; by default the one on PATH or in `.tools/`.
    #[arg(long, env = "NATS_SERVER", value_name = "FILE")]
    nats_server: Option<PathBuf>,
    /// The worker's program and its arguments.
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<OsString>,
}

fn json(text: &str) -> Result<Value, serde_json::Error> {
    serde_json::from_str(text)
}

impl ConformanceCommand {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let results = block_on(async {
            tokio::select! {
                results = self.test() => results,
                signal = runtime::interrupted() => {
                    signal?;
                    bail!("interrupted")
                }
            }
        })?;
        let rows: Vec<_> = results
            .iter()
            .map(|CheckResult { check, found }| {
                let (outcome, text) = match found {
                    Ok(text) => ("pass", text),
                    Err(text) => ("FAIL", text),
                };
                [outcome, check, text].map(str::to_owned)
            })
            .collect();
        table::print(["RESULT", "CHECK", "FOUND"], &rows)?;
        let conforms = results.iter().all(|result| result.found.is_ok());
        Ok(if conforms {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    }

    async fn test(&self) -> anyhow::Result<Vec<CheckResult>> {
        let settings = LabSettings {
            submission: Submission::new(self.kind.clone(), self.input.clone()),
            command: self.command.clone(),
            ack_wait: self.ack_wait.into(),
        };
        let lab = Lab::start(settings, self.nats_server.as_deref());
        let lab = lab.await.context("cannot set up NATS")?;
        let outcome = steps::all(&lab, usize::from(self.jobs)).await;
        if !matches!(&outcome, Ok(results) if results.iter().all(|result| result.found.is_ok())) {
            lab.show_output();
        }
        lab.end().await;
        outcome
    }
}
