//! `/v1/chat/completions`: a durable proxy in front of any worker.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;

use super::completion::{CompletionChunks, WholeCompletion};
use super::error::{CompletionProblems, of_submitted, of_uncertain};
use super::input::ModelRequest;
use super::job::{SubmittedJob, respond, submit, wait_and_fold};
use crate::auth::Operation;
use crate::config::COMPLETION_WAIT;
use crate::edge::access::Access;
use crate::edge::app::App;
use crate::edge::describe::OPENAI;
use crate::edge::error::Problem;
use crate::edge::json_pieces::JsonPieces;
use crate::edge::request::{JobPath, JsonBody, Params, Peer, flag, requested_start};
use crate::edge::rest::IdempotencyKey;
use crate::edge::sse::{self, EventsHead, Translation, name_job, put_block};
use crate::session::Session;
use crate::wire::{JobId, Kind, Seq, Start, Stored, foreign_body};

/// A request for a chat completion. Further fields are part of the job's input.
#[derive(JsonSchema)]
#[schemars(rename = "CompletionRequest")]
pub(in crate::edge) struct CompletionBody {
    /// The kind of the job.
    #[expect(dead_code, reason = "`input` reads the body")]
    model: Kind,
    #[expect(dead_code, reason = "`input` reads the body")]
    #[schemars(length(min = 1))]
    messages: Vec<serde_json::Map<String, Value>>,
    /// Whether to stream the answer.
    #[expect(dead_code, reason = "`input` reads the body")]
    stream: Option<bool>,
}

/// Answers a chat, as the model server does.
///
/// The header `x-tailwater-job` names the job. If the client disconnects, the job goes on.
#[utoipa::path(
    post, path = "/v1/chat/completions", tag = OPENAI,
    request_body = ref("#/components/schemas/CompletionRequest"),
    responses(
        (status = 200, description = "The completion, or its chunks.", content(
            (inline(Object) = "application/json"), (inline(Object) = "text/event-stream"),
        )),
        CompletionProblems,
    ),
)]
pub(in crate::edge) async fn complete(
    State(app): State<Arc<App>>,
    access: Access,
    Peer(from): Peer,
    IdempotencyKey(key): IdempotencyKey,
    JsonBody(body, reservation): JsonBody,
) -> Result<Response, Problem> {
    let (parsed, held) = foreign_body(&body, |input| app.reserve_submission(input))?;
    drop((body, reservation));
    let request = ModelRequest::of_completion(parsed)?;
    let is_streamed = request.is_streamed;
    let job = match submit(&app, &access, from, key, "chatcmpl-", request, held).await? {
        SubmittedJob::Queued(job) => job,
        SubmittedJob::Uncertain(job) => return Ok(of_uncertain(&job)),
    };
    let answer = if is_streamed {
        stream_chunks(&app, access, from, &job).await
    } else {
        whole(&app, from, &job).await
    };
    Ok(of_submitted(&job, answer))
}

/// Streams all chunks.
async fn stream_chunks(
    app: &Arc<App>,
    access: Access,
    from: IpAddr,
    job: &JobId,
) -> Result<Response, Problem> {
    let session = Session::open_for(from, &app.hub, job, Start::After(Seq(0))).await?;
    let blocks = ChunkBlocks::new(job.clone(), Seq(0));
    sse::translated(app, session, (from, access), Box::new(blocks))
}

/// How to read a completion.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(in crate::edge) struct CompletionQuery {
    /// Whether to stream the chunks; `Accept: text/event-stream` and `Last-Event-ID` do the same.
    #[param(value_type = bool, required = false)]
    #[serde(default, deserialize_with = "flag")]
    stream: bool,
}

/// Reads a completion again, or resumes its stream.
#[utoipa::path(
    get, path = "/v1/chat/completions/{id}", tag = OPENAI,
    params(
        JobPath, CompletionQuery,
        (
            "Last-Event-ID" = inline(Option<String>), Header, nullable = false,
            format = "cursor", pattern = "^[A-Za-z0-9_-]{0,40}$",
            description = "Continue after the chunk with this id.",
        ),
    ),
    responses(
        (status = 200, description = "The completion, or its chunks.", content(
            (inline(Object) = "application/json"), (inline(Object) = "text/event-stream"),
        )),
        (status = 204, description = "The client has all chunks."),
        CompletionProblems,
    ),
)]
pub(in crate::edge) async fn completion(
    State(app): State<Arc<App>>,
    access: Access,
    Peer(from): Peer,
    JobPath(job): JobPath,
    Params(CompletionQuery { stream }): Params<CompletionQuery>,
    head: EventsHead,
) -> Result<Response, Problem> {
    access.require(Operation::Watch(&job))?;
    let start = requested_start(head.last_event, None, None)?;
    let is_first = start == Start::After(Seq(0));
    if is_first && !stream && !head.names_stream {
        return whole(&app, from, &job).await;
    }
    app.exists(&job).await?;
    let after = match start {
        Start::After(seq) => seq,
        Start::Cursor(cursor) => cursor.seq,
    };
    if !is_first {
        // Checks that the log still has what the client has read.
        let resumed = Session::open_for(from, &app.hub, &job, start).await?;
        if resumed.had_end() {
            return Ok(StatusCode::NO_CONTENT.into_response());
        }
    }
    let mut session = Session::open_for(from, &app.hub, &job, Start::After(Seq(0))).await?;
    if is_first {
        // Without the text of superseded attempts.
        session.compact_stored(&app.shared.memory().merged);
    }
    sse::translated(
        &app,
        session,
        (from, access),
        Box::new(ChunkBlocks::new(job, after)),
    )
}

/// Waits for the end of a job, and answers with the whole completion.
async fn whole(app: &App, from: IpAddr, job: &JobId) -> Result<Response, Problem> {
    let mut fold = WholeCompletion::new(job.clone());
    let reservation = wait_and_fold(app, from, job, COMPLETION_WAIT, &mut fold).await?;
    let mut response = match fold.into_json() {
        Ok(completion) => respond(JsonPieces::of(completion), reservation)?,
        Err(error) => error.into_response(),
    };
    name_job(&mut response, job);
    Ok(response)
}

/// Chunks as server-sent events. The last chunk of an event has its cursor as the id.
struct ChunkBlocks(CompletionChunks);

impl ChunkBlocks {
    fn new(job: JobId, after: Seq) -> Self {
        Self(CompletionChunks::new(job, after))
    }

    fn put(&self, chunks: &[Value], id: Option<&str>, out: &mut Vec<u8>) {
        for (index, chunk) in chunks.iter().enumerate() {
            let data = chunk.to_string();
            match id.filter(|_| index + 1 == chunks.len()) {
                Some(id) => put_block(out, &[("id", id), ("data", &data)]),
                None => put_block(out, &[("data", &data)]),
            }
        }
        let has_failed = chunks.iter().any(|chunk| chunk.get("error").is_some());
        if self.0.is_ended() && !chunks.is_empty() && !has_failed {
            put_block(out, &[("data", "[DONE]")]);
        }
    }
}

impl Translation for ChunkBlocks {
    fn apply(&mut self, event: &Stored, out: &mut Vec<u8>) {
        let chunks = self.0.apply(event);
        self.put(&chunks, Some(&event.cursor().to_string()), out);
    }

    fn missing(&mut self, _: Seq, to: Seq, out: &mut Vec<u8>) {
        let chunks = self.0.missing(to);
        self.put(&chunks, None, out);
    }

    fn close(&mut self, out: &mut Vec<u8>) {
        let chunks = self.0.close();
        self.put(&chunks, None, out);
    }

    fn is_over(&self) -> bool {
        self.0.is_ended()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_over_after_an_error() {
        let mut blocks = ChunkBlocks::new("j".parse().unwrap(), Seq(0));
        assert!(!blocks.is_over());
        let mut out = Vec::new();
        blocks.missing(Seq(1), Seq(2), &mut out);
        assert!(!out.is_empty() && blocks.is_over());
    }
}
