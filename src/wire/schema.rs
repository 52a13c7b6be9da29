//! JSON Schema of everything that goes over the wire, out of the types that read and write it. `schema/` holds what it
//! gives, for those who write clients; a test tells when that is not the same any more.

use std::borrow::Cow;

use schemars::generate::SchemaSettings;
use schemars::transform::RecursiveTransform;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde_json::{Map, Value};

use super::cursor::Cursor;
use super::event::Event;
use super::frame::{ClientFrame, ServerFrame, Start};
use super::id::{JobId, Kind, NAME_MAX, Seq};
use super::state::JobState;
use super::submission::Submission;

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
            if schema.get("format").and_then(Value::as_str).is_some_and(|format| format.starts_with("uint")) {
                schema.remove("format");
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
    read.subschema_for::<Submission>();
    let mut written = dialect.settings().for_serialize().into_generator();
    written.subschema_for::<ServerFrame>();
    written.subschema_for::<JobState>();
    let mut all = written.take_definitions(true);
    all.extend(read.take_definitions(true));
    all
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
    kind: String,
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

    #[test]
    fn show() {
        println!("{}", Value::from(definitions(Dialect::Draft7)));
    }
}
