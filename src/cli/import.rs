//! `tailwater import`: restores the log of a job that `export` printed.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use clap::Args;

use super::args::{NatsArgs, block_on};
use crate::nats::{AppendError, EventWriter, Log, Queue, Role};
use crate::wire::{Body, Event, JobId, Seq, Stored, Submission, codec};

/// Restore the log of an ended job from the output of `tailwater export`: the same events with the
/// same sequence numbers, attempts and times. The job must not exist.
#[derive(Debug, Args)]
#[command(
    after_long_help = "Examples:\n  tailwater import my-job.ndjson\n  tailwater export my-job | tailwater import --nats nats://other:4222 -"
)]
pub(super) struct ImportCommand {
    /// The file; `-` is stdin.
    file: PathBuf,
    #[command(flatten)]
    nats: NatsArgs,
}

/// A whole log, as it is stored.
#[derive(Debug)]
struct ExportedLog {
    job: JobId,
    events: Vec<Bytes>,
}

impl ImportCommand {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let file = self.file.display();
        let exported = if self.file.as_os_str() == "-" {
            ExportedLog::read(io::stdin().lock())
        } else {
            let opened = File::open(&self.file).with_context(|| format!("cannot read {file}"))?;
            ExportedLog::read(BufReader::new(opened))
        };
        let ExportedLog { job, events } =
            exported.with_context(|| format!("cannot import {file}"))?;
        block_on(async move {
            let nats = self.nats.connect("import", Role::Worker(None)).await?;
            let log = Log::open(&nats).await?;
            let limit = log.event_max();
            let largest = events.iter().map(Bytes::len).max().unwrap_or_default();
            ensure!(
                largest <= limit,
                "an event has {largest} bytes as stored; this NATS server accepts {limit}"
            );
            let exists = || format!("the job {job} exists: purge it first");
            let known = Queue::new(log.clone()).find(&job).await?;
            ensure!(known.is_none(), exists());
            let mut writer =
                EventWriter::new(log.clone(), job.clone(), 0, None).with_segments(None);
            let count = events.len();
            for (index, event) in events.into_iter().enumerate() {
                match writer.append_stored(event, index + 1 == count).await {
                    Ok(()) => {}
                    // Another process was faster.
                    Err(AppendError::Superseded | AppendError::CancelRequested) => bail!(exists()),
                    Err(error) => {
                        return Err(error)
                            .with_context(|| format!("{index} of {count} events were restored"));
                    }
                }
            }
            // The answer comes after the last segment, which is sent before, has arrived.
            let last = log.last(&job).await?;
            ensure!(
                last.is_some_and(|last| last.seq.0 == count as u64),
                "the log of {job} does not end with its final event"
            );
            nats.close().await;
            println!("{job}");
            Ok(ExitCode::SUCCESS)
        })
    }
}

impl ExportedLog {
    /// Reads and checks a whole log, before any of it is stored.
    fn read(lines: impl BufRead) -> anyhow::Result<Self> {
        let mut job: Option<JobId> = None;
        let mut events = Vec::new();
        let mut has_ended = false;
        for (index, line) in lines.lines().enumerate() {
            let line = line?;
            if line.trim().is_empty() {
                continue;
            }
            let seq = Seq(events.len() as u64 + 1);
            let (payload, event) = stored(&line)
                .and_then(|(payload, event)| {
                    let of = job.get_or_insert_with(|| event.job.clone());
                    ensure!(event.job == *of, "it is an event of another job");
                    ensure!(
                        event.seq == seq,
                        "it is event {}, not event {seq}: only a whole log can be restored",
                        event.seq
                    );
                    ensure!(!has_ended, "it follows the job's final event");
                    if let Body::Queued { kind, .. } | Body::Started { kind, .. } = &event.body {
                        ensure!(of.may_be_of(kind), Submission::of_another_kind(of, kind));
                    }
                    Ok((payload, event))
                })
                .with_context(|| format!("line {}", index + 1))?;
            has_ended = event.body.is_end();
            events.push(payload);
        }
        let job = job.context("it has no events")?;
        ensure!(has_ended, "the job has not ended");
        Ok(Self { job, events })
    }
}

/// An event as it is stored.
fn stored(line: &str) -> anyhow::Result<(Bytes, Event)> {
    let event: Event = serde_json::from_str(line).context("it is not an event")?;
    if let Body::Chunk { text, .. } = &event.body {
        ensure!(!text.is_empty(), "its text is empty");
    }
    let mut payload = Vec::new();
    codec::json_to_msgpack(line.as_bytes(), &mut payload)?;
    let payload = Bytes::from(payload);
    // As a reader will decode it.
    Stored::decode(&event.job, u64::MAX, payload.clone())?;
    Ok((payload, event))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(lines: &[&str]) -> Result<Vec<Event>, String> {
        let log = ExportedLog::read(lines.join("\n").as_bytes());
        let log = log.map_err(|error| format!("{error:#}"))?;
        let event = |payload: &Bytes| Event::decode(payload).unwrap();
        Ok(log.events.iter().map(event).collect())
    }

    const QUEUED: &str = r#"{"type":"job:queued:v1","kind":"k","input":{"a":1.5},"job":"j","seq":1,"attempt":0,"ts":1}"#;
    const OTHER: &str = r#"{"type":"my:own:v7","x":[1,"é"],"job":"j","seq":2,"attempt":1,"ts":2}"#;
    const END: &str = r#"{"type":"job:cancelled:v1","job":"j","seq":3,"attempt":1,"ts":3}"#;

    #[test]
    fn the_events_of_a_whole_log_are_restored_unchanged() {
        let events = read(&[QUEUED, "", OTHER, END]).unwrap();
        let expected = [QUEUED, OTHER, END].map(|line| serde_json::from_str(line).unwrap());
        assert_eq!(events, expected);
        let (payload, _) = stored(OTHER).unwrap();
        let mut json = Vec::new();
        codec::msgpack_to_json(&payload, &mut json).unwrap();
        let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
        let expected: serde_json::Value = serde_json::from_str(OTHER).unwrap();
        assert_eq!(json, expected);
    }

    #[test]
    fn a_file_that_is_not_a_whole_log_is_refused_with_its_line() {
        let of_other = END.replace(r#""job":"j""#, r#""job":"k""#);
        let of_other_kind = QUEUED.replace(r#""job":"j""#, r#""job":"other:j""#);
        let empty = r#"{"type":"model:chunk:v1","text":"","job":"j","seq":2,"attempt":1,"ts":2}"#;
        for (lines, expected) in [
            (&[][..], "it has no events"),
            (&[QUEUED, OTHER], "the job has not ended"),
            (&[QUEUED, END], "line 2: it is event 3, not event 2"),
            (&[OTHER, END], "line 1: it is event 2, not event 1"),
            (
                &[QUEUED, OTHER, &of_other],
                "line 3: it is an event of another job",
            ),
            (
                &[of_other_kind.as_str()],
                "line 1: the id other:j names another kind than k",
            ),
            (&[QUEUED, "{", END], "line 2: it is not an event"),
            (&[QUEUED, empty, END], "line 2: its text is empty"),
            (
                &[QUEUED, OTHER, END, &END.replace(":3,", ":4,")],
                "line 4: it follows the job's final event",
            ),
        ] {
            let refusal = read(lines).unwrap_err();
            assert!(refusal.starts_with(expected), "{refusal}");
        }
    }
}
