//! A job's events as a stream of server-sent events (the HTML standard, section 9.2): asks a session what comes next and
//! writes it. Which events those are is the session's; `wire/PROTOCOL.md` is the contract.

use std::convert::Infallible;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::unfold;
use serde::Deserialize;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};

use super::accept::{Form, form};
use super::app::App;
use super::counters::{Connected, Counters, Transport};
use super::describe::{JOBS, problems};
use super::error::Problem;
use super::page;
use super::request::{Job, Params, Peer, Wait, begin};
use super::turn::Turn;
use crate::config::{COME_BACK, COMMENT_EVERY, STEPS_PER_WRITE, TURN_BYTES};
use crate::session::{Session, Step};
use crate::source::EventSource;
use crate::wire::{GapReason, ServerFrame, Stored};

/// A comment: the other side passes it over, and so does a decoder that takes every empty line for the end of an event.
const COMMENT: &[u8] = b":\n";

/// Where to begin, and for a page how much and how long to wait.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct Query {
    /// Begin behind the event with this number; 0 is the first event.
    #[param(nullable = false)]
    after: Option<u64>,
    /// Begin behind the event that this cursor, or number, names. It wins over `after`.
    #[param(nullable = false, format = "cursor", pattern = "^[A-Za-z0-9_-]{1,40}$")]
    cursor: Option<String>,
    /// How many events a page holds at most.
    #[param(nullable = false, minimum = 1, maximum = 1000, default = 100)]
    limit: Option<usize>,
    /// How long a page waits for an event when none is stored: whole seconds, `30` or `30s`.
    #[param(inline, value_type = Option<String>, nullable = false, pattern = "^([0-9]|[1-5][0-9]|60)s?$")]
    #[serde(default)]
    wait: Wait,
    /// Whether a job that does not exist is refused with 404, instead of being waited for.
    #[serde(default)]
    must_exist: bool,
}

problems!(NoEvents:
    BadJobId, JobNotFound, BadRequest, BadCursor, CursorOfOtherJob, CursorNotInLog, AfterTheEnd, Overloaded, Unavailable, Restarting);

/// A job's events: a stream, or a page for who accepts JSON.
///
/// The job need not exist yet; a stream then begins with a comment that says so.
#[utoipa::path(
    get, path = "/api/jobs/{id}/events", tag = JOBS,
    params(Job, Query, ("Last-Event-ID" = inline(Option<String>), Header, nullable = false, format = "cursor",
        pattern = "^[A-Za-z0-9_-]{0,40}$",
        description = "Begin after the event that this cursor, or number, names. It wins over the query."),
        ("lastEventId" = inline(Option<String>), Query, nullable = false, format = "cursor", pattern = "^[A-Za-z0-9_-]{0,40}$",
        description = "The same as the header, for libraries that cannot set one. It wins over `cursor` and `after`.")),
    responses(
        (status = 200, description = "Events that are stored, and in a stream those to come. The schema of a stream is that of \
            one event of it.", content(
            (ref("#/components/schemas/StreamEvent") = "text/event-stream"),
            (ref("#/components/schemas/Page") = "application/json"),
        )),
        (status = 204, description = "A stream that would have nothing to tell: the job has ended, and the client has all of it."),
        NoEvents,
    ),
)]
pub(super) async fn events(
    State(app): State<Arc<App>>,
    Peer(from): Peer,
    Job(job): Job,
    Params(query): Params<Query>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let start = begin(&headers, uri.query(), query.after, query.cursor.as_deref())?;
    let limit = page::limit(query.limit)?;
    if query.must_exist {
        app.exists(&job).await?;
    }
    let stop = app.tasks.stop();
    let opened = stop
        .run_until_cancelled(Session::open_for(from, &app.hub, &job, start))
        .await
        .transpose()?;
    let form = form(&headers);
    let mut response = match (form, opened) {
        (Form::Page, session) => {
            let _place = app.shared.requests().take(from)?;
            page::answer(
                session,
                start,
                limit,
                query.wait,
                stop,
                &app.shared.memory().answers,
            )
            .await?
        }
        (Form::Stream, Some(session)) if session.had_end() => {
            StatusCode::NO_CONTENT.into_response()
        }
        (Form::Stream, Some(session)) if !app.clients.are_leaving() => {
            let (place, counts) = (app.clients.enter(), Arc::clone(&app.thread.counters));
            stream(Stream::new(
                session,
                counts,
                Box::pin(async move { place.moment().await }),
            ))
        }
        // An error would end an EventSource for good; at the end of a stream it comes back.
        (Form::Stream, _) => stream_of(Body::from(hello())),
    };
    let cache = match form {
        Form::Page => "no-cache",
        // A proxy that compresses holds back what is small, which every event is.
        Form::Stream => "no-cache, no-transform",
    };
    response
        .headers_mut()
        .insert(header::VARY, HeaderValue::from_static("accept"));
    response
        .headers_mut()
        .insert(header::CACHE_CONTROL, HeaderValue::from_static(cache));
    Ok(response)
}

fn stream<S: EventSource>(stream: Stream<S>) -> Response {
    stream_of(Body::from_stream(unfold(stream, Stream::next)))
}

fn stream_of(body: Body) -> Response {
    let headers = [
        (header::CONTENT_TYPE.as_str(), "text/event-stream"),
        ("x-accel-buffering", "no"),
    ];
    (headers, body).into_response()
}

/// The first bytes of a stream: when to come back after it. The time is drawn for each connection, since the clients of
/// one job lose their streams at the same moment.
fn hello() -> Vec<u8> {
    // The keys of a hash map are the one source of randomness in the standard library.
    let share = u128::from(RandomState::new().hash_one(()));
    let ms = COME_BACK.as_millis() + ((COME_BACK.as_millis() * share) >> 64);
    let mut out = format!("retry: {ms}\n").into_bytes();
    out.extend_from_slice(COMMENT);
    out
}

/// One client's stream. It is asked for more once the connection has room, so a slow client holds its place in the log, and
/// what was read for its next step.
struct Stream<S: EventSource> {
    session: Session<S>,
    counts: Arc<Counters>,
    _connected: Connected,
    /// Ends when the client should be told to come back.
    stop: BoxFuture<'static, ()>,
    comments: Interval,
    /// Events that did not fit into the last chunk.
    remaining: std::vec::IntoIter<Arc<Stored>>,
    turn: Turn,
    begun: bool,
    over: bool,
}

impl<S: EventSource> Stream<S> {
    fn new(session: Session<S>, counts: Arc<Counters>, stop: BoxFuture<'static, ()>) -> Self {
        let mut comments = interval_at(Instant::now() + COMMENT_EVERY, COMMENT_EVERY);
        comments.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let _connected = counts.connect(Transport::Sse);
        let (remaining, turn) = (Vec::new().into_iter(), Turn::default());
        Self {
            session,
            counts,
            _connected,
            stop,
            comments,
            remaining,
            turn,
            begun: false,
            over: false,
        }
    }

    /// The next chunk: what is ready together, about [`TURN_BYTES`] of it. `None` at the job's end, and at the edge's.
    async fn next(mut self) -> Option<(Result<Bytes, Infallible>, Self)> {
        self.turn.pause().await;
        let mut out = Vec::new();
        if !self.begun {
            self.begun = true;
            out = hello();
            if self.session.status().is_none() {
                // For whoever looks at the stream and has mistyped an id; an EventSource ignores it.
                out.extend_from_slice(
                    format!(": waiting for job {}\n", self.session.job()).as_bytes(),
                );
            }
        }
        while out.is_empty() && !self.over {
            if self.remaining.len() == 0 {
                let step = tokio::select! {
                    biased;
                    () = &mut self.stop => return None,
                    step = self.session.next() => Some(step),
                    _ = self.comments.tick() => None,
                };
                match step {
                    Some(step) => self.take(step, &mut out),
                    None => out.extend_from_slice(COMMENT),
                }
            }
            self.gather(&mut out);
        }
        self.turn.count(out.len());
        (!out.is_empty()).then(|| (Ok(out.into()), self))
    }

    /// Writes what is there without waiting for it.
    fn gather(&mut self, out: &mut Vec<u8>) {
        for _ in 0..STEPS_PER_WRITE {
            while out.len() < TURN_BYTES
                && let Some(event) = self.remaining.next()
            {
                put_event(out, &event);
            }
            if out.len() >= TURN_BYTES || self.over {
                return;
            }
            match self.session.next().now_or_never() {
                Some(step) => self.take(step, out),
                None => return,
            }
        }
    }

    fn take(&mut self, step: Step, out: &mut Vec<u8>) {
        match step {
            Step::Events(events) => {
                self.counts.count_delivered(events.len());
                self.remaining = events.into_iter();
            }
            Step::Gap { from, to } => {
                let job = self.session.job().clone();
                let missing = ServerFrame::Missing {
                    job,
                    from,
                    to,
                    reason: GapReason::Expired,
                };
                // It has a name, so that who listens for events does not take it for one, and no id: it names none.
                out.extend_from_slice(b"event: missing\ndata: ");
                out.extend_from_slice(missing.to_json().as_bytes());
                out.extend_from_slice(b"\n\n");
            }
            Step::Live => {}
            // A client that comes back with the id of what it was sent is refused, and begins anew.
            Step::End | Step::Rebuilt => self.over = true,
        }
    }
}

fn put_event(out: &mut Vec<u8>, event: &Stored) {
    let json = event.json();
    out.reserve(json.len() + 64);
    out.extend_from_slice(b"id: ");
    out.extend_from_slice(event.cursor().to_string().as_bytes());
    // JSON that another publisher stored may have line breaks between its tokens.
    for line in json.split(|byte| matches!(byte, b'\n' | b'\r')) {
        out.extend_from_slice(b"\ndata: ");
        out.extend_from_slice(line);
    }
    out.extend_from_slice(b"\n\n");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::Hub;
    use crate::runtime::Tasks;
    use crate::source::memory::MemoryLog;
    use crate::wire::{Body as Said, Channel, Cursor, JobId, Seq, Start};
    use futures_util::StreamExt as _;
    use futures_util::stream::BoxStream;
    use std::future::{pending, poll_fn};
    use std::task::Poll;
    use std::time::Duration;
    use tokio_util::sync::CancellationToken;

    fn job() -> JobId {
        "j".parse().unwrap()
    }

    fn chunk(text: &str) -> Said {
        Said::Chunk {
            text: text.into(),
            channel: Channel::Output,
        }
    }

    /// The milliseconds that the first bytes of a stream name.
    fn come_back_of(hello: &str) -> u64 {
        hello
            .strip_prefix("retry: ")
            .unwrap()
            .lines()
            .next()
            .unwrap()
            .parse()
            .unwrap()
    }

    /// A stream that begins with the first event, its `hello` already taken.
    async fn open(memory: &MemoryLog, stop: &CancellationToken) -> BoxStream<'static, String> {
        let hub = Hub::new(memory.clone(), Tasks::default());
        let session = Session::open(&hub, &job(), Start::After(Seq(0)))
            .await
            .unwrap();
        let chunks = unfold(
            Stream::new(
                session,
                Counters::new(),
                Box::pin(stop.clone().cancelled_owned()),
            ),
            Stream::next,
        );
        let mut chunks =
            Box::pin(chunks.map(|chunk| String::from_utf8(chunk.unwrap().to_vec()).unwrap()));
        let hello = chunks.next().await.unwrap();
        let ms = come_back_of(&hello);
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
    async fn what_is_ready_together_leaves_together_and_the_end_ends_the_stream() {
        let memory = MemoryLog::default();
        let mut chunks = open(&memory, &CancellationToken::new()).await;
        assert!(chunks.next().now_or_never().is_none());
        let mut expected = String::new();
        for text in ["a", "b", "c"] {
            expected += &block(&memory.append(&job(), chunk(text)));
        }
        assert_eq!(chunks.next().await.unwrap(), expected);
        let end = memory.append(&job(), Said::Cancelled {});
        assert_eq!(chunks.next().await.unwrap(), block(&end));
        assert_eq!(chunks.next().await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_of_a_job_that_does_not_exist_yet_begins_with_a_comment_that_says_so() {
        let memory = MemoryLog::default();
        for expected in [true, false] {
            let hub = Hub::new(memory.clone(), Tasks::default());
            let session = Session::open(&hub, &job(), Start::After(Seq(0)))
                .await
                .unwrap();
            let stream = Stream::new(session, Counters::new(), Box::pin(pending()));
            let (first, _) = stream.next().await.unwrap();
            let first = String::from_utf8(first.unwrap().to_vec()).unwrap();
            assert_eq!(
                first.contains("\n: waiting for job j\n"),
                expected,
                "{first}"
            );
            memory.append(&job(), chunk("a"));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_says_that_it_is_there_while_nothing_happens() {
        let mut chunks = open(&MemoryLog::default(), &CancellationToken::new()).await;
        let begun = Instant::now();
        for n in 1..=3 {
            assert_eq!(chunks.next().await.unwrap(), ":\n");
            assert_eq!(begun.elapsed(), COMMENT_EVERY * n);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_little_is_given_pieces_and_misses_nothing() {
        let memory = MemoryLog::default();
        let all: Vec<_> = (0..200)
            .map(|_| memory.append(&job(), chunk(&"x".repeat(2000))))
            .collect();
        memory.append(&job(), Said::Cancelled {});
        let mut chunks = open(&memory, &CancellationToken::new()).await;
        let (mut got, mut count) = (String::new(), 0);
        while let Some(chunk) = chunks.next().await {
            assert!(chunk.len() < TURN_BYTES + 3000, "{}", chunk.len());
            got += &chunk;
            count += 1;
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        let expected: String = all.iter().map(|event| block(event)).collect();
        assert!(got.replace("\n:\n", "\n").starts_with(&expected));
        assert!(count < 60, "{count} pieces");
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_takes_everything_is_given_a_little_in_each_turn() {
        let memory = MemoryLog::default();
        for _ in 0..200 {
            memory.append(&job(), chunk(&"x".repeat(2000)));
        }
        memory.append(&job(), Said::Cancelled {});
        let mut chunks = open(&memory, &CancellationToken::new()).await;
        let (mut turns, mut over) = (Vec::new(), false);
        while !over {
            let mut bytes = 0;
            over = poll_fn(|cx| {
                loop {
                    match chunks.poll_next_unpin(cx) {
                        Poll::Ready(Some(chunk)) => bytes += chunk.len(),
                        Poll::Ready(None) => return Poll::Ready(true),
                        Poll::Pending => return Poll::Ready(false),
                    }
                }
            })
            .await;
            turns.push(bytes);
            tokio::task::yield_now().await;
        }
        assert!(turns.iter().sum::<usize>() > 400_000, "{turns:?}");
        assert!(
            turns.iter().all(|bytes| *bytes < 2 * TURN_BYTES),
            "{turns:?}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn missing_events_are_told_by_name_and_have_no_id() {
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
    fn the_time_to_come_back_is_spread_over_the_clients() {
        let times: Vec<u64> = (0..1000)
            .map(|_| {
                let hello = String::from_utf8(hello()).unwrap();
                come_back_of(&hello)
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
