//! What a run of the benchmark does.

use anyhow::bail;
use clap::Args;
use serde::Serialize;

use super::transport::ClientTransport;
use crate::config::{
    BENCH_APPENDS_BEFORE, BENCH_CONNECTIONS_MAX, BENCH_EVENTS_MAX, BENCH_GRACE, BENCH_LATE_EVENTS,
    BENCH_SECONDS_MAX,
};
use crate::wire::Kind;

/// What a run does.
#[derive(Clone, Debug, Args, Serialize)]
pub(super) struct Plan {
    /// How many jobs run at the same time; with `--late`, at least 2.
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
        if self.late.is_some() && self.jobs < 2 {
            bail!("--late needs other jobs to spread events among: set --jobs to 2 or more");
        }
        let publishes_by_rate = self.storm.is_none() && !self.idle;
        if publishes_by_rate && self.events_by_rate() < 1.0 {
            bail!(
                "no event would be due within --seconds: --rate times --seconds must be at least 1"
            );
        }
        if self.events() > BENCH_EVENTS_MAX as f64 {
            bail!(
                "a run publishes at most {BENCH_EVENTS_MAX} events: lower --jobs, --seconds, or the \
                 number of events of --rate, --storm, --late or --appends"
            );
        }
        Ok(())
    }

    /// How many events each job has in a run that publishes by `--rate`.
    pub(super) fn events_by_rate(&self) -> f64 {
        self.rate * self.seconds as f64
    }

    /// How many events the run publishes, besides those with which each job begins and ends.
    fn events(&self) -> f64 {
        let jobs = self.jobs as f64;
        if let Some(missed) = self.storm {
            let appending = BENCH_APPENDS_BEFORE + BENCH_GRACE;
            let appends = self.appends.unwrap_or(0.0) * appending.as_secs_f64();
            return jobs * missed as f64 + appends;
        }
        if self.idle {
            return 0.0;
        }
        let by_rate = jobs * self.events_by_rate();
        self.late.map_or(by_rate, |others| {
            // Once without a late client, and once with them.
            by_rate * 2.0 + (others as f64 + BENCH_LATE_EVENTS as f64)
        })
    }
}

#[cfg(test)]
mod tests {
    use clap::{Command, FromArgMatches as _};

    use super::super::BenchCommand;
    use super::*;

    /// Checks the plan of a command line.
    fn check(args: &str) -> anyhow::Result<()> {
        let command = BenchCommand::augment_args(Command::new("bench"));
        let args = std::iter::once("bench").chain(args.split_whitespace());
        let matches = command.try_get_matches_from(args)?;
        BenchCommand::from_arg_matches(&matches)?.plan.check()
    }

    fn assert_refused(args: &str, reason: &str) {
        let error = check(args).unwrap_err().to_string();
        assert!(error.contains(reason), "{args}: {error}");
    }

    #[test]
    fn a_late_client_needs_other_jobs() {
        assert_refused("--jobs 1 --late 5", "--jobs");
        check("--jobs 2 --late 5").unwrap();
    }

    #[test]
    fn a_run_by_rate_has_an_event_of_each_job_within_its_time() {
        for mode in ["", "--late 5", "--worker"] {
            let plan = |seconds| format!("--rate 0.1 --seconds {seconds} {mode}");
            assert_refused(&plan(9), "--rate times --seconds");
            check(&plan(10)).unwrap();
        }
    }

    #[test]
    fn runs_that_ignore_the_rate_may_have_any() {
        for mode in ["--idle", "--storm 5"] {
            check(&format!("--rate 0.1 --seconds 1 {mode}")).unwrap();
            check(&format!("--rate 1000000 --seconds 3600 {mode}")).unwrap();
        }
    }

    #[test]
    fn every_run_has_a_limit_of_events() {
        for (most, more) in [
            (
                "--jobs 1000 --rate 100 --seconds 200",
                "--jobs 1000 --rate 100 --seconds 201",
            ),
            (
                "--jobs 1000 --rate 100 --seconds 200 --worker",
                "--jobs 1000 --rate 100 --seconds 201 --worker",
            ),
            (
                "--jobs 2 --rate 1 --seconds 1 --late 19997996",
                "--jobs 2 --rate 1 --seconds 1 --late 19997997",
            ),
            ("--jobs 10 --storm 2000000", "--jobs 10 --storm 2000001"),
            (
                "--jobs 1 --storm 1 --appends 300000",
                "--jobs 1 --storm 1 --appends 400000",
            ),
        ] {
            check(most).unwrap();
            assert_refused(more, "20000000 events");
        }
    }
}
