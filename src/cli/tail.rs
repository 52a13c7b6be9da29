//! `tailwater tail`: follows a job, straight from the log or as a client of an edge.

use std::net::Ipv4Addr;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::Args;
use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::json;
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};
use tokio_util::sync::CancellationToken;

use super::args::{NatsArgs, block_on};
use super::show::{End, Show};
use super::terminal::neutralized;
use crate::backoff::Backoff;
use crate::config::{PING_EVERY, PONG_WAIT, REREAD_FIRST, REREAD_MAX, TAIL_CONNECT_WAIT};
use crate::hub::Hub;
use crate::nats::{Log, Queue, Reader};
use crate::runtime::Tasks;
use crate::session::{Error, Session, Step, until_ended};
use crate::source::fold;
use crate::wire::{Cursor, JSON_PROTOCOL, JobId, Seq, ServerFrame, Start, Status, may_reconnect};

/// Follow a job from its first event, or from where you were, until it ends. The exit code is 1 when the job failed and 3
/// when it was cancelled.
#[derive(Debug, Args)]
#[command(
    after_long_help = "Examples:\n  tailwater tail my-job\n  tailwater tail my-job --after 17 --json\n  \
    tailwater tail my-job --edge http://127.0.0.1:4000 --drop-after 20 --summary"
)]
pub(super) struct Tail {
    /// The job's id. When there is no such job yet, waits for it.
    job: JobId,
    /// Fail when there is no such job, instead of waiting for it.
    #[arg(long)]
    must_exist: bool,
    /// Begin after the event with this number.
    #[arg(
        long,
        value_name = "SEQ",
        default_value_t = 0,
        conflicts_with = "cursor"
    )]
    after: u64,
    /// Begin after the event that this cursor names.
    #[arg(long)]
    cursor: Option<Cursor>,
    /// Print one event per line, as JSON.
    #[arg(long)]
    json: bool,
    /// Say on stderr, at the end, what came.
    #[arg(long)]
    summary: bool,
    /// Follow through this edge, as any client does, instead of reading the log from NATS.
    #[arg(long, value_name = "URL", env = "TAILWATER_EDGE")]
    edge: Option<String>,
    /// Cut the connection without a word after so many events, once, to see the stream resume.
    #[arg(long, value_name = "N", requires = "edge")]
    drop_after: Option<u64>,
    #[command(flatten)]
    nats: NatsArgs,
}

impl Tail {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let start = self
            .cursor
            .map_or(Start::After(Seq(self.after)), Start::Cursor);
        block_on(async move {
            let Some(edge) = &self.edge else {
                let nats = self.nats.connect("tail").await?;
                let log = Log::open(&nats).await?;
                return self.follow(log, start).await;
            };
            let mut client = Client {
                url: format!(
                    "ws{}/ws",
                    edge.strip_prefix("http")
                        .unwrap_or(edge)
                        .trim_end_matches('/')
                ),
                job: self.job.clone(),
                start,
                must_exist: self.must_exist,
                drop_after: self.drop_after,
                show: show(start, self.json),
            };
            client.run().await?;
            finish(&mut client.show, self.summary)
        })
    }

    async fn follow(&self, log: Log, start: Start) -> anyhow::Result<ExitCode> {
        let queue = Queue::new(log.clone());
        if log.last(&self.job).await?.is_none() && queue.queued_kind(&self.job).await?.is_none() {
            anyhow::ensure!(!self.must_exist, no_job(&self.job));
            Show::waiting(&self.job);
        }
        follow_with(log, &self.job, start, show(start, self.json), self.summary).await
    }
}

fn no_job(job: &JobId) -> String {
    format!("there is no job {job}, or all of it has expired")
}

fn show(start: Start, json: bool) -> Show {
    Show::new(
        json,
        match start {
            Start::After(seq) => seq,
            Start::Cursor(cursor) => cursor.seq,
        },
    )
}

/// Follows a job straight from the log until it ends.
pub(super) async fn follow(
    log: Log,
    job: &JobId,
    start: Start,
    json: bool,
) -> anyhow::Result<ExitCode> {
    follow_with(log, job, start, show(start, json), false).await
}

async fn follow_with(
    log: Log,
    job: &JobId,
    start: Start,
    mut show: Show,
    summary: bool,
) -> anyhow::Result<ExitCode> {
    let tasks = Tasks::new(CancellationToken::new());
    let reader = Reader::open(log, &tasks).await?;
    let hub = Hub::new(reader, tasks);
    let mut session = Session::open(&hub, job, start).await?;
    loop {
        match session.next().await {
            Step::Events(events) => {
                for event in events {
                    show.event(event.json())?;
                }
            }
            Step::Gap { from, to } => show.missing(from, to),
            Step::Live => {}
            Step::End => return finish(&mut show, summary),
            Step::Rebuilt => return Err(Error::CursorNotInLog.into()),
        }
    }
}

/// Waits until a job has ended, and prints its output then.
pub(super) async fn wait(log: Log, job: &JobId, json: bool) -> anyhow::Result<ExitCode> {
    let tasks = Tasks::new(CancellationToken::new());
    let hub = Hub::new(Reader::open(log, &tasks).await?, tasks);
    until_ended(Ipv4Addr::LOCALHOST.into(), &hub, job, Seq(0)).await?;
    let state = fold(hub.source(), job)
        .await?
        .context("the job's log has expired meanwhile")?;
    if json {
        println!("{}", serde_json::to_string_pretty(&state)?);
    } else {
        let mut show = Show::new(false, Seq(0));
        show.output(&state.output)?;
        show.finish()?;
        if state.truncated {
            eprintln!(
                "\n[this is not all of the output: it is too long, or its beginning has expired]"
            );
        }
    }
    Ok(exit_code(match (state.status, state.error) {
        (Status::Cancelled, _) => Some(&End::Cancelled),
        (_, Some(failure)) => return Ok(exit_code(Some(&End::Failed(failure)))),
        _ => Some(&End::Done),
    }))
}

/// The job was cancelled.
const CANCELLED: u8 = 3;

/// Says how the job ended.
fn finish(show: &mut Show, summary: bool) -> anyhow::Result<ExitCode> {
    show.finish()?;
    if summary {
        eprintln!();
        show.summary();
    }
    Ok(exit_code(show.end()))
}

fn exit_code(end: Option<&End>) -> ExitCode {
    match end {
        Some(End::Failed(failure)) => {
            let (message, code) = (neutralized(&failure.message), neutralized(&failure.code));
            eprintln!("tailwater: the job failed: {message} ({code})");
            ExitCode::FAILURE
        }
        Some(End::Cancelled) => {
            eprintln!("tailwater: the job was cancelled");
            ExitCode::from(CANCELLED)
        }
        // A tail that began behind the end saw no end event.
        Some(End::Done) | None => ExitCode::SUCCESS,
    }
}

/// A terminal as the client of an edge.
struct Client {
    url: String,
    job: JobId,
    /// Where to begin, or to go on after a drop.
    start: Start,
    must_exist: bool,
    drop_after: Option<u64>,
    show: Show,
}

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// How a connection ended.
enum Outcome {
    /// The job has ended.
    End,
    /// The connection is gone; come back.
    Dropped,
}

impl Client {
    /// Follows the job over any number of connections.
    async fn run(&mut self) -> anyhow::Result<()> {
        let mut backoff = Backoff::new(REREAD_FIRST, REREAD_MAX);
        let mut ever = false;
        loop {
            match self.connect().await {
                Ok(socket) => {
                    if std::mem::replace(&mut ever, true) {
                        self.show.resumed();
                    }
                    backoff.reset();
                    match self.watch(socket).await? {
                        Outcome::End => return Ok(()),
                        Outcome::Dropped => {}
                    }
                }
                Err(error) if !ever => {
                    return Err(error).with_context(|| format!("cannot connect to {}", self.url));
                }
                Err(error) => tracing::info!(%error, "cannot connect yet"),
            }
            sleep(backoff.next_pause()).await;
        }
    }

    async fn connect(&self) -> anyhow::Result<Socket> {
        let mut request = self.url.as_str().into_client_request()?;
        request
            .headers_mut()
            .insert("Sec-WebSocket-Protocol", JSON_PROTOCOL.parse()?);
        let (mut socket, _) = timeout(TAIL_CONNECT_WAIT, connect_async(request)).await??;
        let watch = match self.start {
            Start::After(seq) => json!({"op": "watch", "job": self.job, "after": seq}),
            Start::Cursor(cursor) => {
                json!({"op": "watch", "job": self.job, "cursor": cursor.to_string()})
            }
        };
        socket.send(Message::text(watch.to_string())).await?;
        Ok(socket)
    }

    async fn watch(&mut self, mut socket: Socket) -> anyhow::Result<Outcome> {
        let mut events = 0;
        loop {
            // The edge pings; a connection over which nothing comes for longer is dead.
            let Ok(Some(Ok(message))) = timeout(PING_EVERY + PONG_WAIT, socket.next()).await else {
                return Ok(Outcome::Dropped);
            };
            match message {
                Message::Text(text) => match serde_json::from_str(&text) {
                    Ok(ServerFrame::End { .. }) => return Ok(Outcome::End),
                    Ok(ServerFrame::Watching { status: None, .. }) => {
                        anyhow::ensure!(!self.must_exist, no_job(&self.job));
                        Show::waiting(&self.job);
                    }
                    Ok(ServerFrame::Missing { from, to, .. }) => self.show.missing(from, to),
                    Ok(ServerFrame::Error { code, message, .. }) if code == "unavailable" => {
                        tracing::info!(message, "the edge has no log for the moment");
                        return Ok(Outcome::Dropped);
                    }
                    Ok(ServerFrame::Error { code, message, .. }) => bail!("{message} ({code})"),
                    Ok(
                        ServerFrame::Hello { .. }
                        | ServerFrame::Watching {
                            status: Some(_), ..
                        }
                        | ServerFrame::Live { .. }
                        | ServerFrame::Submitted { .. }
                        | ServerFrame::Cancelling { .. }
                        | ServerFrame::Unwatched { .. },
                    ) => {}
                    Err(_) => {
                        self.event(text.as_bytes())?;
                        events += 1;
                        if self.drop_after == Some(events) {
                            // Dropped without a close frame, as a lost network does it.
                            self.drop_after = None;
                            return Ok(Outcome::Dropped);
                        }
                    }
                },
                Message::Close(Some(close)) if !may_reconnect(close.code.into()) => {
                    bail!(
                        "the edge closed the connection: {} ({})",
                        close.reason,
                        u16::from(close.code)
                    );
                }
                Message::Close(_) => return Ok(Outcome::Dropped),
                Message::Ping(_) | Message::Pong(_) | Message::Binary(_) | Message::Frame(_) => {}
            }
        }
    }

    fn event(&mut self, json: &[u8]) -> anyhow::Result<()> {
        #[derive(serde::Deserialize)]
        struct Named {
            cursor: String,
        }
        let Named { cursor } =
            serde_json::from_slice(json).context("a frame that is not an event")?;
        self.show.event(json)?;
        self.start = Start::Cursor(cursor.parse()?);
        Ok(())
    }
}
