//! The events of a job's log, as workers and edges store them. It does not know where they are
//! stored.

use std::fmt;

use bytes::Bytes;
use schemars::JsonSchema;
use serde::de::{Deserializer, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::codec;
use super::id::{JobId, Kind, Seq};
use super::plain::{plain, plain_option};

/// One entry of a job's log. Stored as a MessagePack map with named fields, or as a JSON object.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Event {
    /// The `type` and the fields that belong to it.
    #[serde(flatten)]
    pub body: Body,
    /// The job.
    pub job: JobId,
    /// The event's sequence number in the job's log, from 1, without gaps.
    pub seq: Seq,
    /// The attempt that wrote it, from 1; 0 before the first attempt.
    pub attempt: u32,
    /// When it was written: milliseconds since the Unix epoch, by the writer's clock.
    pub ts: u64,
}

/// Defines [`Body`] and [`EventType`] from one list: documentation, type, name, fields.
macro_rules! events {
    ($($(#[$doc:meta])* $text:literal $name:ident $fields:tt)*) => {
        /// The part of an event that depends on its type.
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
        #[serde(tag = "type")]
        pub enum Body {
            $($(#[$doc])* #[serde(rename = $text)] $name $fields,)*
            /// A type that this version does not know. Clients get the stored payload unchanged.
            #[serde(other)]
            #[schemars(skip)]
            Unknown,
        }

        /// An event's type, read without the rest of the event.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum EventType {
            $(#[doc = concat!("`", $text, "`")] $name,)*
            /// Any other.
            Unknown,
        }

        impl EventType {
            /// The text of the type; `None` if only the event itself has it.
            pub const fn as_str(self) -> Option<&'static str> {
                match self {
                    $(Self::$name => Some($text),)*
                    Self::Unknown => None,
                }
            }

            pub(super) fn from_text(text: &str) -> Self {
                match text {
                    $($text => Self::$name,)*
                    _ => Self::Unknown,
                }
            }
        }
    };
}

events! {
    /// The job was accepted; the first event of every log.
    "job:queued:v1" Queued {
        /// Which workers may take it.
        kind: Kind,
        /// The submitted input; only a digest for a job that delivers a callback.
        #[serde(default, deserialize_with = "plain")]
        input: Value,
        /// How long the job may take, from here to its end, in milliseconds.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        timeout_ms: Option<u64>,
        /// How long an attempt may produce no output, in milliseconds.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        silence_timeout_ms: Option<u64>,
        /// The SHA-256 of the callback address, in base64url. It identifies a repeated submission
        /// without revealing the address to everyone who may watch the job.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        callback_digest: Option<String>,
    }
    /// An attempt started. Output of earlier attempts no longer counts unless this one `continues`.
    "job:started:v1" Started {
        /// The job's kind.
        kind: Kind,
        /// The worker that runs it, for people.
        worker: String,
        /// Whether this attempt continues where the one before stopped.
        #[serde(default)]
        continues: bool,
    }
    /// Output text; never empty, never part of a character.
    "model:chunk:v1" Chunk {
        /// The text.
        text: String,
        /// What the text belongs to.
        #[serde(default)]
        channel: Channel,
    }
    /// Output that is not text.
    "job:data:v1" Data {
        /// Any JSON.
        #[serde(deserialize_with = "plain")]
        data: Value,
    }
    /// An attempt is over but the job is not; another attempt follows.
    "job:retrying:v1" Retrying {
        /// Stable, for programs: a failure code of PROTOCOL.md, or a code of the backend's own.
        code: String,
        /// For people.
        message: String,
        /// How long the next attempt waits at least, in milliseconds.
        #[serde(default)]
        delay_ms: u64,
    }
    /// A cancellation was requested; the worker that owns the job ends it.
    "job:cancel-requested:v1" CancelRequested {
        /// The subject of the token with which it was requested, if tokens are checked.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        by: Option<String>,
    }
    /// The job succeeded.
    "job:done:v1" Done {
        /// What it cost, as the backend reports it.
        #[serde(default, deserialize_with = "plain_option", skip_serializing_if = "Option::is_none")]
        usage: Option<Value>,
        /// Why the backend stopped, for example `stop` or `length`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        finish_reason: Option<String>,
    }
    /// The job failed.
    "job:failed:v1" Failed(JobFailure)
    /// The job was cancelled.
    "job:cancelled:v1" Cancelled {}
}

/// Why a job failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "Failure")]
pub struct JobFailure {
    /// Stable, for programs: a failure code of PROTOCOL.md, or a code of the backend's own.
    pub code: String,
    /// For people.
    pub message: String,
    /// Whether the same job may succeed if it is submitted again.
    #[serde(default)]
    pub retryable: bool,
}

/// What a chunk's text belongs to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Channel {
    /// The answer.
    #[default]
    Output,
    /// The model's thinking before the answer.
    Reasoning,
}

impl EventType {
    /// Whether no event may follow one of this type.
    pub const fn is_end(self) -> bool {
        matches!(self, Self::Done | Self::Failed | Self::Cancelled)
    }

    /// The status of a job whose last event has this type.
    pub const fn status(self) -> Status {
        match self {
            Self::Queued | Self::Retrying => Status::Queued,
            Self::Started | Self::Chunk | Self::Data | Self::CancelRequested | Self::Unknown => {
                Status::Running
            }
            Self::Done => Status::Done,
            Self::Failed => Status::Failed,
            Self::Cancelled => Status::Cancelled,
        }
    }
}

/// What a job is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Waits for a worker.
    Queued,
    /// A worker runs it, or was the last one to run it.
    Running,
    /// Succeeded.
    Done,
    /// Failed.
    Failed,
    /// Cancelled on request.
    Cancelled,
}

impl Status {
    /// Every status, in the order in which a job goes through them.
    pub const ALL: [Self; 5] = [
        Self::Queued,
        Self::Running,
        Self::Done,
        Self::Failed,
        Self::Cancelled,
    ];

    /// The word that clients see.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

impl<'de> Deserialize<'de> for EventType {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = EventType;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an event type")
            }
            fn visit_str<E>(self, text: &str) -> Result<EventType, E> {
                Ok(EventType::from_text(text))
            }
        }
        deserializer.deserialize_str(Text)
    }
}

impl Body {
    /// Whether it ends the job.
    pub const fn is_end(&self) -> bool {
        matches!(
            self,
            Self::Done { .. } | Self::Failed(_) | Self::Cancelled {}
        )
    }

    /// The first event of a job without its own limits and without a callback.
    pub const fn queued(kind: Kind, input: Value) -> Self {
        Self::Queued {
            kind,
            input,
            timeout_ms: None,
            silence_timeout_ms: None,
            callback_digest: None,
        }
    }
}

impl Event {
    /// Encodes the event as it is stored: MessagePack with named fields. Checks neither size nor
    /// depth; [`Self::encode_within`] does.
    ///
    /// # Errors
    /// [`codec::Error`].
    pub fn encode(&self) -> Result<Bytes, codec::Error> {
        codec::to_msgpack(self)
    }

    /// Decodes a stored event, in either encoding.
    ///
    /// # Errors
    /// [`codec::Error`] when the payload is not an event.
    pub fn decode(payload: &[u8]) -> Result<Self, codec::Error> {
        codec::from_stored(payload)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn event(body: Body) -> Event {
        Event {
            body,
            job: "j1".parse().unwrap(),
            seq: Seq(4),
            attempt: 2,
            ts: 1_700_000_000_123,
        }
    }

    #[test]
    fn every_type_is_read_back_from_both_encodings() {
        let kind: Kind = "demo".parse().unwrap();
        let failure = JobFailure {
            code: "c".into(),
            message: "m".into(),
            retryable: true,
        };
        for body in [
            Body::queued(kind.clone(), json!({"a": [1, 2.5, null, "ü"]})),
            Body::Queued {
                kind: kind.clone(),
                input: json!(1),
                timeout_ms: Some(60_000),
                silence_timeout_ms: Some(1_500),
                callback_digest: Some("d".into()),
            },
            Body::Retrying {
                code: "c".into(),
                message: "m".into(),
                delay_ms: 1000,
            },
            Body::Started {
                kind,
                worker: "w".into(),
                continues: true,
            },
            Body::Chunk {
                text: "héllo".into(),
                channel: Channel::Reasoning,
            },
            Body::Data {
                data: json!([{"x": -1}]),
            },
            Body::CancelRequested {
                by: Some("me".into()),
            },
            Body::Done {
                usage: Some(json!({"tokens": 7})),
                finish_reason: None,
            },
            Body::Failed(failure),
            Body::Cancelled {},
        ] {
            let event = event(body);
            let json = serde_json::to_vec(&event).unwrap();
            for payload in [&event.encode().unwrap()[..], &json] {
                assert_eq!(Event::decode(payload).unwrap(), event);
            }
        }
    }

    #[test]
    fn a_type_of_a_later_version_is_read_as_unknown() {
        let stored =
            br#"{"type":"job:haiku:v9","job":"j1","seq":4,"attempt":2,"ts":1,"mood":"blue"}"#;
        assert_eq!(Event::decode(stored).unwrap().body, Body::Unknown);
    }

    #[test]
    fn a_chunk_may_omit_the_channel() {
        let stored =
            br#"{"type":"model:chunk:v1","job":"j1","seq":4,"attempt":2,"ts":1,"text":"hi"}"#;
        assert_eq!(
            Event::decode(stored).unwrap().body,
            Body::Chunk {
                text: "hi".into(),
                channel: Channel::Output
            }
        );
    }
}
