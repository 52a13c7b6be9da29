//! The OpenAPI 3.1 document: the descriptions of the handlers, the schemas of `wire`, and those of
//! responses that only HTTP has.

use std::sync::{Arc, OnceLock};

use axum::Extension;
use axum::http::{HeaderName, header};
use axum::response::IntoResponse;
use bytes::Bytes;
use serde_json::{Value, json};
use utoipa::openapi::OpenApi;

use super::chat::{ChatBody, Stopping};
use super::describe::{CHAT, JOBS, OPENAI, OPERATION, responses};
use super::error;
use super::jobs::{Accepted, CancelReceipt};
use super::kinds::Kinds;
use super::openai::{CompletionBody, ResponseBody};
use super::page::Gap;
use super::stats::{SocketIoStats, Stats};
use super::tickets::{Ticket, TicketRequest};
use crate::wire::{Code, Dialect, JobPage, definitions};

/// This description.
#[utoipa::path(
    get, path = "/openapi.json", tag = OPERATION,
    responses((status = 200, description = "OpenAPI 3.1.", body = inline(Object))),
)]
pub(super) async fn document(Extension(document): Extension<ApiDocument>) -> impl IntoResponse {
    let json: (HeaderName, &str) = (header::CONTENT_TYPE, "application/json");
    ([json], document.json())
}

/// The document, made at the first request.
#[derive(Clone)]
pub(super) struct ApiDocument(Arc<(OpenApi, OnceLock<Bytes>)>);

impl ApiDocument {
    /// The document of an edge with these routes.
    pub(super) fn new(routes: OpenApi) -> Self {
        Self(Arc::new((routes, OnceLock::new())))
    }

    fn json(&self) -> Bytes {
        let (routes, json) = &*self.0;
        json.get_or_init(|| describe(routes).to_string().into())
            .clone()
    }
}

/// The whole document.
fn describe(routes: &OpenApi) -> Value {
    let mut document = json!(routes);
    document["info"] = json!({
        "title": "Tailwater",
        "version": env!("CARGO_PKG_VERSION"),
        "summary": "Durable job streams over NATS",
        "description": "Every error is a `Problem` with a stable `code`. PROTOCOL.md explains the codes and the events.",
        "license": {"name": env!("CARGO_PKG_LICENSE"), "identifier": env!("CARGO_PKG_LICENSE")},
    });
    // utoipa adds this only for types, not for references.
    for path in [
        "/paths/~1api~1jobs",
        "/paths/~1api~1tickets",
        "/paths/~1api~1chat",
        "/paths/~1v1~1chat~1completions",
        "/paths/~1v1~1responses",
    ] {
        let body = document.pointer_mut(&format!("{path}/post/requestBody"));
        body.into_iter()
            .for_each(|body| body["required"] = true.into());
    }
    document["servers"] = json!([{"url": "/"}]);
    secure(&mut document);
    document["tags"] = json!([
        {"name": JOBS, "description": "Submit jobs, follow them, read their state, cancel them, purge them."},
        {"name": CHAT, "description": "The protocol of the AI SDK, for `useChat`."},
        {"name": OPENAI, "description": "The protocol of OpenAI, for its clients. A model is a kind."},
        {"name": OPERATION, "description": "For operators of an edge."},
    ]);
    let mut schemas = definitions(Dialect::OpenApi);
    // The frames of WebSocket clients are not part of the HTTP interface.
    schemas.remove("ClientFrame");
    let mut answers = Dialect::OpenApi.settings().for_serialize().into_generator();
    answers.subschema_for::<Accepted>();
    answers.subschema_for::<CancelReceipt>();
    answers.subschema_for::<ChatBody>();
    answers.subschema_for::<CompletionBody>();
    answers.subschema_for::<ResponseBody>();
    answers.subschema_for::<Stopping>();
    answers.subschema_for::<Gap>();
    answers.subschema_for::<JobPage>();
    answers.subschema_for::<Kinds>();
    answers.subschema_for::<Stats>();
    answers.subschema_for::<SocketIoStats>();
    answers.subschema_for::<Ticket>();
    answers.subschema_for::<TicketRequest>();
    answers.subschema_for::<error::ProblemBody<'_>>();
    for (name, schema) in answers.take_definitions(true) {
        schemas.entry(name).or_insert(schema);
    }
    schemas.insert("OpenAiError".into(), openai_error());
    schemas.insert("Page".into(), page());
    schemas.insert("StreamEvent".into(), stream_event());
    document["components"]["schemas"] = schemas.into();
    document["components"]["securitySchemes"] = json!({
        "token": {
            "type": "http",
            "scheme": "bearer",
            "description": "Only on an edge that checks tokens. PROTOCOL.md explains what they allow.",
        },
    });
    document
}

/// The operations that need no token.
const PUBLIC: [&str; 2] = ["/healthz", "/readyz"];

/// Adds what applies to every operation: its token, and how a request without a valid one is
/// refused.
fn secure(document: &mut Value) {
    document["security"] = json!([{"token": []}, {}]);
    let about_token = [
        Code::Unauthorized,
        Code::TokenExpired,
        Code::TokenRevoked,
        Code::Forbidden,
        Code::TokenInUrl,
    ];
    let about_host = [Code::OriginNotAllowed, Code::HostNotAllowed];
    let paths = document["paths"].as_object_mut().into_iter().flatten();
    for (path, operations) in paths {
        if path.starts_with("/v1/") {
            // They describe their errors themselves.
            continue;
        }
        let is_public = PUBLIC.contains(&path.as_str());
        let codes = about_token.iter().filter(|_| !is_public).chain(&about_host);
        let codes: Vec<Code> = codes.copied().collect();
        let added = json!(responses(&codes));
        for operation in operations.as_object_mut().into_iter().flatten() {
            let operation = operation.1;
            if is_public {
                operation["security"] = json!([]);
            }
            for (status, response) in added.as_object().into_iter().flatten() {
                let described = &mut operation["responses"][status];
                if described.is_null() {
                    *described = response.clone();
                }
            }
        }
    }
}

fn any_event() -> Value {
    json!({"anyOf": [{"$ref": "#/components/schemas/Event"}, {"$ref": "#/components/schemas/OtherEvent"}]})
}

/// What `openai` answers with.
fn openai_error() -> Value {
    json!({
        "type": "object",
        "description": "An error in the form of OpenAI.",
        "required": ["error"],
        "properties": {"error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": "string"},
            },
        }},
    })
}

/// What `page` writes. There is no type, since events are bytes that all watchers share.
fn page() -> Value {
    json!({
        "type": "object",
        "description": "A part of a job's log, and where the next part begins.",
        "required": ["events", "live", "next"],
        "properties": {
            "events": {"type": "array", "items": any_event()},
            "missing": {"$ref": "#/components/schemas/Gap"},
            "live": {
                "type": "boolean",
                "description": "Whether the page ends with the last stored event of a job that is still running.",
            },
            "next": {
                "type": ["string", "null"],
                "description": "The `cursor` of the next request; null after the job's final event.",
            },
        },
    })
}

/// What `sse` writes.
fn stream_event() -> Value {
    json!({
        "type": "object",
        "description": "One server-sent event, as in the HTML standard.",
        "required": ["data"],
        "properties": {
            "id": {"$ref": "#/components/schemas/Cursor"},
            "event": {"enum": ["message", "missing"], "description": "Events of the job have no name, which means `message`."},
            "data": {
                "type": "string",
                "contentMediaType": "application/json",
                "contentSchema": {"anyOf": [any_event(), {"$ref": "#/components/schemas/ServerFrame"}]},
            },
            "retry": {"type": "integer", "minimum": 0},
        },
    })
}
