//! What a run of the benchmark does.

use anyhow::bail;
use clap::Args;
use serde::Serialize;

use super::transport::ClientTransport;
use crate::config::{BENCH_CONNECTIONS_MAX, BENCH_SECONDS_MAX};
use crate::wire::Kind;

/// What a run does.
#[derive(Clone, Debug, Args, Serialize)]
pub(super) struct Plan {
    /// How many jobs run at the same time.
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub(super) jobs: usize,
    /// How many clients watch each job, one connection each.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(super) watchers: usize,
    /// Events per second of each job.
    #[arg(long, value_name = "N", default_value_t = 10.0)]
    pub(super) rate: f64,
    /// For how many seconds events are published or, with `--idle`, connections are held.
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=BENCH_SECONDS_MAX))]
    pub(super) seconds: u64,
    /// How the clients connect.
    #[arg(long, value_enum, default_value_t = ClientTransport::Ws)]
    pub(super) transport: ClientTransport,
    /// How many bytes of text an event has.
    #[arg(long, value_name = "BYTES", default_value_t = 24)]
    pub(super) text: usize,
    /// How many threads the edge has.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(super) threads: u16,
    /// Disconnect all clients, publish this many events of each job, and let all clients reconnect
    /// at once.
    #[arg(long, value_name = "MISSED", conflicts_with_all = ["idle", "late", "worker"])]
    pub(super) storm: Option<u64>,
    /// With `--storm`: restart the edge before the clients reconnect.
    #[arg(long, requires = "storm")]
    pub(super) cold: bool,
    /// With `--storm`: append this many events per second to one more job, and measure how long these
    /// appends take before the clients reconnect, and meanwhile.
    #[arg(long, value_name = "RATE", requires = "storm")]
    pub(super) appends: Option<f64>,
    /// Publish nothing: measure the memory of the connections.
    #[arg(long, conflicts_with_all = ["late", "worker"])]
    pub(super) idle: bool,
    /// Spread 2000 events of one job among this many of the others. Then `--watchers` clients read
    /// that job, one after another, while the others continue.
    #[arg(long, value_name = "OTHERS", conflicts_with = "worker")]
    pub(super) late: Option<u64>,
    /// Let a real worker run jobs of the demo backend, at `--rate` words per second. With `--edge`,
    /// submit them to that edge, for workers that are running.
    #[arg(long)]
    pub(super) worker: bool,
    /// With `--worker` and `--edge`: the kind that the running workers serve. They must have the demo
    /// backend.
    #[arg(
        long,
        value_name = "KIND",
        default_value = "bench",
        requires = "edge",
        requires = "worker"
    )]
    pub(super) kind: Kind,
}

impl Plan {
    /// Checks that the plan can be run.
    pub(super) fn check(&self) -> anyhow::Result<()> {
        let connections = self.jobs.saturating_mul(self.watchers);
        if connections == 0 || connections > BENCH_CONNECTIONS_MAX {
            bail!("--jobs times --watchers must be from 1 to {BENCH_CONNECTIONS_MAX}");
        }
        for (flag, rate) in [("--rate", Some(self.rate)), ("--appends", self.appends)] {
            if rate.is_some_and(|rate| !(rate > 0.0 && rate <= 1e6)) {
                bail!("{flag} must be above 0 and at most 1000000");
            }
        }
        Ok(())
    }
}
