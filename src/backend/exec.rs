//! Any program as a backend: it reads the job's input on standard input and writes the job's output
//! to standard output. No process remains after the job, except one that left the program's process
//! group (`setsid`). Programs are not restarted.
//!
//! ```text
//! start ─▶ write the input, read both outputs ─▶ the program exited ─▶ 1 s for the last output ─▶ kill the group ─▶ reap
//!              └─ stopped, or invalid output ─▶ SIGTERM, 0.7 s ───────────────────────────────────────┘
//! ```
//! Each signal goes to the whole group. The program is reaped last: until then, no other process
//! can get its pid.

mod environment;
mod streams;
#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::process::{Child, ChildStdin, Command};
use tokio::signal::unix::{Signal as Signals, SignalKind, signal};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::debug;

pub use self::environment::{BadVariable, Variable};
use self::streams::{Stderr, Stdout};
use super::format::Decoder;
pub use super::format::Format;
use super::{Backend, Failure, FailureCode, Finish, Job, Output, Retry, Stopped};
use crate::config::{EXEC_SETTLE_WAIT, EXEC_STOP_GRACE};
use crate::guard;
use crate::process_group::{Signal, kill_group};

/// The exit status of a temporary failure: `EX_TEMPFAIL` of sysexits.h.
const TEMPORARY: i32 = 75;

/// Runs a program per job. Its environment is `PATH`, `HOME`, `LANG`, `LC_*`, `TZ`, `TMPDIR` and
/// `USER` of this process, `PYTHONUNBUFFERED=1`, [`Exec::env`], and `TAILWATER_JOB`,
/// `TAILWATER_KIND` and `TAILWATER_ATTEMPT`.
#[derive(Clone, Debug)]
pub struct Exec {
    /// The program and its arguments.
    pub command: Vec<OsString>,
    /// The format of its standard output.
    pub format: Format,
    /// Whether the program can continue an earlier attempt's output. Its input is then `{"input":
    /// …, "output": …}`, and it writes only what follows.
    pub continues: bool,
    /// Further variables of the program's environment.
    pub env: Vec<Variable>,
    /// The `tailwater` that runs as `guard` between this process and the program, so that the
    /// program never outlives this process. An exit status of 129 to 192 of a guarded program is
    /// read as a signal.
    pub guard: Option<PathBuf>,
}

impl Backend for Exec {
    fn continues(&self) -> bool {
        self.continues
    }

    async fn run(&self, job: Job, out: Output) -> Result<Finish, Failure> {
        self.run_with_grace(EXEC_STOP_GRACE, job, out).await
    }
}

impl Exec {
    /// Runs a program, which has this long to end after SIGTERM.
    async fn run_with_grace(
        &self,
        grace: Duration,
        job: Job,
        out: Output,
    ) -> Result<Finish, Failure> {
        if job.stop.is_cancelled() {
            return Err(Stopped.into());
        }
        let (mut program, mut pipes) = self.start(&job)?;
        let stdin = if self.continues {
            json!({"input": job.input, "output": job.previous_output.as_deref().unwrap_or_default()})
        } else {
            job.input
        };
        let relayed = tokio::select! {
            biased;
            () = job.stop.cancelled() => Err(Stopped.into()),
            relayed = pipes.relay(&mut program, &stdin, &out) => relayed,
        };
        if relayed.is_err() {
            program.signal(Signal::TERM);
            let _ = timeout(grace, pipes.drain(&mut program)).await;
        }
        // Kills the processes that the program left behind, which ends standard error.
        program.signal(Signal::KILL);
        let _ = timeout(EXEC_SETTLE_WAIT, pipes.stderr.read()).await;
        let status = program.reap().await?;
        relayed.and_then(|()| self.result_of(status, &pipes.stderr.last()))
    }

    fn start(&self, job: &Job) -> Result<(Program, Pipes), Failure> {
        let mut words = self.command.iter();
        let mut command = match (&self.guard, words.next()) {
            (_, None) => return Err(failure(FailureCode::CannotStart, "no command was given")),
            (None, Some(program)) => Command::new(program),
            (Some(guard), Some(program)) => {
                let mut command = Command::new(guard);
                let own = std::process::id().to_string();
                command.args(["guard", "--parent", &own, "--"]).arg(program);
                command
            }
        };
        command
            .args(words)
            // Also the guard's environment, which the program can read.
            .env_clear()
            .envs(environment::of_program(std::env::vars_os(), &self.env))
            .env("TAILWATER_JOB", job.id.as_str())
            .env("TAILWATER_KIND", job.kind.as_str())
            .env("TAILWATER_ATTEMPT", job.attempt.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true);
        // Before the start, so that no exit is missed.
        let exits = signal(SignalKind::child())?;
        let mut child = command.spawn().map_err(|error| {
            failure(
                FailureCode::CannotStart,
                &guard::cannot_start(&command.as_std().get_program().to_owned(), &error),
            )
        })?;
        let lost = || io::Error::other("a pipe to the program is missing");
        let leader = child.id().ok_or_else(lost)?;
        let ended = CancellationToken::new();
        let stdout = child.stdout.take().ok_or_else(lost)?;
        let pipes = Pipes {
            stdin: child.stdin.take(),
            stdout: Stdout::new(stdout, Decoder::new(self.format), leader, ended.clone()),
            stderr: Stderr::new(child.stderr.take().ok_or_else(lost)?, job.id.clone()),
        };
        Ok((
            Program {
                child,
                leader,
                exits,
                ended,
                reaped: false,
            },
            pipes,
        ))
    }

    /// What the end of the program means for the job.
    fn result_of(&self, status: ExitStatus, last: &str) -> Result<Finish, Failure> {
        use std::os::unix::process::ExitStatusExt as _;
        if status.success() {
            return Ok(Finish {
                usage: None,
                finish_reason: Some("stop".into()),
            });
        }
        let with_last = |what: String| {
            if last.is_empty() {
                what
            } else {
                format!("{what}: {last}")
            }
        };
        let guarded = self.guard.is_some();
        let signal = status.signal().or_else(|| {
            status
                .code()
                .map(|code| code - guard::KILLED)
                .filter(|number| guarded && (1..=64).contains(number))
        });
        if let Some(signal) = signal {
            return Err(failure(
                FailureCode::KilledBySignal,
                &with_last(format!("killed by signal {signal}")),
            ));
        }
        let code = status.code().unwrap_or_default();
        if guarded
            && [guard::NOT_FOUND.into(), guard::NOT_STARTED.into()].contains(&code)
            && let Some(why) = last
                .lines()
                .find_map(|line| line.strip_prefix(guard::MESSAGE_PREFIX))
        {
            return Err(failure(FailureCode::CannotStart, why));
        }
        let failed = failure(
            FailureCode::ExitStatus,
            &with_last(format!("exit status {code}")),
        );
        Err(if code == TEMPORARY {
            Failure {
                retry: Retry::Later,
                ..failed
            }
        } else {
            failed
        })
    }
}

fn failure(code: FailureCode, message: &str) -> Failure {
    Failure::fatal(code, message)
}

/// The operating system refused something that it usually allows.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::retryable(FailureCode::ExecIo, error.to_string())
    }
}

/// The ends of a program's pipes.
struct Pipes {
    stdin: Option<ChildStdin>,
    stdout: Stdout,
    stderr: Stderr,
}

impl Pipes {
    /// Writes the input to the program and relays its output, until the program has ended and all
    /// output was relayed.
    async fn relay(
        &mut self,
        program: &mut Program,
        input: &Value,
        out: &Output,
    ) -> Result<(), Failure> {
        let Self {
            stdin,
            stdout,
            stderr,
        } = self;
        let ended = async { Ok(program.wait().await?) };
        let output = async { tokio::try_join!(stdout.relay(out), ended) };
        // Not waited for: a process that was left behind may hold these pipes open forever.
        let others = async {
            tokio::join!(write_input(stdin, input), stderr.read());
            std::future::pending().await
        };
        tokio::select! {
            done = output => done.map(|((), ())| ()),
            () = others => Ok(()),
        }
    }

    /// Reads the remaining output of a stopped program and its children, until they have ended.
    async fn drain(&mut self, program: &mut Program) {
        self.stdin = None;
        let (ended, (), ()) =
            tokio::join!(program.wait(), self.stdout.discard(), self.stderr.read());
        if let Err(error) = ended {
            debug!(target: "tailwater::exec", %error, "cannot wait for the program");
        }
    }
}

/// Writes the input and closes the pipe. The program need not read it.
async fn write_input(stdin: &mut Option<ChildStdin>, input: &Value) {
    if let Some(pipe) = stdin
        && let Err(error) = pipe.write_all(input.to_string().as_bytes()).await
    {
        debug!(target: "tailwater::exec", %error, "the program did not read all of its input");
    }
    *stdin = None;
}

/// A running program, which leads its process group. Dropping it kills the group.
struct Program {
    child: Child,
    leader: u32,
    exits: Signals,
    /// Cancelled when the program has ended.
    ended: CancellationToken,
    reaped: bool,
}

impl Program {
    /// Waits until the program has ended, without reaping it. Safe to drop at any await.
    async fn wait(&mut self) -> io::Result<()> {
        let leader = i32::try_from(self.leader).ok().and_then(Pid::from_raw);
        let leader = leader.ok_or_else(|| io::Error::other("the program has no pid"))?;
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        while waitid(WaitId::Pid(leader), options)?.is_none() {
            self.exits.recv().await;
        }
        self.ended.cancel();
        Ok(())
    }

    fn signal(&self, signal: Signal) {
        if let Err(error) = kill_group(self.leader, signal) {
            debug!(target: "tailwater::exec", group = self.leader, %error, "the group was not signalled");
        }
    }

    async fn reap(&mut self) -> io::Result<ExitStatus> {
        let status = self.child.wait().await;
        self.reaped = true;
        status
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if !self.reaped {
            self.signal(Signal::KILL);
        }
    }
}
