//! JSON Schema of everything that goes over the wire, out of the types that read and write it. `schema/` holds what it
//! gives, for those who write clients; a test tells when that is not the same any more.

use std::borrow::Cow;

use schemars::generate::SchemaSettings;
use schemars::transform::RecursiveTransform;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde_json::{Map, Value};

use super::client_frame::{ClientFrame, Start};
use super::cursor::Cursor;
use super::event::Event;
use super::id::{JobId, Kind, Seq};
use super::limits::NAME_MAX;
use super::server_frame::ServerFrame;
use super::state::JobState;
use super::submit::SubmissionFields;

/// Which form of JSON Schema, and where in a document the definitions stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// Draft 7, below `definitions`: what code generators and AsyncAPI understand.
    Draft7,
    /// OpenAPI 3.1, below `components/schemas`: draft 2020-12.
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
            // Formats of Rust, which nobody else knows.
            if schema
                .get("format")
                .and_then(Value::as_str)
                .is_some_and(|format| format.starts_with("uint"))
            {
                schema.remove("format");
            }
            // Links of Rust's documentation, which lead nowhere here.
            if let Some(Value::String(text)) = schema.get_mut("description") {
                *text = text.replace("[`", "`").replace("`]", "`");
            }
        }))
    }
}

/// The schemas of all that goes over the wire, by name: [`Event`] as clients get it, [`ClientFrame`], [`ServerFrame`],
/// [`JobState`], [`Submission`], and what they consist of.
pub fn definitions(dialect: Dialect) -> Map<String, Value> {
    // What others write may leave out what has a default; what the edge writes is always there.
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
    all.get_mut("Event").into_iter().for_each(spread);
    all
}

/// Gives each variant the fields that all of them have, so that it stands for itself: many tools take the one or the other.
fn spread(schema: &mut Value) {
    let Some(schema) = schema.as_object_mut() else {
        return;
    };
    let (properties, required) = (schema.remove("properties"), schema.remove("required"));
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
#[expect(dead_code, reason = "a frame is made of bytes; this only describes it")]
struct EventFrame {
    #[schemars(flatten)]
    event: Event,
    /// Names this event.
    cursor: Cursor,
}

/// An event of a type that is not described here: of a later version, or of a worker's own. Clients pass over what they do
/// not know.
#[derive(JsonSchema)]
#[expect(dead_code, reason = "a frame is made of bytes; this only describes it")]
struct OtherEvent {
    /// The type.
    #[schemars(rename = "type")]
    event_type: String,
    /// The job.
    job: JobId,
    /// The event's number in the job's log, from 1, without holes.
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
        "pattern": format!("^[A-Za-z0-9_-]{{1,{NAME_MAX}}}$"),
    })
}

impl JsonSchema for JobId {
    fn schema_name() -> Cow<'static, str> {
        "JobId".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        name("A job's id.")
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
                    "description": "Begin with the event behind the one with this number; 0 is the first event.",
                },
                "cursor": cursor,
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::fs;
    use std::path::{Path, PathBuf};

    fn path() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("src/wire/schema/tailwater.schema.json")
    }

    /// What `schema/` holds.
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
            "description": "What goes over the wire. The test that stands in src/wire/schema.rs writes this file.",
            "anyOf": all,
            "definitions": definitions(Dialect::Draft7),
        });
        format!("{document:#}\n")
    }

    #[test]
    fn the_schemas_that_are_kept_are_those_of_the_types() {
        let kept = fs::read_to_string(path()).unwrap_or_default();
        assert!(
            kept == document(),
            "run: cargo test --lib wire::schema -- --ignored && node scripts/types.mjs"
        );
    }

    #[test]
    #[ignore = "writes into the source tree"]
    fn write_the_schemas() {
        fs::write(path(), document()).unwrap();
    }

    #[test]
    fn a_description_has_no_links_of_rust() {
        for dialect in [Dialect::Draft7, Dialect::OpenApi] {
            let all = Value::from(definitions(dialect)).to_string();
            assert!(
                !all.contains("[`") && !all.contains("`]") && !all.contains("uint"),
                "{all}"
            );
        }
    }
}
