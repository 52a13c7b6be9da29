//! `/v1/responses`: every response is a background response, because it is a job.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;

use super::error::{OpenAiProblems, of_submitted, of_uncertain};
use super::input::ModelRequest;
use super::job::{SubmittedJob, reserve, submit, wait_and_fold};
use super::response::ResponseFold;
use crate::auth::Operation;
use crate::config::{CANCEL_ANSWER_WAIT, COMPLETION_WAIT};
use crate::edge::access::Access;
use crate::edge::app::App;
use crate::edge::describe::OPENAI;
use crate::edge::error::Problem;
use crate::edge::memory::SplitReservation;
use crate::edge::request::{JobPath, JsonBody, Params, Peer, flag};
use crate::edge::sse::{self, Translation, name_job, put_block};
use crate::session::Session;
use crate::wire::limits::OUTPUT_MAX;
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
    headers: HeaderMap,
    JsonBody(body, reservation): JsonBody,
) -> Result<Response, Problem> {
    let (parsed, held) = foreign_body(&body, |input| app.reserve_submission(input))?;
    drop((body, reservation));
    let request = ModelRequest::of_response(parsed)?;
    let is_streamed = request.is_streamed;
    let is_background = request.is_background;
    let job = match submit(&app, &access, from, &headers, "resp_", request, held).await? {
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
    let mut response = reservation.respond(fold.snapshot().to_string().into_bytes());
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
    let blocks = EventBlocks {
        fold: ResponseFold::new(job),
        reservation: app.shared.memory().answers.empty(2 * OUTPUT_MAX),
        after,
    };
    sse::translated(app, session, (from, access), Box::new(blocks))
}

/// Response events as server-sent events. The final one has the whole output, which is kept.
struct EventBlocks {
    fold: ResponseFold,
    reservation: SplitReservation,
    after: Option<u64>,
}

impl EventBlocks {
    fn put(&self, events: &[Value], out: &mut Vec<u8>) {
        let is_known = |event: &&Value| {
            let number = event["sequence_number"].as_u64();
            number.is_some() && number <= self.after
        };
        for event in events.iter().filter(|event| !is_known(event)) {
            let event_type = event["type"].as_str().unwrap_or_default();
            put_block(out, &[("event", event_type), ("data", &event.to_string())]);
        }
    }
}

impl Translation for EventBlocks {
    fn apply(&mut self, event: &Stored, out: &mut Vec<u8>) {
        let events = self.fold.apply(event);
        self.put(&events, out);
        if reserve(&mut self.reservation, self.fold.size()).is_err() {
            self.close(out);
        }
    }

    fn missing(&mut self, _: Seq, _: Seq, out: &mut Vec<u8>) {
        // The numbers of later events are not known.
        self.close(out);
    }

    fn close(&mut self, out: &mut Vec<u8>) {
        let events = self.fold.close();
        self.put(&events, out);
    }

    fn is_over(&self) -> bool {
        self.fold.is_ended()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::budget::Budget;
    use crate::edge::memory::Memory;

    #[test]
    fn response_events_are_over_after_an_error() {
        let mut blocks = EventBlocks {
            fold: ResponseFold::new("j".parse().unwrap()),
            reservation: Memory::new(Budget::unlimited()).answers.empty(1),
            after: None,
        };
        assert!(!blocks.is_over());
        let mut out = Vec::new();
        blocks.missing(Seq(1), Seq(2), &mut out);
        assert!(!out.is_empty() && blocks.is_over());
    }
}
