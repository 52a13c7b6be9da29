//! What is measured: the processes of a broker, an edge and perhaps a worker. Processes that the
//! benchmark starts end with it; others are named by address and process id.

use std::ffi::OsStr;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context as _, bail};
use secrecy::{ExposeSecret as _, SecretString};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::time::{sleep, timeout};

use super::process::Process;
use crate::cli::broker::Broker;
use crate::cli::guarded::GuardedProcess;
use crate::config::{SERVER_POLL_EVERY, SERVER_START_WAIT};

/// The processes that are measured.
#[derive(Debug)]
pub(super) struct System {
    pub(super) edge: SocketAddr,
    pub(super) nats: SecretString,
    /// Takes the events instead of NATS.
    pub(super) publisher: Option<SocketAddr>,
    pub(super) processes: Processes,
    threads: u16,
    children: Option<Children>,
}

/// The measured processes. An unknown one is not measured.
#[derive(Clone, Debug, Default)]
pub(super) struct Processes {
    pub(super) edge: Option<Process>,
    pub(super) broker: Option<Process>,
    pub(super) workers: Vec<Process>,
}

#[derive(Debug)]
struct Children {
    edge: GuardedProcess,
    worker: Option<GuardedProcess>,
    broker: Broker,
    _data: TempDir,
}

/// Starts a `tailwater` process that always ends with this one.
fn start(arguments: &[&str], nats: &SecretString, stdout: Stdio) -> anyhow::Result<GuardedProcess> {
    let this = std::env::current_exe()?;
    let command = std::iter::once(this.as_os_str()).chain(arguments.iter().map(OsStr::new));
    let env = [
        ("TAILWATER_NATS", nats.expose_secret()),
        ("TAILWATER_LOG", "error"),
    ];
    GuardedProcess::start(command, &env, stdout, Stdio::inherit())
}

/// The process that a guard runs.
async fn process_of(guarded: &GuardedProcess) -> anyhow::Result<Process> {
    let guard = guarded.0.id().context("a process has ended")?;
    let children = format!("/proc/{guard}/task/{guard}/children");
    let found = async {
        loop {
            let children = fs::read_to_string(&children)?;
            if let Some(child) = children.split_whitespace().next() {
                return Ok(Process(child.parse()?));
            }
            sleep(SERVER_POLL_EVERY).await;
        }
    };
    timeout(SERVER_START_WAIT, found)
        .await
        .context("a process did not start")?
}

impl System {
    /// A system that is already running.
    pub(super) fn running(
        edge: SocketAddr,
        nats: SecretString,
        publisher: Option<SocketAddr>,
        processes: Processes,
    ) -> Self {
        Self {
            edge,
            nats,
            publisher,
            processes,
            threads: 0,
            children: None,
        }
    }

    /// Starts a NATS server with an empty store and an edge.
    pub(super) async fn start(nats_server: Option<&Path>, threads: u16) -> anyhow::Result<Self> {
        let data = TempDir::with_prefix("tailwater-bench-")?;
        let broker = Broker::start_at(None, data.path(), nats_server).await?;
        let nats = SecretString::from(broker.url());
        match start_edge(&nats, threads).await {
            Ok((edge, address)) => Ok(Self {
                edge: address,
                nats,
                publisher: None,
                processes: Processes {
                    edge: Some(process_of(&edge).await?),
                    broker: broker.pid().map(Process),
                    workers: Vec::new(),
                },
                threads,
                children: Some(Children {
                    edge,
                    worker: None,
                    broker,
                    _data: data,
                }),
            }),
            Err(error) => {
                broker.stop().await;
                Err(error)
            }
        }
    }

    /// Starts a worker of the demo backend that runs this many jobs of the kind `bench` at a time. A
    /// system that was already running has its own workers.
    pub(super) async fn start_worker(&mut self, jobs: usize) -> anyhow::Result<()> {
        let Some(children) = &mut self.children else {
            return Ok(());
        };
        let concurrency = jobs.to_string();
        let arguments = [
            "worker",
            "--kind",
            "bench",
            "--concurrency",
            &concurrency,
            "demo",
        ];
        let worker = start(&arguments, &self.nats, Stdio::null())?;
        self.processes.workers = vec![process_of(&worker).await?];
        children.worker = Some(worker);
        Ok(())
    }

    /// Restarts the edge, with empty memory.
    pub(super) async fn restart_edge(&mut self) -> anyhow::Result<()> {
        let mut children = self
            .children
            .take()
            .context("the edge was not started by the benchmark")?;
        children.edge.stop().await;
        let (edge, address) = start_edge(&self.nats, self.threads).await?;
        self.processes.edge = Some(process_of(&edge).await?);
        self.edge = address;
        children.edge = edge;
        self.children = Some(children);
        Ok(())
    }

    /// Ends what was started.
    pub(super) async fn stop(self) {
        let Some(children) = self.children else {
            return;
        };
        if let Some(worker) = children.worker {
            worker.stop().await;
        }
        children.edge.stop().await;
        children.broker.stop().await;
    }
}

/// Sets up NATS, unless that was done, and starts an edge.
async fn start_edge(
    nats: &SecretString,
    threads: u16,
) -> anyhow::Result<(GuardedProcess, SocketAddr)> {
    let mut setup = start(&["setup", "--kind", "bench"], nats, Stdio::null())?;
    if !setup.0.wait().await?.success() {
        bail!("cannot set up NATS");
    }
    let threads = threads.to_string();
    let arguments = [
        "edge",
        "--listen",
        "127.0.0.1:0",
        "--drain",
        "0s",
        "--threads",
        &threads,
    ];
    let mut edge = start(&arguments, nats, Stdio::piped())?;
    let out = edge.0.stdout.take().context("no output of the edge")?;
    let line = timeout(SERVER_START_WAIT, BufReader::new(out).lines().next_line()).await;
    let line = line.context("the edge is not ready in time")??;
    let address = line
        .as_deref()
        .and_then(|line| line.strip_prefix("ready http://"));
    let address = address.context("the edge did not start")?.parse()?;
    Ok((edge, address))
}
