//! `tailwater bench`: puts an open-loop load on running processes, checks every event, and measures
//! what a delivery costs.

mod clients;
mod cost_meter;
mod frames;
mod job_writer;
mod pacer;
mod plan;
mod process;
mod progress;
mod publisher;
mod report;
mod runs;
mod submitter;
mod system;
mod tally;
mod transport;
mod watcher;

use std::fs;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::Args;

use self::plan::Plan;
use self::process::Process;
use self::report::BenchReport;
use self::system::{Processes, System};
use super::args::{NatsArgs, block_on};
use crate::runtime;

/// Measure what watching costs: jobs publish events at fixed times, and clients check every event.
/// Starts a NATS server and an edge of its own, unless `--edge` names a running one.
#[derive(Debug, Args)]
#[command(
    after_long_help = "Examples:\n  tailwater bench --jobs 1 --watchers 1000 --rate 30\n  \
                       tailwater bench --jobs 1000 --storm 200 --cold\n  \
                       tailwater bench --watchers 100 --idle --transport sse --json\n  \
                       tailwater bench --edge 127.0.0.1:4000 --edge-pid 101 --broker-pid 102\n  \
                       tailwater bench --edge 127.0.0.1:4000 --worker --kind demo --worker-pid 103"
)]
pub(super) struct BenchCommand {
    #[command(flatten)]
    plan: Plan,
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
    /// Also write one HTML page with plots.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Measure this edge, `HOST:PORT` or its URL, on the NATS server of `--nats`, instead of
    /// starting both.
    #[arg(long, value_name = "ADDR", conflicts_with_all = ["cold", "threads"])]
    edge: Option<String>,
    /// The process id of that edge, to measure its CPU time and memory; `up` prints it as
    /// `edge-pid`.
    #[arg(long, value_name = "PID", requires = "edge")]
    edge_pid: Option<u32>,
    /// The process id of the NATS server, to measure its CPU time and memory; `up` prints it as
    /// `broker-pid`.
    #[arg(long, value_name = "PID", requires = "edge")]
    broker_pid: Option<u32>,
    /// With `--worker`: the process id of a running worker, to measure its CPU time and memory. May
    /// be repeated; the report adds the workers up. The workers of `up` are a part of its edge.
    #[arg(long, value_name = "PID", requires = "edge", requires = "worker")]
    worker_pid: Vec<u32>,
    /// Send the events to this address, one a line, instead of NATS: `--edge` is another server.
    #[arg(
        long,
        value_name = "ADDR",
        requires = "edge",
        conflicts_with = "worker",
        hide = true
    )]
    publish_lines: Option<SocketAddr>,
    /// The nats-server program; by default the one beside this program, on PATH, or in
    /// `.tools/`.
    #[arg(long, env = "NATS_SERVER", value_name = "FILE")]
    nats_server: Option<PathBuf>,
    #[command(flatten)]
    nats: NatsArgs,
}

impl BenchCommand {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        self.plan.check()?;
        let report = block_on(async {
            tokio::select! {
                report = self.measure() => report,
                signal = runtime::interrupted() => {
                    signal?;
                    bail!("interrupted")
                }
            }
        })?;
        self.show(&report)?;
        Ok(if report.is_clean() {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    }

    async fn measure(&self) -> anyhow::Result<BenchReport> {
        let mut system = self.system().await?;
        let report = runs::run(&self.plan, &mut system, &self.nats).await;
        system.stop().await;
        report
    }

    async fn system(&self) -> anyhow::Result<System> {
        let Some(edge) = &self.edge else {
            return System::start(self.nats_server.as_deref(), self.plan.threads).await;
        };
        let processes = Processes {
            edge: self.edge_pid.map(Process),
            broker: self.broker_pid.map(Process),
            workers: self.worker_pid.iter().copied().map(Process).collect(),
        };
        let edge = edge.trim_start_matches("http://").trim_end_matches('/');
        let mut found = edge
            .to_socket_addrs()
            .with_context(|| format!("cannot resolve {edge}"))?;
        let edge: SocketAddr = found
            .next()
            .with_context(|| format!("{edge} has no address"))?;
        let nats = self.nats.nats.clone();
        Ok(System::running(edge, nats, self.publish_lines, processes))
    }

    fn show(&self, report: &BenchReport) -> anyhow::Result<()> {
        if self.json {
            println!("{}", serde_json::to_string(report)?);
        } else {
            print!("{}", report.table());
        }
        if let Some(path) = &self.html {
            fs::write(path, report.html()?)
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    }
}
