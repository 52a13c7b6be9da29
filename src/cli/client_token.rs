//! The token that a client command sends to an edge.

use std::fs;
use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;
use secrecy::{ExposeSecret as _, SecretString};

use super::args::given;

/// The token for an edge.
#[derive(Clone, Debug, Args)]
pub(super) struct ClientTokenArgs {
    /// The token for the edge. Prefer the variable or a file: other users can read a command line.
    #[arg(
        long,
        env = "TAILWATER_TOKEN",
        hide_env_values = true,
        value_name = "TOKEN"
    )]
    #[arg(conflicts_with = "token_file")]
    token: Option<SecretString>,
    /// A file with the token for the edge. It is read again for each connection.
    #[arg(long, env = "TAILWATER_TOKEN_FILE", value_name = "FILE")]
    token_file: Option<PathBuf>,
}

impl ClientTokenArgs {
    /// The value of `Authorization`, if there is a token.
    pub(super) fn authorization(&self) -> anyhow::Result<Option<String>> {
        let token = match (&self.token, given(self.token_file.as_deref())) {
            (Some(token), _) => token.expose_secret().to_owned(),
            (None, Some(path)) => fs::read_to_string(path)
                .with_context(|| format!("cannot read {}", path.display()))?,
            (None, None) => String::new(),
        };
        let token = token.trim();
        Ok((!token.is_empty()).then(|| format!("Bearer {token}")))
    }
}
