//! What the jobs of a worker share. Its methods are in the other files of this folder.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::OnceCell;

use super::held::HeldJobs;
use super::settings::WorkerSettings;
use crate::nats::{Log, Queue, Reader, UsageCache};
use crate::runtime::{Tasks, WorkThreads};
use crate::source::Unavailable;

/// Runs the jobs of a worker.
#[derive(Debug)]
pub(super) struct Runner<B> {
    pub(super) log: Log,
    pub(super) queue: Queue,
    pub(super) usage_cache: UsageCache,
    /// Opened when the earlier events of a job must be read, which most jobs do not need.
    pub(super) reader: OnceCell<Reader>,
    pub(super) backend: Arc<B>,
    pub(super) threads: Arc<WorkThreads>,
    pub(super) held: HeldJobs,
    pub(super) settings: WorkerSettings,
    /// The interval of the progress reports to the queue.
    pub(super) progress_interval: Duration,
    pub(super) tasks: Tasks,
}

impl<B> Runner<B> {
    pub(super) async fn reader(&self) -> Result<&Reader, Unavailable> {
        self.reader
            .get_or_try_init(|| Reader::open(self.log.clone(), &self.tasks))
            .await
    }
}
