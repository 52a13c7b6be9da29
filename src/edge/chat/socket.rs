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
use crate::source::EventSource;
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
    requests: ChatRequests<Reader>,
}

/// The requests of one connection that are not over.
struct ChatRequests<S: EventSource> {
    list: Vec<ChatRequestStream<S>>,
    /// The request that is polled first, so that each gets its turn.
    turn: usize,
}

/// A request that is answered.
struct ChatRequestStream<S: EventSource> {
    id: String,
    state: RequestState<S>,
}

enum RequestState<S: EventSource> {
    /// The job is being started or found.
    Opening(ChatOpening<S>),
    // Boxed, because a request that waits has none.
    Open(Box<FollowedJob<S>>),
}

/// Starts or finds a job; `None` if no job of the chat is active.
type ChatOpening<S> = BoxFuture<'static, Result<Option<FollowedJob<S>>, Problem>>;

/// The job that answers a request.
struct FollowedJob<S: EventSource> {
    watches: Watches<S, ()>,
    translator: Translator,
}

/// Frames of one request.
struct RequestOutput {
    frames: Vec<u8>,
    /// Whether the request is over.
    is_over: bool,
    /// Whether the frames take scarce memory.
    is_large: bool,
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
            requests: ChatRequests::new(),
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
        for request in &mut self.requests.list {
            if let RequestState::Open(open) = &mut request.state
                && open.translator.has_waiting()
                && self
                    .socket
                    .link()
                    .is_stalled(open.watches.reads_memory(), cx)
            {
                open.watches.release(open.translator.release());
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
            self.requests.list.retain(|request| request.id != id);
            return Ok(());
        }
        self.requests.admit(id)?;
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
        let follow = move |session| FollowedJob::new(&app, from, answers, session);
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

impl<S: EventSource> ChatRequests<S> {
    const fn new() -> Self {
        Self {
            list: Vec::new(),
            turn: 0,
        }
    }

    /// Whether a request with this id may begin.
    fn admit(&self, id: &str) -> Result<(), Problem> {
        if self.list.iter().any(|request| request.id == id) {
            let message = "The request with this `requestId` is not over. Use another one.";
            return Err(Problem::new(Code::BadRequest, message));
        }
        if self.list.len() >= WATCHES_MAX {
            return Err(Code::TooManyRequests.into());
        }
        Ok(())
    }

    fn add(&mut self, id: &str, opening: ChatOpening<S>) {
        self.list.push(ChatRequestStream {
            id: id.to_owned(),
            state: RequestState::Opening(opening),
        });
    }

    /// What one request sends next. Pending if there is nothing.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<RequestOutput> {
        for _ in 0..self.list.len() {
            let index = self.turn % self.list.len();
            self.turn = index + 1;
            if let Poll::Ready(output) = self.list[index].poll_next(cx) {
                if output.is_over {
                    self.list.remove(index);
                }
                return Poll::Ready(output);
            }
        }
        Poll::Pending
    }

    /// Polls the requests whose jobs are being started or found. Returns the first frame of those
    /// that are now followed or over.
    fn poll_openings(&mut self, cx: &mut Context<'_>) -> Vec<u8> {
        let mut frames = Vec::new();
        self.list
            .retain_mut(|request| match request.poll_opening(cx) {
                Poll::Ready(output) => {
                    frames.extend(output.frames);
                    !output.is_over
                }
                Poll::Pending => true,
            });
        frames
    }
}

impl<S: EventSource> ChatRequestStream<S> {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<RequestOutput> {
        match &mut self.state {
            RequestState::Opening(_) => self.poll_opening(cx),
            RequestState::Open(open) => open.poll_next(&self.id, cx),
        }
    }

    /// The first frame, once the job is started or found. Pending also after that.
    fn poll_opening(&mut self, cx: &mut Context<'_>) -> Poll<RequestOutput> {
        let RequestState::Opening(opening) = &mut self.state else {
            return Poll::Pending;
        };
        let id = &self.id;
        let (frames, is_over) = match ready!(opening.as_mut().poll(cx)) {
            Ok(Some(followed)) => {
                self.state = RequestState::Open(Box::new(followed));
                (
                    text_frame(&json!({"type": "start", "requestId": id})),
                    false,
                )
            }
            Ok(None) => (
                text_frame(&json!({"type": "no-active", "requestId": id})),
                true,
            ),
            Err(problem) => (problem_frame(id, &problem), true),
        };
        Poll::Ready(RequestOutput {
            frames,
            is_over,
            is_large: false,
        })
    }
}

impl FollowedJob<Reader> {
    /// Answers the request with this id.
    fn new(app: &App, from: IpAddr, request: String, session: Session<Reader>) -> Self {
        let translator = Translator::new(Box::new(PartFrames {
            fold: MessageParts::new(session.job().clone()),
            request,
            next_sequence: 0,
        }));
        let counters = Arc::clone(&app.thread.counters);
        let room = app.shared.memory().streams.clone();
        let transport = Transport::WebSocket;
        let mut watches = Watches::new(Arc::clone(&app.hub), counters, transport, from, room);
        watches.watch_session(session);
        Self {
            watches,
            translator,
        }
    }
}

impl<S: EventSource> FollowedJob<S> {
    /// The next frames of the request with this id.
    fn poll_next(&mut self, id: &str, cx: &mut Context<'_>) -> Poll<RequestOutput> {
        loop {
            if let Some(frames) = self.translator.next() {
                return Poll::Ready(self.output(frames));
            }
            // Counts what was written, even if nothing follows it.
            let polled = self.watches.poll_next(cx);
            if self.translator.is_over() {
                return Poll::Ready(end_of(id, Vec::new()));
            }
            match ready!(polled) {
                Outgoing::Events(events) => self.translator.begin(events),
                Outgoing::Frame(_, ServerFrame::Missing { from, to, .. }) => {
                    let frames = self.translator.missing(from, to);
                    return Poll::Ready(self.output(frames));
                }
                Outgoing::Frame(_, ServerFrame::End { .. } | ServerFrame::Error { .. }) => {
                    return Poll::Ready(end_of(id, self.translator.close()));
                }
                Outgoing::Frame(..) | Outgoing::Answer(..) | Outgoing::Token(_) => {}
            }
        }
    }

    fn output(&self, frames: Vec<u8>) -> RequestOutput {
        RequestOutput {
            frames,
            is_over: false,
            is_large: self.watches.holds_room(),
        }
    }
}

/// These last frames of a request, and its end.
fn end_of(id: &str, mut frames: Vec<u8>) -> RequestOutput {
    frames.extend(text_frame(&json!({"type": "end", "requestId": id})));
    RequestOutput {
        frames,
        is_over: true,
        is_large: false,
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

    fn is_over(&self) -> bool {
        self.fold.is_ended()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::memory::MemoryLog;
    use futures_util::FutureExt as _;
    use std::future::{pending, ready};

    /// Requests whose jobs are found at once, later, and not at all.
    fn requests() -> ChatRequests<MemoryLog> {
        let mut requests = ChatRequests::new();
        requests.add("none", ready(Ok(None)).boxed());
        requests.add("waits", pending().boxed());
        requests.add("refused", ready(Err(Code::Overloaded.into())).boxed());
        requests
    }

    #[tokio::test]
    async fn a_request_id_cannot_be_used_again_before_its_request_is_over() {
        let mut requests = requests();
        let code = |requests: &ChatRequests<MemoryLog>, id| {
            let admitted = requests.admit(id);
            admitted.map_err(|problem| problem.code())
        };
        assert_eq!(code(&requests, "none"), Err(Code::BadRequest));
        assert_eq!(code(&requests, "new"), Ok(()));
        let first = poll_fn(|cx| requests.poll_next(cx)).await;
        assert!(first.is_over);
        assert_eq!(code(&requests, "none"), Ok(()));
        assert_eq!(code(&requests, "waits"), Err(Code::BadRequest));
    }

    #[tokio::test]
    async fn all_openings_are_polled_together() {
        let mut requests = requests();
        let frames = poll_fn(|cx| Poll::Ready(requests.poll_openings(cx))).await;
        let frames = String::from_utf8_lossy(&frames);
        for expected in [
            r#"{"requestId":"none","type":"no-active"}"#,
            r#""errorText":"overloaded: "#,
        ] {
            assert!(frames.contains(expected), "{expected}: {frames}");
        }
        let ids: Vec<_> = requests.list.iter().map(|request| &*request.id).collect();
        assert_eq!(ids, ["waits"]);
    }
}
