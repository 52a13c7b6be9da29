//! `tailwater guard`, hidden: stands between a worker, or `up`, and a program that must not outlive it.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Args;

use super::args::block_on;

/// Run a program that is ended with its parent, however that ends.
#[derive(Debug, Args)]
pub(super) struct Guard {
    /// The process with which the program ends.
    #[arg(long)]
    parent: u32,
    /// The program and its arguments.
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

impl Guard {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        block_on(async move { Ok(crate::guard::run(self.parent, self.command).await?) })
    }
}
