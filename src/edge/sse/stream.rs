//! Writes one client's event stream. It holds no event that the client does not accept: those are
//! read again later.

use std::future::poll_fn;
use std::hash::{BuildHasher as _, RandomState};
use std::task::{Context, Poll, ready};

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;
use tracing::debug;

use super::translator::{Translation, Translator};
use crate::config::{CLOSE_WAIT, COME_BACK, COMMENT_EVERY};
use crate::edge::access::{Access, TokenEvent, TokenEvents};
use crate::edge::alarm::AlarmTime;
use crate::edge::client_task::ServedClient;
use crate::edge::counters::Connected;
use crate::edge::drain::DrainSlot;
use crate::edge::link::{Broken, Link};
use crate::edge::output::EventFraming;
use crate::edge::quota::SubjectConnection;
use crate::edge::takeover::ResponseHead;
use crate::edge::watches::{Outgoing, Watches};
use crate::session::Session;
use crate::source::EventSource;
use crate::wire::framing::http_chunk;
use crate::wire::{ServerFrame, Stored};

/// A comment, which clients ignore. No empty line follows it: some decoders treat every empty line
/// as the end of an event.
const COMMENT: &[u8] = b":\n";

/// The chunk that ends a body.
const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// The first bytes of a stream: the time to wait before reconnecting. It is random, because the
/// clients of a job often lose their streams at the same moment.
pub(super) fn hello() -> Vec<u8> {
    // The keys of a hash map are the only source of randomness in the standard library.
    let random = u128::from(RandomState::new().hash_one(()));
    let ms = COME_BACK.as_millis() + ((COME_BACK.as_millis() * random) >> 64);
    let mut out = format!("retry: {ms}\n").into_bytes();
    out.extend_from_slice(COMMENT);
    out
}

/// The frames of events in the body of a response.
pub(super) fn framing(head: &ResponseHead) -> EventFraming {
    if head.is_chunked {
        Stored::sse_chunk
    } else {
        Stored::sse
    }
}

/// One client's stream.
pub(super) struct EventStream<S: EventSource, T> {
    link: Link<T>,
    is_chunked: bool,
    /// One watch.
    watches: Watches<S, ()>,
    slot: DrainSlot,
    comment_at: AlarmTime,
    /// What happens to the client's token.
    token_events: TokenEvents,
    /// Count it among the connections, and among the streams of its subject.
    counted: Option<(Connected, Option<SubjectConnection>)>,
    /// Present if the client speaks another protocol.
    translator: Option<Box<Translator>>,
}

impl<S: EventSource, T: AsyncRead + AsyncWrite + Unpin> EventStream<S, T> {
    /// A stream of this session, which begins with the head of the response.
    pub(super) fn new(
        session: Session<S>,
        watches: Watches<S, ()>,
        link: Link<T>,
        slot: DrainSlot,
        head: ResponseHead,
    ) -> Self {
        let mut stream = Self::bare(watches, link, slot, head);
        let mut hello = hello();
        if session.status().is_none() {
            // Helps a person who mistyped an id. An EventSource ignores it.
            let waiting = format!(": waiting for job {}\n", session.job());
            hello.extend_from_slice(waiting.as_bytes());
        }
        stream.put(&hello);
        stream.watches.watch_session(session);
        stream
    }

    /// A stream of this session in another protocol.
    pub(super) fn translated(
        session: Session<S>,
        watches: Watches<S, ()>,
        link: Link<T>,
        slot: DrainSlot,
        head: ResponseHead,
        translation: Box<dyn Translation>,
    ) -> Self {
        let mut stream = Self::bare(watches, link, slot, head);
        stream.translator = Some(Box::new(Translator::new(translation)));
        stream.watches.watch_session(session);
        stream
    }

    /// A stream that has only the head of the response.
    fn bare(watches: Watches<S, ()>, link: Link<T>, slot: DrainSlot, head: ResponseHead) -> Self {
        let mut stream = Self {
            comment_at: link.alarm.now() + COMMENT_EVERY,
            link,
            is_chunked: head.is_chunked,
            watches,
            slot,
            token_events: Access::unrestricted().events(),
            counted: None,
            translator: None,
        };
        stream.link.output.put(head.bytes);
        stream
    }

    /// The same stream; it ends when the client's token is not valid any more.
    pub(super) fn while_valid(mut self, access: &Access) -> Self {
        self.token_events = access.events();
        self
    }

    /// The same stream, counted as long as it is open.
    pub(super) fn counted(
        mut self,
        connected: Connected,
        of_subject: Option<SubjectConnection>,
    ) -> Self {
        self.counted = Some((connected, of_subject));
        self
    }

    /// Does everything that can be done now; ready when the stream ends.
    fn poll_turn(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        self.link.begin_turn();
        if self.link.alarm.is_due() {
            if self.link.alarm.is_stopping() && self.slot.is_due() {
                return Poll::Ready(self.interrupt());
            }
            self.comment(cx);
        }
        while let Poll::Ready(Some(event)) = self.token_events.poll_next_unpin(cx) {
            match event {
                TokenEvent::Ended(_) => return Poll::Ready(self.interrupt()),
                // Other protocols have no way to say so.
                TokenEvent::Expiring(_) if self.translator.is_some() => {}
                TokenEvent::Expiring(expires_in_ms) => {
                    let frame = ServerFrame::TokenExpiring { expires_in_ms };
                    self.put_named("token_expiring", &frame);
                }
            }
        }
        if self.link.poll_discard(cx)?.is_ready() {
            return Poll::Ready(Err(Broken));
        }
        loop {
            ready!(self.poll_flush(cx))?;
            if let Outcome::Over = ready!(self.poll_events(cx)) {
                return Poll::Ready(Ok(()));
            }
        }
    }

    /// How the edge ends a stream that is not over. Clients of other protocols do not reconnect after
    /// a clean end, so they see a broken connection.
    fn interrupt(&self) -> Result<(), Broken> {
        if self.translator.is_some() {
            Err(Broken)
        } else {
            Ok(())
        }
    }

    /// Writes everything. If the client does not accept it, drops the events that are not begun.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        let flushed = self.link.poll_flush(cx)?;
        if self.link.should_release(self.watches.reads_memory(), cx) {
            let released = self.link.release();
            self.watches.release(released);
            if self.link.output.is_empty() {
                // Something must wait, to notice that the client accepts data again, or not in time.
                self.put(COMMENT);
            }
        }
        if let Some(translator) = &mut self.translator
            && translator.has_waiting()
            && self.link.is_stalled(self.watches.reads_memory(), cx)
        {
            self.watches.release(translator.release());
        }
        flushed.map(Ok)
    }

    /// Sends a comment if it is time.
    fn comment(&mut self, cx: &mut Context<'_>) {
        let now = self.link.alarm.now();
        if self.comment_at <= now {
            self.comment_at = now + COMMENT_EVERY;
            let is_within_frame = self.translator.as_ref().is_some_and(|t| t.has_more());
            if self.link.blocked_for().is_none() && !is_within_frame {
                self.put(COMMENT);
            }
        }
        self.link.alarm.set(self.comment_at, cx.waker());
    }

    /// Adds what the client is sent next to the output.
    fn poll_events(&mut self, cx: &mut Context<'_>) -> Poll<Outcome> {
        if self.translator.is_some() {
            return self.poll_translated(cx);
        }
        match ready!(self.watches.poll_next(cx)) {
            Outgoing::Events(events) => {
                self.link.is_large = self.watches.holds_room();
                self.link.output.put_events(events);
            }
            Outgoing::Frame(_, frame @ ServerFrame::Missing { .. }) => {
                self.put_named("missing", &frame);
            }
            // If the log was rebuilt, the client reconnects with its last id, gets an error and
            // starts over.
            Outgoing::Frame(_, ServerFrame::End { .. } | ServerFrame::Error { .. }) => {
                return Poll::Ready(Outcome::Over);
            }
            Outgoing::Frame(..) | Outgoing::Answer(..) | Outgoing::Token(_) => {}
        }
        Poll::Ready(Outcome::More)
    }

    /// Sends a frame that is not an event of the job: named, so that listeners for events do not
    /// receive it, and without an id.
    fn put_named(&mut self, name: &str, frame: &ServerFrame) {
        let block = format!("event: {name}\ndata: {}\n\n", frame.to_json());
        self.put(block.as_bytes());
    }

    /// [`Self::poll_events`] in another protocol.
    fn poll_translated(&mut self, cx: &mut Context<'_>) -> Poll<Outcome> {
        let Some(translator) = &mut self.translator else {
            return Poll::Ready(Outcome::More);
        };
        if let Some(frames) = translator.next() {
            self.link.is_large |= translator.is_large();
            self.put(&frames);
            return Poll::Ready(Outcome::More);
        }
        // Counts what was written, even if nothing follows it.
        let polled = self.watches.poll_next(cx);
        if translator.is_over() {
            return Poll::Ready(Outcome::Over);
        }
        match ready!(polled) {
            Outgoing::Events(events) => {
                self.link.is_large = self.watches.holds_room();
                translator.begin(events);
            }
            Outgoing::Frame(_, ServerFrame::Missing { from, to, .. }) => {
                let frames = translator.missing(from, to);
                self.put(&frames);
            }
            Outgoing::Frame(_, ServerFrame::End { .. } | ServerFrame::Error { .. }) => {
                let frames = translator.close();
                self.put(&frames);
                return Poll::Ready(Outcome::Over);
            }
            Outgoing::Frame(..) | Outgoing::Answer(..) | Outgoing::Token(_) => {}
        }
        Poll::Ready(Outcome::More)
    }

    fn put(&mut self, content: &[u8]) {
        // An empty chunk would end the body.
        if content.is_empty() {
            return;
        }
        self.link.output.put(if self.is_chunked {
            http_chunk(content)
        } else {
            content.to_vec()
        });
    }

    /// Ends the body, and reads until the client disconnects: closing a socket with unread input
    /// would discard the last writes.
    async fn finish(&mut self) -> Result<(), Broken> {
        self.link.release();
        // It has written everything, and may hold memory that others need.
        self.translator = None;
        if self.is_chunked {
            self.link.output.put(LAST_CHUNK.to_vec());
        }
        poll_fn(|cx| self.link.poll_flush(cx)).await?;
        poll_fn(|cx| self.link.poll_shutdown(cx)).await?;
        poll_fn(|cx| self.link.poll_discard(cx)).await
    }
}

impl<S, T> ServedClient for EventStream<S, T>
where
    S: EventSource,
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    type End = Result<(), Broken>;

    /// Ready when the job has ended, the translation has written an error, the token has become
    /// invalid, the edge stops, or the client disconnects.
    fn poll_serve(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        self.poll_turn(cx)
    }

    fn close(mut self, end: Result<(), Broken>) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            if end.is_ok() {
                debug!("a stream ends");
                let _ = timeout(CLOSE_WAIT, self.finish()).await;
            }
            drop(self.counted);
        })
    }
}

/// Whether more follows.
enum Outcome {
    More,
    Over,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::budget::Budget;
    use crate::config::{ANSWER_WAIT, LARGE_EVENT, STREAM_STALL, TICK, WRITE_WAIT};
    use crate::edge::alarm::Alarms;
    use crate::edge::client_stream::ClientStream;
    use crate::edge::client_task::{ClientState, ClientTask};
    use crate::edge::counters::{Counters, Transport};
    use crate::edge::drain::Clients;
    use crate::edge::slow::SlowPart;
    use crate::hub::Hub;
    use crate::runtime::Tasks;
    use crate::source::memory::{MemoryLog, chunk, job};
    use crate::wire::framing::chunk_content;
    use crate::wire::{Body, Seq, Start};
    use futures_util::FutureExt as _;
    use futures_util::future::join_all;
    use std::net::{IpAddr, Ipv4Addr};
    use std::sync::Arc;
    use std::time::Duration;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
    use tokio::time::{Instant, sleep};
    use tokio_util::sync::CancellationToken;

    const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
    /// What the socket of a client buffers.
    const SOCKET: usize = 1000;

    /// An edge that serves the job's streams.
    struct Edge {
        hub: Arc<Hub<MemoryLog>>,
        alarms: Alarms,
        clients: Clients,
        tasks: Tasks,
        room: Budget,
    }

    impl Edge {
        fn new(memory: &MemoryLog, stop: &CancellationToken, room: Budget) -> Self {
            let tasks = Tasks::default();
            let alarms = Alarms::new();
            let closing = tasks.stop().clone();
            tasks.spawn(alarms.clone().run(stop.clone(), closing.clone()));
            Self {
                hub: Hub::new(memory.clone(), tasks.clone()),
                alarms,
                clients: Clients::new(stop.clone(), Duration::ZERO, closing),
                tasks,
                room,
            }
        }

        /// A stream from the first event on.
        async fn open(&self) -> Client {
            self.open_translated(None).await
        }

        /// The same in another protocol, if there is a translation.
        async fn open_translated(&self, translation: Option<Box<dyn Translation>>) -> Client {
            let (stream, socket) = self.stream(translation).await;
            self.tasks.spawn(ClientTask::new(stream));
            Client {
                socket,
                received: Vec::new(),
            }
        }

        /// A stream that nothing serves yet, and its client's socket.
        async fn stream(
            &self,
            translation: Option<Box<dyn Translation>>,
        ) -> (EventStream<MemoryLog, DuplexStream>, DuplexStream) {
            let start = Start::After(Seq(0));
            let session = Session::open(&self.hub, &job(), start).await.unwrap();
            let (client, edge) = duplex(SOCKET);
            let head = ResponseHead {
                bytes: Vec::new(),
                is_chunked: true,
            };
            let watches = Watches::new(
                Arc::clone(&self.hub),
                Counters::new(),
                Transport::Sse,
                HERE,
                self.room.clone(),
            );
            let link = Link::new(edge, framing(&head), self.alarms.alarm());
            let slot = self.clients.enter();
            let stream = match translation {
                None => EventStream::new(session, watches, link, slot, head),
                Some(translation) => {
                    EventStream::translated(session, watches, link, slot, head, translation)
                }
            };
            (stream, client)
        }
    }

    #[test]
    fn a_stream_takes_at_most_512_bytes() {
        let bytes = size_of::<ClientState<EventStream<MemoryLog, ClientStream>>>();
        assert!(bytes <= 512, "{bytes}");
    }

    /// A client that reads chunks.
    struct Client {
        socket: DuplexStream,
        received: Vec<u8>,
    }

    impl Client {
        /// The content of the next chunk; `None` after the last one.
        async fn next(&mut self) -> Option<String> {
            loop {
                if let Some(size) = self.size_of_chunk() {
                    let rest = self.received.split_off(size);
                    let chunk = std::mem::replace(&mut self.received, rest);
                    let content = chunk_content(&chunk).to_vec();
                    return (!content.is_empty()).then(|| String::from_utf8(content).unwrap());
                }
                let read = self.socket.read_buf(&mut self.received).await.unwrap();
                assert!(read > 0, "the last chunk is missing");
            }
        }

        fn size_of_chunk(&self) -> Option<usize> {
            let head = self.received.iter().position(|byte| *byte == b'\n')? + 1;
            let size = std::str::from_utf8(&self.received[..head - 2]).unwrap();
            let size = head + usize::from_str_radix(size, 16).unwrap() + 2;
            (self.received.len() >= size).then_some(size)
        }

        /// Everything up to the end without comments; pauses after each chunk.
        async fn rest(mut self, pause: Duration) -> String {
            let mut all = String::new();
            while let Some(chunk) = self.next().await {
                if !chunk.starts_with(':') && !chunk.starts_with("retry: ") {
                    all += &chunk;
                }
                sleep(pause).await;
            }
            all
        }
    }

    /// An edge and a stream after its `hello`.
    async fn open(memory: &MemoryLog, stop: &CancellationToken) -> (Edge, Client) {
        let edge = Edge::new(memory, stop, Budget::unlimited());
        let mut client = edge.open().await;
        let ms = retry_ms(&client.next().await.unwrap());
        assert!((500..1000).contains(&ms), "{ms}");
        (edge, client)
    }

    /// The milliseconds in the first bytes of a stream.
    fn retry_ms(hello: &str) -> u64 {
        let line = hello.strip_prefix("retry: ").unwrap().lines().next();
        line.unwrap().parse().unwrap()
    }

    fn block(event: &Stored) -> String {
        let json = String::from_utf8_lossy(event.json());
        format!("id: {}\ndata: {json}\n\n", event.cursor())
    }

    #[tokio::test(start_paused = true)]
    async fn each_event_is_a_chunk_and_the_final_event_ends_the_stream() {
        let memory = MemoryLog::default();
        let (_edge, mut client) = open(&memory, &CancellationToken::new()).await;
        assert!(client.next().now_or_never().is_none());
        for text in ["a", "b", "c"] {
            let event = memory.append(&job(), chunk(text));
            assert_eq!(client.next().await.unwrap(), block(&event));
        }
        let end = memory.append(&job(), Body::Cancelled {});
        assert_eq!(client.next().await.unwrap(), block(&end));
        assert_eq!(client.next().await, None);
        let mut after = Vec::new();
        client.socket.read_to_end(&mut after).await.unwrap();
        assert!(after.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_of_a_missing_job_starts_with_a_comment() {
        let memory = MemoryLog::default();
        for expected in [true, false] {
            let edge = Edge::new(&memory, &CancellationToken::new(), Budget::unlimited());
            let first = edge.open().await.next().await.unwrap();
            let waits = first.contains("\n: waiting for job j\n");
            assert_eq!(waits, expected, "{first}");
            memory.append(&job(), chunk("a"));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_stream_sends_comments() {
        let memory = MemoryLog::default();
        let (_edge, mut client) = open(&memory, &CancellationToken::new()).await;
        let begun = Instant::now();
        for n in 1..=3 {
            assert_eq!(client.next().await.unwrap(), ":\n");
            let late = begun.elapsed() - COMMENT_EVERY * n;
            assert!(late <= TICK * 2 * n, "{late:?}");
        }
    }

    /// A finished log of 200 events of this size, and its stream.
    fn long_log(size: usize) -> (MemoryLog, String) {
        let memory = MemoryLog::default();
        let mut written = String::new();
        for _ in 0..200 {
            written += &block(&memory.append(&job(), chunk("x".repeat(size))));
        }
        written += &block(&memory.append(&job(), Body::Cancelled {}));
        (memory, written)
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_reads_slowly_misses_nothing() {
        let (memory, written) = long_log(2000);
        let edge = Edge::new(&memory, &CancellationToken::new(), Budget::new(1 << 20));
        let client = edge.open().await;
        sleep(STREAM_STALL * 5).await;
        let rest = client.rest(STREAM_STALL * 3).await;
        assert!(rest == written);
        assert_eq!(edge.room.used(), 0);
    }

    /// Writes what the edge's own protocol has.
    struct Unchanged;

    impl Translation for Unchanged {
        fn apply(&mut self, event: &Stored, out: &mut Vec<u8>) {
            out.extend_from_slice(block(event).as_bytes());
        }

        fn missing(&mut self, _: Seq, _: Seq, _: &mut Vec<u8>) {}

        fn close(&mut self, _: &mut Vec<u8>) {}

        fn is_over(&self) -> bool {
            false
        }
    }

    /// Fails at the first event.
    #[derive(Default)]
    struct Failing {
        has_failed: bool,
    }

    impl Translation for Failing {
        fn apply(&mut self, _: &Stored, out: &mut Vec<u8>) {
            out.extend_from_slice(b"failed");
            self.has_failed = true;
        }

        fn missing(&mut self, _: Seq, _: Seq, _: &mut Vec<u8>) {}

        fn close(&mut self, _: &mut Vec<u8>) {}

        fn is_over(&self) -> bool {
            self.has_failed
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_has_failed_ends_before_its_job() {
        let memory = MemoryLog::default();
        memory.append(&job(), chunk("a"));
        let edge = Edge::new(&memory, &CancellationToken::new(), Budget::unlimited());
        let translation = Box::new(Failing::default());
        let mut client = edge.open_translated(Some(translation)).await;
        assert_eq!(client.next().await.unwrap(), "failed");
        assert_eq!(client.next().await, None);
    }

    /// Writes one frame of many pieces for each event.
    #[derive(Default)]
    struct InPieces {
        left: usize,
    }

    /// How many pieces each frame has, and the text of one.
    const PIECES: usize = 200;
    const PIECE: [u8; SOCKET] = [b'x'; SOCKET];

    impl Translation for InPieces {
        fn apply(&mut self, _: &Stored, out: &mut Vec<u8>) {
            self.left = PIECES;
            self.more(out);
        }

        fn has_more(&self) -> bool {
            self.left > 0
        }

        fn more(&mut self, out: &mut Vec<u8>) {
            if let Some(left) = self.left.checked_sub(1) {
                self.left = left;
                out.extend_from_slice(&PIECE);
                if left == 0 {
                    out.push(b'|');
                }
            }
        }

        fn missing(&mut self, _: Seq, _: Seq, _: &mut Vec<u8>) {}

        fn close(&mut self, _: &mut Vec<u8>) {}

        fn is_large(&self) -> bool {
            true
        }

        fn is_over(&self) -> bool {
            false
        }
    }

    /// A stream whose frames are long, and its edge.
    async fn open_in_pieces() -> (Edge, Client) {
        let memory = MemoryLog::default();
        memory.append(&job(), chunk("a"));
        memory.append(&job(), Body::Cancelled {});
        let edge = Edge::new(&memory, &CancellationToken::new(), Budget::unlimited());
        let client = edge
            .open_translated(Some(Box::new(InPieces::default())))
            .await;
        (edge, client)
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_client_gets_a_frame_in_pieces() {
        let (_edge, mut client) = open_in_pieces().await;
        let mut all = String::new();
        while let Some(piece) = client.next().await {
            all += &piece;
            sleep(COMMENT_EVERY / 20).await;
        }
        let frame = "x".repeat(SOCKET * PIECES) + "|";
        assert_eq!(all.replace(":\n", ""), frame.repeat(2));
    }

    #[tokio::test(start_paused = true)]
    async fn no_comment_is_sent_within_a_frame() {
        let edge = Edge::new(
            &MemoryLog::default(),
            &CancellationToken::new(),
            Budget::unlimited(),
        );
        for (left, is_sent) in [(2, false), (0, true)] {
            let translation = Box::new(InPieces { left });
            let (mut stream, _client) = edge.stream(Some(translation)).await;
            stream.comment_at = stream.link.alarm.now();
            poll_fn(|cx| {
                stream.comment(cx);
                Poll::Ready(())
            })
            .await;
            assert_eq!(!stream.link.output.is_empty(), is_sent, "{left}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_stalls_a_large_translation_is_cut_off_sooner() {
        let (_edge, mut client) = open_in_pieces().await;
        sleep(ANSWER_WAIT * 2).await;
        assert!(client.socket.write_u8(0).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_client_of_another_protocol_misses_nothing() {
        let (memory, written) = long_log(2000);
        let edge = Edge::new(&memory, &CancellationToken::new(), Budget::new(1 << 20));
        let client = edge.open_translated(Some(Box::new(Unchanged))).await;
        sleep(STREAM_STALL * 5).await;
        let rest = client.rest(STREAM_STALL * 3).await;
        assert!(rest == written);
        assert_eq!(edge.room.used(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_of_another_protocol_breaks_when_the_edge_stops() {
        let stop = CancellationToken::new();
        let memory = MemoryLog::default();
        let event = memory.append(&job(), chunk("a"));
        let edge = Edge::new(&memory, &stop, Budget::unlimited());
        let mut client = edge.open_translated(Some(Box::new(Unchanged))).await;
        assert_eq!(client.next().await.unwrap(), block(&event));
        stop.cancel();
        let mut rest = Vec::new();
        client.socket.read_to_end(&mut rest).await.unwrap();
        assert!(
            rest.is_empty(),
            "a client would take a clean end for the job's"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn stalled_clients_do_not_stop_the_streams_of_others() {
        let (memory, written) = long_log(LARGE_EVENT);
        // Enough for a few events.
        let edge = Edge::new(
            &memory,
            &CancellationToken::new(),
            Budget::new(LARGE_EVENT * 10),
        );
        let mut stalled = Vec::new();
        for _ in 0..20 {
            stalled.push(edge.open().await);
        }
        sleep(STREAM_STALL * 10).await;
        let readers = join_all((0..5).map(|_| edge.open())).await;
        let readers = readers
            .into_iter()
            .map(|reader| reader.rest(Duration::ZERO));
        let received = timeout(Duration::from_secs(300), join_all(readers)).await;
        assert!(
            received
                .unwrap()
                .iter()
                .all(|received| *received == written)
        );
        assert!(edge.room.refused() > 0);
        drop(stalled);
        sleep(STREAM_STALL * 10).await;
        assert_eq!(edge.room.used(), 0);
    }

    /// The large event is either dropped behind one that has begun, or is the next to be written.
    #[tokio::test(start_paused = true)]
    async fn a_client_that_accepts_nothing_holds_no_room_and_is_cut_off_in_time() {
        let sample = MemoryLog::default().append(&job(), chunk("x".repeat(500)));
        let overhead = sample.sse_chunk().len() - 500 + http_chunk(&hello()).len();
        let before = SlowPart::Output.ended();
        for first in [SOCKET, SOCKET - overhead] {
            let memory = MemoryLog::default();
            memory.append(&job(), chunk("x".repeat(first)));
            memory.append(&job(), chunk("x".repeat(LARGE_EVENT)));
            let room = Budget::new(1 << 20);
            let edge = Edge::new(&memory, &CancellationToken::new(), room);
            let mut client = edge.open().await;
            sleep(ANSWER_WAIT * 2).await;
            memory.append(&job(), chunk("x"));
            sleep(ANSWER_WAIT * 2).await;
            assert_eq!(edge.room.used(), 0);
            client.socket.write_u8(0).await.unwrap();
            sleep(WRITE_WAIT - ANSWER_WAIT * 3).await;
            let cut = client.socket.write_u8(0).await;
            assert!(cut.is_err(), "{first}");
        }
        // Other tests count, too.
        assert!(SlowPart::Output.ended() >= before + 2);
    }

    #[tokio::test(start_paused = true)]
    async fn an_event_that_expires_while_it_is_written_is_completed() {
        let memory = MemoryLog::default();
        let event = memory.append(&job(), chunk("x".repeat(20_000)));
        let (_edge, mut client) = open(&memory, &CancellationToken::new()).await;
        sleep(STREAM_STALL * 5).await;
        memory.append(&job(), chunk("y".repeat(crate::config::HISTORY_BYTES)));
        memory.expire(&job(), Seq(2));
        let end = memory.append(&job(), Body::Cancelled {});
        sleep(STREAM_STALL * 5).await;
        assert_eq!(client.next().await.unwrap(), block(&event));
        let missing = client.next().await.unwrap();
        assert!(missing.contains(r#""from":2,"to":2"#), "{missing}");
        assert_eq!(client.next().await.unwrap(), block(&end));
    }

    #[tokio::test(start_paused = true)]
    async fn a_gap_is_reported_as_a_named_event_without_an_id() {
        let memory = MemoryLog::default();
        for text in ["a", "b", "c"] {
            memory.append(&job(), chunk(text));
        }
        memory.expire(&job(), Seq(2));
        let (_edge, mut client) = open(&memory, &CancellationToken::new()).await;
        let mut received = client.next().await.unwrap();
        while !received.contains("id: ") {
            received += &client.next().await.unwrap();
        }
        let missing = r#"{"op":"missing","job":"j","from":1,"to":2,"reason":"expired"}"#;
        let expected = format!("event: missing\ndata: {missing}\n\nid: ");
        assert!(received.starts_with(&expected), "{received}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_ends_when_the_edge_stops() {
        let stop = CancellationToken::new();
        let (_edge, mut client) = open(&MemoryLog::default(), &stop).await;
        stop.cancel();
        assert_eq!(client.next().await, None);
    }

    #[test]
    fn reconnection_times_are_spread_evenly() {
        let times: Vec<u64> = (0..1000)
            .map(|_| {
                let hello = String::from_utf8(hello()).unwrap();
                retry_ms(&hello)
            })
            .collect();
        for tenth in 0..10_u64 {
            let part = 500 + 50 * tenth..550 + 50 * tenth;
            let count = times.iter().filter(|ms| part.contains(*ms)).count();
            assert!((40..200).contains(&count), "{count} of 1000 in {part:?}");
        }
    }
}
