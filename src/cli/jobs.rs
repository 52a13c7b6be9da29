//! `tailwater jobs`: lists jobs.

use std::io::{self, Write as _};
use std::process::ExitCode;
use std::time::{Duration, UNIX_EPOCH};

use anyhow::Context as _;
use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser as _};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::args::{NatsArgs, block_on};
use super::table;
use crate::config::{LIST_ROWS, LIST_ROWS_MAX, OPEN_WAIT};
use crate::nats::{JobQuery, Log, Reader, Role};
use crate::runtime::Tasks;
use crate::wire::{JobRow, Kind, Status};

/// List the jobs in the log, the most recently updated first.
#[derive(Debug, Args)]
#[command(after_long_help = "Example:\n  tailwater jobs --status running --limit 50")]
pub(super) struct JobsCommand {
    /// Only jobs with this status.
    #[arg(long, value_parser = PossibleValuesParser::new(Status::ALL.map(Status::as_str)).try_map(|text| status(&text)))]
    status: Option<Status>,
    /// Only jobs of this kind.
    #[arg(long)]
    kind: Option<Kind>,
    /// How many jobs to show at most.
    #[arg(long, value_name = "N", default_value_t = LIST_ROWS as u32, value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
    /// Print one job per line, as JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    nats: NatsArgs,
}

fn status(text: &str) -> Result<Status, &'static str> {
    Status::ALL
        .into_iter()
        .find(|status| status.as_str() == text)
        .ok_or("not a status")
}

impl JobsCommand {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        block_on(async move {
            let nats = self.nats.connect("jobs", Role::Observer).await?;
            let log = Log::open(&nats).await?;
            let reader = Reader::open(log, &Tasks::new(CancellationToken::new())).await?;
            let mut remaining = self.limit as usize;
            let mut page = None;
            let mut table = Vec::new();
            while remaining > 0 {
                let limit = remaining.min(LIST_ROWS_MAX);
                let query = JobQuery {
                    status: self.status,
                    kind: self.kind.clone(),
                    limit,
                    page,
                    visible: None,
                };
                let listed = timeout(OPEN_WAIT, Box::pin(reader.list(&query))).await;
                let listed = listed.context("the log was not read in time")??;
                remaining -= listed.jobs.len();
                if self.json {
                    let mut out = io::stdout().lock();
                    for job in &listed.jobs {
                        writeln!(out, "{}", serde_json::to_string(job)?)?;
                    }
                    out.flush()?;
                } else {
                    table.extend(listed.jobs.iter().map(cells));
                }
                page = listed.next;
                if page.is_none() {
                    break;
                }
            }
            if !self.json {
                table::print(HEAD, &table)?;
            }
            nats.close().await;
            Ok(ExitCode::SUCCESS)
        })
    }
}

/// The end of the year 9999, in milliseconds since the Unix epoch.
const LATEST: u64 = 253_402_300_799_999;
const HEAD: [&str; 7] = [
    "JOB", "KIND", "STATUS", "ATTEMPT", "EVENTS", "CREATED", "UPDATED",
];

fn cells(job: &JobRow) -> [String; HEAD.len()] {
    let absent = || "-".to_owned();
    // A worker may write any time, but RFC 3339 ends with the year 9999.
    let time = |ms: u64| {
        humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_millis(ms.min(LATEST)))
            .to_string()
    };
    [
        job.id.to_string(),
        job.kind.as_ref().map_or_else(absent, ToString::to_string),
        job.status.as_str().to_owned(),
        job.attempt.to_string(),
        job.seq.to_string(),
        job.created_at.map_or_else(absent, time),
        time(job.updated_at),
    ]
}
