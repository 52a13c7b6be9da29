//! Reads a running program's standard output and standard error from their pipes.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::io::AsyncReadExt as _;
use tokio::process::{ChildStderr, ChildStdout};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::backend::format::{Decoder, LineBuffer};
use crate::backend::{Failure, Output};
use crate::config::{
    EXEC_LAST_BYTES, EXEC_LAST_LINES, EXEC_LEFT_BYTES, EXEC_LEFT_WAIT, EXEC_LOG_LINE_MAX,
    EXEC_READ_BYTES, EXEC_SETTLE_WAIT,
};
use crate::process_group::{Signal, kill_group};
use crate::wire::JobId;

/// Standard output.
#[derive(Debug)]
pub(super) struct Stdout {
    pipe: ChildStdout,
    decoder: Decoder,
    leader: u32,
    ended: CancellationToken,
    leftovers: Leftovers,
}

/// Limits for the processes that a program leaves behind.
#[derive(Debug)]
struct Leftovers {
    killed: bool,
    wait: Duration,
    bytes: usize,
}

impl Stdout {
    /// The output of the program that leads the group `leader`; `ended` is cancelled when it has
    /// ended. The program must not be reaped before [`Self::relay`] has returned.
    pub(super) fn new(
        pipe: ChildStdout,
        decoder: Decoder,
        leader: u32,
        ended: CancellationToken,
    ) -> Self {
        Self {
            pipe,
            decoder,
            leader,
            ended,
            leftovers: Leftovers {
                killed: false,
                wait: EXEC_LEFT_WAIT,
                bytes: EXEC_LEFT_BYTES,
            },
        }
    }

    /// Relays everything. Nothing is read while `out` waits, so that the full pipe stops the
    /// program.
    pub(super) async fn relay(&mut self, out: &Output) -> Result<(), Failure> {
        loop {
            let more = self.read().await;
            while let Some(content) = self.decoder.next(!more)? {
                out.content(content).await?;
            }
            if !more {
                return Ok(());
            }
        }
    }

    /// Reads more into the decoder's buffer. False at the end, or beyond the limits of `leftovers`.
    async fn read(&mut self) -> bool {
        loop {
            let counts = self.ended.is_cancelled();
            let began = Instant::now();
            let buffer = self.decoder.buffer();
            buffer.reserve(EXEC_READ_BYTES);
            let too_late = async {
                self.ended.cancelled().await;
                sleep(self.leftovers.wait).await;
            };
            let read = tokio::select! {
                biased;
                read = self.pipe.read_buf(buffer) => read.unwrap_or(0),
                () = too_late => {
                    if self.leftovers.killed {
                        return false;
                    }
                    self.kill_leftovers();
                    continue;
                }
            };
            if counts {
                self.leftovers.wait = self.leftovers.wait.saturating_sub(began.elapsed());
                self.leftovers.bytes = self.leftovers.bytes.saturating_sub(read);
                if self.leftovers.bytes == 0 && self.leftovers.killed {
                    return false;
                }
                if self.leftovers.bytes == 0 {
                    self.kill_leftovers();
                }
            }
            return read > 0;
        }
    }

    /// Kills the processes that the program left behind. Their earlier output is still read.
    fn kill_leftovers(&mut self) {
        if let Err(error) = kill_group(self.leader, Signal::KILL) {
            debug!(target: "tailwater::exec", group = self.leader, %error, "cannot kill");
        }
        self.leftovers = Leftovers {
            killed: true,
            wait: EXEC_SETTLE_WAIT,
            bytes: EXEC_LEFT_BYTES,
        };
    }

    /// Reads and discards the rest, so that a full pipe does not block a stopping program.
    pub(super) async fn discard(&mut self) {
        let mut discarded = Vec::with_capacity(EXEC_READ_BYTES);
        while self
            .pipe
            .read_buf(&mut discarded)
            .await
            .is_ok_and(|read| read > 0)
        {
            discarded.clear();
        }
    }
}

/// Standard error: logged, and the last lines kept.
#[derive(Debug)]
pub(super) struct Stderr {
    pipe: ChildStderr,
    job: JobId,
    lines: LineBuffer,
    last: LastLines,
}

impl Stderr {
    pub(super) fn new(pipe: ChildStderr, job: JobId) -> Self {
        Self {
            pipe,
            job,
            lines: LineBuffer::new(EXEC_LOG_LINE_MAX),
            last: LastLines::default(),
        }
    }

    /// Reads to the end. If it is dropped at an await, nothing is lost and it may be called again.
    pub(super) async fn read(&mut self) {
        loop {
            self.lines.buffer.reserve(EXEC_LOG_LINE_MAX);
            let more = self
                .pipe
                .read_buf(&mut self.lines.buffer)
                .await
                .is_ok_and(|read| read > 0);
            while let Some(line) = self.lines.next(!more) {
                let line = String::from_utf8_lossy(&line);
                // Of a redrawn line, what a terminal shows last.
                let line = line.trim_end_matches(['\r', '\n']);
                let line = line.rsplit('\r').next().unwrap_or(line);
                debug!(target: "tailwater::exec", job = %self.job, line);
                self.last.push(line);
            }
            if !more {
                return;
            }
        }
    }

    /// The last lines that were written.
    pub(super) fn last(&mut self) -> String {
        self.last.lines.make_contiguous().join("\n")
    }
}

/// The last lines, within the limits.
#[derive(Debug, Default)]
struct LastLines {
    lines: VecDeque<String>,
    bytes: usize,
}

impl LastLines {
    fn push(&mut self, line: &str) {
        self.bytes += line.len() + 1;
        self.lines.push_back(line.to_owned());
        while self.lines.len() > EXEC_LAST_LINES || self.bytes > EXEC_LAST_BYTES {
            let Some(line) = self.lines.pop_front() else {
                return;
            };
            self.bytes -= line.len() + 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_lines_of_standard_error_are_kept() {
        let mut last = LastLines::default();
        for number in 0..100 {
            last.push(&format!("line {number}"));
        }
        assert_eq!(last.lines.len(), EXEC_LAST_LINES);
        assert_eq!(
            (last.lines[0].as_str(), last.lines[19].as_str()),
            ("line 80", "line 99")
        );
        for _ in 0..10 {
            last.push(&"x".repeat(1_000));
        }
        assert_eq!(last.lines.len(), 4);
        assert_eq!(last.bytes, 4_004);
    }
}
