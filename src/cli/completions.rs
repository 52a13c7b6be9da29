//! `tailwater completions`: completion scripts for shells.

use std::io::{self, Write as _};
use std::process::ExitCode;

use clap::{Args, Command};
use clap_complete::{Shell, generate};

/// Print a script that completes commands and flags in a shell.
#[derive(Debug, Args)]
#[command(
    after_long_help = "Examples:\n  source <(tailwater completions bash)\n  \
        tailwater completions fish > ~/.config/fish/completions/tailwater.fish"
)]
pub(super) struct CompletionsCommand {
    /// The shell.
    shell: Shell,
}

impl CompletionsCommand {
    /// `whole` is the command line of the program.
    pub(super) fn run(&self, mut whole: Command) -> anyhow::Result<ExitCode> {
        // `generate` panics if it cannot write.
        let mut script = Vec::new();
        generate(self.shell, &mut whole, "tailwater", &mut script);
        io::stdout().write_all(&script)?;
        Ok(ExitCode::SUCCESS)
    }
}
