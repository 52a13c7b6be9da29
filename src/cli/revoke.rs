//! `tailwater revoke`: makes tokens invalid before they expire.

use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::Args;

use super::args::{NatsArgs, block_on};
use crate::auth::Revocation;
use crate::nats::{AuthBucket, Role};

/// Revoke one token, or all tokens of a subject that were issued up to now. Every edge disconnects
/// their clients within a second.
#[derive(Debug, Args)]
#[command(
    after_long_help = "Examples:\n  tailwater revoke --sub alice\n  tailwater revoke --jti 5f7c --undo"
)]
pub(super) struct RevokeCommand {
    /// The subject whose tokens are revoked. Tokens that are issued later are valid.
    #[arg(long, value_name = "NAME", required_unless_present = "jti")]
    sub: Option<String>,
    /// The `jti` of the token that is revoked, with every `watch_token` that was requested with it.
    #[arg(long, value_name = "ID", conflicts_with = "sub")]
    jti: Option<String>,
    /// Withdraw the revocation.
    #[arg(long)]
    undo: bool,
    #[command(flatten)]
    nats: NatsArgs,
}

impl RevokeCommand {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let revocation = match (self.jti, self.sub) {
            (Some(id), _) => Revocation::Jti(id),
            (None, name) => Revocation::Sub(name.unwrap_or_default()),
        };
        let (Revocation::Jti(text) | Revocation::Sub(text)) = &revocation;
        anyhow::ensure!(!text.is_empty(), "--sub or --jti is empty");
        block_on(async move {
            let nats = self.nats.connect("revoke", Role::Setup).await?;
            let bucket = AuthBucket::open(&nats).await?;
            if self.undo {
                bucket.withdraw(&revocation).await?;
            } else {
                let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
                bucket.revoke(&revocation, now).await?;
            }
            nats.close().await;
            Ok(ExitCode::SUCCESS)
        })
    }
}
