//! `tailwater worker`: runs jobs of one kind with one backend.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use secrecy::SecretString;
use tokio_util::sync::CancellationToken;

use super::args::{NatsArgs, WebhookArgs, given, millis, until_interrupted};
use super::metrics::Metrics;
use crate::backend::endpoint::{Endpoint, EndpointSettings, RequestHeader};
use crate::backend::openai::{OpenAi, OpenAiSettings};
use crate::backend::{Backend, demo::Demo, exec::Exec, exec::Format, exec::Variable};
use crate::config::{
    ACK_WAIT, BACKEND_THREADS_MIN, ENDPOINT_BUSY, ENDPOINT_SILENCE, FLUSH_BYTES, FLUSH_INTERVAL,
    GRACE, MODEL_BUSY, MODEL_SILENCE,
};
use crate::nats::Role;
use crate::runtime;
use crate::wire::{Kind, Limits, RESERVED_KIND};
use crate::worker::{self, Flush, WorkerSettings};

/// Run jobs of one kind. Any number of workers may serve a kind; a worker that dies is replaced by
/// another.
#[derive(Debug, Args)]
#[command(
    subcommand_value_name = "BACKEND",
    subcommand_help_heading = "Backends",
    after_long_help = "Examples:\n  tailwater worker --kind demo demo\n  \
        tailwater worker --kind summary --concurrency 4 exec --format lines -- python3 summarize.py\n  \
        tailwater worker --kind summarize http --url http://127.0.0.1:8000/run\n  \
        tailwater worker --kind chat openai --base-url http://127.0.0.1:11434/v1 --model llama3.2\n  \
        tailwater worker --kind callback webhook --callback-hosts hooks.example.org"
)]
pub(super) struct WorkerCommand {
    /// The kind of the jobs to run.
    #[arg(long, env = "TAILWATER_KIND")]
    kind: Kind,
    /// How many jobs to run at a time on each thread [default: 16; for callbacks 256].
    #[arg(long, env = "TAILWATER_CONCURRENCY", value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    concurrency: Option<u16>,
    /// How many attempts a job has before it fails [default: 5; for callbacks 32, over about half
    /// an hour].
    #[arg(long, env = "TAILWATER_MAX_ATTEMPTS", value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_attempts: Option<u32>,
    /// The shortest time between two chunks of a job; the first goes out at once.
    #[arg(long, env = "TAILWATER_FLUSH_INTERVAL", value_name = "TIME", default_value_t = FLUSH_INTERVAL.into())]
    flush_interval: humantime::Duration,
    /// How many bytes of text are published without waiting for the interval.
    #[arg(long, env = "TAILWATER_FLUSH_BYTES", value_name = "BYTES")]
    #[arg(default_value_t = FLUSH_BYTES)]
    flush_bytes: usize,
    /// How long a job may take from its submission to its end. A job may set a shorter time.
    #[arg(long, env = "TAILWATER_TIMEOUT", value_name = "TIME", value_parser = humantime::parse_duration)]
    timeout: Option<Duration>,
    /// How long an attempt may produce no output. A job may set a shorter time.
    #[arg(long, env = "TAILWATER_SILENCE_TIMEOUT", value_name = "TIME", value_parser = humantime::parse_duration)]
    silence_timeout: Option<Duration>,
    /// The wait after the first failed attempt of a job; doubled with each further one, up to a
    /// minute [default: 1s; for callbacks 5s].
    #[arg(long, env = "TAILWATER_RETRY_DELAY", value_name = "TIME", value_parser = humantime::parse_duration)]
    retry_delay: Option<Duration>,
    /// How long a worker may be silent before its jobs go to another one. Fixed by the kind's first
    /// worker.
    #[arg(long, env = "TAILWATER_ACK_WAIT", value_name = "TIME", default_value_t = ACK_WAIT.into())]
    ack_wait: humantime::Duration,
    /// How long running jobs may continue after SIGTERM before another worker gets them.
    #[arg(long, env = "TAILWATER_GRACE", value_name = "TIME", default_value_t = GRACE.into())]
    grace: humantime::Duration,
    /// How many independent threads run jobs, each with its own connections to NATS.
    #[arg(long, env = "TAILWATER_THREADS", value_name = "N", default_value_t = 1,
          value_parser = clap::value_parser!(u16).range(1..=256))]
    threads: u16,
    /// Serve metrics for Prometheus here, at /metrics; port 0 chooses a free one.
    #[arg(long, env = "TAILWATER_METRICS", value_name = "ADDR")]
    metrics: Option<SocketAddr>,
    #[command(flatten)]
    nats: NatsArgs,
    #[command(subcommand)]
    backend: BackendArgs,
}

#[derive(Clone, Debug, Subcommand)]
enum BackendArgs {
    /// Generated text, configured by the job's input: {"words": n, "rate": words per second,
    /// "length": letters, "seed": s}.
    Demo,
    /// Any program: the job's input is its stdin, as JSON, and its stdout is the output.
    Exec {
        /// What the program writes to stdout.
        #[arg(long, value_enum, default_value_t = Format::Text)]
        format: Format,
        /// The program can continue an earlier attempt's output: it gets {"input": …, "output":
        /// "…"} and writes only what follows.
        #[arg(long)]
        continues: bool,
        /// A further variable for the program: `NAME` passes on its value here, `NAME=value` sets
        /// one. May be repeated. Otherwise the program gets only PATH, HOME, LANG, LC_*, TZ, TMPDIR
        /// and USER.
        #[arg(long, value_name = "NAME[=VALUE]")]
        env: Vec<Variable>,
        /// The program and its arguments.
        #[arg(last = true, required = true)]
        command: Vec<OsString>,
    },
    /// Your own HTTP endpoint: it gets the job's input with a POST request, and the body of its
    /// answer is the output: text, a JSON value per line, or server-sent events.
    Http(HttpArgs),
    /// A model behind an OpenAI-compatible API: the job's input is a text, or an object with
    /// messages and any other parameter of a chat completion, except for another model.
    #[command(name = "openai")]
    OpenAi {
        /// Where the API is; usually it ends in `/v1`. `/chat/completions` is added if it is not
        /// there.
        #[arg(long, env = "TAILWATER_BASE_URL", value_name = "URL")]
        base_url: String,
        /// The model.
        #[arg(long, env = "TAILWATER_MODEL", value_name = "NAME")]
        model: String,
        /// The key, if the server needs one. Prefer the variable: other users can read a command
        /// line.
        #[arg(long, env = "OPENAI_API_KEY", value_name = "KEY")]
        #[arg(hide_env_values = true)]
        api_key: Option<SecretString>,
        /// How long the server may send nothing before the attempt fails.
        #[arg(long, env = "TAILWATER_IDLE_TIMEOUT", value_name = "TIME", default_value_t = MODEL_SILENCE.into())]
        idle_timeout: humantime::Duration,
        /// How long a job waits in total for a server that is busy (429, 503, overloaded); then it
        /// fails. Retry-After is respected.
        #[arg(long, env = "TAILWATER_BUSY_TIMEOUT", value_name = "TIME", default_value_t = MODEL_BUSY.into())]
        busy_timeout: humantime::Duration,
    },
    /// Callbacks: reports how a job ended to the job's callback address. Serves only the kind
    /// `callback`.
    Webhook(WebhookArgs),
}

/// The flags of the backend `http`.
#[derive(Clone, Debug, Args)]
struct HttpArgs {
    /// Where to send the jobs.
    #[arg(
        long,
        env = "TAILWATER_URL",
        value_name = "URL",
        hide_env_values = true
    )]
    url: String,
    /// A further header of each request. May be repeated. The variable has one on each line. For a
    /// secret, use the variable or --headers-file: other users can read a command line.
    #[arg(
        long,
        env = "TAILWATER_HEADER",
        value_name = "NAME: VALUE",
        hide_env_values = true
    )]
    #[arg(value_delimiter = '\n')]
    header: Vec<String>,
    /// A file with further headers, one on each line.
    #[arg(long, env = "TAILWATER_HEADERS_FILE", value_name = "FILE")]
    headers_file: Option<PathBuf>,
    /// A secret that signs each request, in the form of Standard Webhooks: `whsec_` and 24 to 64
    /// random bytes in base64. Prefer the variable: other users can read a command line.
    #[arg(long, env = "TAILWATER_SIGNING_SECRET", value_name = "SECRET")]
    #[arg(hide_env_values = true)]
    signing_secret: Option<SecretString>,
    /// The endpoint can continue an earlier attempt's output: it gets {"input": …, "output": "…"}
    /// and answers only what follows.
    #[arg(long)]
    continues: bool,
    /// How long the endpoint may send nothing before the attempt fails.
    #[arg(long, env = "TAILWATER_IDLE_TIMEOUT", value_name = "TIME", default_value_t = ENDPOINT_SILENCE.into())]
    idle_timeout: humantime::Duration,
    /// How long a job waits in total for an endpoint that is busy (429, 503); then it fails.
    /// Retry-After is respected.
    #[arg(long, env = "TAILWATER_BUSY_TIMEOUT", value_name = "TIME", default_value_t = ENDPOINT_BUSY.into())]
    busy_timeout: humantime::Duration,
}

impl HttpArgs {
    fn backend(self) -> anyhow::Result<Endpoint> {
        let mut headers = RequestHeader::list(&self.header.join("\n"))?;
        if let Some(file) = given(self.headers_file) {
            let show = || format!("cannot use the headers in {}", file.display());
            let lines = std::fs::read_to_string(&file).with_context(show)?;
            headers.extend(RequestHeader::list(&lines).with_context(show)?);
        }
        Ok(Endpoint::new(EndpointSettings {
            headers,
            secret: given(self.signing_secret),
            continues: self.continues,
            silence: self.idle_timeout.into(),
            busy: self.busy_timeout.into(),
            ..EndpointSettings::new(self.url)
        })?)
    }
}

impl WorkerCommand {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let stop = CancellationToken::new();
        let metrics = Metrics::new(self.metrics)?;
        runtime::on_threads(usize::from(self.threads), |_| {
            self.serve(stop.clone(), &metrics)
        })?;
        Ok(ExitCode::SUCCESS)
    }

    async fn serve(&self, stop: CancellationToken, metrics: &Metrics) -> anyhow::Result<()> {
        let _stop_all = stop.clone().drop_guard();
        match self.backend.clone() {
            BackendArgs::Demo => Box::pin(self.serve_with(Demo, stop, metrics)).await,
            BackendArgs::Exec {
                format,
                continues,
                env,
                command,
            } => {
                let guard = Some(std::env::current_exe()?);
                Box::pin(self.serve_with(
                    Exec {
                        command,
                        format,
                        continues,
                        env,
                        guard,
                    },
                    stop,
                    metrics,
                ))
                .await
            }
            BackendArgs::Http(http) => {
                Box::pin(self.serve_with(http.backend()?, stop, metrics)).await
            }
            BackendArgs::OpenAi {
                base_url,
                model,
                api_key,
                idle_timeout: silence,
                busy_timeout: busy,
            } => {
                let settings = OpenAiSettings {
                    base_url,
                    model,
                    key: given(api_key),
                    silence: silence.into(),
                    busy: busy.into(),
                };
                Box::pin(self.serve_with(OpenAi::new(settings)?, stop, metrics)).await
            }
            BackendArgs::Webhook(webhook) => {
                // With any other kind, a client could get any text signed.
                anyhow::ensure!(
                    self.kind.as_str() == RESERVED_KIND,
                    "the webhook backend serves only the kind {RESERVED_KIND}"
                );
                Box::pin(self.serve_with(webhook.backend()?, stop, metrics)).await
            }
        }
    }

    async fn serve_with<B: Backend>(
        &self,
        backend: B,
        stop: CancellationToken,
        metrics: &Metrics,
    ) -> anyhow::Result<()> {
        let role = Role::Worker(Some(self.kind.clone()));
        let nats = self.nats.connect("worker", role).await?;
        let worker = worker::Worker::open(&nats, backend, self.settings()).await?;
        metrics.add(worker.metrics());
        let work = async {
            let serving = metrics.serve(stop.clone());
            let work = async {
                Box::pin(worker.run(stop.clone())).await;
                nats.close().await;
            };
            let (served, ()) = tokio::join!(serving, work);
            served
        };
        until_interrupted(&stop, work).await
    }

    fn settings(&self) -> WorkerSettings {
        let defaults = WorkerSettings::new(self.kind.clone());
        WorkerSettings {
            concurrency: self.concurrency.map_or(defaults.concurrency, usize::from),
            max_attempts: self.max_attempts.unwrap_or(defaults.max_attempts),
            flush: Flush {
                interval: self.flush_interval.into(),
                bytes: self.flush_bytes,
            },
            limits: Limits {
                timeout_ms: self.timeout.map(millis),
                silence_timeout_ms: self.silence_timeout.map(millis),
            },
            pause: self.retry_delay.unwrap_or(defaults.pause),
            ack_wait: self.ack_wait.into(),
            grace: self.grace.into(),
            // Each of the worker's threads has its own.
            backend_threads: (defaults.backend_threads / usize::from(self.threads))
                .max(BACKEND_THREADS_MIN),
            ..defaults
        }
    }
}
