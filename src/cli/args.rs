//! Flags that several commands share. Each is also a variable, `TAILWATER_<FLAG>`.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use secrecy::{ExposeSecret as _, SecretString};
use tokio_util::sync::CancellationToken;

use crate::backend::webhook::Webhook;
use crate::config::{NATS_WAIT, SHARDS};
use crate::nats::{Credentials, Nats, Options, Role, StreamSettings};
use crate::runtime;
use crate::wire::{JobId, Prefix};

/// The exit code of a command that failed.
pub(super) const FAILED: u8 = 2;

/// How to reach the broker.
#[derive(Clone, Debug, Args)]
pub(super) struct NatsArgs {
    /// The NATS server, or several separated by commas: `nats://host:port`, with `user:password@`
    /// or `token@` before the host if the server needs it, `tls://` for TLS. If it has a password,
    /// set the variable instead: other users can read a command line.
    #[arg(long, env = "TAILWATER_NATS", hide_env_values = true)]
    #[arg(value_name = "URL", default_value = "nats://127.0.0.1:4222")]
    pub(super) nats: SecretString,
    #[command(flatten)]
    pub(super) credentials: CredentialsArgs,
    /// The first token of every subject and, in capitals, the prefix of every stream's name.
    #[arg(long, env = "TAILWATER_PREFIX", value_name = "NAME")]
    #[arg(default_value = "tw")]
    pub(super) prefix: Prefix,
    /// How long to wait for the server.
    #[arg(long, env = "TAILWATER_NATS_WAIT", value_name = "TIME", default_value_t = NATS_WAIT.into())]
    pub(super) nats_wait: humantime::Duration,
}

/// The files that secure connections to the broker.
#[derive(Clone, Debug, Args)]
pub(super) struct CredentialsArgs {
    /// A credentials file for NATS, as written by `nsc`.
    #[arg(long, env = "TAILWATER_NATS_CREDS", value_name = "FILE")]
    #[arg(conflicts_with = "nats_nkey")]
    nats_creds: Option<PathBuf>,
    /// A file with the seed of an nkey for NATS.
    #[arg(long, env = "TAILWATER_NATS_NKEY", value_name = "FILE")]
    nats_nkey: Option<PathBuf>,
    /// A file with `user:password`, or a token, for NATS.
    #[arg(long, env = "TAILWATER_NATS_LOGIN", value_name = "FILE")]
    #[arg(conflicts_with_all = ["nats_creds", "nats_nkey"])]
    nats_login: Option<PathBuf>,
    /// Certificate authorities for NATS servers, in PEM, instead of the system's. Implies TLS.
    #[arg(long, env = "TAILWATER_NATS_CA", value_name = "FILE")]
    nats_ca: Option<PathBuf>,
    /// A client certificate for NATS, in PEM. Implies TLS.
    #[arg(long, env = "TAILWATER_NATS_CERT", value_name = "FILE")]
    #[arg(requires = "nats_key")]
    nats_cert: Option<PathBuf>,
    /// The key of the client certificate, in PEM.
    #[arg(long, env = "TAILWATER_NATS_KEY", value_name = "FILE")]
    #[arg(requires = "nats_cert")]
    nats_key: Option<PathBuf>,
}

impl CredentialsArgs {
    fn credentials(&self) -> Credentials {
        Credentials {
            creds: given(self.nats_creds.clone()),
            nkey: given(self.nats_nkey.clone()),
            login: given(self.nats_login.clone()),
            ca: given(self.nats_ca.clone()),
            identity: given(self.nats_cert.clone()).zip(given(self.nats_key.clone())),
        }
    }
}

impl NatsArgs {
    /// The options of the process that runs the command `name`.
    pub(super) fn options(&self, name: &str, role: Role) -> Options {
        Options {
            url: self.nats.clone(),
            credentials: self.credentials.credentials(),
            prefix: self.prefix.clone(),
            startup_timeout: self.nats_wait.into(),
            name: format!("tailwater {name}"),
            role,
        }
    }

    pub(super) async fn connect(
        &self,
        name: &str,
        role: Role,
    ) -> Result<Nats, crate::nats::NatsError> {
        Nats::connect(&self.options(name, role)).await
    }
}

/// How to create the streams.
#[derive(Clone, Debug, Args)]
pub(super) struct SetupArgs {
    /// How many streams hold the logs. To change it later, drain the system first.
    #[arg(long, env = "TAILWATER_SHARDS", value_name = "N", default_value_t = SHARDS,
          value_parser = clap::value_parser!(u32).range(1..=1024))]
    shards: u32,
    /// How many servers store each event: 1 on a single server, 3 on a cluster.
    #[arg(long, env = "TAILWATER_REPLICAS", value_name = "N", default_value_t = 1,
          value_parser = clap::value_parser!(u32).range(1..=5))]
    replicas: u32,
    /// How long events are kept. Changes existing streams [default: what they have; 24h for new
    /// ones].
    #[arg(long, env = "TAILWATER_MAX_AGE", value_name = "TIME", value_parser = humantime::parse_duration)]
    max_age: Option<Duration>,
    /// How many bytes of events each shard keeps; the oldest are removed first. Changes existing
    /// streams [default: what they have; 1 GiB for new ones].
    #[arg(long, env = "TAILWATER_MAX_BYTES", value_name = "BYTES")]
    max_bytes: Option<u64>,
}

impl SetupArgs {
    pub(super) fn settings(&self) -> StreamSettings {
        let Self {
            shards,
            replicas,
            max_age,
            max_bytes,
        } = *self;
        StreamSettings {
            shards,
            replicas,
            max_age,
            max_bytes,
        }
    }
}

/// The value of a flag or of its variable.
pub(super) trait FlagValue {
    fn is_blank(&self) -> bool;
}

impl FlagValue for str {
    fn is_blank(&self) -> bool {
        self.is_empty()
    }
}

impl FlagValue for String {
    fn is_blank(&self) -> bool {
        self.is_empty()
    }
}

impl FlagValue for Path {
    fn is_blank(&self) -> bool {
        self.as_os_str().is_empty()
    }
}

impl FlagValue for PathBuf {
    fn is_blank(&self) -> bool {
        self.as_path().is_blank()
    }
}

impl FlagValue for SecretString {
    fn is_blank(&self) -> bool {
        self.expose_secret().is_blank()
    }
}

impl<T: FlagValue + ?Sized> FlagValue for &T {
    fn is_blank(&self) -> bool {
        (**self).is_blank()
    }
}

/// The value, unless it is empty: an empty variable is as good as none.
pub(super) fn given<T: FlagValue>(value: Option<T>) -> Option<T> {
    value.filter(|value| !value.is_blank())
}

/// The entries of a list, trimmed and without empty ones: an empty variable yields one.
pub(super) fn listed(list: &[String]) -> Vec<String> {
    list.iter()
        .map(|entry| entry.trim().to_owned())
        .filter(|entry| !entry.is_blank())
        .collect()
}

/// Parses `on` or `off`.
pub(super) fn on_or_off(text: &str) -> Result<bool, &'static str> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err("`on` or `off`"),
    }
}

/// Which hosts callbacks may reach, and the secret that signs them.
#[derive(Clone, Debug, Args)]
pub(super) struct WebhookArgs {
    /// The hosts that jobs may call back to, separated by commas, each `name` or `name:port`.
    #[arg(long, env = "TAILWATER_CALLBACK_HOSTS", value_name = "HOSTS")]
    #[arg(value_delimiter = ',')]
    callback_hosts: Vec<String>,
    #[command(flatten)]
    delivery: DeliveryArgs,
}

/// How callbacks are delivered.
#[derive(Clone, Debug, Args)]
pub(super) struct DeliveryArgs {
    /// The secret that signs callbacks, in the form of Standard Webhooks: `whsec_` and 24 to 64
    /// random bytes in base64. Prefer the variable: other users can read a command line.
    #[arg(long, env = "TAILWATER_WEBHOOK_SECRET", value_name = "SECRET")]
    #[arg(hide_env_values = true)]
    webhook_secret: Option<SecretString>,
    /// Also call names that resolve to private addresses or to this machine, and use an HTTP proxy
    /// with such an address. A callback host that is an address is called in any case.
    #[arg(long, env = "TAILWATER_CALLBACK_PRIVATE")]
    callback_private: bool,
}

impl WebhookArgs {
    pub(super) fn backend(&self) -> anyhow::Result<Webhook> {
        self.delivery.backend(listed(&self.callback_hosts))
    }
}

impl DeliveryArgs {
    /// The backend that delivers callbacks to these hosts.
    pub(super) fn backend(&self, hosts: Vec<String>) -> anyhow::Result<Webhook> {
        let secret = given(self.webhook_secret.as_ref()).context(
            "callbacks need a secret: set TAILWATER_WEBHOOK_SECRET to whsec_$(openssl rand -base64 32)",
        )?;
        let webhook = Webhook::new(hosts, secret)?;
        Ok(if self.callback_private {
            webhook.with_private_addresses()?
        } else {
            webhook
        })
    }
}

/// The error for a job that the log does not have.
pub(super) fn no_job(job: &JobId) -> String {
    format!("there is no job {job}, or all of it has expired")
}

/// A time in milliseconds.
pub(super) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Runs a command's work on a runtime with one thread.
pub(super) fn block_on<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    runtime::single_threaded()?.block_on(work)
}

/// Runs `work` to its end. The first SIGINT or SIGTERM cancels `stop`, so that `work` ends; the
/// second drops it.
pub(super) async fn until_interrupted<E: Into<anyhow::Error>>(
    stop: &CancellationToken,
    work: impl Future<Output = Result<(), E>>,
) -> anyhow::Result<()> {
    // On the heap, because it is large.
    let mut work = Box::pin(work);
    tokio::select! {
        outcome = &mut work => return outcome.map_err(Into::into),
        signal = runtime::interrupted() => signal?,
    }
    stop.cancel();
    tokio::select! {
        outcome = work => outcome.map_err(Into::into),
        signal = runtime::interrupted() => Ok(signal?),
    }
}
