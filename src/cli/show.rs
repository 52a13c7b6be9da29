//! Shows a job's stream in a terminal: the text as it comes, or one event per line as JSON; counts what came.

use std::io::{self, IsTerminal as _, Write};

use serde::Deserialize;

use super::terminal::neutralized;
use crate::wire::{Body, Channel, Failure, JobId, Seq};

/// What was shown so far.
#[derive(Debug)]
pub(super) struct Show {
    json: bool,
    /// Whether a person reads it, at a terminal that would obey what is in the text.
    terminal: bool,
    /// Whether the text that was shown ends amid a line.
    amid_line: bool,
    /// The number of the last event.
    last: Seq,
    chunks: u64,
    missing: u64,
    duplicated: u64,
    resumed: Vec<Seq>,
    end: Option<End>,
}

/// How the job ended.
#[derive(Debug)]
pub(super) enum End {
    Done,
    Failed(Failure),
    Cancelled,
}

#[derive(Deserialize)]
struct Frame {
    seq: Seq,
    #[serde(flatten)]
    body: Body,
}

impl Show {
    /// Shows what comes after the event with this number.
    pub(super) fn new(json: bool, after: Seq) -> Self {
        Self {
            json,
            terminal: io::stdout().is_terminal(),
            amid_line: false,
            last: after,
            chunks: 0,
            missing: 0,
            duplicated: 0,
            resumed: Vec::new(),
            end: None,
        }
    }

    /// How the job ended, once it has.
    pub(super) fn end(&self) -> Option<&End> {
        self.end.as_ref()
    }

    /// Shows an event, given as the JSON frame of a client.
    pub(super) fn event(&mut self, json: &[u8]) -> anyhow::Result<()> {
        let frame: Frame = serde_json::from_slice(json)?;
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
                self.note("\n[a new attempt; the text above no longer counts]\n");
            }
            Body::Retrying { code, message, .. } => self.note(&format!(
                "\n[{message} ({code}); another attempt follows]\n"
            )),
            Body::Done { .. } => self.end = Some(End::Done),
            Body::Failed(failure) => self.end = Some(End::Failed(failure)),
            Body::Cancelled {} => self.end = Some(End::Cancelled),
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
            self.amid_line = last != '\n';
        }
        if self.terminal {
            write!(out, "{}", neutralized(text))
        } else {
            out.write_all(text.as_bytes())
        }
    }

    /// Shows all of a job's output at once.
    pub(super) fn output(&mut self, text: &str) -> io::Result<()> {
        let mut out = io::stdout().lock();
        self.text(&mut out, text)?;
        out.flush()
    }

    /// Ends the line that the text left open, so that a shell's prompt begins on its own. Only at a terminal: a program gets
    /// the output as it is.
    pub(super) fn finish(&mut self) -> io::Result<()> {
        if self.terminal && std::mem::take(&mut self.amid_line) {
            println!();
        }
        io::stdout().flush()
    }

    /// Says that there is no such job yet: its id may be mistyped.
    pub(super) fn waiting(job: &JobId) {
        eprintln!("tailwater: waiting for job {job}: there is no such job yet");
    }

    /// Tells that the log no longer has these events.
    pub(super) fn missing(&mut self, from: Seq, to: Seq) {
        self.missing += to.successor().0.saturating_sub(from.0);
        self.last = self.last.max(to);
        self.note(&format!("\n[events {from} to {to} have expired]\n"));
    }

    /// Remembers that the stream was resumed behind an event.
    pub(super) fn resumed(&mut self) {
        self.resumed.push(self.last.successor());
    }

    /// Says on stderr what came and how the job ended.
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
