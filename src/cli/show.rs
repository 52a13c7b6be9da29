//! Prints a job's stream: the text as it arrives, or one event per line as JSON. It also counts
//! events.

use std::io::{self, IsTerminal as _, Write};

use serde::Deserialize;

use super::terminal::neutralized;
use crate::wire::{Body, Channel, JobFailure, JobId, Seq};

/// Prints a job's stream.
#[derive(Debug)]
pub(super) struct JobPrinter {
    json: bool,
    /// Whether the output is a terminal, which would execute control characters in the text.
    terminal: bool,
    /// Whether the printed text ends within a line.
    in_line: bool,
    /// The sequence number of the last event.
    last: Seq,
    chunks: u64,
    missing: u64,
    duplicated: u64,
    resumed: Vec<Seq>,
    end: Option<JobEnd>,
}

/// How the job ended.
#[derive(Debug)]
pub(super) enum JobEnd {
    Done,
    Failed(JobFailure),
    Cancelled,
}

#[derive(Deserialize)]
struct PrintedEvent {
    seq: Seq,
    #[serde(flatten)]
    body: Body,
}

impl JobPrinter {
    /// A printer of the events after this one.
    pub(super) fn new(json: bool, after: Seq) -> Self {
        Self {
            json,
            terminal: io::stdout().is_terminal(),
            in_line: false,
            last: after,
            chunks: 0,
            missing: 0,
            duplicated: 0,
            resumed: Vec::new(),
            end: None,
        }
    }

    /// How the job ended, once it has.
    pub(super) fn end(&self) -> Option<&JobEnd> {
        self.end.as_ref()
    }

    /// Prints an event, given as a client's JSON frame.
    pub(super) fn event(&mut self, json: &[u8]) -> anyhow::Result<()> {
        let frame: PrintedEvent = serde_json::from_slice(json)?;
        if frame.seq <= self.last {
            self.duplicated += 1;
        }
        self.missing += frame.seq.0.saturating_sub(self.last.successor().0);
        self.last = self.last.max(frame.seq);
        let mut out = io::stdout().lock();
        if self.json {
            out.write_all(json)?;
            out.write_all(b"\n")?;
        }
        match frame.body {
            Body::Chunk { text, channel } => {
                self.chunks += 1;
                if !self.json && channel == Channel::Output {
                    self.text(&mut out, &text)?;
                }
            }
            Body::Started {
                continues: false, ..
            } if self.chunks > 0 => {
                self.note("\n[a new attempt; ignore the text above]\n");
            }
            Body::Retrying { code, message, .. } => self.note(&format!(
                "\n[{message} ({code}); another attempt follows]\n"
            )),
            Body::Done { .. } => self.end = Some(JobEnd::Done),
            Body::Failed(failure) => self.end = Some(JobEnd::Failed(failure)),
            Body::Cancelled {} => self.end = Some(JobEnd::Cancelled),
            Body::Queued { .. }
            | Body::Started { .. }
            | Body::Data { .. }
            | Body::CancelRequested { .. }
            | Body::Unknown => {}
        }
        Ok(out.flush()?)
    }

    fn text(&mut self, out: &mut impl Write, text: &str) -> io::Result<()> {
        if let Some(last) = text.chars().last() {
            self.in_line = last != '\n';
        }
        if self.terminal {
            write!(out, "{}", neutralized(text))
        } else {
            out.write_all(text.as_bytes())
        }
    }

    /// Prints the whole output of a job.
    pub(super) fn output(&mut self, text: &str) -> io::Result<()> {
        let mut out = io::stdout().lock();
        self.text(&mut out, text)?;
        out.flush()
    }

    /// Ends an unfinished line on a terminal, so that the prompt starts on a new line. A program
    /// gets the output unchanged.
    pub(super) fn finish(&mut self) -> io::Result<()> {
        if self.terminal && std::mem::take(&mut self.in_line) {
            println!();
        }
        io::stdout().flush()
    }

    /// Reports that the job does not exist yet, in case its id was mistyped.
    pub(super) fn waiting(job: &JobId) {
        eprintln!("tailwater: waiting for job {job}, which does not exist yet");
    }

    /// Reports that the log no longer has these events.
    pub(super) fn missing(&mut self, from: Seq, to: Seq) {
        self.missing += to.successor().0.saturating_sub(from.0);
        self.last = self.last.max(to);
        self.note(&format!("\n[events {from} to {to} have expired]\n"));
    }

    /// Notes that the stream was resumed after the last event.
    pub(super) fn resumed(&mut self) {
        self.resumed.push(self.last.successor());
    }

    /// Prints the counts on stderr.
    pub(super) fn summary(&self) {
        let Self {
            chunks,
            missing,
            duplicated,
            resumed,
            ..
        } = self;
        let resumed: Vec<String> = resumed.iter().map(ToString::to_string).collect();
        let resumed = if resumed.is_empty() {
            "never".into()
        } else {
            format!("at seq {}", resumed.join(", "))
        };
        eprintln!(
            "chunks {chunks} · missing {missing} · duplicated {duplicated} · resumed {resumed}"
        );
    }

    fn note(&self, text: &str) {
        if !self.json {
            eprint!("{}", neutralized(text));
        }
    }
}
