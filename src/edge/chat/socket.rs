//! The protocol of the AI SDK's `WebSocketChatTransport`, as a subprotocol of `/ws`: several requests
//! over one connection, each with its own numbers from 0. A request that is aborted stops no job.

use std::net::IpAddr;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use serde::Deserialize;
use serde_json::{Map, Value};
use tokio::io::{AsyncRead, AsyncWrite};
use tracing::debug;

use super::messages::ChatSubmission;
use super::request::TurnRequest;
use super::streams::{ChatOpening, ChatRequests, FollowedJob, problem_frame};
use crate::edge::access::{Access, TokenEvent, TokenEvents};
use crate::edge::app::App;
use crate::edge::client_task::{ServedClient, end_of_turn};
use crate::edge::counters::Connected;
use crate::edge::error::Problem;
use crate::edge::quota::SubjectConnection;
use crate::edge::ws::socket::{ClientMessage, Disconnect};
use crate::edge::ws::timed::TimedSocket;
use crate::nats::Reader;
use crate::wire::limits::{OP_MAX, REF_MAX};
use crate::wire::{Code, Encoding, Excerpt, foreign_body, read_fields};

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
            let head: ChatFrameHead = read_fields(&message.bytes).map_err(|_| bad())?;
            let id = head.id.0.filter(|id| id.len() <= REF_MAX);
            let id = id.ok_or_else(bad)?;
            let op = head.op.0.unwrap_or_default();
            if op == "abort" {
                self.requests.abort(&id);
                continue;
            }
            // An error with this id would end the request that has it.
            if self.requests.has(&id) {
                return Err(bad());
            }
            if let Err(problem) = self.handle(&id, &op, &message.bytes) {
                let frame = problem_frame(&id, &problem);
                self.socket.link().output.put(frame);
            }
        }
        Ok(())
    }

    /// Begins the request of a client's frame.
    fn handle(&mut self, id: &str, op: &str, frame: &[u8]) -> Result<(), Problem> {
        let room = self.requests.admit(self.app.shared.memory())?;
        let (chat, sent) = match op {
            "send" => {
                let admit = |input| self.app.reserve_submission(input);
                let (frame, reservation) = foreign_body(frame, admit)?;
                let ChatSubmission { chat, input } = ChatSubmission::of(body_of(frame))?;
                (chat, Some((input, reservation)))
            }
            "resume" => {
                let ResumeFrame { id } = read_fields(frame)?;
                (id, None)
            }
            _ => {
                let message = "`type` is not send, resume or abort.";
                return Err(Problem::new(Code::BadRequest, message));
            }
        };
        let app = Arc::clone(&self.app);
        let from = self.from;
        let request = TurnRequest::new(Arc::clone(&app), self.access.clone(), from, &chat);
        let answers = id.to_owned();
        let turn = self.requests.room_turn();
        let opening: ChatOpening<Reader> = Box::pin(async move {
            let session = match sent {
                Some((input, reservation)) => Some(request.answer(input, reservation).await?),
                None => request.resume().await?,
            };
            let follow = |session| FollowedJob::new(&app, from, answers, turn, session);
            Ok(session.map(follow))
        });
        self.requests.add(id, room, opening);
        Ok(())
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
        end_of_turn(self.poll_turn(cx))
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

/// What a frame is, and the id of its request.
#[derive(Deserialize)]
struct ChatFrameHead {
    #[serde(rename = "type", default)]
    op: Excerpt<OP_MAX>,
    // Longer than the longest, so that a longer one is noticed.
    #[serde(rename = "requestId", default)]
    id: Excerpt<{ REF_MAX + 1 }>,
}

/// What a `resume` says.
#[derive(Deserialize)]
struct ResumeFrame {
    /// The id of the chat.
    id: String,
}

/// The body of an HTTP request that says the same as a `send`.
fn body_of(frame: Value) -> Value {
    let Value::Object(mut frame) = frame else {
        return frame;
    };
    let mut body = match frame.remove("body") {
        Some(Value::Object(fields)) => fields,
        _ => Map::new(),
    };
    body.insert("id".into(), frame.remove("id").unwrap_or_default());
    if let Some(messages) = frame.remove("messages") {
        body.insert("messages".into(), messages);
    }
    body.into()
}
