//! Where the broker is, and how a process connects to it.

use std::time::Duration;

use secrecy::SecretString;

use super::credentials::Credentials;
use super::roles::Role;
use crate::config::NATS_WAIT;
use crate::wire::Prefix;

/// Where the broker is, and how to connect.
#[derive(Clone, Debug)]
pub struct Options {
    /// `nats://[user:password@|token@]host:port`, several separated by commas; `tls://` for TLS.
    pub url: SecretString,
    /// The files that connections are secured with.
    pub credentials: Credentials,
    /// The prefix of all names in NATS.
    pub prefix: Prefix,
    /// How long to retry during startup while no server is reachable, or requests are not answered.
    pub startup_timeout: Duration,
    /// The name of this process in the broker's monitoring.
    pub name: String,
    /// What it does with the broker.
    pub role: Role,
}

impl Default for Options {
    /// A server on this machine without authentication.
    #[expect(clippy::expect_used, reason = "the name is valid")]
    fn default() -> Self {
        Self {
            url: "nats://127.0.0.1:4222".into(),
            credentials: Credentials::default(),
            prefix: "tw".parse().expect("a valid name"),
            startup_timeout: NATS_WAIT,
            name: "tailwater".into(),
            role: Role::All,
        }
    }
}
