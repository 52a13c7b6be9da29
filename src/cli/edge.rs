//! `tailwater edge`: serves clients.

use std::net::{SocketAddr, TcpListener};
use std::num::NonZero;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use tokio_util::sync::CancellationToken;

use super::args::{NatsArgs, given, listed, on_or_off, until_interrupted};
use super::auth_args::AuthArgs;
use crate::budget::Budget;
use crate::config::{DRAIN_WINDOW, MEMORY_MIN};
use crate::nats::Role;
use crate::wire::Kind;
use crate::{edge, runtime};

/// Serve clients: submit jobs, read their state, and follow their streams. Any number of edges may
/// run; none stores anything.
#[derive(Debug, Args)]
#[command(
    after_long_help = "Example:\n  tailwater edge --nats nats://nats:4222 --threads 2\n  tailwater edge --listen 0.0.0.0:4000 --auth jwt --auth-secret secret --public-host tail.example"
)]
pub(super) struct EdgeCommand {
    /// Where to listen; port 0 chooses a free one.
    #[arg(long, env = "TAILWATER_LISTEN", value_name = "ADDR")]
    #[arg(default_value = "127.0.0.1:4000")]
    listen: SocketAddr,
    /// How many independent threads serve clients, each with its own connections to NATS. By
    /// default one for each processor core that the edge may use.
    #[arg(long, env = "TAILWATER_THREADS", value_name = "N",
          value_parser = clap::value_parser!(u16).range(1..=256))]
    threads: Option<u16>,
    /// When the edge stops, it asks its clients to reconnect over this time, not all at once.
    #[arg(long, env = "TAILWATER_DRAIN", value_name = "TIME", default_value_t = DRAIN_WINDOW.into(),
          value_parser = str::parse::<humantime::Duration>)]
    drain: humantime::Duration,
    /// Have a `tailwater recorder` submit, cancel and purge jobs, so that the edge's key for NATS needs
    /// no permission to write to logs. Required with the key that `tailwater accounts` makes.
    #[arg(long, env = "TAILWATER_RECORDER")]
    recorder: bool,
    #[command(flatten)]
    settings: EdgeArgs,
    #[command(flatten)]
    nats: NatsArgs,
}

/// The settings of an edge besides its address.
#[derive(Clone, Debug, Args)]
pub(super) struct EdgeArgs {
    /// The hosts that jobs may call back to, separated by commas, each `name` or `name:port`. None
    /// by default.
    #[arg(long, env = "TAILWATER_CALLBACK_HOSTS", value_name = "HOSTS")]
    #[arg(value_delimiter = ',')]
    callback_hosts: Vec<String>,
    /// How much memory the edge may hold for its clients, for example 512MiB or 2GiB; beyond that,
    /// new requests are refused. By default a quarter of the memory of the machine or container.
    #[arg(long, env = "TAILWATER_MEMORY", value_name = "BYTES", value_parser = bytes)]
    memory: Option<usize>,
    /// The kind of the jobs that answer chats of the AI SDK (`useChat`) at `/api/chat`. None by
    /// default; with `up`, `demo` or, with CMD, `exec`.
    #[arg(long, env = "TAILWATER_CHAT_KIND", value_name = "KIND")]
    chat_kind: Option<Kind>,
    /// Whether `/` is the console, a page that shows and runs jobs.
    #[arg(
        long,
        env = "TAILWATER_CONSOLE",
        value_name = "on|off",
        default_value = "on"
    )]
    #[arg(action = clap::ArgAction::Set, value_parser = on_or_off)]
    console: bool,
    /// Whether clients may choose plain job ids, which name no kind. With `off`, an id that a client
    /// chooses must be `KIND:ID`; see `tailwater accounts --plain-ids`.
    #[arg(
        long,
        env = "TAILWATER_PLAIN_IDS",
        value_name = "on|off",
        default_value = "on"
    )]
    #[arg(action = clap::ArgAction::Set, value_parser = on_or_off)]
    plain_ids: bool,
    #[command(flatten)]
    auth: AuthArgs,
    /// The certificate of the edge in PEM, followed by those between it and the authority. Clients
    /// then connect with TLS. It is read again when it changes.
    #[arg(long, env = "TAILWATER_TLS_CERT", value_name = "FILE")]
    #[arg(requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// The key of the certificate, in PEM.
    #[arg(long, env = "TAILWATER_TLS_KEY", value_name = "FILE")]
    #[arg(requires = "tls_cert")]
    tls_key: Option<PathBuf>,
}

/// Parses a number of bytes, with or without a unit.
fn bytes(text: &str) -> Result<usize, String> {
    const UNITS: [(&str, usize); 7] = [
        ("KiB", 10),
        ("MiB", 20),
        ("GiB", 30),
        ("K", 10),
        ("M", 20),
        ("G", 30),
        ("", 0),
    ];
    let bad = || "a number of bytes, with KiB, MiB or GiB: for example 512MiB".to_owned();
    let text = text.trim();
    let (number, shift) = UNITS
        .iter()
        .find_map(|(unit, shift)| Some((text.strip_suffix(unit)?, shift)))
        .ok_or_else(bad)?;
    let bytes = number
        .trim()
        .parse::<usize>()
        .ok()
        .and_then(|number| number.checked_mul(1 << shift));
    let bytes = bytes.ok_or_else(bad)?;
    if bytes < MEMORY_MIN {
        return Err(format!("at least {} MiB", MEMORY_MIN >> 20));
    }
    Ok(bytes)
}

impl EdgeArgs {
    /// The state that this edge's threads share.
    pub(super) fn shared(&self) -> edge::EdgeShared {
        edge::raise_file_limit();
        edge::EdgeShared::new(self.memory.map_or_else(Budget::of_machine, Budget::new))
    }

    /// The hosts that jobs may call back to.
    pub(super) fn callback_hosts(&self) -> Vec<String> {
        listed(&self.callback_hosts)
    }

    /// The settings of an edge that listens here and drains its clients over this time.
    ///
    /// # Errors
    /// When it is not clear who may use the edge, or the certificate cannot be read.
    pub(super) fn settings(
        &self,
        listen: SocketAddr,
        drain: Duration,
    ) -> anyhow::Result<edge::EdgeSettings> {
        let gate = self.auth.gate(listen)?;
        Ok(edge::EdgeSettings {
            callback_hosts: self.callback_hosts(),
            chat_kind: self.chat_kind.clone(),
            console: self.console,
            plain_ids: self.plain_ids,
            recorder: false,
            drain,
            browsers: self.auth.browsers(&gate)?,
            proxies: self.auth.proxies()?,
            gate,
            tls: self.tls()?,
        })
    }

    /// The certificate, if there is one.
    fn tls(&self) -> Result<Option<edge::Tls>, edge::TlsError> {
        let files = given(self.tls_cert.clone()).zip(given(self.tls_key.clone()));
        files
            .map(|(cert, key)| edge::Tls::load(cert, key))
            .transpose()
    }
}

impl EdgeCommand {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let threads = self.threads.map_or_else(cores, usize::from);
        let settings = edge::EdgeSettings {
            recorder: self.recorder,
            ..self.settings.settings(self.listen, self.drain.into())?
        };
        let listeners = bind(self.listen, threads)?;
        let addr = listeners[0].local_addr()?;
        let listeners: Vec<_> = listeners
            .into_iter()
            .map(|listener| Mutex::new(Some(listener)))
            .collect();
        let stop = CancellationToken::new();
        let shared = self.settings.shared();
        runtime::on_threads(threads, |index| {
            let stop = stop.clone();
            let nats = &self.nats;
            let settings = settings.clone();
            let shared = shared.clone();
            let listener = listeners[index]
                .lock()
                .ok()
                .and_then(|mut listener| listener.take());
            async move {
                // When one thread ends, the others end as well.
                let _stop_all = stop.clone().drop_guard();
                let listener = listener.context("a listener is used once")?;
                let nats = nats.connect("edge", Role::Edge).await?;
                let ready = announce(&shared, threads, settings.url(addr));
                let serving = edge::run(listener, nats, settings, shared.clone(), stop.clone());
                if index == 0 {
                    until_interrupted(&stop, Box::pin(alongside(serving, ready))).await
                } else {
                    until_interrupted(&stop, Box::pin(serving)).await
                }
            }
        })?;
        Ok(ExitCode::SUCCESS)
    }
}

/// How many processor cores the edge may use.
fn cores() -> usize {
    thread::available_parallelism().map_or(1, NonZero::get)
}

/// Prints the address of an edge once it accepts clients.
pub(super) async fn announce(shared: &edge::EdgeShared, threads: usize, url: String) {
    shared.serves(threads).await;
    println!("ready {url}");
}

/// Runs `beside` until `work` has ended.
pub(super) async fn alongside<T>(
    work: impl Future<Output = T>,
    beside: impl Future<Output = ()>,
) -> T {
    let mut work = std::pin::pin!(work);
    let mut beside = std::pin::pin!(beside);
    tokio::select! {
        outcome = &mut work => outcome,
        () = &mut beside => work.await,
    }
}

pub(super) fn bind(listen: SocketAddr, threads: usize) -> anyhow::Result<Vec<TcpListener>> {
    edge::bind(listen, threads).with_context(|| format!("cannot listen on {listen}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_of_bytes_may_have_a_unit() {
        let read = [
            ("67108864", 64 << 20),
            ("64MiB", 64 << 20),
            ("512 M", 512 << 20),
            ("2GiB", 2 << 30),
        ];
        for (text, expected) in read {
            assert_eq!(bytes(text), Ok(expected), "{text}");
        }
        for bad in [
            "",
            "MiB",
            "1TiB",
            "-1G",
            "1.5GiB",
            "99999999999999GiB",
            "63MiB",
            "4096",
        ] {
            assert!(bytes(bad).is_err(), "{bad}");
        }
    }
}
