//! The protocol of the AI SDK's `WebSocketChatTransport`, as a subprotocol of `/ws`: several requests
//! over one connection, each with its own numbers from 0. A request that is aborted stops no job.

use std::net::IpAddr;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use serde_json::{Map, Value};
use tokio::io::{AsyncRead, AsyncWrite};
use tracing::debug;

use super::messages::ChatSubmission;
use super::request::TurnRequest;
use super::streams::{ChatOpening, ChatRequests, FollowedJob, problem_frame};
use crate::edge::access::{Access, TokenEvent, TokenEvents};
use crate::edge::app::App;
use crate::edge::client_task::ServedClient;
use crate::edge::counters::Connected;
use crate::edge::error::Problem;
use crate::edge::memory::{SplitReservation, weight};
use crate::edge::quota::SubjectConnection;
use crate::edge::ws::socket::{ClientMessage, Disconnect};
use crate::edge::ws::timed::TimedSocket;
use crate::nats::Reader;
use crate::wire::limits::REF_MAX;
use crate::wire::{Code, Encoding, foreign_body};

/// The name of the subprotocol.
pub(in crate::edge) const CHAT_PROTOCOL: &str = "ai-sdk.chat.v1";

/// A connection, and its requests.
pub(in crate::edge) struct ChatSocket<T> {
    app: Arc<App>,
    access: Access,
    from: IpAddr,
    socket: TimedSocket<T>,
    token_events: TokenEvents,
    requests: ChatRequests<Reader>,
    /// Count it among the connections, and among the streams of its subject.
    counted: (Connected, Option<SubjectConnection>),
}

impl<T: AsyncRead + AsyncWrite + Unpin> ChatSocket<T> {
    pub(in crate::edge) fn new(
        app: Arc<App>,
        socket: TimedSocket<T>,
        from: IpAddr,
        access: Access,
        counted: (Connected, Option<SubjectConnection>),
    ) -> Self {
        Self {
            app,
            token_events: access.events(),
            access,
            from,
            socket,
            requests: ChatRequests::new(),
            counted,
        }
    }

    fn poll_turn(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Disconnect>> {
        self.socket.begin_turn(cx)?;
        while let Poll::Ready(Some(event)) = self.token_events.poll_next_unpin(cx) {
            if let TokenEvent::Ended(code) = event {
                return Poll::Ready(Err(Disconnect::Close(code)));
            }
        }
        let mut is_idle = false;
        loop {
            if self.poll_flush(cx)?.is_pending() {
                // Jobs are started and found all the same; the answers wait.
                let frames = self.requests.poll_openings(cx);
                self.socket.link().output.put(frames);
                return Poll::Pending;
            }
            if !is_idle {
                match self.socket.poll_receive(cx)? {
                    Poll::Ready(messages) => self.receive(messages)?,
                    Poll::Pending => is_idle = true,
                }
            }
            let has_more = self.poll_requests(cx).is_ready();
            if is_idle && !has_more && self.socket.link().output.is_empty() {
                return Poll::Pending;
            }
        }
    }

    /// Writes everything. If the client does not accept it, drops the events that wait.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Disconnect>> {
        let flushed = self.socket.poll_flush(cx)?;
        self.requests.release(self.socket.link(), cx);
        flushed.map(Ok)
    }

    fn receive(&mut self, messages: Vec<ClientMessage>) -> Result<(), Disconnect> {
        for message in messages {
            if message.encoding != Encoding::Json {
                return Err(Disconnect::Close(Code::UnsupportedMediaType));
            }
            // Without the id of its request, an error cannot be answered.
            let bad = || Disconnect::Close(Code::ProtocolError);
            let frame = foreign_body(&message.bytes);
            let Ok(Value::Object(mut frame)) = frame else {
                return Err(bad());
            };
            let Some(Value::String(id)) = frame.remove("requestId") else {
                return Err(bad());
            };
            if id.len() > REF_MAX {
                return Err(bad());
            }
            if frame.get("type").is_some_and(|op| op == "abort") {
                self.requests.abort(&id);
                continue;
            }
            // An error with this id would end the request that has it.
            if self.requests.has(&id) {
                return Err(bad());
            }
            if let Err(problem) = self.handle(&id, frame) {
                let frame = problem_frame(&id, &problem);
                self.socket.link().output.put(frame);
            }
        }
        Ok(())
    }

    /// Begins the request of a client's frame.
    fn handle(&mut self, id: &str, mut frame: Map<String, Value>) -> Result<(), Problem> {
        let bad = |message: &str| Problem::new(Code::BadRequest, message);
        let op = frame
            .get("type")
            .and_then(Value::as_str)
            .unwrap_or_default();
        self.requests.admit()?;
        let is_send = op == "send";
        if !is_send && op != "resume" {
            return Err(bad("`type` is not send, resume or abort."));
        }
        let Some(Value::String(chat)) = frame.remove("id") else {
            return Err(bad("`id`, the id of the chat, is missing."));
        };
        let app = Arc::clone(&self.app);
        let from = self.from;
        let request = TurnRequest::new(Arc::clone(&app), self.access.clone(), from, &chat);
        let answers = id.to_owned();
        let turn = self.requests.room_turn();
        let follow = move |session| FollowedJob::new(&app, from, answers, turn, session);
        let opening: ChatOpening<Reader> = if is_send {
            let input = ChatSubmission::of(body_of(frame, chat))?.input;
            let held = self.reserve(&input)?;
            Box::pin(async move {
                let session = request.answer(input).await;
                drop(held);
                session.map(|session| Some(follow(session)))
            })
        } else {
            Box::pin(async move {
                let session = request.resume().await;
                session.map(|session| session.map(follow))
            })
        };
        self.requests.add(id, opening);
        Ok(())
    }

    fn reserve(&self, input: &Value) -> Result<SplitReservation, Problem> {
        Ok(self.app.shared.memory().submits.reserve(weight(input))?)
    }

    /// Adds what one request sends next to the output. Pending if there is nothing.
    fn poll_requests(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let output = ready!(self.requests.poll_next(cx));
        let link = self.socket.link();
        link.is_large |= output.is_large;
        link.output.put(output.frames);
        Poll::Ready(())
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin + Send + 'static> ServedClient for ChatSocket<T> {
    type End = Disconnect;

    /// Ready when the client disconnects, or when it should reconnect because the edge stops.
    fn poll_serve(&mut self, cx: &mut Context<'_>) -> Poll<Disconnect> {
        match self.poll_turn(cx) {
            Poll::Ready(Ok(())) | Poll::Pending => Poll::Pending,
            Poll::Ready(Err(disconnect)) => Poll::Ready(disconnect),
        }
    }

    fn close(self, disconnect: Disconnect) -> BoxFuture<'static, ()> {
        debug!(?disconnect, "disconnected");
        let Self {
            socket, counted, ..
        } = self;
        Box::pin(async move {
            let _slot = socket.close(disconnect).await;
            drop(counted);
        })
    }
}

/// The body of an HTTP request that says the same as a `send`.
fn body_of(mut frame: Map<String, Value>, chat: String) -> Value {
    let mut body = match frame.remove("body") {
        Some(Value::Object(fields)) => fields,
        _ => Map::new(),
    };
    body.insert("id".into(), chat.into());
    if let Some(messages) = frame.remove("messages") {
        body.insert("messages".into(), messages);
    }
    body.into()
}
