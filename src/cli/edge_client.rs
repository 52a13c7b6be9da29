//! A client of an edge that follows one job, over several connections if necessary.

use std::time::Duration;

use anyhow::{Context as _, bail};
use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::json;
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

use super::args::no_job;
use super::client_token::ClientTokenArgs;
use super::show::JobPrinter;
use crate::backoff::Backoff;
use crate::config::{PING_EVERY, PONG_WAIT, REREAD_FIRST, REREAD_MAX, TAIL_CONNECT_WAIT};
use crate::wire::{JSON_PROTOCOL, JobId, ServerFrame, Start, may_reconnect};

/// Follows one job over an edge's WebSocket.
pub(super) struct TailClient {
    pub(super) url: String,
    pub(super) token: ClientTokenArgs,
    pub(super) job: JobId,
    /// Where to start, or to resume after a drop.
    pub(super) start: Start,
    pub(super) must_exist: bool,
    pub(super) drop_after: Option<u64>,
    pub(super) printer: JobPrinter,
}

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// How a connection ended.
enum ConnectionEnd {
    /// The job has ended.
    JobEnded,
    /// The connection was lost; connect again.
    Dropped,
    /// The edge refuses the client or the watch for now; connect again after this time.
    Refused(Duration),
}

impl TailClient {
    /// Follows the job to its end, and reconnects when a connection is lost.
    pub(super) async fn run(&mut self) -> anyhow::Result<()> {
        let mut backoff = Backoff::new(REREAD_FIRST, REREAD_MAX);
        let mut was_connected = false;
        loop {
            match self.connect().await {
                Ok(socket) => {
                    if std::mem::replace(&mut was_connected, true) {
                        self.printer.resumed();
                    }
                    backoff.reset();
                    match self.watch(socket).await? {
                        ConnectionEnd::JobEnded => return Ok(()),
                        ConnectionEnd::Dropped => {}
                        ConnectionEnd::Refused(pause) => {
                            sleep(pause).await;
                            continue;
                        }
                    }
                }
                Err(error) if !was_connected => {
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
        if let Some(authorization) = self.token.authorization()? {
            let value = authorization.parse::<HeaderValue>();
            let value = value.map_err(|_| {
                anyhow::anyhow!("the token has characters that a header cannot have")
            })?;
            request.headers_mut().insert("Authorization", value);
        }
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

    async fn watch(&mut self, mut socket: Socket) -> anyhow::Result<ConnectionEnd> {
        let mut events = 0;
        loop {
            // The edge pings, so a connection that is silent for longer is dead.
            let Ok(Some(Ok(message))) = timeout(PING_EVERY + PONG_WAIT, socket.next()).await else {
                return Ok(ConnectionEnd::Dropped);
            };
            match message {
                Message::Text(text) => match serde_json::from_str(&text) {
                    Ok(ServerFrame::End { .. }) => return Ok(ConnectionEnd::JobEnded),
                    Ok(ServerFrame::Watching { status: None, .. }) => {
                        anyhow::ensure!(!self.must_exist, no_job(&self.job));
                        JobPrinter::waiting(&self.job);
                    }
                    Ok(ServerFrame::Missing { from, to, .. }) => self.printer.missing(from, to),
                    Ok(ServerFrame::Error {
                        code,
                        message,
                        retry_after: Some(seconds),
                        ..
                    }) => {
                        tracing::info!(code, message, "the edge refuses this for now");
                        return Ok(ConnectionEnd::Refused(Duration::from_secs(seconds)));
                    }
                    Ok(ServerFrame::Error { code, message, .. }) => bail!("{message} ({code})"),
                    Ok(
                        ServerFrame::Hello { .. }
                        | ServerFrame::Pong
                        | ServerFrame::Authenticated { .. }
                        | ServerFrame::TokenExpiring { .. }
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
                            // Without a close frame, like a lost network.
                            self.drop_after = None;
                            return Ok(ConnectionEnd::Dropped);
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
                Message::Close(_) => return Ok(ConnectionEnd::Dropped),
                Message::Ping(_) | Message::Pong(_) | Message::Binary(_) | Message::Frame(_) => {}
            }
        }
    }

    fn event(&mut self, json: &[u8]) -> anyhow::Result<()> {
        #[derive(serde::Deserialize)]
        struct EventCursor {
            cursor: String,
        }
        let EventCursor { cursor } =
            serde_json::from_slice(json).context("a frame that is not an event")?;
        self.printer.event(json)?;
        self.start = Start::Cursor(cursor.parse()?);
        Ok(())
    }
}
