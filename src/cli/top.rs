//! `tailwater top`: shows kinds, jobs, workers and edges, and keeps the picture up to date.

mod cursor;
mod sources;
mod view;

use std::process::ExitCode;
use std::time::SystemTime;

use clap::Args;
use console::Term;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use self::cursor::HiddenCursor;
use self::sources::{AskedSources, Sources};
use super::args::{NatsArgs, block_on};
use super::client_token::ClientTokenArgs;
use crate::config::TOP_EVERY;
use crate::nats::Role;
use crate::runtime;

/// Show kinds, jobs, workers and edges, live. Ctrl-C ends it.
#[derive(Debug, Args)]
#[command(
    after_long_help = "Example:\n  tailwater top --edge http://127.0.0.1:4000 --worker 127.0.0.1:9464"
)]
pub(super) struct TopCommand {
    /// Also show this edge. May be repeated.
    #[arg(
        long,
        value_name = "URL",
        env = "TAILWATER_EDGE",
        value_delimiter = ','
    )]
    edge: Vec<String>,
    /// Also show the worker that serves metrics here. May be repeated.
    #[arg(long, value_name = "ADDR", value_delimiter = ',')]
    worker: Vec<String>,
    /// How many jobs to show, the most recently updated first.
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(0..=100))]
    jobs: u32,
    /// The time between two pictures.
    #[arg(long, value_name = "TIME", default_value_t = TOP_EVERY.into())]
    every: humantime::Duration,
    /// Print one picture and end.
    #[arg(long)]
    once: bool,
    #[command(flatten)]
    token: ClientTokenArgs,
    #[command(flatten)]
    nats: NatsArgs,
}

impl TopCommand {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        block_on(async move {
            let nats = self.nats.connect("top", Role::Observer).await?;
            let stop = CancellationToken::new();
            let mut sources = Sources::open(&nats, self.asked(), &stop).await?;
            if self.once {
                let picture = sources.picture().await;
                print!("{}", view::text(&picture, SystemTime::now()));
            } else {
                tokio::select! {
                    shown = self.show(&mut sources) => shown?,
                    signal = runtime::interrupted() => signal?,
                }
            }
            nats.close().await;
            Ok(ExitCode::SUCCESS)
        })
    }

    fn asked(&self) -> AskedSources {
        AskedSources {
            jobs: self.jobs as usize,
            token: self.token.clone(),
            edges: self.edge.clone(),
            workers: self.worker.clone(),
        }
    }

    /// Draws one picture over the other.
    async fn show(&self, sources: &mut Sources) -> anyhow::Result<()> {
        let term = Term::buffered_stdout();
        let _hidden = HiddenCursor::hide(&term)?;
        term.clear_screen()?;
        loop {
            let picture = sources.picture().await;
            let text = view::text(&picture, SystemTime::now());
            let (height, width) = term.size();
            term.move_cursor_to(0, 0)?;
            // The last line would scroll.
            for line in text.lines().take(usize::from(height).saturating_sub(1)) {
                let line: String = line.chars().take(usize::from(width)).collect();
                term.clear_line()?;
                term.write_line(&line)?;
            }
            term.clear_to_end_of_screen()?;
            term.flush()?;
            sleep(self.every.into()).await;
        }
    }
}
