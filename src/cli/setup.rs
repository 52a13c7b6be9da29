//! `tailwater setup`: makes the streams.

use std::process::ExitCode;

use clap::Args;

use super::args::{NatsArgs, SetupArgs, block_on};

/// Make the streams that Tailwater needs. Safe to repeat; a stream that exists and differs is left alone, and the
/// difference is shown.
#[derive(Debug, Args)]
#[command(
    after_long_help = "Example:\n  tailwater setup --nats nats://127.0.0.1:4222 --shards 4 --replicas 1"
)]
pub(super) struct Setup {
    #[command(flatten)]
    nats: NatsArgs,
    #[command(flatten)]
    setup: SetupArgs,
}

impl Setup {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        block_on(async move {
            let nats = self.nats.connect("setup").await?;
            nats.set_up(&self.setup.settings()).await?;
            println!("ready: {} shards", nats.shards().await?);
            nats.close().await;
            Ok(ExitCode::SUCCESS)
        })
    }
}
