//! `tailwater accounts`: writes the configuration of a NATS server with one user per role.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::args::on_or_off;
use crate::config::SHARDS;
use crate::nats::Accounts;
use crate::wire::{Kind, Prefix};

/// Write the configuration of a NATS server on which each process may do only what its role needs:
/// one user per role, each with a key of its own. Safe to repeat: existing keys are kept.
#[derive(Debug, Args)]
#[command(
    after_long_help = "Example:\n  tailwater accounts --dir keys --kind chat --kind summary\n  \
        nats-server -c keys/nats/server.conf -sd data\n  \
        tailwater recorder --nats-nkey keys/recorder/nats.nk\n  \
        tailwater edge --recorder --nats-nkey keys/edge/nats.nk"
)]
pub(super) struct AccountsCommand {
    /// The directory for the server's configuration (`nats/`) and for the keys, each in a folder
    /// named by its role.
    #[arg(long, env = "TAILWATER_ACCOUNTS_DIR", value_name = "DIR")]
    dir: PathBuf,
    /// A kind whose workers get a key of their own, with which they can claim no other kind. May be
    /// repeated.
    #[arg(long, value_name = "KIND")]
    kind: Vec<Kind>,
    /// Whether workers can run jobs with plain ids, which name no kind. With `off`, a worker of one
    /// kind can write to the logs of no other kind; start the edges with `--plain-ids off`, too.
    #[arg(
        long,
        env = "TAILWATER_PLAIN_IDS",
        value_name = "on|off",
        default_value = "on"
    )]
    #[arg(action = clap::ArgAction::Set, value_parser = on_or_off)]
    plain_ids: bool,
    /// How many streams hold the logs, as for `setup`.
    #[arg(long, env = "TAILWATER_SHARDS", value_name = "N", default_value_t = SHARDS,
          value_parser = clap::value_parser!(u32).range(1..=1024))]
    shards: u32,
    /// The first token of every subject and, in capitals, the prefix of every stream's name.
    #[arg(long, env = "TAILWATER_PREFIX", value_name = "NAME")]
    #[arg(default_value = "tw")]
    prefix: Prefix,
}

impl AccountsCommand {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let accounts = Accounts {
            prefix: self.prefix,
            shards: self.shards,
            kinds: self.kind,
            plain_ids: self.plain_ids,
        };
        for (role, key) in accounts.write(&self.dir)? {
            println!("{role} {}", key.display());
        }
        Ok(ExitCode::SUCCESS)
    }
}
