//! `tailwater edge`: serves clients.

use std::net::{SocketAddr, TcpListener};
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use tokio_util::sync::CancellationToken;

use super::args::{NatsArgs, hosts, until_interrupted};
use crate::config::DRAIN_WINDOW;
use crate::{edge, runtime};

/// Serve clients: submit, state, and every job's stream over WebSocket. Any number of edges may run; none keeps anything.
#[derive(Debug, Args)]
#[command(
    after_long_help = "Example:\n  tailwater edge --listen 0.0.0.0:4000 --nats nats://nats:4222 --threads 2"
)]
pub(super) struct Edge {
    /// Where to listen; port 0 takes a free one.
    #[arg(long, env = "TAILWATER_LISTEN", value_name = "ADDR", default_value = "127.0.0.1:4000")]
    listen: SocketAddr,
    /// How many independent threads serve, each with its own connections to NATS.
    #[arg(long, env = "TAILWATER_THREADS", value_name = "N", default_value_t = 1,
          value_parser = clap::value_parser!(u16).range(1..=256))]
    threads: u16,
    /// Over what time clients are told to come back when the edge stops, so that they do not all do it at once.
    #[arg(long, env = "TAILWATER_DRAIN", value_name = "TIME", default_value_t = DRAIN_WINDOW.into(),
          value_parser = str::parse::<humantime::Duration>)]
    drain: humantime::Duration,
    #[command(flatten)]
    settings: EdgeArgs,
    #[command(flatten)]
    nats: NatsArgs,
}

/// What an edge is told beside where it listens.
#[derive(Clone, Debug, Args)]
pub(super) struct EdgeArgs {
    /// The hosts that jobs may call back to, separated by commas, each `name` or `name:port`. None by default.
    #[arg(long, env = "TAILWATER_CALLBACK_HOSTS", value_name = "HOSTS", value_delimiter = ',')]
    callback_hosts: Vec<String>,
}

impl EdgeArgs {
    /// What an edge is told that tells its clients to come back over the time `drain`.
    pub(super) fn settings(&self, drain: Duration) -> edge::Settings {
        edge::Settings { callback_hosts: hosts(&self.callback_hosts), drain }
    }
}

impl Edge {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let threads = usize::from(self.threads);
        let listeners = bind(self.listen, threads)?;
        let addr = listeners[0].local_addr()?;
        let listeners: Vec<_> = listeners.into_iter().map(|listener| Mutex::new(Some(listener))).collect();
        let (stop, shared) = (CancellationToken::new(), edge::Shared::new());
        runtime::on_threads(threads, |index| {
            let (stop, nats, settings) =
                (stop.clone(), &self.nats, self.settings.settings(self.drain.into()));
            let shared = shared.clone();
            let listener = listeners[index].lock().ok().and_then(|mut listener| listener.take());
            async move {
                // Whichever thread ends, the others follow.
                let _stop_all = stop.clone().drop_guard();
                let listener = listener.context("a listener is taken once")?;
                let nats = nats.connect("edge").await?;
                let ready = announce(&shared, threads, addr);
                let serving = edge::run(listener, nats, settings, shared.clone(), stop.clone());
                if index == 0 {
                    until_interrupted(&stop, with(serving, ready)).await
                } else {
                    until_interrupted(&stop, serving).await
                }
            }
        })?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Says where an edge is once it takes clients.
pub(super) async fn announce(shared: &edge::Shared, threads: usize, addr: SocketAddr) {
    shared.serves(threads).await;
    println!("ready http://{addr}");
}

/// Does `beside` until `work` has ended.
pub(super) async fn with<T>(work: impl Future<Output = T>, beside: impl Future<Output = ()>) -> T {
    let (mut work, mut beside) = (std::pin::pin!(work), std::pin::pin!(beside));
    tokio::select! {
        outcome = &mut work => outcome,
        () = &mut beside => work.await,
    }
}

pub(super) fn bind(listen: SocketAddr, threads: usize) -> anyhow::Result<Vec<TcpListener>> {
    edge::bind(listen, threads).with_context(|| format!("cannot listen on {listen}"))
}
