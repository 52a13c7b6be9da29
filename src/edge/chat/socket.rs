//! The protocol of the AI SDK's `WebSocketChatTransport`, as a subprotocol of `/ws`: several requests
//! over one connection, each with its own numbers from 0. A request that is aborted stops no job.

use std::future::poll_fn;
use std::net::IpAddr;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use serde_json::{Map, Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tracing::debug;

use super::messages::ChatSubmission;
use super::parts::MessageParts;
use super::request::TurnRequest;
use crate::config::WATCHES_MAX;
use crate::edge::access::{Access, TokenEvent};
use crate::edge::app::App;
use crate::edge::counters::Transport;
use crate::edge::error::{Problem, count_refusal};
use crate::edge::memory::{SplitReservation, weight};
use crate::edge::sse::{Translation, Translator};
use crate::edge::watches::{Outgoing, Watches};
use crate::edge::ws::socket::{ClientMessage, Disconnect};
use crate::edge::ws::timed::TimedSocket;
use crate::nats::Reader;
use crate::session::Session;
use crate::wire::framing::{FrameKind, websocket_frame};
use crate::wire::limits::REF_MAX;
use crate::wire::{Code, Encoding, Seq, ServerFrame, Stored, foreign_body};

/// The name of the subprotocol.
pub(in crate::edge) const CHAT_PROTOCOL: &str = "ai-sdk.chat.v1";

/// A connection, and its requests.
pub(in crate::edge) struct ChatSocket<T> {
    app: Arc<App>,
    access: Access,
    from: IpAddr,
    socket: TimedSocket<T>,
    token_events: BoxStream<'static, TokenEvent>,
    requests: Vec<ChatRequestStream>,
    /// The request that is polled first, so that each gets its turn.
    turn: usize,
}

/// A request that is answered.
struct ChatRequestStream {
    id: String,
    state: RequestState,
}

enum RequestState {
    /// The job is being started or found.
    Opening(BoxFuture<'static, Result<Option<Session<Reader>>, Problem>>),
    // Boxed, because a request that waits has neither.
    Open(Box<(Watches<Reader, ()>, Translator)>),
}

/// Frames of one request, and whether it is over.
struct RequestOutput {
    frames: Vec<u8>,
    is_over: bool,
}

impl<T: AsyncRead + AsyncWrite + Unpin> ChatSocket<T> {
    pub(in crate::edge) fn new(
        app: Arc<App>,
        socket: TimedSocket<T>,
        from: IpAddr,
        access: Access,
    ) -> Self {
        Self {
            app,
            token_events: access.events(),
            access,
            from,
            socket,
            requests: Vec::new(),
            turn: 0,
        }
    }

    /// Serves the client until it disconnects, or until it should reconnect because the edge stops.
    pub(in crate::edge) async fn run(mut self: Box<Self>) {
        let disconnect = poll_fn(|cx| self.poll_serve(cx)).await;
        debug!(?disconnect, "disconnected");
        let _slot = Box::pin(self.socket.close(disconnect)).await;
    }

    fn poll_serve(&mut self, cx: &mut Context<'_>) -> Poll<Disconnect> {
        match self.poll_turn(cx) {
            Poll::Ready(Ok(())) | Poll::Pending => Poll::Pending,
            Poll::Ready(Err(disconnect)) => Poll::Ready(disconnect),
        }
    }

    fn poll_turn(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Disconnect>> {
        self.socket.check_time(cx)?;
        while let Poll::Ready(Some(event)) = self.token_events.poll_next_unpin(cx) {
            if let TokenEvent::Ended(code) = event {
                return Poll::Ready(Err(Disconnect::Close(code)));
            }
        }
        let mut is_idle = false;
        loop {
            ready!(self.poll_flush(cx))?;
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
        for request in &mut self.requests {
            if let RequestState::Open(open) = &mut request.state
                && let (watches, translator) = &mut **open
                && translator.has_waiting()
                && self.socket.link().is_stalled(watches.reads_memory(), cx)
            {
                watches.release(translator.release());
            }
        }
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
            if let Err(problem) = self.handle(&id, frame) {
                let frame = problem_frame(&id, &problem);
                self.socket.link().output.put(frame);
            }
        }
        Ok(())
    }

    /// Handles a frame of the client about a request.
    fn handle(&mut self, id: &str, mut frame: Map<String, Value>) -> Result<(), Problem> {
        let bad = |message: &str| Problem::new(Code::BadRequest, message);
        let op = frame
            .get("type")
            .and_then(Value::as_str)
            .unwrap_or_default();
        if op == "abort" {
            self.requests.retain(|request| request.id != id);
            return Ok(());
        }
        if self.requests.len() >= WATCHES_MAX {
            return Err(Code::TooManyRequests.into());
        }
        let is_send = op == "send";
        if !is_send && op != "resume" {
            return Err(bad("`type` is not send, resume or abort."));
        }
        let Some(Value::String(chat)) = frame.remove("id") else {
            return Err(bad("`id`, the id of the chat, is missing."));
        };
        let app = Arc::clone(&self.app);
        let request = TurnRequest::new(app, self.access.clone(), self.from, &chat);
        let opening: BoxFuture<'static, _> = if is_send {
            let input = ChatSubmission::of(body_of(frame, chat))?.input;
            let held = self.reserve(&input)?;
            Box::pin(async move {
                let session = request.answer(input).await;
                drop(held);
                session.map(Some)
            })
        } else {
            Box::pin(async move { request.resume().await })
        };
        self.requests.push(ChatRequestStream {
            id: id.to_owned(),
            state: RequestState::Opening(opening),
        });
        Ok(())
    }

    fn reserve(&self, input: &Value) -> Result<SplitReservation, Problem> {
        Ok(self.app.shared.memory().submits.reserve(weight(input))?)
    }

    /// Adds what one request sends next to the output. Pending if there is nothing.
    fn poll_requests(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        for _ in 0..self.requests.len() {
            let index = self.turn % self.requests.len();
            self.turn = index + 1;
            let request = &mut self.requests[index];
            let polled = request.poll_next(&self.app, self.from, cx);
            if let Poll::Ready(output) = polled {
                if let RequestState::Open(open) = &request.state {
                    self.socket.link().is_large |= open.0.holds_room();
                }
                if !output.frames.is_empty() {
                    self.socket.link().output.put(output.frames);
                }
                if output.is_over {
                    self.requests.remove(index);
                }
                return Poll::Ready(());
            }
        }
        Poll::Pending
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

impl ChatRequestStream {
    fn poll_next(
        &mut self,
        app: &Arc<App>,
        from: IpAddr,
        cx: &mut Context<'_>,
    ) -> Poll<RequestOutput> {
        match &mut self.state {
            RequestState::Opening(opening) => {
                let opened = ready!(opening.as_mut().poll(cx));
                Poll::Ready(self.opened(app, from, opened))
            }
            RequestState::Open(open) => loop {
                let (watches, translator) = &mut **open;
                if let Some(frames) = translator.next() {
                    return Poll::Ready(RequestOutput {
                        frames,
                        is_over: false,
                    });
                }
                match ready!(watches.poll_next(cx)) {
                    Outgoing::Events(events) => translator.begin(events),
                    Outgoing::Frame(_, ServerFrame::Missing { from, to, .. }) => {
                        return Poll::Ready(RequestOutput {
                            frames: translator.missing(from, to),
                            is_over: false,
                        });
                    }
                    Outgoing::Frame(_, ServerFrame::End { .. } | ServerFrame::Error { .. }) => {
                        let mut frames = translator.close();
                        frames.extend(text_frame(&json!({"type": "end", "requestId": self.id})));
                        return Poll::Ready(RequestOutput {
                            frames,
                            is_over: true,
                        });
                    }
                    Outgoing::Frame(..) | Outgoing::Answer(..) | Outgoing::Token(_) => {}
                }
            },
        }
    }

    fn opened(
        &mut self,
        app: &Arc<App>,
        from: IpAddr,
        opened: Result<Option<Session<Reader>>, Problem>,
    ) -> RequestOutput {
        match opened {
            Ok(Some(session)) => {
                let translator = Translator::new(Box::new(PartFrames {
                    fold: MessageParts::new(session.job().clone()),
                    request: self.id.clone(),
                    next_sequence: 0,
                }));
                let counters = Arc::clone(&app.thread.counters);
                let room = app.shared.memory().streams.clone();
                let transport = Transport::WebSocket;
                let mut watches =
                    Watches::new(Arc::clone(&app.hub), counters, transport, from, room);
                watches.watch_session(session);
                self.state = RequestState::Open(Box::new((watches, translator)));
                RequestOutput {
                    frames: text_frame(&json!({"type": "start", "requestId": self.id})),
                    is_over: false,
                }
            }
            Ok(None) => RequestOutput {
                frames: text_frame(&json!({"type": "no-active", "requestId": self.id})),
                is_over: true,
            },
            Err(problem) => RequestOutput {
                frames: problem_frame(&self.id, &problem),
                is_over: true,
            },
        }
    }
}

fn text_frame(frame: &Value) -> Vec<u8> {
    websocket_frame(FrameKind::Text, frame.to_string().as_bytes())
}

/// The frame that ends a request with an error.
fn problem_frame(id: &str, problem: &Problem) -> Vec<u8> {
    count_refusal(problem.code());
    let text = format!("{}: {}", problem.code().as_str(), problem.message());
    text_frame(&json!({"type": "error", "requestId": id, "errorText": text}))
}

/// Message parts as numbered frames of a request.
struct PartFrames {
    fold: MessageParts,
    request: String,
    next_sequence: u64,
}

impl PartFrames {
    fn put(&mut self, parts: Vec<Value>, out: &mut Vec<u8>) {
        for part in parts {
            let sequence = self.next_sequence;
            self.next_sequence += 1;
            out.extend(text_frame(&json!({
                "type": "chunk", "requestId": self.request, "sequence": sequence, "chunk": part,
            })));
        }
    }
}

impl Translation for PartFrames {
    fn apply(&mut self, event: &Stored, out: &mut Vec<u8>) {
        let parts = self.fold.apply(event);
        self.put(parts, out);
    }

    fn missing(&mut self, from: Seq, to: Seq, out: &mut Vec<u8>) {
        let parts = self.fold.missing(from, to);
        self.put(parts, out);
    }

    fn close(&mut self, out: &mut Vec<u8>) {
        let parts = self.fold.close();
        self.put(parts, out);
    }
}
