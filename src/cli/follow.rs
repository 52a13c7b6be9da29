//! Follows a job in the log, and turns its end into an exit code.

use std::net::Ipv4Addr;
use std::process::ExitCode;

use anyhow::Context as _;
use tokio_util::sync::CancellationToken;

use super::show::{JobEnd, JobPrinter};
use super::terminal::neutralized;
use crate::hub::Hub;
use crate::nats::{Log, Reader};
use crate::runtime::Tasks;
use crate::session::{Session, SessionError, Step, until_ended};
use crate::source::fold;
use crate::wire::{JobId, Seq, Start, Status};

/// The printer of a job that is followed from `start`.
pub(super) fn printer(start: Start, json: bool) -> JobPrinter {
    let after = match start {
        Start::After(seq) => seq,
        Start::Cursor(cursor) => cursor.seq,
    };
    JobPrinter::new(json, after)
}

/// Follows a job in the log until it ends.
pub(super) async fn follow(
    log: Log,
    job: &JobId,
    start: Start,
    json: bool,
) -> anyhow::Result<ExitCode> {
    follow_with(log, job, start, printer(start, json), false).await
}

/// Follows a job in the log until it ends, with this printer.
pub(super) async fn follow_with(
    log: Log,
    job: &JobId,
    start: Start,
    mut printer: JobPrinter,
    summary: bool,
) -> anyhow::Result<ExitCode> {
    let tasks = Tasks::new(CancellationToken::new());
    let reader = Reader::open(log, &tasks).await?;
    let hub = Hub::new(reader, tasks);
    let mut session = Session::open(&hub, job, start).await?;
    loop {
        match session.next().await {
            Step::Events(events) => {
                for event in events {
                    printer.event(event.json())?;
                }
            }
            Step::Gap { from, to } => printer.missing(from, to),
            Step::Live => {}
            Step::End => return finish(&mut printer, summary),
            Step::Rebuilt => return Err(SessionError::CursorNotInLog.into()),
        }
    }
}

/// Waits until a job has ended, then prints its output.
pub(super) async fn wait(log: Log, job: &JobId, json: bool) -> anyhow::Result<ExitCode> {
    let tasks = Tasks::new(CancellationToken::new());
    let hub = Hub::new(Reader::open(log, &tasks).await?, tasks);
    until_ended(Ipv4Addr::LOCALHOST.into(), &hub, job, Seq(0)).await?;
    let state = fold(hub.source(), job)
        .await?
        .context("the job's log has expired")?;
    if json {
        println!("{}", serde_json::to_string_pretty(&state)?);
    } else {
        let mut printer = JobPrinter::new(false, Seq(0));
        printer.output(&state.output)?;
        printer.finish()?;
        if state.truncated {
            eprintln!(
                "\n[part of the output is missing: it is too long, or its beginning has expired]"
            );
        }
    }
    Ok(exit_code(match (state.status, state.error) {
        (Status::Cancelled, _) => Some(&JobEnd::Cancelled),
        (_, Some(failure)) => return Ok(exit_code(Some(&JobEnd::Failed(failure)))),
        _ => Some(&JobEnd::Done),
    }))
}

/// The exit code for a cancelled job.
const CANCELLED: u8 = 3;

/// Ends the output, and returns the exit code for how the job ended.
pub(super) fn finish(printer: &mut JobPrinter, summary: bool) -> anyhow::Result<ExitCode> {
    printer.finish()?;
    if summary {
        eprintln!();
        printer.summary();
    }
    Ok(exit_code(printer.end()))
}

fn exit_code(end: Option<&JobEnd>) -> ExitCode {
    match end {
        Some(JobEnd::Failed(failure)) => {
            let message = neutralized(&failure.message);
            let code = neutralized(&failure.code);
            eprintln!("tailwater: the job failed: {message} ({code})");
            ExitCode::FAILURE
        }
        Some(JobEnd::Cancelled) => {
            eprintln!("tailwater: the job was cancelled");
            ExitCode::from(CANCELLED)
        }
        // A tail that started after the end saw no final event.
        Some(JobEnd::Done) | None => ExitCode::SUCCESS,
    }
}
