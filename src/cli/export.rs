//! `tailwater export`: prints a job's log, so that `import` can restore it.

use std::io::{self, Write as _};
use std::process::ExitCode;

use clap::Args;
use tokio_util::sync::CancellationToken;

use super::args::{FAILED, NatsArgs, block_on, no_job};
use crate::nats::{Log, Reader, Role};
use crate::runtime::Tasks;
use crate::source::{EventSource as _, LogReading, Replica};
use crate::wire::{JobId, Seq};

/// Print a job's log, one stored event per line, as JSON. `tailwater import` restores it.
#[derive(Debug, Args)]
#[command(after_long_help = "Example:\n  tailwater export my-job > my-job.ndjson")]
pub(super) struct ExportCommand {
    /// The job's id.
    job: JobId,
    #[command(flatten)]
    nats: NatsArgs,
}

impl ExportCommand {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        block_on(async move {
            let nats = self.nats.connect("export", Role::Observer).await?;
            let log = Log::open(&nats).await?;
            let reader = Reader::open(log, &Tasks::new(CancellationToken::new())).await?;
            let Some(last) = reader.last(&self.job, Replica::Leader).await? else {
                anyhow::bail!(no_job(&self.job))
            };
            let mut reading = LogReading::new(Seq::FIRST, None, last.seq);
            let mut out = io::BufWriter::new(io::stdout().lock());
            let mut next = Seq::FIRST;
            let mut missing = 0;
            while let Some(events) = reading.next(&reader, &self.job).await {
                for event in events {
                    missing += event.seq.0 - next.0;
                    next = event.seq.successor();
                    out.write_all(&event.line()?)?;
                    out.write_all(b"\n")?;
                }
            }
            out.flush()?;
            missing += last.seq.successor().0 - next.0;
            if missing > 0 {
                eprintln!("tailwater: {missing} events of {} have expired", self.job);
                return Ok(ExitCode::from(FAILED));
            }
            if !last.event_type.is_end() {
                eprintln!(
                    "tailwater: {} has not ended; these are its events so far",
                    self.job
                );
            }
            Ok(ExitCode::SUCCESS)
        })
    }
}
