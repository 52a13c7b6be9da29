//! The OpenAPI 3.1 document: the descriptions of the handlers, the schemas of `wire`, and those of
//! responses that only HTTP has.

use std::sync::{Arc, OnceLock};

use axum::Extension;
use axum::http::{HeaderName, header};
use axum::response::IntoResponse;
use bytes::Bytes;
use serde_json::{Value, json};
use utoipa::openapi::OpenApi;

use super::describe::{JOBS, OPERATION};
use super::error;
use super::jobs::{Accepted, CancelReceipt};
use super::kinds::Kinds;
use super::page::Gap;
use super::stats::{SocketIoStats, Stats};
use crate::wire::{Dialect, JobPage, definitions};

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
    let bodies = document.pointer_mut("/paths/~1api~1jobs/post/requestBody");
    bodies
        .into_iter()
        .for_each(|body| body["required"] = true.into());
    document["servers"] = json!([{"url": "/"}]);
    // No authentication.
    document["security"] = json!([]);
    document["tags"] = json!([
        {"name": JOBS, "description": "Submit jobs, follow them, read their state, cancel them."},
        {"name": OPERATION, "description": "For operators of an edge."},
    ]);
    let mut schemas = definitions(Dialect::OpenApi);
    // The frames of WebSocket clients are not part of the HTTP interface.
    schemas.remove("ClientFrame");
    let mut answers = Dialect::OpenApi.settings().for_serialize().into_generator();
    answers.subschema_for::<Accepted>();
    answers.subschema_for::<CancelReceipt>();
    answers.subschema_for::<Gap>();
    answers.subschema_for::<JobPage>();
    answers.subschema_for::<Kinds>();
    answers.subschema_for::<Stats>();
    answers.subschema_for::<SocketIoStats>();
    answers.subschema_for::<error::ProblemBody<'_>>();
    for (name, schema) in answers.take_definitions(true) {
        schemas.entry(name).or_insert(schema);
    }
    schemas.insert("Page".into(), page());
    schemas.insert("StreamEvent".into(), stream_event());
    document["components"]["schemas"] = schemas.into();
    document
}

fn any_event() -> Value {
    json!({"anyOf": [{"$ref": "#/components/schemas/Event"}, {"$ref": "#/components/schemas/OtherEvent"}]})
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
