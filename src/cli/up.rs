//! `tailwater up`: everything on one machine, in one process and its NATS server.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use secrecy::{ExposeSecret as _, SecretString};
use tokio_util::sync::CancellationToken;

use super::args::{
    CredentialsArgs, DeliveryArgs, NatsArgs, SetupArgs, block_on, until_interrupted,
};
use super::broker::Broker;
use super::edge::{EdgeArgs, alongside, announce, bind};
use crate::backend::{
    Backend, demo::Demo, exec::Exec, exec::Format, exec::Variable, webhook::Webhook,
};
use crate::config::{UP_NATS_WAIT, UP_STOP_WAIT};
use crate::edge;
use crate::nats::{Nats, Role, redacted};
use crate::runtime::Tasks;
use crate::wire::{Prefix, RESERVED_KIND};
use crate::worker::{Worker, WorkerSettings};

/// Run everything on this machine: a NATS server, an edge, a demo worker, with `-- CMD…` a worker
/// that runs this program for jobs of the kind `exec`, and with `--callback-hosts` a worker that
/// delivers callbacks. Ctrl-C stops everything.
#[derive(Debug, Args)]
#[command(
    after_long_help = "Examples:\n  tailwater up\n  tailwater up --data-dir /var/lib/tailwater -- python3 my_job.py"
)]
pub(super) struct UpCommand {
    /// Where the edge listens; port 0 chooses a free one.
    #[arg(long, env = "TAILWATER_LISTEN", value_name = "ADDR")]
    #[arg(default_value = "127.0.0.1:4000")]
    listen: SocketAddr,
    /// Use this NATS server instead of starting one.
    #[arg(long, env = "TAILWATER_NATS", hide_env_values = true)]
    #[arg(value_name = "URL")]
    nats: Option<SecretString>,
    /// Where the NATS server keeps its data. One `up` at a time may use it.
    #[arg(long, env = "TAILWATER_DATA_DIR", value_name = "DIR")]
    #[arg(default_value = "tailwater-data")]
    data_dir: PathBuf,
    /// The nats-server program. By default the one beside this program, on PATH, or in `.tools/`,
    /// where `scripts/nats-server.sh` puts it.
    #[arg(long, env = "NATS_SERVER", value_name = "FILE")]
    nats_server: Option<PathBuf>,
    /// The first token of every subject and, in capitals, the prefix of every stream's name.
    #[arg(long, env = "TAILWATER_PREFIX", value_name = "NAME")]
    #[arg(default_value = "tw")]
    prefix: Prefix,
    #[command(flatten)]
    credentials: CredentialsArgs,
    #[command(flatten)]
    setup: SetupArgs,
    #[command(flatten)]
    edge: EdgeArgs,
    #[command(flatten)]
    delivery: DeliveryArgs,
    /// A further variable for the program of `-- CMD`: `NAME` passes on its value here,
    /// `NAME=value` sets one. May be repeated. Otherwise the program gets only PATH, HOME, LANG,
    /// LC_*, TZ, TMPDIR and USER.
    #[arg(long, value_name = "NAME[=VALUE]", requires = "command")]
    env: Vec<Variable>,
    /// A program that runs the jobs of the kind `exec`, and its arguments.
    #[arg(last = true, value_name = "CMD")]
    command: Vec<OsString>,
}

/// The NATS server that everything uses.
#[derive(Debug)]
struct NatsServer {
    url: SecretString,
    /// Its process id, if this process started it.
    pid: Option<u32>,
    /// What the user should know about its address.
    notice: Option<String>,
}

impl UpCommand {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        block_on(async move {
            // Ctrl-C should return the prompt at once, and clients have no other edge to overload.
            let mut settings = self.edge.settings(self.listen, Duration::ZERO)?;
            if settings.chat_kind.is_none() {
                let kind = if self.command.is_empty() {
                    "demo"
                } else {
                    "exec"
                };
                settings.chat_kind = Some(kind.parse()?);
            }
            let hosts = settings.callback_hosts.clone();
            let webhook = (!hosts.is_empty())
                .then(|| self.delivery.backend(hosts))
                .transpose()?;
            let listener = bind(self.listen, 1)?.remove(0);
            let stop = CancellationToken::new();
            let Some(url) = self.nats.clone() else {
                let mut broker = Broker::start(&self.data_dir, self.nats_server.as_deref()).await?;
                let server = NatsServer {
                    url: broker.url().into(),
                    pid: broker.pid(),
                    notice: broker.notice(),
                };
                let serving = async {
                    tokio::select! {
                        outcome = self.serve(&server, listener, webhook, settings, &stop) => outcome,
                        died = broker.died() => Err(died),
                    }
                };
                let outcome = until_interrupted(&stop, Box::pin(serving)).await;
                broker.stop().await;
                return outcome.map(|()| ExitCode::SUCCESS);
            };
            let server = NatsServer {
                url,
                pid: None,
                notice: None,
            };
            let serving = self.serve(&server, listener, webhook, settings, &stop);
            until_interrupted(&stop, Box::pin(serving)).await?;
            Ok(ExitCode::SUCCESS)
        })
    }

    /// Sets up NATS, and runs the edge and the workers until `stop` is cancelled.
    async fn serve(
        &self,
        server: &NatsServer,
        listener: std::net::TcpListener,
        webhook: Option<Webhook>,
        settings: edge::EdgeSettings,
        stop: &CancellationToken,
    ) -> anyhow::Result<()> {
        let nats_wait = UP_NATS_WAIT.into();
        let args = NatsArgs {
            nats: server.url.clone(),
            credentials: self.credentials.clone(),
            prefix: self.prefix.clone(),
            nats_wait,
        };
        let nats = args.connect("up", Role::All).await?;
        nats.set_up(&self.setup.settings())
            .await
            .context("cannot set up NATS")?;
        println!("nats {}", redacted(server.url.expose_secret()));
        // The names of `bench`'s flags. Before `ready`: a script may close the pipe after that line.
        if let Some(pid) = server.pid {
            println!("broker-pid {pid}");
        }
        println!("edge-pid {}", std::process::id());
        if let Some(notice) = &server.notice {
            eprintln!("tailwater: {notice}");
        }
        let tasks = Tasks::new(stop.clone());
        let _stop_all = stop.clone().drop_guard();
        start_worker(&nats, Demo, "demo", &tasks).await?;
        if !self.command.is_empty() {
            let command = self.command.clone();
            let guard = Some(std::env::current_exe()?);
            start_worker(
                &nats,
                Exec {
                    command,
                    format: Format::Text,
                    continues: false,
                    env: self.env.clone(),
                    guard,
                },
                "exec",
                &tasks,
            )
            .await?;
        }
        if let Some(webhook) = webhook {
            start_worker(&nats, webhook, RESERVED_KIND, &tasks).await?;
        }
        let shared = self.edge.shared();
        let ready = announce(&shared, 1, settings.url(listener.local_addr()?));
        let serving = edge::run(
            listener,
            nats.clone(),
            settings,
            shared.clone(),
            stop.clone(),
        );
        Box::pin(alongside(serving, ready)).await?;
        tasks.end(UP_STOP_WAIT).await;
        nats.close().await;
        Ok(())
    }
}

async fn start_worker<B: Backend>(
    nats: &Nats,
    backend: B,
    kind: &str,
    tasks: &Tasks,
) -> anyhow::Result<()> {
    // No grace period: Ctrl-C should return the prompt at once, and the next `up` continues the
    // running jobs.
    let settings = WorkerSettings {
        grace: Duration::ZERO,
        ..WorkerSettings::new(kind.parse()?)
    };
    let worker = Worker::open(nats, backend, settings).await?;
    tasks.spawn(worker.run(tasks.stop().clone()));
    Ok(())
}
