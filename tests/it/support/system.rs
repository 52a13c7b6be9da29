//! Streams, edges and workers inside the test process, on a real broker.

use std::path::PathBuf;
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use async_nats::jetstream::Context;
use secrecy::ExposeSecret as _;
use serde_json::{Value, json};
use tailwater::backend::{Backend, demo};
use tailwater::budget::Budget;
use tailwater::nats::{
    CancelOutcome, EventWriter, Log, Names, Nats, NatsError, Options, Queue, Recorder, Role,
    StreamSettings,
};
use tailwater::runtime::Tasks;
use tailwater::wire::{Body, JobId, JobState, Prefix, Seq, Stored, Submission};
use tailwater::worker::{self, Worker};
use tailwater::{edge, source};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::backends::{Parts, Pieces};
use super::broker::Broker;
use super::client::{Client, Encoding, Seen};
use super::{PATIENCE, eventually, roles, within};

/// Streams under a separate prefix, and the tasks that run on them.
pub struct System {
    pub options: Options,
    pub log: Log,
    pub queue: Queue,
    pub tasks: Tasks,
    /// Whether its broker has a user per role.
    has_roles: bool,
    /// Whether it has a recorder, which reaches the broker as its edges do.
    recorder: Once,
    /// The logs of its broker.
    broker_logs: Vec<PathBuf>,
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

    /// Stops it, as for a restart: clients are asked to reconnect.
    pub fn stop(&self) {
        self.stop.cancel();
    }

    /// A client that is connected.
    pub async fn client(&self) -> Client {
        Client::connect(&self.addr).await
    }

    /// A client that watches a job from its start.
    pub async fn watch(&self, job: &str) -> (Client, Seen) {
        let mut client = self.client().await;
        let seen = Seen::of(job);
        client.watch(&seen).await;
        (client, seen)
    }

    /// A client that is connected and speaks this encoding.
    pub async fn client_in(&self, encoding: Encoding) -> Client {
        Client::connect_in(&self.addr, encoding).await
    }
}

impl System {
    /// Sets up streams for one test.
    pub async fn on(broker: &Broker) -> Self {
        Box::pin(Self::with(broker, |_| {})).await
    }

    /// Sets up streams for one test, with other settings.
    #[expect(
        clippy::print_stderr,
        reason = "the runner shows it when the test fails"
    )]
    pub async fn with(broker: &Broker, change: impl FnOnce(&mut StreamSettings)) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        // RUST_LOG=tailwater=debug shows the log of edges and workers.
        if let Ok(filter) = tracing_subscriber::EnvFilter::try_from_default_env() {
            let _ = tracing_subscriber::fmt()
                .with_env_filter(filter)
                .with_ansi(false)
                .try_init();
        }
        let prefix: Prefix = format!("t{}", COUNT.fetch_add(1, Ordering::Relaxed))
            .parse()
            .unwrap();
        let mut settings = StreamSettings {
            shards: 2,
            replicas: broker.replicas(),
            max_age: Some(Duration::from_secs(3600)),
            max_bytes: Some(256 << 20),
        };
        change(&mut settings);
        let options = Options {
            url: broker.url().into(),
            prefix,
            startup_timeout: PATIENCE,
            ..Options::default()
        };
        let has_roles = broker.has_roles();
        let setup = as_role(&options, Role::Setup, has_roles);
        let setup = within("a connection", Nats::connect(&setup)).await.unwrap();
        // A cluster that has just started has no leader yet.
        eventually("streams", || async {
            setup
                .set_up(&settings)
                .await
                .inspect_err(|error| eprintln!("setup: {error}"))
                .ok()
        })
        .await;
        setup.close().await;
        let nats = Nats::connect(&options).await.unwrap();
        let log = Log::open(&nats).await.unwrap();
        Self {
            options,
            queue: Queue::new(log.clone()),
            log,
            tasks: Tasks::new(CancellationToken::new()),
            has_roles,
            recorder: Once::new(),
            broker_logs: broker.logs(),
        }
    }

    /// Starts a recorder in this process, if there is none and edges need one. Returns whether they do.
    pub(super) fn record(&self) -> bool {
        if self.has_roles {
            self.recorder.call_once(|| self.start_recorder());
        }
        self.has_roles
    }

    fn start_recorder(&self) {
        let options = self.as_role(Role::Recorder);
        let stop = self.tasks.stop().clone();
        self.tasks.spawn(async move {
            let opened = stop.run_until_cancelled(opened_recorder(&options)).await;
            if let Some(recorder) = opened {
                recorder.run(stop).await;
            }
        });
    }

    /// Starts an edge in this process.
    pub async fn edge(&self) -> Edge {
        self.edge_with(edge::EdgeSettings::default()).await
    }

    /// Starts an edge in this process that pages of all origins may use.
    pub async fn edge_for_all_pages(&self) -> Edge {
        let mut settings = edge::EdgeSettings::default();
        settings.browsers.origins = edge::AllowedOrigins::Any;
        self.edge_with(settings).await
    }

    /// Starts an edge in this process, with other settings.
    pub async fn edge_with(&self, mut settings: edge::EdgeSettings) -> Edge {
        settings.recorder = self.record();
        let listener = edge::bind("127.0.0.1:0".parse().unwrap(), 1)
            .unwrap()
            .remove(0);
        let addr = listener.local_addr().unwrap().to_string();
        let nats = Nats::connect(&self.as_role(Role::Edge)).await.unwrap();
        let stop = self.tasks.stop().child_token();
        let until = stop.clone();
        self.tasks.spawn(async move {
            edge::run(
                listener,
                nats,
                settings,
                edge::EdgeShared::new(Budget::of_machine()),
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

    /// Starts a demo worker that makes each word an event.
    pub async fn wordy(&self) -> CancellationToken {
        self.worker(demo::Demo, |settings| {
            settings.flush.interval = Duration::ZERO
        })
        .await
    }

    /// Starts a worker whose jobs are numbers, each an event of its own.
    pub async fn pieces(&self, count: u32) -> CancellationToken {
        self.worker(Pieces { count }, |settings| {
            settings.flush.interval = Duration::ZERO
        })
        .await
    }

    /// Starts a worker of [`Parts`], whose events are published at once. The tokens start all parts
    /// but the first.
    pub async fn parts<const N: usize>(&self) -> [CancellationToken; N] {
        let starts: [CancellationToken; N] = std::array::from_fn(|_| CancellationToken::new());
        self.worker(Parts(starts.to_vec()), |settings| {
            settings.flush.interval = Duration::ZERO
        })
        .await;
        starts
    }

    /// Starts a worker of the kind `demo` in this process; the token stops it.
    pub async fn worker<B: Backend>(
        &self,
        backend: B,
        change: impl FnOnce(&mut worker::WorkerSettings),
    ) -> CancellationToken {
        let mut settings = worker::WorkerSettings::new("demo".parse().unwrap());
        settings.concurrency = 1000;
        change(&mut settings);
        let role = Role::Worker(Some(settings.kind.clone()));
        let nats = Nats::connect(&self.as_role(role)).await.unwrap();
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

    /// Submits three jobs with an input on which their worker hangs, and waits until each has output.
    pub async fn three_hanging(&self) -> Vec<JobId> {
        let mut jobs = Vec::new();
        for id in ["one", "two", "three"] {
            jobs.push(self.submit(id, json!("hang")).await);
        }
        for job in &jobs {
            self.reaches(job.as_str(), 3).await;
        }
        jobs
    }

    /// Submits any job. A broker that is slow to answer is asked again with the same id, as clients do.
    #[expect(
        clippy::print_stderr,
        reason = "the runner shows it when the test fails"
    )]
    pub async fn submit_with(&self, id: &str, submission: Submission) -> JobId {
        let job: JobId = id.parse().unwrap();
        eventually("a submit", || async {
            let outcome = self.queue.submit(&job, &submission).await;
            outcome
                .inspect_err(|error| eprintln!("submit: {error}"))
                .ok()
        })
        .await;
        job
    }

    /// The state of a job, read from the log.
    pub async fn state(&self, job: &JobId) -> Option<JobState> {
        let tasks = Tasks::new(CancellationToken::new());
        let reader = tailwater::nats::Reader::open(self.log.clone(), &tasks)
            .await
            .unwrap();
        let state = source::fold(&reader, job).await.ok()?;
        tasks.end(Duration::ZERO).await;
        state
    }

    /// Submits a job of another kind than `demo`.
    pub async fn submit_to(&self, kind: &str, id: &str, input: Value) -> JobId {
        let submission = Submission::new(kind.parse().unwrap(), input);
        self.submit_with(id, submission).await
    }

    /// The last event of a job.
    pub async fn last(&self, job: &JobId) -> Stored {
        self.log.last(job).await.unwrap().expect("an event")
    }

    /// Writes to a job's log, after its last event.
    pub async fn writer(&self, job: &JobId, attempt: u32) -> EventWriter {
        let last = self.last(job).await;
        EventWriter::new(self.log.clone(), job.clone(), attempt, Some(&last))
    }

    /// Starts an attempt of a job, as another worker would that takes it over.
    pub async fn take_over(&self, job: &JobId, attempt: u32) -> EventWriter {
        let mut writer = self.writer(job, attempt).await;
        writer.append(started("other")).await.unwrap();
        writer
    }

    /// Requests that a job is cancelled.
    pub async fn cancel(&self, job: &JobId) -> CancelOutcome {
        self.queue.cancel(job, None).await.unwrap()
    }

    /// Cancels a job that has not ended; returns the sequence number of the request.
    pub async fn cancel_running(&self, job: &JobId) -> Seq {
        match self.cancel(job).await {
            CancelOutcome::Requested(seq) => seq,
            other @ (CancelOutcome::Already(_)
            | CancelOutcome::Ended
            | CancelOutcome::Unknown
            | CancelOutcome::Undecodable) => panic!("{other:?}"),
        }
    }

    /// The same streams, reached through another address.
    pub fn reached_at(&self, url: &str) -> Self {
        Self {
            options: Options {
                url: url.into(),
                ..self.options.clone()
            },
            log: self.log.clone(),
            queue: self.queue.clone(),
            tasks: self.tasks.clone(),
            has_roles: self.has_roles,
            recorder: Once::new(),
            broker_logs: self.broker_logs.clone(),
        }
    }

    /// Starts an edge in this process that allows callbacks to these hosts.
    pub async fn edge_calling(&self, hosts: &[&str]) -> Edge {
        let callback_hosts = hosts.iter().map(|&host| host.to_owned()).collect();
        self.edge_with(edge::EdgeSettings {
            callback_hosts,
            ..Default::default()
        })
        .await
    }

    /// Waits until a job has ended.
    pub async fn ended(&self, job: &JobId) -> JobState {
        self.last_event("the end of a job", job, |last| last.event_type.is_end())
            .await;
        eventually("a job's state", || self.state(job)).await
    }

    /// Waits until the last event of a job is the wanted one.
    pub async fn last_event(
        &self,
        what: &str,
        job: &JobId,
        is_wanted: impl Fn(&Stored) -> bool,
    ) -> Stored {
        eventually(what, || async {
            let last = self.log.last(job).await.ok().flatten();
            last.filter(&is_wanted)
        })
        .await
    }

    /// Waits until a job has this many events.
    pub async fn reaches(&self, job: &str, seq: u64) {
        let job = job.parse().unwrap();
        self.last_event("events", &job, |last| last.seq.0 >= seq)
            .await;
    }

    /// Waits until the kind `demo` has had a worker.
    pub async fn kind_is_known(&self) {
        let kind = "demo".parse().unwrap();
        eventually("the kind", || async {
            self.queue.usage(&kind).await.ok().flatten()
        })
        .await;
    }

    /// A NATS client of its own, beside this library.
    pub async fn client(&self) -> async_nats::Client {
        let servers: Vec<_> = self.url().split(',').collect();
        async_nats::connect(servers).await.unwrap()
    }

    /// JetStream, beside this library.
    pub async fn jetstream(&self) -> Context {
        async_nats::jetstream::new(self.client().await)
    }

    pub fn names(&self) -> Names {
        Names::new(self.options.prefix.clone())
    }

    /// The name of the first shard's stream.
    pub fn shard(&self) -> String {
        self.names().chunks_stream(0)
    }

    /// What the broker says about a stream.
    pub async fn stream_info(&self, stream: &str) -> Value {
        self.ask_jetstream(&format!("STREAM.INFO.{stream}"), &json!({}))
            .await
    }

    /// The answer to a request that is sent to JetStream beside this library.
    pub async fn ask_jetstream(&self, request: &str, body: &Value) -> Value {
        let subject = format!("$JS.API.{request}");
        let body = body.to_string().into();
        let answer = self.client().await.request(subject, body).await;
        serde_json::from_slice(&answer.unwrap().payload).unwrap()
    }

    /// Removes the messages of a subject, beside this library.
    pub async fn remove(&self, stream: &str, subject: &str) {
        let request = format!("STREAM.PURGE.{stream}");
        let filter = json!({"filter": subject});
        let answer = self.ask_jetstream(&request, &filter).await;
        assert!(answer["purged"].as_u64() > Some(0), "{answer}");
    }

    /// The node that leads the first shard.
    pub async fn leader(&self, broker: &Broker) -> usize {
        let info = self.stream_info(&self.shard()).await;
        broker.index_of(info["cluster"]["leader"].as_str().unwrap())
    }

    /// How many messages all streams hold.
    pub async fn stored_messages(&self) -> u64 {
        let chunks = (0..self.log.shards()).map(|shard| self.names().chunks_stream(shard));
        let mut count = 0;
        for stream in chunks.chain([self.names().jobs_stream()]) {
            let info = self.stream_info(&stream).await;
            count += info["state"]["messages"].as_u64().unwrap();
        }
        count
    }

    /// Waits until the queue no longer holds a job.
    pub async fn leaves_queue(&self, job: &JobId) {
        eventually("the job to leave the queue", || async {
            self.queue
                .queued_kind(job)
                .await
                .ok()
                .filter(Option::is_none)
        })
        .await;
    }

    /// Waits until the queue holds no jobs.
    pub async fn queue_is_empty(&self) {
        let client = self.client().await;
        let subject = format!("$JS.API.STREAM.INFO.{}", self.names().jobs_stream());
        eventually("an empty queue", || async {
            let answer = client.request(subject.clone(), "".into()).await.ok()?;
            let info: Value = serde_json::from_slice(&answer.payload).unwrap();
            (info["state"]["messages"] == 0).then_some(())
        })
        .await;
    }

    /// Fills the queue as other publishers would.
    pub async fn fill_queue(&self, kind: &str, count: u64, size: usize) {
        let context = self.jetstream().await;
        let input = "x".repeat(size);
        let mut acks = futures_util::stream::FuturesUnordered::new();
        for n in 0..count {
            let subject = format!("{}.jobs.{kind}.fill-{n}", self.options.prefix);
            let payload =
                json!({"job": format!("fill-{n}"), "kind": kind, "input": input}).to_string();
            acks.push(
                context
                    .publish(subject, payload.into())
                    .await
                    .unwrap()
                    .into_future(),
            );
            if acks.len() > 500 {
                futures_util::StreamExt::next(&mut acks)
                    .await
                    .unwrap()
                    .unwrap();
            }
        }
        while let Some(ack) = futures_util::StreamExt::next(&mut acks).await {
            ack.unwrap();
        }
    }

    /// Where its broker is.
    pub fn url(&self) -> &str {
        self.options.url.expose_secret()
    }

    /// How a process of this role reaches the broker.
    pub fn as_role(&self, role: Role) -> Options {
        as_role(&self.options, role, self.has_roles)
    }

    /// The command-line flags that reach this system, without limits.
    pub fn flags(&self) -> Vec<String> {
        self.flags_of(Role::All)
    }

    /// The command-line flags that reach this system as this role.
    pub fn flags_of(&self, role: Role) -> Vec<String> {
        let options = self.as_role(role);
        [
            "--nats",
            options.url.expose_secret(),
            "--prefix",
            options.prefix.as_str(),
        ]
        .map(str::to_owned)
        .to_vec()
    }

    /// Ends all tasks and removes the streams: each unused stream still costs a cluster time.
    /// Requires that no role was refused anything.
    pub async fn end(self) {
        self.tasks.end(PATIENCE).await;
        let prefix = self.options.prefix.as_str();
        let refusals = roles::refusals(&self.broker_logs, Some(prefix));
        assert!(refusals.is_empty(), "{refusals:#?}");
        let context = self.jetstream().await;
        let names = self.names();
        for shard in 0..self.log.shards() {
            // A test may have removed it.
            let _ = context.delete_stream(names.segments_stream(shard)).await;
        }
        let chunks = (0..).map(|shard| names.chunks_stream(shard));
        let others = [
            names.jobs_stream(),
            names.auth_stream(),
            names.tickets_stream(),
        ];
        for stream in others.into_iter().chain(chunks) {
            // A separate broker may be down, and is removed as a whole.
            if context.delete_stream(stream).await.is_err() {
                break;
            }
        }
    }
}

/// Options of a process of this role, on a broker that has a user per role or not.
fn as_role(options: &Options, role: Role, has_roles: bool) -> Options {
    let login = format!("nats://{}@", roles::login(&role));
    let url = options.url.expose_secret();
    let url = match has_roles {
        true => url.replace("nats://", &login),
        false => url.to_owned(),
    };
    Options {
        url: url.into(),
        role,
        ..options.clone()
    }
}

/// A demo job with time limits in milliseconds.
pub fn limited(input: Value, timeout: Option<u64>, silence: Option<u64>) -> Submission {
    let mut submission = Submission::new("demo".parse().unwrap(), input);
    submission.limits.timeout_ms = timeout;
    submission.limits.silence_timeout_ms = silence;
    submission
}

/// The event with which a worker of the kind `demo` starts an attempt.
pub fn started(worker: &str) -> Body {
    Body::Started {
        kind: "demo".parse().unwrap(),
        worker: worker.into(),
        continues: false,
    }
}

/// The input of a demo job.
pub fn words(words: u32, rate: u32, seed: u64) -> Value {
    json!({"words": words, "rate": rate, "seed": seed})
}

/// The output of the demo backend for an input.
pub fn text(input: &Value) -> String {
    demo::text(&demo::DemoSettings::from_input(input).unwrap())
}

/// A secret for callbacks: 32 bytes.
pub const SECRET: &str = "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";

/// Opens a recorder. A test may stop the broker before it is open.
async fn opened_recorder(options: &Options) -> Recorder {
    loop {
        let opened = match Nats::connect(options).await {
            Ok(nats) => Recorder::open(&nats).await,
            Err(error) => Err(error),
        };
        match opened {
            Ok(recorder) => return recorder,
            Err(NatsError::Unreachable { .. } | NatsError::Unavailable(_)) => {}
            Err(error) => panic!("a recorder: {error}"),
        }
        sleep(Duration::from_millis(100)).await;
    }
}
