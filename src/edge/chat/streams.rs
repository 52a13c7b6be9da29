//! The requests of a client that speaks the AI SDK's protocol over a WebSocket: starts or finds their
//! jobs, and returns the frames of each. It reads and writes nothing.

use std::net::IpAddr;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures_util::future::BoxFuture;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};

use super::parts::MessageParts;
use crate::budget::Reservation;
use crate::config::WATCHES_MAX;
use crate::edge::app::App;
use crate::edge::counters::Transport;
use crate::edge::error::{Problem, count_refusal};
use crate::edge::link::Link;
use crate::edge::memory::Memory;
use crate::edge::sse::{Translation, Translator};
use crate::edge::watches::{Outgoing, RoomTurn, Watches};
use crate::nats::Reader;
use crate::session::Session;
use crate::source::EventSource;
use crate::wire::framing::{FrameKind, websocket_frame};
use crate::wire::{Code, Seq, ServerFrame, Stored};

/// The requests of one connection that are not over.
pub(super) struct ChatRequests<S: EventSource> {
    list: Vec<ChatRequestStream<S>>,
    /// The request that is polled first, so that each gets its turn.
    turn: usize,
    /// `None` until the first request. One for all, because they are of one client.
    room_turn: Option<RoomTurn>,
}

/// A request that is answered.
struct ChatRequestStream<S: EventSource> {
    id: String,
    state: RequestState<S>,
    _room: Option<Reservation>,
}

enum RequestState<S: EventSource> {
    /// The job is being started or found.
    Opening(ChatOpening<S>),
    // Boxed, because a request that waits has none.
    Open(Box<FollowedJob<S>>),
}

/// Starts or finds a job; `None` if no job of the chat is active.
pub(super) type ChatOpening<S> = BoxFuture<'static, Result<Option<FollowedJob<S>>, Problem>>;

/// The job that answers a request.
pub(super) struct FollowedJob<S: EventSource> {
    watches: Watches<S, ()>,
    translator: Translator,
}

/// Frames of one request.
pub(super) struct RequestOutput {
    pub(super) frames: Vec<u8>,
    /// Whether the request is over.
    is_over: bool,
    /// Whether the frames take scarce memory.
    pub(super) is_large: bool,
}

impl<S: EventSource> ChatRequests<S> {
    pub(super) const fn new() -> Self {
        Self {
            list: Vec::new(),
            turn: 0,
            room_turn: None,
        }
    }

    /// The turn of these requests to wait for room.
    pub(super) fn room_turn(&mut self) -> RoomTurn {
        Arc::clone(self.room_turn.get_or_insert_default())
    }

    /// Whether the request with this id is not over.
    pub(super) fn has(&self, id: &str) -> bool {
        self.list.iter().any(|request| request.id == id)
    }

    /// Whether one more request may begin, and the room that it takes.
    pub(super) fn admit(&self, memory: &Memory) -> Result<Option<Reservation>, Problem> {
        if self.list.len() >= WATCHES_MAX {
            return Err(Code::TooManyRequests.into());
        }
        Ok(memory.reserve_watch(self.list.len())?)
    }

    pub(super) fn add(&mut self, id: &str, room: Option<Reservation>, opening: ChatOpening<S>) {
        self.list.push(ChatRequestStream {
            id: id.to_owned(),
            _room: room,
            state: RequestState::Opening(opening),
        });
    }

    /// Forgets a request.
    pub(super) fn abort(&mut self, id: &str) {
        self.list.retain(|request| request.id != id);
    }

    /// Drops the events that wait for a client that accepts no data.
    pub(super) fn release<T: AsyncRead + AsyncWrite + Unpin>(
        &mut self,
        link: &mut Link<T>,
        cx: &Context<'_>,
    ) {
        for request in &mut self.list {
            if let RequestState::Open(open) = &mut request.state
                && open.translator.has_waiting()
                && link.is_stalled(open.watches.reads_memory(), cx)
            {
                open.watches.release(open.translator.release());
            }
        }
    }

    /// What one request sends next. Pending if there is nothing.
    pub(super) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<RequestOutput> {
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
    pub(super) fn poll_openings(&mut self, cx: &mut Context<'_>) -> Vec<u8> {
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
    /// Answers the request with this id; `turn` comes from [`ChatRequests::room_turn`].
    pub(super) fn new(
        app: &App,
        from: IpAddr,
        request: String,
        turn: RoomTurn,
        session: Session<Reader>,
    ) -> Self {
        let translator = Translator::new(Box::new(PartFrames {
            fold: MessageParts::new(session.job().clone()),
            request,
            next_sequence: 0,
        }));
        let counters = Arc::clone(&app.thread.counters);
        let room = app.shared.memory().events(Transport::WebSocket).clone();
        let transport = Transport::WebSocket;
        let watches = Watches::new(Arc::clone(&app.hub), counters, transport, from, room);
        let mut watches = watches.sharing(turn);
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
pub(super) fn problem_frame(id: &str, problem: &Problem) -> Vec<u8> {
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
    use crate::budget::Budget;
    use crate::config::MEMORY_MIN;
    use crate::source::memory::MemoryLog;
    use futures_util::FutureExt as _;
    use std::future::{pending, poll_fn, ready};

    /// Requests whose jobs are found at once, later, and not at all.
    fn requests() -> ChatRequests<MemoryLog> {
        let mut requests = ChatRequests::new();
        requests.add("none", None, ready(Ok(None)).boxed());
        requests.add("waits", None, pending().boxed());
        requests.add("refused", None, ready(Err(Code::Overloaded.into())).boxed());
        requests
    }

    #[tokio::test]
    async fn a_request_id_is_in_use_until_its_request_is_over() {
        let mut requests = requests();
        assert!(requests.has("none"));
        assert!(!requests.has("new"));
        let first = poll_fn(|cx| requests.poll_next(cx)).await;
        assert!(first.is_over);
        assert!(!requests.has("none"));
        assert!(requests.has("waits"));
        requests.abort("waits");
        assert!(!requests.has("waits"));
    }

    #[test]
    fn the_requests_of_a_connection_share_a_turn_to_wait_for_room() {
        let mut requests = requests();
        let first = requests.room_turn();
        assert!(Arc::ptr_eq(&first, &requests.room_turn()));
    }

    #[test]
    fn a_connection_has_a_limited_number_of_requests() {
        let mut requests = requests();
        let memory = Memory::new(Budget::new(MEMORY_MIN));
        for number in requests.list.len()..WATCHES_MAX {
            let room = requests.admit(&memory).unwrap();
            requests.add(&number.to_string(), room, pending().boxed());
        }
        let refusal = requests.admit(&memory).unwrap_err().code();
        assert_eq!(refusal, Code::TooManyRequests);
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
