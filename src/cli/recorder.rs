//! `tailwater recorder`: writes for edges.

use std::process::ExitCode;

use clap::Args;
use tokio_util::sync::CancellationToken;

use super::args::{NatsArgs, block_on, until_interrupted};
use crate::nats::{Recorder, Role};

/// Submit, cancel and purge jobs for edges that run with `--recorder`, so that their keys for NATS
/// need no permission to write to logs. Several recorders share the requests.
#[derive(Debug, Args)]
#[command(
    after_long_help = "Example:\n  tailwater recorder --nats-nkey keys/recorder/nats.nk\n  \
        tailwater edge --recorder --nats-nkey keys/edge/nats.nk"
)]
pub(super) struct RecorderCommand {
    #[command(flatten)]
    nats: NatsArgs,
}

impl RecorderCommand {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let stop = CancellationToken::new();
        block_on(async {
            let work = async {
                let nats = self.nats.connect("recorder", Role::Recorder).await?;
                let recorder = Recorder::open(&nats).await?;
                println!("ready");
                recorder.run(stop.clone()).await;
                nats.close().await;
                anyhow::Ok(())
            };
            until_interrupted(&stop, work).await?;
            Ok(ExitCode::SUCCESS)
        })
    }
}
