//! Where a worker is tested: a NATS server of its own, its jobs, and the processes of the worker.

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use tempfile::TempDir;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::cli::broker::Broker;
use crate::cli::guarded::GuardedProcess;
use crate::cli::terminal::neutralized;
use crate::config::{
    CONFORMANCE_LINES, CONFORMANCE_POLL, CONFORMANCE_SHARD_BYTES, UP_NATS_WAIT, UP_STOP_WAIT,
};
use crate::nats::{Log, Nats, Options, Queue, Reader, StreamSettings, Tip};
use crate::runtime::Tasks;
use crate::source::{EventSource as _, Replay as _, Replica, Span};
use crate::wire::{JobId, Seq, Stored, StreamSeq, Submission};

/// What is tested.
pub(super) struct LabSettings {
    /// Each job.
    pub(super) submission: Submission,
    /// The worker's program and its arguments.
    pub(super) command: Vec<OsString>,
    pub(super) ack_wait: Duration,
}

/// A NATS server with an empty store, and what the worker needs.
pub(super) struct Lab {
    broker: Broker,
    data: TempDir,
    nats: Nats,
    pub(super) queue: Queue,
    reader: Reader,
    tasks: Tasks,
    pub(super) settings: LabSettings,
    /// How many jobs were submitted.
    jobs: AtomicU32,
    /// How many processes were started.
    processes: AtomicU32,
}

impl Lab {
    /// Starts the server, and declares the kind.
    pub(super) async fn start(
        settings: LabSettings,
        nats_server: Option<&Path>,
    ) -> anyhow::Result<Self> {
        let data = TempDir::with_prefix("tailwater-conformance-")?;
        let broker = Broker::start_at(None, &data.path().join("nats"), nats_server).await?;
        let nats = Nats::connect(&Options {
            url: broker.url().into(),
            startup_timeout: UP_NATS_WAIT,
            name: "tailwater conformance".into(),
            ..Options::default()
        })
        .await?;
        nats.set_up(&StreamSettings {
            shards: 2,
            replicas: 1,
            max_age: None,
            max_bytes: Some(CONFORMANCE_SHARD_BYTES),
        })
        .await?;
        nats.declare_kind(&settings.submission.kind, settings.ack_wait)
            .await?;
        let log = Log::open(&nats).await?;
        let tasks = Tasks::new(CancellationToken::new());
        Ok(Self {
            queue: Queue::new(log.clone()),
            reader: Reader::open(log, &tasks).await?,
            settings,
            broker,
            data,
            nats,
            tasks,
            jobs: AtomicU32::new(0),
            processes: AtomicU32::new(0),
        })
    }

    /// Starts the worker's program.
    pub(super) fn worker(&self) -> anyhow::Result<GuardedProcess> {
        let number = self.processes.fetch_add(1, Ordering::Relaxed) + 1;
        let output = File::create(self.data.path().join(format!("worker-{number}.log")))?;
        let prefix = Options::default().prefix.to_string();
        let env = [
            ("TAILWATER_NATS", self.broker.url()),
            ("TAILWATER_PREFIX", &prefix),
        ];
        let errors = output.try_clone()?.into();
        GuardedProcess::start(&self.settings.command, &env, output.into(), errors)
            .context("cannot start the worker")
    }

    /// Submits a job.
    pub(super) async fn submit(&self) -> anyhow::Result<JobId> {
        let number = self.jobs.fetch_add(1, Ordering::Relaxed) + 1;
        let kind = &self.settings.submission.kind;
        let job = JobId::qualified(kind, &format!("job-{number}"))?;
        self.queue.submit(&job, &self.settings.submission).await?;
        Ok(job)
    }

    /// The last event of a job once it is the wanted one; `None` if it is not in time.
    pub(super) async fn until(
        &self,
        job: &JobId,
        limit: Duration,
        is_wanted: impl Fn(&Stored) -> bool,
    ) -> anyhow::Result<Option<Stored>> {
        let deadline = Instant::now() + limit;
        loop {
            let last = self.queue.log().last(job).await?;
            if let Some(last) = last.filter(&is_wanted) {
                return Ok(Some(last));
            }
            if Instant::now() >= deadline {
                return Ok(None);
            }
            sleep(CONFORMANCE_POLL).await;
        }
    }

    /// Whether a job leaves the queue in time.
    pub(super) async fn leaves_queue(&self, job: &JobId, limit: Duration) -> anyhow::Result<bool> {
        let deadline = Instant::now() + limit;
        while self.queue.queued_kind(job).await?.is_some() {
            if Instant::now() >= deadline {
                return Ok(false);
            }
            sleep(CONFORMANCE_POLL).await;
        }
        Ok(true)
    }

    /// The events of a job.
    pub(super) async fn events(&self, job: &JobId) -> anyhow::Result<Vec<Arc<Stored>>> {
        let Some(last) = self.queue.log().last(job).await? else {
            return Ok(Vec::new());
        };
        // Segments, which any replica may have, do not say what the publishers expected.
        let span = Span {
            from: Seq::FIRST,
            stream_seq: None,
            until: Some(last.seq),
            replica: Replica::Leader,
        };
        let mut replay = self.reader.replay(job, span);
        let mut all = Vec::new();
        while let Some(events) = replay.next().await {
            all.extend(events?);
        }
        Ok(all)
    }

    /// The stream sequence of the last message of a job's log, whatever it is.
    pub(super) async fn end_of_log(&self, job: &JobId) -> anyhow::Result<Option<StreamSeq>> {
        Ok(match self.queue.log().tip(job).await? {
            Tip::At { fence, .. } => Some(fence),
            Tip::Undecodable => None,
        })
    }

    /// How many messages of the log are not events.
    pub(super) fn undecodable(&self) -> u64 {
        self.queue.log().undecodable()
    }

    /// Shows the last lines of each of the worker's processes.
    pub(super) fn show_output(&self) {
        for number in 1..=self.processes.load(Ordering::Relaxed) {
            let file = self.data.path().join(format!("worker-{number}.log"));
            let Ok(bytes) = fs::read(file) else { continue };
            let text = String::from_utf8_lossy(&bytes);
            let lines: Vec<_> = text.lines().collect();
            let last = lines.len().saturating_sub(CONFORMANCE_LINES);
            eprintln!("-- the last lines of worker {number}:");
            for line in &lines[last..] {
                eprintln!("{}", neutralized(line));
            }
        }
    }

    /// Ends everything.
    pub(super) async fn end(self) {
        self.tasks.end(UP_STOP_WAIT).await;
        self.nats.close().await;
        self.broker.stop().await;
    }
}
