//! The task that writes one client's event stream. It reads ahead no more than the memory budget
//! allows, and reads dropped events from the log again.

use std::collections::VecDeque;
use std::hash::{BuildHasher as _, RandomState};
use std::pin::pin;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at, sleep, timeout};

use crate::budget::Reservation;
use crate::config::{COME_BACK, COMMENT_EVERY, FULL_PAUSE, STREAM_CHUNK, STREAM_STALL, TINY_BYTES};
use crate::edge::counters::{Connected, Counters, Transport};
use crate::edge::memory::bind;
use crate::edge::watches::{JobUpdate, next_update};
use crate::session::{Position, Session};
use crate::source::EventSource;
use crate::wire::{Cursor, ServerFrame, Stored};

/// A comment, which clients ignore. No empty line follows it: some decoders treat every empty line
/// as the end of an event.
const COMMENT: &[u8] = b":\n";

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

/// Writes one client's stream in its own task: a connection whose socket is full does not poll its
/// body, so the body could not release memory.
pub(super) struct EventStream<S: EventSource> {
    session: Session<S>,
    /// The memory reserved for `events`.
    room: Reservation,
    counters: Arc<Counters>,
    _connected: Connected,
    /// Ends when the client should reconnect.
    stop: BoxFuture<'static, ()>,
    comments: Interval,
    /// After the last event that was written.
    position: Position,
    /// Events that were read but not written yet.
    events: VecDeque<Arc<Stored>>,
    /// The first of `events`, encoded.
    encoded: Vec<u8>,
    /// The cursor of a partly written event, and how many of its bytes were written.
    partial: Option<(Cursor, usize)>,
    /// The memory needed to read dropped events again; 0 if none were dropped.
    wanted: usize,
    begun: bool,
    over: bool,
}

impl<S: EventSource> EventStream<S> {
    pub(super) fn new(
        session: Session<S>,
        room: Reservation,
        counters: Arc<Counters>,
        stop: BoxFuture<'static, ()>,
    ) -> Self {
        let mut comments = interval_at(Instant::now() + COMMENT_EVERY, COMMENT_EVERY);
        comments.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            position: session.position(),
            session,
            room,
            _connected: counters.connect(Transport::Sse),
            counters,
            stop,
            comments,
            events: VecDeque::new(),
            encoded: Vec::new(),
            partial: None,
            wanted: 0,
            begun: false,
            over: false,
        }
    }

    /// Writes until the stream ends or the client disconnects. Makes the next chunk when the socket
    /// has accepted the previous one.
    pub(super) async fn write(mut self, chunks: mpsc::Sender<Bytes>) {
        let taken = Arc::new(Semaphore::new(1));
        loop {
            let mut permit = pin!(Arc::clone(&taken).acquire_owned());
            let permit = match timeout(STREAM_STALL, permit.as_mut()).await {
                Ok(permit) => permit,
                Err(_) => {
                    self.release();
                    permit.await
                }
            };
            let chunk = tokio::select! {
                biased;
                () = chunks.closed() => return,
                chunk = self.next() => chunk,
            };
            let Some(chunk) = chunk else { return };
            if chunks.send(bind(chunk, permit)).await.is_err() {
                return;
            }
        }
    }

    /// The next chunk, with at most [`STREAM_CHUNK`] bytes of events. `None` when the job has ended
    /// or the edge stops.
    async fn next(&mut self) -> Option<Vec<u8>> {
        let mut out = Vec::new();
        if !self.begun {
            self.begun = true;
            out = hello();
            if self.session.status().is_none() {
                // Helps a person who mistyped an id. An EventSource ignores it.
                let waiting = format!(": waiting for job {}\n", self.session.job());
                out.extend_from_slice(waiting.as_bytes());
            }
        }
        while out.is_empty() && !self.over {
            if self.events.is_empty() {
                let holds_room = self.wanted == 0 && self.room.bytes() > 0;
                let session = &mut self.session;
                let room = &mut self.room;
                let update = async {
                    while room.resize(room.bytes().max(self.wanted)).is_err() {
                        sleep(FULL_PAUSE).await;
                    }
                    self.wanted = 0;
                    self.position = session.position();
                    next_update(session).await
                };
                let update = tokio::select! {
                    biased;
                    () = &mut self.stop => return None,
                    update = update => Some(update),
                    () = sleep(STREAM_STALL), if holds_room => {
                        self.release();
                        continue;
                    }
                    // A comment must not interrupt a partly written event.
                    _ = self.comments.tick(), if self.partial.is_none() => None,
                };
                match update {
                    Some(update) => self.apply(update, &mut out),
                    None => out.extend_from_slice(COMMENT),
                }
            }
            self.encode(&mut out);
        }
        (!out.is_empty()).then_some(out)
    }

    fn apply(&mut self, update: JobUpdate, out: &mut Vec<u8>) {
        match update {
            JobUpdate::Events(events) => self.hold(events),
            JobUpdate::Frame(ServerFrame::Live { .. }) => {}
            // The update does not continue the partly written event, which the client discards when
            // the stream ends.
            _ if self.partial.is_some() => self.over = true,
            JobUpdate::Frame(frame) => {
                // Named, so that listeners for events do not receive it; without an id, because it
                // is not an event.
                out.extend_from_slice(b"event: missing\ndata: ");
                out.extend_from_slice(frame.to_json().as_bytes());
                out.extend_from_slice(b"\n\n");
            }
            // If the log was rebuilt, the client reconnects with its last id, gets an error and
            // starts over.
            JobUpdate::Last(_) => self.over = true,
        }
    }

    /// Holds events that were read. If there is no room, drops them, to read them again later.
    fn hold(&mut self, events: Vec<Arc<Stored>>) {
        let begun = self.partial.map(|(cursor, _)| cursor);
        if begun.is_some_and(|begun| events.first().is_none_or(|first| first.cursor() != begun)) {
            self.over = true;
            return;
        }
        let sizes = events.iter().map(|event| event.size());
        let largest = sizes.clone().max().unwrap_or_default();
        // The event that is being written is also held encoded.
        let bytes = (sizes.sum::<usize>() + largest / 2).min(self.room.limit());
        self.events = events.into();
        if bytes <= TINY_BYTES {
            // Too few bytes to reserve.
            let _ = self.room.resize(0);
        } else if self.room.resize(bytes).is_err() {
            self.release();
            self.wanted = bytes;
        }
    }

    /// Drops the unwritten events, to read them again later.
    fn release(&mut self) {
        if !self.events.is_empty() {
            self.events = VecDeque::new();
            self.encoded = Vec::new();
            self.session.rewind(self.position);
        }
        // Shrinking cannot fail.
        let _ = self.room.resize(0);
    }

    /// Encodes events until the chunk is full.
    fn encode(&mut self, out: &mut Vec<u8>) {
        while out.len() < STREAM_CHUNK
            && let Some(event) = self.events.front()
        {
            if self.encoded.is_empty() {
                put_event(&mut self.encoded, event);
            }
            let start = self.partial.map_or(0, |(_, written)| written);
            let end = self.encoded.len().min(start + STREAM_CHUNK - out.len());
            out.extend_from_slice(&self.encoded[start..end]);
            if end < self.encoded.len() {
                let cursor = self
                    .partial
                    .map_or_else(|| event.cursor(), |(cursor, _)| cursor);
                self.partial = Some((cursor, end));
                return;
            }
            self.position = Position::after(event);
            self.partial = None;
            self.encoded.clear();
            self.events.pop_front();
            self.counters.count_delivered(1);
        }
        if self.events.is_empty() {
            self.encoded = Vec::new();
        }
    }
}

fn put_event(out: &mut Vec<u8>, event: &Stored) {
    out.extend_from_slice(event.sse());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::budget::Budget;
    use crate::hub::Hub;
    use crate::runtime::Tasks;
    use crate::source::memory::{MemoryLog, chunk, job};
    use crate::wire::{Body, Seq, Start};
    use futures_util::stream::{BoxStream, unfold};
    use futures_util::{FutureExt as _, StreamExt as _};
    use std::future::pending;
    use std::time::Duration;
    use tokio_util::sync::CancellationToken;

    /// The milliseconds in the first bytes of a stream.
    fn retry_ms(hello: &str) -> u64 {
        hello
            .strip_prefix("retry: ")
            .unwrap()
            .lines()
            .next()
            .unwrap()
            .parse()
            .unwrap()
    }

    /// A stream from the first event on, after its `hello`.
    async fn open(memory: &MemoryLog, stop: &CancellationToken) -> BoxStream<'static, String> {
        let hub = Hub::new(memory.clone(), Tasks::default());
        let session = Session::open(&hub, &job(), Start::After(Seq(0)))
            .await
            .unwrap();
        let stop = Box::pin(stop.clone().cancelled_owned());
        let room = Budget::unlimited().empty();
        let stream = EventStream::new(session, room, Counters::new(), stop);
        let mut chunks = Box::pin(unfold(stream, |mut stream| async {
            let chunk = stream.next().await?;
            Some((String::from_utf8(chunk).unwrap(), stream))
        }));
        let hello = chunks.next().await.unwrap();
        let ms = retry_ms(&hello);
        assert!((500..1000).contains(&ms), "{ms}");
        chunks
    }

    fn block(event: &Stored) -> String {
        format!(
            "id: {}\ndata: {}\n\n",
            event.cursor(),
            String::from_utf8_lossy(event.json())
        )
    }

    #[tokio::test(start_paused = true)]
    async fn events_that_are_ready_share_a_chunk_and_the_final_event_ends_the_stream() {
        let memory = MemoryLog::default();
        let mut chunks = open(&memory, &CancellationToken::new()).await;
        assert!(chunks.next().now_or_never().is_none());
        let mut expected = String::new();
        for text in ["a", "b", "c"] {
            expected += &block(&memory.append(&job(), chunk(text)));
        }
        assert_eq!(chunks.next().await.unwrap(), expected);
        let end = memory.append(&job(), Body::Cancelled {});
        assert_eq!(chunks.next().await.unwrap(), block(&end));
        assert_eq!(chunks.next().await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_of_a_missing_job_starts_with_a_comment() {
        let memory = MemoryLog::default();
        for expected in [true, false] {
            let hub = Hub::new(memory.clone(), Tasks::default());
            let session = Session::open(&hub, &job(), Start::After(Seq(0)))
                .await
                .unwrap();
            let room = Budget::unlimited().empty();
            let mut stream = EventStream::new(session, room, Counters::new(), Box::pin(pending()));
            let first = String::from_utf8(stream.next().await.unwrap()).unwrap();
            assert_eq!(
                first.contains("\n: waiting for job j\n"),
                expected,
                "{first}"
            );
            memory.append(&job(), chunk("a"));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_stream_sends_comments() {
        let mut chunks = open(&MemoryLog::default(), &CancellationToken::new()).await;
        let begun = Instant::now();
        for n in 1..=3 {
            assert_eq!(chunks.next().await.unwrap(), ":\n");
            assert_eq!(begun.elapsed(), COMMENT_EVERY * n);
        }
    }

    /// A finished log of 200 events of 2000 bytes, and its stream.
    fn long_log() -> (MemoryLog, String) {
        let memory = MemoryLog::default();
        let mut written = String::new();
        for _ in 0..200 {
            written += &block(&memory.append(&job(), chunk("x".repeat(2000))));
        }
        written += &block(&memory.append(&job(), Body::Cancelled {}));
        (memory, written)
    }

    /// Streams of the whole log, each in its own task, that share a budget.
    async fn opened(memory: &MemoryLog, room: &Budget, count: usize) -> Vec<mpsc::Receiver<Bytes>> {
        let tasks = Tasks::default();
        let mut streams = Vec::new();
        let hub = Hub::new(memory.clone(), tasks.clone());
        for _ in 0..count {
            let start = Start::After(Seq(0));
            let session = Session::open(&hub, &job(), start).await.unwrap();
            let (chunks, stream) = mpsc::channel(1);
            let stop = Box::pin(pending());
            tasks.spawn(
                EventStream::new(session, room.empty(), Counters::new(), stop).write(chunks),
            );
            streams.push(stream);
        }
        streams
    }

    /// What a client that pauses after each chunk receives, without comments.
    async fn read(mut stream: mpsc::Receiver<Bytes>, pause: Duration) -> String {
        let mut got = Vec::new();
        while let Some(chunk) = stream.recv().await {
            assert!(chunk.len() <= STREAM_CHUNK, "{}", chunk.len());
            if chunk != COMMENT && !chunk.starts_with(b"retry: ") {
                got.extend_from_slice(&chunk);
            }
            sleep(pause).await;
        }
        String::from_utf8(got).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_client_holds_one_small_chunk_and_misses_nothing() {
        let (memory, written) = long_log();
        let room = Budget::new(1 << 20);
        let mut streams = opened(&memory, &room, 1).await;
        let mut stream = streams.remove(0);
        let hello = stream.recv().await.unwrap();
        sleep(STREAM_STALL).await;
        drop(hello);
        let first = stream.recv().await.unwrap();
        assert!(room.used() > 0, "the chunk is part of a larger step");
        sleep(STREAM_STALL * 2).await;
        assert_eq!(room.used(), 0);
        assert!(stream.try_recv().is_err(), "the first chunk was not taken");
        let start = String::from_utf8(first.to_vec()).unwrap();
        drop(first);
        let rest = read(stream, STREAM_STALL * 2).await;
        assert!(start + &rest == written);
        assert_eq!(room.used(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn stalled_clients_do_not_stop_the_streams_of_others() {
        let (memory, written) = long_log();
        // Enough for one step or two.
        let room = Budget::new(200_000);
        let mut streams = opened(&memory, &room, 100).await;
        let readers = streams.split_off(50);
        let stalled: Vec<_> = streams.iter_mut().map(|stream| stream.recv()).collect();
        let stalled = futures_util::future::join_all(stalled).await;
        let readers = readers
            .into_iter()
            .map(|reader| read(reader, Duration::ZERO));
        let got = futures_util::future::join_all(readers);
        let got = timeout(Duration::from_secs(60), got).await.unwrap();
        assert!(got.iter().all(|got| *got == written));
        assert!(room.refused() > 0);
        drop((stalled, streams));
        sleep(STREAM_STALL).await;
        assert_eq!(room.used(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_ends_when_a_partly_written_event_expires() {
        let memory = MemoryLog::default();
        memory.append(&job(), chunk("x".repeat(20_000)));
        let room = Budget::new(1 << 20);
        let mut stream = opened(&memory, &room, 1).await.remove(0);
        let _ = stream.recv().await.unwrap();
        let first = stream.recv().await.unwrap();
        memory.append(&job(), chunk("later"));
        memory.expire(&job(), Seq(1));
        let hub_forgets = chunk("y".repeat(crate::config::HISTORY_BYTES));
        memory.append(&job(), hub_forgets);
        sleep(STREAM_STALL * 2).await;
        drop(first);
        assert_eq!(stream.recv().await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_gap_is_reported_as_a_named_event_without_an_id() {
        let memory = MemoryLog::default();
        for text in ["a", "b", "c"] {
            memory.append(&job(), chunk(text));
        }
        memory.expire(&job(), Seq(2));
        let mut chunks = open(&memory, &CancellationToken::new()).await;
        let mut got = chunks.next().await.unwrap();
        while !got.contains("id: ") {
            got += &chunks.next().await.unwrap();
        }
        let missing = r#"{"op":"missing","job":"j","from":1,"to":2,"reason":"expired"}"#;
        assert!(
            got.starts_with(&format!("event: missing\ndata: {missing}\n\nid: ")),
            "{got}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_ends_when_the_edge_stops() {
        let stop = CancellationToken::new();
        let mut chunks = open(&MemoryLog::default(), &stop).await;
        stop.cancel();
        assert_eq!(chunks.next().now_or_never(), Some(None));
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

    #[test]
    fn line_breaks_between_the_tokens_of_an_event_stay_inside_its_data() {
        let text = "{\"type\":\"x\",\r\n\"job\":\"j\",\n\"seq\":1}";
        let event = Stored::decode(&job(), 9, text.into()).unwrap();
        let mut out = Vec::new();
        put_event(&mut out, &event);
        let cursor = Cursor::of(&job(), Seq(1), 9, text.as_bytes());
        let data = format!(
            "{{\"type\":\"x\",\ndata: \ndata: \"job\":\"j\",\ndata: \"seq\":1,\"cursor\":\"{cursor}\"}}"
        );
        assert_eq!(
            String::from_utf8(out).unwrap(),
            format!("id: {cursor}\ndata: {data}\n\n")
        );
    }
}
