//! A program that always ends with this process, as the leader of a process group of its own.

use std::ffi::OsStr;
use std::process::Stdio;

use tokio::process::{Child, Command};

use crate::process_group::{Signal, kill_group};

/// A running program. Dropping it kills it and what it started.
#[derive(Debug)]
pub(super) struct GuardedProcess(pub(super) Child);

impl GuardedProcess {
    /// Starts a program with these further variables.
    pub(super) fn start<S: AsRef<OsStr>>(
        command: impl IntoIterator<Item = S>,
        env: &[(&str, &str)],
        stdout: Stdio,
        stderr: Stdio,
    ) -> anyhow::Result<Self> {
        let guard = Command::new(std::env::current_exe()?)
            .args(["guard", "--parent", &std::process::id().to_string(), "--"])
            .args(command)
            .envs(env.iter().copied())
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(stderr)
            .process_group(0)
            .kill_on_drop(true)
            .spawn()?;
        Ok(Self(guard))
    }

    /// Signals the program and what it started in its group.
    pub(super) fn signal(&self, signal: Signal) {
        if let Some(guard) = self.0.id() {
            let _ = kill_group(guard, signal);
        }
    }

    /// Kills it, and waits for its end.
    pub(super) async fn stop(mut self) {
        self.signal(Signal::KILL);
        let _ = self.0.wait().await;
    }
}

impl Drop for GuardedProcess {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
    }
}
