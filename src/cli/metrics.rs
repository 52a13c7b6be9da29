//! The metrics of a worker process, which its threads share.

use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context as _;
use tokio_util::sync::CancellationToken;

use crate::edge::serve_metrics;
use crate::metrics::Exposition;
use crate::worker::WorkerMetrics;

/// Where the metrics are served, and what they consist of.
pub(super) struct Metrics {
    /// Taken by the first thread, which serves them.
    listener: Mutex<Option<TcpListener>>,
    workers: Arc<Mutex<Vec<WorkerMetrics>>>,
}

impl Metrics {
    /// Listens on an address, if there is one, and prints it.
    pub(super) fn new(addr: Option<SocketAddr>) -> anyhow::Result<Self> {
        let listen = |addr| {
            let listener =
                TcpListener::bind(addr).with_context(|| format!("cannot listen on {addr}"))?;
            println!("metrics http://{}/metrics", listener.local_addr()?);
            anyhow::Ok(listener)
        };
        Ok(Self {
            listener: Mutex::new(addr.map(listen).transpose()?),
            workers: Arc::default(),
        })
    }

    /// Adds the worker of a thread.
    pub(super) fn add(&self, worker: WorkerMetrics) {
        let mut workers = self.workers.lock().unwrap_or_else(PoisonError::into_inner);
        workers.push(worker);
    }

    /// Serves the metrics of all threads on the first thread that calls this, until `stop` is
    /// cancelled.
    pub(super) async fn serve(&self, stop: CancellationToken) -> anyhow::Result<()> {
        let listener = {
            let mut listener = self.listener.lock().unwrap_or_else(PoisonError::into_inner);
            listener.take()
        };
        let Some(listener) = listener else {
            return Ok(());
        };
        let workers = Arc::clone(&self.workers);
        let scrape = move || {
            let mut all = Exposition::new();
            let workers = workers.lock().unwrap_or_else(PoisonError::into_inner);
            workers.iter().for_each(|worker| worker.add_to(&mut all));
            all
        };
        serve_metrics(listener, scrape, stop)
            .await
            .context("cannot serve metrics")
    }
}
