//! `/v1/responses`: every response is a background response, because it is a job.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::response::Response;
use schemars::JsonSchema;
use serde::Deserialize;

use super::error::{OpenAiProblems, of_submitted, of_uncertain};
use super::input::ModelRequest;
use super::job::{self, SubmittedJob, reserve, submit, wait_and_fold};
use super::response::{ResponseEvent, ResponseFold};
use crate::auth::Operation;
use crate::config::{CANCEL_ANSWER_WAIT, COMPLETION_WAIT};
use crate::edge::access::Access;
use crate::edge::app::App;
use crate::edge::describe::OPENAI;
use crate::edge::error::Problem;
use crate::edge::json_pieces::JsonPieces;
use crate::edge::memory::SplitReservation;
use crate::edge::request::{JobPath, JsonBody, Params, Peer, flag};
use crate::edge::rest::IdempotencyKey;
use crate::edge::sse::{self, Translation, name_job};
use crate::session::Session;
use crate::wire::{Code, JobId, Kind, Seq, Start, Stored, foreign_body};

/// A request for a response. Further fields are part of the job's input.
#[derive(JsonSchema)]
#[schemars(rename = "ResponseRequest")]
pub(in crate::edge) struct ResponseBody {
    /// The kind of the job.
    #[expect(dead_code, reason = "`input` reads the body")]
    model: Kind,
    /// The text of the user.
    #[expect(dead_code, reason = "`input` reads the body")]
    input: String,
    /// Whether to stream the events.
    #[expect(dead_code, reason = "`input` reads the body")]
    stream: Option<bool>,
    /// Whether to answer before the response is complete.
    #[expect(dead_code, reason = "`input` reads the body")]
    background: Option<bool>,
}

/// Creates a response.
#[utoipa::path(
    post, path = "/v1/responses", tag = OPENAI,
    request_body = ref("#/components/schemas/ResponseRequest"),
    responses(
        (status = 200, description = "The response, or its events.", content(
            (inline(Object) = "application/json"), (inline(Object) = "text/event-stream"),
        )),
        OpenAiProblems,
    ),
)]
pub(in crate::edge) async fn respond(
    State(app): State<Arc<App>>,
    access: Access,
    Peer(from): Peer,
    IdempotencyKey(key): IdempotencyKey,
    JsonBody(body, reservation): JsonBody,
) -> Result<Response, Problem> {
    let (parsed, held) = foreign_body(&body, |input| app.reserve_submission(input))?;
    drop((body, reservation));
    let request = ModelRequest::of_response(parsed)?;
    let is_streamed = request.is_streamed;
    let is_background = request.is_background;
    let job = match submit(&app, &access, from, key, "resp_", request, held).await? {
        SubmittedJob::Queued(job) => job,
        SubmittedJob::Uncertain(job) => return Ok(of_uncertain(&job)),
    };
    let answer = if is_streamed {
        stream_events(&app, access, from, job.clone(), None).await
    } else {
        let wait = if is_background {
            Duration::ZERO
        } else {
            COMPLETION_WAIT
        };
        current(&app, from, &job, wait).await
    };
    Ok(of_submitted(&job, answer))
}

/// How to read a response.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(in crate::edge) struct ResponseQuery {
    /// Whether to stream the events.
    #[param(value_type = bool, required = false)]
    #[serde(default, deserialize_with = "flag")]
    stream: bool,
    /// Continue after the event with this `sequence_number`.
    #[param(nullable = false)]
    starting_after: Option<u64>,
}

/// Reads a response as it is now, or streams its events from any point.
#[utoipa::path(
    get, path = "/v1/responses/{id}", tag = OPENAI, params(JobPath, ResponseQuery),
    responses(
        (status = 200, description = "The response, or its events.", content(
            (inline(Object) = "application/json"), (inline(Object) = "text/event-stream"),
        )),
        OpenAiProblems,
    ),
)]
pub(in crate::edge) async fn response(
    State(app): State<Arc<App>>,
    access: Access,
    Peer(from): Peer,
    JobPath(job): JobPath,
    Params(query): Params<ResponseQuery>,
) -> Result<Response, Problem> {
    access.require(Operation::Watch(&job))?;
    if query.stream {
        app.exists(&job).await?;
        return stream_events(&app, access, from, job, query.starting_after).await;
    }
    current(&app, from, &job, Duration::ZERO).await
}

/// Cancels a response.
#[utoipa::path(
    post, path = "/v1/responses/{id}/cancel", tag = OPENAI, params(JobPath),
    responses(
        (status = 200, description = "The response, which is cancelled or was complete before.", body = inline(Object)),
        OpenAiProblems,
    ),
)]
pub(in crate::edge) async fn cancel_response(
    State(app): State<Arc<App>>,
    access: Access,
    Peer(from): Peer,
    JobPath(job): JobPath,
) -> Result<Response, Problem> {
    // The answer shows the job's output.
    access.require(Operation::Watch(&job))?;
    match app.cancel(&access, from, job.clone()).await {
        Ok(_) => {}
        Err(problem) if problem.code() == Code::JobEnded => {}
        Err(problem) => return Err(problem),
    }
    current(&app, from, &job, CANCEL_ANSWER_WAIT).await
}

/// The response object after the job has ended or `wait` has passed.
async fn current(
    app: &App,
    from: IpAddr,
    job: &JobId,
    wait: Duration,
) -> Result<Response, Problem> {
    let mut fold = ResponseFold::new(job.clone());
    let reservation = wait_and_fold(app, from, job, wait, &mut fold).await?;
    let mut response = job::respond(fold.snapshot(), reservation)?;
    name_job(&mut response, job);
    Ok(response)
}

/// Streams the events after one; all without one.
async fn stream_events(
    app: &Arc<App>,
    access: Access,
    from: IpAddr,
    job: JobId,
    after: Option<u64>,
) -> Result<Response, Problem> {
    let session = Session::open_for(from, &app.hub, &job, Start::After(Seq(0))).await?;
    // Not the most that it may need: it may need that for hours, or never.
    let reservation = app.shared.memory().answers.empty(0);
    let blocks = EventBlocks::new(job, reservation, after);
    sse::translated(app, session, (from, access), Box::new(blocks))
}

/// Response events as server-sent events. The final ones have the whole output, which is kept; they
/// are written in pieces, which share it.
struct EventBlocks {
    fold: ResponseFold,
    reservation: SplitReservation,
    after: Option<u64>,
    /// What is not written yet of the events so far.
    pending: JsonPieces,
}

impl EventBlocks {
    fn new(job: JobId, reservation: SplitReservation, after: Option<u64>) -> Self {
        Self {
            fold: ResponseFold::new(job),
            reservation,
            after,
            pending: JsonPieces::default(),
        }
    }

    fn put(&mut self, events: Vec<ResponseEvent>) {
        let after = self.after;
        let is_new = |event: &ResponseEvent| {
            // Without the error, the end of a stream that resumes would look like that of the response.
            event.event_type == "error" || after.is_none_or(|after| event.number > after)
        };
        for event in events.into_iter().filter(is_new) {
            let head = format!("event: {}\ndata: ", event.event_type);
            self.pending.put(&head);
            self.pending.append(event.json);
            self.pending.put("\n\n");
        }
    }
}

impl Translation for EventBlocks {
    fn apply(&mut self, event: &Stored, out: &mut Vec<u8>) {
        let before = self.fold.size();
        let mut events = self.fold.apply(event);
        // The last events of what is superseded hold it until they are written.
        let size = self.fold.size().max(before);
        if reserve(&mut self.reservation, size).is_err() && !self.fold.is_ended() {
            events = self.fold.close();
        }
        self.put(events);
        self.pending.write_to(out);
    }

    fn has_more(&self) -> bool {
        !self.pending.is_empty()
    }

    fn more(&mut self, out: &mut Vec<u8>) {
        self.pending.write_to(out);
    }

    fn missing(&mut self, _: Seq, _: Seq, out: &mut Vec<u8>) {
        // The numbers of later events are not known.
        self.close(out);
    }

    fn close(&mut self, out: &mut Vec<u8>) {
        let events = self.fold.close();
        self.put(events);
        self.pending.write_to(out);
    }

    fn is_large(&self) -> bool {
        self.reservation.is_large()
    }

    fn is_over(&self) -> bool {
        self.fold.is_ended() && self.pending.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::budget::Budget;
    use crate::config::{MEMORY_MIN, PIECE_BYTES};
    use crate::edge::memory::Memory;
    use crate::edge::openai::test_log::{job, log};
    use crate::wire::limits::OUTPUT_MAX;
    use crate::wire::{Body, Channel};
    use serde_json::{Value, json};

    fn blocks(memory: &Memory, after: Option<u64>) -> EventBlocks {
        EventBlocks::new(job(), memory.answers.empty(0), after)
    }

    fn queued() -> Body {
        Body::queued("k".parse().unwrap(), Value::Null)
    }

    fn chunk(text: &str) -> Body {
        Body::Chunk {
            text: text.into(),
            channel: Channel::Output,
        }
    }

    /// A log with `count` chunks of this text.
    fn log_of(text: &str, count: usize) -> Vec<Stored> {
        let mut bodies = vec![queued()];
        bodies.extend(vec![chunk(text); count]);
        bodies.push(Body::Done {
            usage: None,
            finish_reason: None,
        });
        log(bodies)
    }

    /// All frames of a log, whose pieces have limited sizes.
    fn written(blocks: &mut EventBlocks, log: &[Stored]) -> String {
        let mut all = Vec::new();
        for event in log {
            let mut piece = Vec::new();
            blocks.apply(event, &mut piece);
            while !piece.is_empty() {
                assert!(piece.len() <= 3 * PIECE_BYTES, "{}", piece.len());
                all.extend(piece);
                piece = Vec::new();
                blocks.more(&mut piece);
            }
            assert!(!blocks.has_more());
        }
        String::from_utf8(all).unwrap()
    }

    /// The type and the fields of each event.
    fn events(frames: &str) -> Vec<(String, Value)> {
        let blocks = frames.split_terminator("\n\n");
        let event = |block: &str| {
            let (name, data) = block.split_once("\ndata: ").unwrap();
            let name = name.strip_prefix("event: ").unwrap();
            (name.to_owned(), serde_json::from_str(data).unwrap())
        };
        blocks.map(event).collect()
    }

    #[test]
    fn response_events_are_over_after_an_error() {
        let mut blocks = blocks(&Memory::new(Budget::unlimited()), None);
        assert!(!blocks.is_over());
        let mut out = Vec::new();
        blocks.missing(Seq(1), Seq(2), &mut out);
        assert!(!out.is_empty() && blocks.is_over());
    }

    #[test]
    fn the_final_events_have_the_whole_text_and_share_it() {
        let memory = Memory::new(Budget::unlimited());
        let text = "\u{1}".repeat(400_000);
        let mut blocks = blocks(&memory, None);
        let log = log_of(&text, 2);
        let all = events(&written(&mut blocks, &log));
        assert!(blocks.is_over() && blocks.is_large());
        assert_eq!(all.len(), 10);
        for (number, (name, event)) in all.iter().enumerate() {
            assert_eq!(event["type"], name.as_str());
            assert_eq!(event["sequence_number"], number);
        }
        let whole = text.repeat(2);
        let [.., (_, done), (_, part), (_, item), (_, response)] = all.as_slice() else {
            panic!("{}", all.len());
        };
        assert!(done["text"] == whole && part["part"]["text"] == whole);
        assert!(item["item"]["content"][0]["text"] == whole);
        assert!(response["response"]["output"][0]["content"][0]["text"] == whole);
        // Twice the text, and little more; not each event's copy of it.
        let used = memory.whole.used();
        assert!((1_600_000..1_610_000).contains(&used), "{used}");
    }

    #[test]
    fn a_superseded_text_is_counted_until_its_last_events_are_written() {
        let memory = Memory::new(Budget::unlimited());
        let mut blocks = blocks(&memory, None);
        let started = Body::Started {
            kind: "k".parse().unwrap(),
            worker: "w".into(),
            continues: false,
        };
        let text = "x".repeat(400_000);
        let stored = log(vec![queued(), chunk(&text), started.clone(), started]);
        written(&mut blocks, &stored[..2]);
        let mut piece = Vec::new();
        blocks.apply(&stored[2], &mut piece);
        assert!(blocks.has_more());
        assert!(memory.whole.used() >= 800_000, "{}", memory.whole.used());
        while blocks.has_more() {
            piece.clear();
            blocks.more(&mut piece);
        }
        blocks.apply(&stored[3], &mut piece);
        assert!(memory.whole.used() < 10_000, "{}", memory.whole.used());
    }

    #[test]
    fn a_client_that_resumes_gets_the_error_that_ends_its_stream() {
        let mut blocks = blocks(&Memory::new(Budget::unlimited()), Some(100));
        let mut out = Vec::new();
        blocks.missing(Seq(1), Seq(2), &mut out);
        let all = events(&String::from_utf8(out).unwrap());
        assert_eq!(all.len(), 1);
        assert_eq!(all[0].0, "error");
    }

    #[test]
    fn an_event_that_makes_the_response_too_large_is_not_written() {
        let calls = Body::Data {
            data: json!({"tool_calls": vec![0; 100_000]}),
        };
        let memory = Memory::new(Budget::unlimited());
        let stored = log(vec![queued(), calls]);
        let all = events(&written(&mut blocks(&memory, None), &stored));
        let names: Vec<_> = all.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["response.created", "response.queued", "error"]);
    }

    #[test]
    fn the_events_that_a_client_has_are_not_written() {
        let memory = Memory::new(Budget::unlimited());
        let log = log_of("a", 2);
        let all = events(&written(&mut blocks(&memory, None), &log));
        let later = events(&written(&mut blocks(&memory, Some(4)), &log));
        assert_eq!(later, all[5..]);
    }

    #[test]
    fn streams_reserve_what_they_hold_and_break_off_without_room() {
        let memory = Memory::new(Budget::new(MEMORY_MIN));
        let log = log_of(&"x".repeat(100_000), 10);
        let short: Vec<_> = (0..5)
            .map(|_| {
                let mut blocks = blocks(&memory, None);
                written(&mut blocks, &log);
                blocks
            })
            .collect();
        // Five answers of a megabyte leave room for others.
        let other = memory.answers.reserve(1 << 20).unwrap();
        drop((short, other));
        let largest = log_of(&"x".repeat(100_000), OUTPUT_MAX / 100_000 + 1);
        let frames = written(&mut blocks(&memory, None), &largest);
        let (name, event) = events(&frames).pop().unwrap();
        assert_eq!(name, "error");
        assert_eq!(event["code"], "unreadable");
    }
}
