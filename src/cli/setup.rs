//! `tailwater setup`: creates the streams.

use std::process::ExitCode;

use clap::Args;

use super::args::{NatsArgs, SetupArgs, block_on};
use crate::config::ACK_WAIT;
use crate::nats::Role;
use crate::wire::Kind;

/// Create the streams that Tailwater needs, and declare kinds. Safe to repeat. On existing streams,
/// --max-age and --max-bytes change the retention; a stream that differs in anything else is not
/// changed, and the difference is shown.
#[derive(Debug, Args)]
#[command(
    after_long_help = "Examples:\n  tailwater setup --nats nats://127.0.0.1:4222 --shards 4 --replicas 1\n  \
        tailwater setup --kind chat --kind summary\n  tailwater setup --max-age 72h"
)]
pub(super) struct SetupCommand {
    #[command(flatten)]
    nats: NatsArgs,
    #[command(flatten)]
    setup: SetupArgs,
    /// Declare a kind, so that its jobs are accepted before its first worker starts. May be
    /// repeated.
    #[arg(long, value_name = "KIND")]
    kind: Vec<Kind>,
    /// With --kind: how long a worker may be silent before its jobs go to another one. Fixed once a
    /// kind is declared.
    #[arg(long, env = "TAILWATER_ACK_WAIT", value_name = "TIME", default_value_t = ACK_WAIT.into(),
          value_parser = str::parse::<humantime::Duration>)]
    ack_wait: humantime::Duration,
}

impl SetupCommand {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        block_on(async move {
            let nats = self.nats.connect("setup", Role::Setup).await?;
            for change in nats.set_up(&self.setup.settings()).await? {
                println!("{change}");
            }
            println!("ready: {} shards", nats.shards().await?);
            for kind in &self.kind {
                nats.declare_kind(kind, self.ack_wait.into()).await?;
                println!("kind {kind}");
            }
            nats.close().await;
            Ok(ExitCode::SUCCESS)
        })
    }
}
