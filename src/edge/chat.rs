//! The chat of the AI SDK: a stock `useChat` needs no server of its own. A message starts a job of the
//! configured kind, whose events are streamed as UI message parts. Here are the routes; `parts` and
//! `messages` translate, `turns` finds the job of a chat. `socket` is the same over a WebSocket, and
//! `streams` has its requests.

mod messages;
mod parts;
mod request;
mod socket;
mod streams;
mod turns;

use std::sync::Arc;

use axum::Json;
use axum::extract::{FromRef as _, FromRequestParts, Path, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse as _, Response};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use self::messages::ChatSubmission;
use self::parts::MessageParts;
use self::request::TurnRequest;
pub(super) use self::socket::{CHAT_PROTOCOL, ChatSocket};
use super::access::Access;
use super::app::App;
use super::body::Bodies;
use super::describe::{CHAT, problems};
use super::error::Problem;
use super::request::{JsonBody, Peer};
use super::sse::{self, Translation, put_block};
use crate::nats::Reader;
use crate::session::Session;
use crate::wire::limits::ID_MAX;
use crate::wire::{Code, Excerpt, JobId, Refusal, Seq, Stored, foreign_body, read_fields};

const STREAM_VERSION: HeaderName = HeaderName::from_static("x-vercel-ai-ui-message-stream");

/// The chat that the path names.
pub(super) struct ChatPath(String);

impl<S: Send + Sync> FromRequestParts<S> for ChatPath {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let Path(id) = Path::<String>::from_request_parts(parts, state)
            .await
            .map_err(|error| Problem::new(Code::BadRequest, error.body_text()))?;
        Ok(Self(id))
    }
}

/// What `useChat` sends.
#[derive(JsonSchema)]
#[schemars(rename = "ChatRequest")]
pub(super) struct ChatBody {
    /// The id of the chat.
    #[expect(dead_code, reason = "`messages` reads the body")]
    id: String,
    /// The UI messages of the chat, the last one from the user. Further fields become part of the
    /// job's input.
    #[expect(dead_code, reason = "`messages` reads the body")]
    #[schemars(length(min = 1))]
    messages: Vec<ChatMessage>,
}

/// A UI message.
#[derive(JsonSchema)]
pub(super) struct ChatMessage {
    #[expect(dead_code, reason = "`messages` reads the body")]
    role: ChatRole,
    #[expect(dead_code, reason = "`messages` reads the body")]
    #[schemars(length(min = 1))]
    parts: Vec<ChatPart>,
}

/// Who wrote a message.
#[derive(JsonSchema)]
#[schemars(rename_all = "lowercase")]
#[expect(dead_code, reason = "`messages` reads the body")]
enum ChatRole {
    System,
    User,
    Assistant,
}

/// A part of a message. There are more types of parts.
#[derive(JsonSchema)]
struct ChatPart {
    #[expect(dead_code, reason = "`messages` reads the body")]
    #[schemars(rename = "type", regex(pattern = "^text$"))]
    part_type: String,
    #[expect(dead_code, reason = "`messages` reads the body")]
    #[schemars(length(min = 1))]
    text: String,
}

/// Which answer to stop.
#[derive(Deserialize)]
struct StopRequest {
    /// The job that the page shows. If another one is active by now, nothing is stopped.
    // Longer than the longest, so that a longer one names no job.
    #[serde(default, rename = "activeStreamId")]
    active: Option<Excerpt<{ ID_MAX + 1 }>>,
}

impl StopRequest {
    /// The job that it names, if it names one.
    fn of(body: &[u8]) -> Result<Option<String>, Refusal> {
        if body.is_empty() {
            return Ok(None);
        }
        match read_fields::<Self>(body)?.active {
            None => Ok(None),
            Some(Excerpt(Some(job))) => Ok(Some(job)),
            Some(Excerpt(None)) => {
                let message = "`activeStreamId` is not a text.";
                Err(Refusal::new(Code::BadRequest, message))
            }
        }
    }
}

/// The answer to a request to stop.
#[derive(Serialize, JsonSchema)]
pub(super) struct Stopping {
    /// Always true: stopping what has ended is not an error.
    success: bool,
    /// The job that is being cancelled; null if none was active.
    job: Option<JobId>,
}

problems!(NotAnswered:
    BadJson, BadRequest, TooLarge, UnsupportedMediaType, UnknownKind, NotSupportedByKind, NotFound, JobNotFound, JobRemoved,
    RateLimited, QueueFull, Timeout, Overloaded, Unavailable, Restarting);

/// Answers a chat of the AI SDK.
///
/// Starts a job of the kind that `--chat-kind` names, or joins the job that already answers the same
/// messages. A job that answers other messages of the chat is cancelled.
#[utoipa::path(
    post, path = "/api/chat", tag = CHAT,
    request_body = ref("#/components/schemas/ChatRequest"),
    responses(
        (status = 200, description = "The UI message stream of the AI SDK.", content_type = "text/event-stream", body = inline(Object)),
        NotAnswered,
    ),
)]
pub(super) async fn answer(
    State(app): State<Arc<App>>,
    access: Access,
    Peer(from): Peer,
    JsonBody(body, reservation): JsonBody,
) -> Result<Response, Problem> {
    let (parsed, held) = foreign_body(&body, |input| app.reserve_submission(input))?;
    drop((body, reservation));
    let submission = ChatSubmission::of(parsed)?;
    let request = TurnRequest::new(app, access, from, &submission.chat);
    let session = request.answer(submission.input, held).await?;
    follow(request, session)
}

problems!(NotResumed: BadRequest, RateLimited, Overloaded, Unavailable, Restarting);

/// Resumes the answer of a chat.
///
/// Replays the whole answer, and continues.
#[utoipa::path(
    get, path = "/api/chat/{id}/stream", tag = CHAT, params(("id" = String, Path, description = "The id of the chat.")),
    responses(
        (status = 200, description = "The UI message stream of the AI SDK.", content_type = "text/event-stream", body = inline(Object)),
        (status = 204, description = "No job of the chat is active."),
        NotResumed,
    ),
)]
pub(super) async fn resume(
    State(app): State<Arc<App>>,
    access: Access,
    Peer(from): Peer,
    ChatPath(chat): ChatPath,
) -> Result<Response, Problem> {
    let request = TurnRequest::new(app, access, from, &chat);
    match request.resume().await? {
        Some(session) => follow(request, session),
        None => Ok(StatusCode::NO_CONTENT.into_response()),
    }
}

problems!(NotStopped: BadJson, BadRequest, TooLarge, Timeout, Forbidden, Overloaded, Unavailable);

/// Cancels the job that answers a chat.
#[utoipa::path(
    post, path = "/api/chat/{id}/stop", tag = CHAT, params(("id" = String, Path, description = "The id of the chat.")),
    responses(
        (status = 200, description = "The job will be cancelled, or none was active.", body = ref("#/components/schemas/Stopping")),
        NotStopped,
    ),
)]
pub(super) async fn stop(
    State(app): State<Arc<App>>,
    access: Access,
    Peer(from): Peer,
    ChatPath(chat): ChatPath,
    request: Request,
) -> Result<Json<Stopping>, Problem> {
    let (body, reservation) = Bodies::from_ref(&app).read(request.into_body()).await?;
    let active = StopRequest::of(&body)?;
    // Others may need the room while NATS does not answer.
    drop((body, reservation));
    let request = TurnRequest::new(app, access, from, &chat);
    let job = request.stop(active.as_deref()).await?;
    Ok(Json(Stopping { success: true, job }))
}

/// Streams a job as the parts of a message.
fn follow(request: TurnRequest, session: Session<Reader>) -> Result<Response, Problem> {
    let translation = Box::new(PartBlocks(MessageParts::new(session.job().clone())));
    let app = Arc::clone(&request.app);
    let mut response = sse::translated(&app, session, request.client(), translation)?;
    response
        .headers_mut()
        .insert(STREAM_VERSION, HeaderValue::from_static("v1"));
    Ok(response)
}

/// Message parts as server-sent events.
struct PartBlocks(MessageParts);

impl PartBlocks {
    fn put(&self, parts: &[Value], out: &mut Vec<u8>) {
        for part in parts {
            put_block(out, &[("data", &part.to_string())]);
        }
        if self.0.is_ended() && !parts.is_empty() {
            put_block(out, &[("data", "[DONE]")]);
        }
    }
}

impl Translation for PartBlocks {
    fn apply(&mut self, event: &Stored, out: &mut Vec<u8>) {
        let parts = self.0.apply(event);
        self.put(&parts, out);
    }

    fn missing(&mut self, from: Seq, to: Seq, out: &mut Vec<u8>) {
        let parts = self.0.missing(from, to);
        self.put(&parts, out);
    }

    fn close(&mut self, out: &mut Vec<u8>) {
        let parts = self.0.close();
        self.put(&parts, out);
    }

    fn is_over(&self) -> bool {
        self.0.is_ended()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_to_stop_holds_little_of_what_names_no_job() {
        let active = |body: &str| StopRequest::of(body.as_bytes()).map_err(|refusal| refusal.code);
        for none in ["", "{}", r#"{"activeStreamId":null}"#] {
            assert_eq!(active(none), Ok(None), "{none}");
        }
        assert_eq!(
            active(r#"{"activeStreamId":"j","id":1}"#),
            Ok(Some("j".into()))
        );
        let long = format!(r#"{{"activeStreamId":"{}"}}"#, "j".repeat(500_000));
        assert_eq!(active(&long), Ok(Some("j".repeat(ID_MAX + 1))));
        assert_eq!(active(r#"{"activeStreamId":1}"#), Err(Code::BadRequest));
        assert_eq!(active("{"), Err(Code::BadJson));
    }
}
