//! `tailwater guard`, hidden: runs between a worker or `up` and a program that must not outlive it.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Args;

use super::args::block_on;

/// Run a program that never outlives its parent.
#[derive(Debug, Args)]
pub(super) struct GuardCommand {
    /// The process that the program must not outlive.
    #[arg(long)]
    parent: u32,
    /// The program and its arguments.
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

impl GuardCommand {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        block_on(async move { Ok(crate::guard::run(self.parent, self.command).await?) })
    }
}
