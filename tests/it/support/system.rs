//! Streams, edges and workers inside the test process, on a real broker.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tailwater::backend::{Backend, demo};
use tailwater::budget::Budget;
use tailwater::nats::{Log, Names, Nats, Options, Settings};
use tailwater::runtime::Tasks;
use tailwater::wire::{JobId, JobState, Kind, Submission};
use tailwater::worker::{self, Worker};
use tailwater::{edge, session};
use tokio_util::sync::CancellationToken;

use super::broker::Broker;
use super::client::{Client, Encoding};
use super::{PATIENCE, eventually, within};

/// Streams under a prefix of their own, and what runs on them.
pub struct System {
    pub options: Options,
    pub log: Log,
    pub tasks: Tasks,
}

/// An edge inside the test process.
pub struct Edge {
    pub addr: String,
    stop: CancellationToken,
}

impl Edge {
    /// An edge that runs elsewhere.
    pub fn at(addr: &str) -> Self {
        Self {
            addr: addr.to_owned(),
            stop: CancellationToken::new(),
        }
    }

    /// Ends it, as at a restart: clients are told to come back.
    pub fn stop(&self) {
        self.stop.cancel();
    }

    /// A client that is connected.
    pub async fn client(&self) -> Client {
        Client::connect(&self.addr).await
    }

    /// A client that is connected and speaks this encoding.
    pub async fn client_in(&self, encoding: Encoding) -> Client {
        Client::connect_in(&self.addr, encoding).await
    }
}

impl System {
    /// Sets up streams for one test.
    pub async fn on(broker: &Broker) -> Self {
        Self::with(broker, |_| {}).await
    }

    /// Sets up streams for one test, with other settings.
    #[expect(
        clippy::print_stderr,
        reason = "the runner shows it when the test fails"
    )]
    pub async fn with(broker: &Broker, change: impl FnOnce(&mut Settings)) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        // For whoever looks for a fault: RUST_LOG=tailwater=debug shows what edges and workers say.
        if let Ok(filter) = tracing_subscriber::EnvFilter::try_from_default_env() {
            let _ = tracing_subscriber::fmt()
                .with_env_filter(filter)
                .with_ansi(false)
                .try_init();
        }
        let prefix: Kind = format!("t{}", COUNT.fetch_add(1, Ordering::Relaxed))
            .parse()
            .unwrap();
        let mut settings = Settings {
            shards: 2,
            replicas: broker.replicas(),
            max_age: Some(Duration::from_secs(3600)),
            max_bytes: Some(256 << 20),
        };
        change(&mut settings);
        let options = Options {
            url: broker.url(),
            prefix,
            patience: PATIENCE,
            ..Options::default()
        };
        let nats = within("a connection", Nats::connect(&options))
            .await
            .unwrap();
        // A cluster that has just started has no leader yet.
        eventually("streams", || async {
            nats.set_up(&settings)
                .await
                .inspect_err(|error| eprintln!("setup: {error}"))
                .ok()
        })
        .await;
        let log = Log::open(&nats).await.unwrap();
        Self {
            options,
            log,
            tasks: Tasks::new(CancellationToken::new()),
        }
    }

    /// Starts an edge in this process.
    pub async fn edge(&self) -> Edge {
        self.edge_with(edge::EdgeSettings::default()).await
    }

    /// Starts an edge in this process, with other settings.
    pub async fn edge_with(&self, settings: edge::EdgeSettings) -> Edge {
        let listener = edge::bind("127.0.0.1:0".parse().unwrap(), 1)
            .unwrap()
            .remove(0);
        let addr = listener.local_addr().unwrap().to_string();
        let nats = Nats::connect(&self.options).await.unwrap();
        let stop = self.tasks.stop().child_token();
        let until = stop.clone();
        self.tasks.spawn(async move {
            edge::run(
                listener,
                nats,
                settings,
                edge::Shared::new(Budget::of_machine()),
                until,
            )
            .await
            .unwrap()
        });
        Edge { addr, stop }
    }

    /// Starts a demo worker in this process.
    pub async fn demo(&self) -> CancellationToken {
        self.worker(demo::Demo, |_| {}).await
    }

    /// Starts a demo worker that makes an event of each word.
    pub async fn wordy(&self) -> CancellationToken {
        self.worker(demo::Demo, |settings| {
            settings.flush.interval = Duration::ZERO
        })
        .await
    }

    /// Starts a worker of the kind `demo` in this process; gives what stops it.
    pub async fn worker<B: Backend>(
        &self,
        backend: B,
        change: impl FnOnce(&mut worker::Settings),
    ) -> CancellationToken {
        let mut settings = worker::Settings::new("demo".parse().unwrap());
        settings.concurrency = 1000;
        change(&mut settings);
        let nats = Nats::connect(&self.options).await.unwrap();
        let worker = within("a worker", Worker::open(&nats, backend, settings))
            .await
            .unwrap();
        let stop = self.tasks.stop().child_token();
        self.tasks.spawn(worker.run(stop.clone()));
        stop
    }

    /// Submits a job for the demo backend.
    pub async fn submit(&self, id: &str, input: Value) -> JobId {
        self.submit_with(id, Submission::new("demo".parse().unwrap(), input))
            .await
    }

    /// Submits any job.
    pub async fn submit_with(&self, id: &str, submission: Submission) -> JobId {
        let job = id.parse().unwrap();
        within("a submit", self.log.submit(&job, &submission))
            .await
            .unwrap();
        job
    }

    /// What a job is, read straight from the log.
    pub async fn state(&self, job: &JobId) -> Option<JobState> {
        let tasks = Tasks::new(CancellationToken::new());
        let reader = tailwater::nats::Reader::open(self.log.clone(), &tasks)
            .await
            .unwrap();
        let state = session::fold(&reader, job).await.ok()?;
        tasks.end(Duration::ZERO).await;
        state
    }

    /// Waits until a job has ended.
    pub async fn ended(&self, job: &JobId) -> JobState {
        eventually("the end of a job", || async {
            self.log
                .last(job)
                .await
                .ok()
                .flatten()
                .filter(|last| last.event_type.is_end())
        })
        .await;
        eventually("a job's state", || self.state(job)).await
    }

    /// The command-line flags that reach this system.
    pub fn flags(&self) -> Vec<String> {
        [
            "--nats",
            &self.options.url,
            "--prefix",
            self.options.prefix.as_str(),
        ]
        .map(str::to_owned)
        .to_vec()
    }

    /// Ends all that runs, and removes the streams: a cluster is busy with each of them even when nobody uses it.
    pub async fn end(self) {
        self.tasks.end(PATIENCE).await;
        let servers: Vec<_> = self.options.url.split(',').collect();
        let context = async_nats::jetstream::new(async_nats::connect(servers).await.unwrap());
        let names = Names::new(&self.options.prefix);
        let chunks = (0..).map(|shard| names.chunks_stream(shard));
        for stream in std::iter::once(names.jobs_stream()).chain(chunks) {
            // A broker of the test's own may have been hurt, and goes away as a whole.
            if context.delete_stream(stream).await.is_err() {
                break;
            }
        }
    }
}

/// The input of a demo job.
pub fn words(words: u32, rate: u32, seed: u64) -> Value {
    json!({"words": words, "rate": rate, "seed": seed})
}

/// The text that the demo backend makes of an input.
pub fn text(input: &Value) -> String {
    demo::text(&demo::Settings::from_input(input).unwrap())
}
