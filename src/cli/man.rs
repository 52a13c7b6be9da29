//! `tailwater man`: manual pages.

use std::fs;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, Command};
use clap_mangen::Man;

/// Print the manual page, or write the pages of all commands to a directory.
#[derive(Debug, Args)]
#[command(
    after_long_help = "Examples:\n  tailwater man | man -l -\n  tailwater man --dir ~/.local/share/man/man1"
)]
pub(super) struct ManCommand {
    /// Write a page for each command to this directory, which is created if necessary.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

impl ManCommand {
    /// `whole` is the command line of the program.
    pub(super) fn run(&self, whole: Command) -> anyhow::Result<ExitCode> {
        if let Some(dir) = &self.dir {
            let written =
                fs::create_dir_all(dir).and_then(|()| clap_mangen::generate_to(whole, dir));
            written.with_context(|| format!("cannot write pages to {}", dir.display()))?;
        } else {
            let mut page = Vec::new();
            Man::new(whole).render(&mut page)?;
            io::stdout().write_all(&page)?;
        }
        Ok(ExitCode::SUCCESS)
    }
}
