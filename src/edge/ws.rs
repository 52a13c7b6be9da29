//! The WebSocket front door: reads a client's frames, pumps its sessions, writes, closes. What a client gets next is
//! decided by the session; `wire/PROTOCOL.md` is the contract.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;

use axum::extract::State;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{CloseFrame, Message, Utf8Bytes, WebSocket, WebSocketUpgrade};
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, SinkExt as _, StreamExt as _};
use tokio::time::{Instant, interval, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, debug, info_span};

use super::App;
use super::error::Problem;
use super::stats::Door;
use crate::config::{
    BODY_MAX, PING_EVERY, PONG_WAIT, READ_BUFFER, STEPS_PER_WRITE, WATCHES_MAX, WRITE_BUFFER, WRITE_WAIT,
};
use crate::nats::Reader;
use crate::session::{Error, Session, Step};
use crate::wire::{ClientFrame, Code, Gone, JSON_PROTOCOL, JobId, Refusal, ServerFrame, Start};

/// `GET /ws`.
pub(super) async fn upgrade(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Response {
    let upgrade = match upgrade {
        Ok(upgrade) => upgrade,
        Err(error) => return Problem::new(Code::BadRequest, error.body_text()).into_response(),
    };
    let mut offered = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).iter().peekable();
    let known = |value: &header::HeaderValue| {
        value.to_str().is_ok_and(|list| list.split(',').any(|name| name.trim() == JSON_PROTOCOL))
    };
    if offered.peek().is_some() && !offered.any(known) {
        return Problem::from(Code::BadSubprotocol).into_response();
    }
    if app.tasks.stop().is_cancelled() {
        return Problem::from(Code::Restarting).into_response();
    }
    let held = (app.tasks.hold(), app.counts.connected(Door::WebSocket));
    upgrade
        .protocols([JSON_PROTOCOL])
        .read_buffer_size(READ_BUFFER)
        .write_buffer_size(WRITE_BUFFER)
        .max_message_size(BODY_MAX)
        .max_frame_size(BODY_MAX)
        .on_upgrade(move |socket| async move {
            let connection = Connection::new(app, socket);
            connection.run().instrument(info_span!("ws", id = %nuid::next())).await;
            drop(held);
        })
}

/// One client's connection and the jobs that it watches.
struct Connection {
    app: Arc<App>,
    socket: WebSocket,
    /// What ends each watch.
    watches: HashMap<JobId, CancellationToken>,
    /// One future for each watch: its session's opening, or its next step.
    steps: FuturesUnordered<Pin<Box<dyn Future<Output = Happened> + Send>>>,
    /// When something was heard from the client, or it took something after a while.
    heard: Instant,
    pinged: Option<Instant>,
}

/// What came of a watch.
enum Happened {
    Opened(Result<Session<Reader>, Error>, JobId),
    Stepped(Session<Reader>, Step),
    Unwatched,
}

/// Why a connection ends.
#[derive(Debug)]
enum Ending {
    /// The client has gone, or nothing can be written to it.
    Gone,
    /// The edge closes it.
    Close(Code),
}

impl Connection {
    fn new(app: Arc<App>, socket: WebSocket) -> Self {
        let (watches, steps) = (HashMap::new(), FuturesUnordered::new());
        Self { app, socket, watches, steps, heard: Instant::now(), pinged: None }
    }

    async fn run(mut self) {
        debug!("connected");
        let ending = match self.hello().await {
            Ok(()) => self.serve().await,
            Err(ending) => ending,
        };
        debug!(?ending, "disconnected");
        if let Ending::Close(code) = ending {
            let row = code.row();
            let close =
                CloseFrame { code: row.close.unwrap_or(1011), reason: Utf8Bytes::from_static(row.code) };
            // The client may be the one that takes nothing; it is not waited for.
            let _ = timeout(PONG_WAIT / 20, self.socket.send(Message::Close(Some(close)))).await;
        }
    }

    async fn hello(&mut self) -> Result<(), Ending> {
        let (protocol, version) = (JSON_PROTOCOL.to_owned(), env!("CARGO_PKG_VERSION").to_owned());
        self.put(&ServerFrame::Hello { protocol, version }).await?;
        self.flush().await
    }

    async fn serve(&mut self) -> Ending {
        let stop = self.app.tasks.stop().clone();
        let mut ping = interval(PING_EVERY);
        ping.reset();
        loop {
            let pong_by = self.pinged.map(|at| at + PONG_WAIT);
            let outcome = tokio::select! {
                () = stop.cancelled() => Err(Ending::Close(Code::Restarting)),
                message = self.socket.recv() => self.heard(message).await,
                Some(happened) = self.steps.next(), if !self.steps.is_empty() => self.pump(happened).await,
                _ = ping.tick() => self.ping().await,
                () = sleep_until(pong_by.unwrap_or(self.heard)), if pong_by.is_some() => self.pong_missing(),
            };
            if let Err(ending) = outcome {
                return ending;
            }
        }
    }

    /// Takes in what the client sent.
    async fn heard(&mut self, message: Option<Result<Message, axum::Error>>) -> Result<(), Ending> {
        self.heard = Instant::now();
        self.pinged = None;
        match message {
            Some(Ok(Message::Text(text))) => {
                match ClientFrame::parse(&text) {
                    Ok(ClientFrame::Watch { job, start }) => self.watch(job, start).await?,
                    Ok(ClientFrame::Unwatch { job }) => self.unwatch(job).await?,
                    Err(refusal) => self.refuse(refusal).await?,
                }
                self.flush().await
            }
            Some(Ok(Message::Binary(_))) => Err(Ending::Close(Code::UnsupportedMediaType)),
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => Ok(()),
            Some(Ok(Message::Close(_))) | None => Err(Ending::Gone),
            Some(Err(error)) if is_too_large(&error) => Err(Ending::Close(Code::TooLarge)),
            Some(Err(error)) => {
                debug!(%error, "the connection broke");
                Err(Ending::Gone)
            }
        }
    }

    async fn watch(&mut self, job: JobId, start: Start) -> Result<(), Ending> {
        let refusal = if self.watches.contains_key(&job) {
            Some(Code::AlreadyWatching)
        } else if self.watches.len() >= WATCHES_MAX {
            Some(Code::TooManyWatches)
        } else {
            None
        };
        if let Some(code) = refusal {
            return self.error(code, code.row().text.to_owned(), Some(job.to_string())).await;
        }
        let end = CancellationToken::new();
        self.watches.insert(job.clone(), end.clone());
        let hub = Arc::clone(&self.app.hub);
        self.steps.push(Box::pin(async move {
            match end.run_until_cancelled(Session::open(&hub, &job, start)).await {
                Some(opened) => Happened::Opened(opened, job),
                None => Happened::Unwatched,
            }
        }));
        Ok(())
    }

    async fn unwatch(&mut self, job: JobId) -> Result<(), Ending> {
        match self.watches.remove(&job) {
            Some(end) => {
                end.cancel();
                self.put(&ServerFrame::Unwatched { job }).await
            }
            None => {
                let code = Code::NotWatching;
                self.error(code, code.row().text.to_owned(), Some(job.to_string())).await
            }
        }
    }

    /// Writes what the sessions have; what is ready together leaves together.
    async fn pump(&mut self, mut happened: Happened) -> Result<(), Ending> {
        // Sessions that replay always have more, and the client must be heard meanwhile.
        for _ in 0..STEPS_PER_WRITE {
            self.happen(happened).await?;
            match self.steps.next().now_or_never() {
                Some(Some(next)) => happened = next,
                Some(None) | None => return self.flush().await,
            }
        }
        self.happen(happened).await?;
        self.flush().await
    }

    async fn happen(&mut self, happened: Happened) -> Result<(), Ending> {
        match happened {
            Happened::Opened(Ok(session), job) => {
                if self.watches.contains_key(&job) {
                    let status = session.status();
                    self.put(&ServerFrame::Watching { job, status }).await?;
                    self.step(session);
                }
            }
            Happened::Opened(Err(error), job) => {
                if self.watches.remove(&job).is_some() {
                    self.error(error.code(), error.to_string(), Some(job.to_string())).await?;
                }
            }
            Happened::Stepped(session, step) => {
                let job = session.job().clone();
                if !self.watches.contains_key(&job) {
                    return Ok(());
                }
                match step {
                    Step::Events(events) => {
                        self.app.counts.delivered(events.len());
                        for event in events {
                            self.put_text(event.json().clone()).await?;
                        }
                    }
                    Step::Missing { from, to } => {
                        self.put(&ServerFrame::Missing { job, from, to, reason: Gone::Expired }).await?;
                    }
                    Step::Live => self.put(&ServerFrame::Live { job }).await?,
                    Step::End => {
                        self.watches.remove(&job);
                        return self.put(&ServerFrame::End { job }).await;
                    }
                }
                self.step(session);
            }
            Happened::Unwatched => {}
        }
        Ok(())
    }

    /// Waits for the next step of a session, beside all others.
    fn step(&mut self, mut session: Session<Reader>) {
        let Some(end) = self.watches.get(session.job()).cloned() else { return };
        self.steps.push(Box::pin(async move {
            match end.run_until_cancelled(session.next()).await {
                Some(step) => Happened::Stepped(session, step),
                None => Happened::Unwatched,
            }
        }));
    }

    async fn ping(&mut self) -> Result<(), Ending> {
        self.pinged.get_or_insert_with(Instant::now);
        self.feed(Message::Ping(Bytes::new())).await?;
        self.flush().await
    }

    fn pong_missing(&self) -> Result<(), Ending> {
        debug!(silent = ?self.heard.elapsed(), "no answer to a ping");
        Err(Ending::Close(Code::Timeout))
    }

    async fn refuse(&mut self, refusal: Refusal) -> Result<(), Ending> {
        self.error(refusal.code, refusal.message, refusal.job).await
    }

    async fn error(&mut self, code: Code, message: String, job: Option<String>) -> Result<(), Ending> {
        debug!(code = code.as_str(), "refused");
        self.put(&ServerFrame::Error { code: code.as_str().to_owned(), message, job }).await
    }

    async fn put(&mut self, frame: &ServerFrame) -> Result<(), Ending> {
        self.feed(Message::Text(frame.to_json().into())).await
    }

    async fn put_text(&mut self, text: Bytes) -> Result<(), Ending> {
        let text = Utf8Bytes::try_from(text).map_err(|_| Ending::Close(Code::Internal))?;
        self.feed(Message::Text(text)).await
    }

    /// Adds a frame to the write buffer; a full buffer is written first.
    async fn feed(&mut self, message: Message) -> Result<(), Ending> {
        let begun = Instant::now();
        let written = timeout(WRITE_WAIT, self.socket.feed(message)).await;
        self.wrote(begun, written.is_ok_and(|outcome| outcome.is_ok()))
    }

    async fn flush(&mut self) -> Result<(), Ending> {
        let begun = Instant::now();
        let written = timeout(WRITE_WAIT, self.socket.flush()).await;
        self.wrote(begun, written.is_ok_and(|outcome| outcome.is_ok()))
    }

    fn wrote(&mut self, begun: Instant, written: bool) -> Result<(), Ending> {
        if !written {
            return Err(Ending::Gone);
        }
        // A client that takes what it had no room for is there, though its pong waits unread behind the write.
        let now = Instant::now();
        if now - begun > PONG_WAIT / 20 {
            self.heard = now;
            self.pinged = None;
        }
        Ok(())
    }
}

/// Whether a client sent more than it may. The error type of the WebSocket library is not part of axum's interface.
fn is_too_large(error: &axum::Error) -> bool {
    error.to_string().contains("too long")
}
