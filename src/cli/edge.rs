//! `tailwater edge`: serves clients.

use std::net::{SocketAddr, TcpListener};
use std::process::ExitCode;
use std::sync::Mutex;

use anyhow::Context as _;
use clap::Args;
use tokio_util::sync::CancellationToken;

use super::args::{NatsArgs, until_interrupted};
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
    pub(super) callback_hosts: Vec<String>,
}

impl EdgeArgs {
    pub(super) fn settings(&self) -> edge::Settings {
        edge::Settings { callback_hosts: self.callback_hosts.clone() }
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
            let (stop, nats, settings) = (stop.clone(), &self.nats, self.settings.settings());
            let shared = shared.clone();
            let listener = listeners[index].lock().ok().and_then(|mut listener| listener.take());
            async move {
                // Whichever thread ends, the others follow.
                let _stop_all = stop.clone().drop_guard();
                let listener = listener.context("a listener is taken once")?;
                let nats = nats.connect("edge").await?;
                if index == 0 {
                    println!("ready http://{addr}");
                }
                until_interrupted(&stop, edge::run(listener, nats, settings, shared, stop.clone())).await?;
                anyhow::Ok(())
            }
        })?;
        Ok(ExitCode::SUCCESS)
    }
}

pub(super) fn bind(listen: SocketAddr, threads: usize) -> anyhow::Result<Vec<TcpListener>> {
    edge::bind(listen, threads).with_context(|| format!("cannot listen on {listen}"))
}
