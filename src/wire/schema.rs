//! JSON Schema of everything that goes over the wire, generated from the Rust types. The result is
//! stored in `schema/` for authors of clients; a test fails when it is out of date.

use std::borrow::Cow;

use schemars::generate::SchemaSettings;
use schemars::transform::RecursiveTransform;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde_json::{Map, Value, json};

use super::client_frame::{ClientFrame, Start};
use super::cursor::Cursor;
use super::event::{Event, EventType};
use super::id::{JobId, Kind, Seq};
use super::limits::NAME_MAX;
use super::server_frame::ServerFrame;
use super::state::JobState;
use super::submit::SubmissionFields;

/// The version of JSON Schema, and where a document has its definitions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// Draft 7, under `definitions`, for code generators and AsyncAPI.
    Draft7,
    /// Draft 2020-12, under `components/schemas`, for OpenAPI 3.1.
    OpenApi,
}

impl Dialect {
    /// A generator of schemas in this form.
    pub fn settings(self) -> SchemaSettings {
        let settings = match self {
            Self::Draft7 => SchemaSettings::draft07(),
            Self::OpenApi => SchemaSettings::draft2020_12()
                .with(|settings| settings.definitions_path = "/components/schemas".into()),
        };
        settings.with_transform(RecursiveTransform(|schema: &mut Schema| {
            // Formats that only Rust knows.
            if schema
                .get("format")
                .and_then(Value::as_str)
                .is_some_and(|format| format.starts_with("uint"))
            {
                schema.remove("format");
            }
            // Links of rustdoc, which do not work here.
            if let Some(Value::String(text)) = schema.get_mut("description") {
                *text = text.replace("[`", "`").replace("`]", "`");
            }
        }))
    }
}

/// The schemas of everything that goes over the wire, by name: [`Event`] as clients get it,
/// [`ClientFrame`], [`ServerFrame`], [`JobState`], [`Submission`](super::Submission), and their
/// parts.
pub fn definitions(dialect: Dialect) -> Map<String, Value> {
    // Other writers may omit fields that have a default; the edge never omits them.
    let mut read = dialect.settings().for_deserialize().into_generator();
    read.subschema_for::<EventFrame>();
    read.subschema_for::<OtherEvent>();
    read.subschema_for::<ClientFrame>();
    read.subschema_for::<SubmissionFields<'_>>();
    let mut written = dialect.settings().for_serialize().into_generator();
    written.subschema_for::<ServerFrame>();
    written.subschema_for::<JobState>();
    let mut all = written.take_definitions(true);
    all.extend(read.take_definitions(true));
    if let Some(event) = all.get_mut("Event") {
        copy_shared_fields(event);
        add_merged_fields(event);
    }
    all
}

/// Adds the field that only a chunk of a compacted watch has.
fn add_merged_fields(event: &mut Value) {
    let variants = event.get_mut("oneOf").and_then(Value::as_array_mut);
    let chunk = variants.into_iter().flatten().find(|variant| {
        variant.pointer("/properties/type/const") == Some(&EventType::Chunk.as_str().into())
    });
    if let Some(properties) = chunk.and_then(|chunk| chunk.get_mut("properties")) {
        properties["from_seq"] = json!({
            "type": "integer",
            "minimum": 1,
            "description": "The first of the events that were merged into this one, up to `seq`; only in a watch \
                with `compact`.",
        });
    }
}

/// Copies the fields that all variants share into each variant: many tools do not combine `oneOf`
/// with `properties`.
fn copy_shared_fields(schema: &mut Value) {
    let Some(schema) = schema.as_object_mut() else {
        return;
    };
    let properties = schema.remove("properties");
    let required = schema.remove("required");
    schema.remove("type");
    let variants = schema.get_mut("oneOf").and_then(Value::as_array_mut);
    for variant in variants
        .into_iter()
        .flatten()
        .filter_map(Value::as_object_mut)
    {
        if let (Some(Value::Object(own)), Some(Value::Object(shared))) =
            (variant.get_mut("properties"), &properties)
        {
            own.extend(shared.clone());
        }
        if let (Some(Value::Array(own)), Some(Value::Array(shared))) =
            (variant.get_mut("required"), &required)
        {
            own.extend_from_slice(shared);
        }
    }
}

/// One entry of a job's log, as a client gets it.
#[derive(JsonSchema)]
#[schemars(rename = "Event")]
#[expect(
    dead_code,
    reason = "only describes a frame, which is built from bytes"
)]
struct EventFrame {
    #[schemars(flatten)]
    event: Event,
    /// Names this event.
    cursor: Cursor,
}

/// An event of a type that is not described here: a type of a later version, or a worker's own.
/// Clients ignore types that they do not know.
#[derive(JsonSchema)]
#[expect(
    dead_code,
    reason = "only describes a frame, which is built from bytes"
)]
struct OtherEvent {
    /// The type.
    #[schemars(rename = "type")]
    event_type: String,
    /// The job.
    job: JobId,
    /// The event's sequence number in the job's log, from 1, without gaps.
    seq: Seq,
    /// The attempt that wrote it, from 1; 0 before the first attempt.
    attempt: u32,
    /// When it was written: milliseconds since the Unix epoch, by the writer's clock.
    ts: u64,
    /// Names this event.
    cursor: Cursor,
}

fn name(description: &str) -> Schema {
    json_schema!({
        "type": "string",
        "description": description,
        "pattern": format!("^{}$", name_pattern()),
    })
}

fn name_pattern() -> String {
    format!("[A-Za-z0-9_-]{{1,{NAME_MAX}}}")
}

impl JsonSchema for JobId {
    fn schema_name() -> Cow<'static, str> {
        "JobId".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let name = name_pattern();
        json_schema!({
            "type": "string",
            "description": "A job's id; it may begin with the job's kind and a colon.",
            "pattern": format!("^({name}:)?{name}$"),
        })
    }
}

impl JsonSchema for Kind {
    fn schema_name() -> Cow<'static, str> {
        "Kind".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        name("Which workers may take a job.")
    }
}

impl JsonSchema for Cursor {
    fn schema_name() -> Cow<'static, str> {
        "Cursor".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "description": "Opaque text that names one event.",
            "pattern": "^[A-Za-z0-9_-]{1,40}$",
        })
    }
}

impl JsonSchema for Start {
    fn schema_name() -> Cow<'static, str> {
        "Start".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let cursor = generator.subschema_for::<Option<Cursor>>();
        json_schema!({
            "type": "object",
            "properties": {
                "after": {
                    "type": ["integer", "null"],
                    "minimum": 0,
                    "description": "Start with the event after this sequence number; 0 means the first event.",
                },
                "cursor": cursor,
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::path::{Path, PathBuf};

    fn path() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("src/wire/schema/tailwater.schema.json")
    }

    /// The content of `schema/tailwater.schema.json`.
    fn document() -> String {
        let all = [
            "Event",
            "OtherEvent",
            "ClientFrame",
            "ServerFrame",
            "JobState",
            "Submission",
        ];
        let all = all.map(|name| json!({"$ref": format!("#/definitions/{name}")}));
        let document = json!({
            "$schema": "http://json-schema.org/draft-07/schema#",
            "title": "Tailwater",
            "description": "What goes over the wire. Generated by a test in src/wire/schema.rs.",
            "anyOf": all,
            "definitions": definitions(Dialect::Draft7),
        });
        format!("{document:#}\n")
    }

    #[test]
    fn the_stored_schemas_are_those_of_the_types() {
        let stored = fs::read_to_string(path()).unwrap_or_default();
        assert!(
            stored == document(),
            "run: cargo test --lib wire::schema -- --ignored && node scripts/types.mjs"
        );
    }

    #[test]
    #[ignore = "writes into the source tree"]
    fn write_the_schemas() {
        fs::write(path(), document()).unwrap();
    }

    #[test]
    fn a_description_has_no_links_of_rustdoc() {
        for dialect in [Dialect::Draft7, Dialect::OpenApi] {
            let all = Value::from(definitions(dialect)).to_string();
            assert!(
                !all.contains("[`") && !all.contains("`]") && !all.contains("uint"),
                "{all}"
            );
        }
    }
}
