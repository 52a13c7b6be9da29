//! What a job's log is made of: the events, as workers and edges store them. It does not know where they are stored.

use std::fmt;

use bytes::Bytes;
use schemars::JsonSchema;
use serde::de::{Deserializer, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::codec;
use super::id::{JobId, Kind, Seq};
use super::scan::{plain, plain_option};

/// One entry of a job's log. Stored as a MessagePack map with named fields, or as a JSON object.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Event {
    /// The `type` and the fields that belong to it.
    #[serde(flatten)]
    pub body: Body,
    /// The job.
    pub job: JobId,
    /// The event's number in the job's log, from 1, without holes.
    pub seq: Seq,
    /// The attempt that wrote it, from 1; 0 before the first attempt.
    pub attempt: u32,
    /// When it was written: milliseconds since the Unix epoch, by the writer's clock.
    pub ts: u64,
}

/// The part of an event that depends on its type.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type")]
pub enum Body {
    /// The job was accepted; the first event of every log.
    #[serde(rename = "job:queued:v1")]
    Queued {
        /// Which workers may take it.
        kind: Kind,
        /// What the submitter gave; of a job that delivers a callback only a digest.
        #[serde(default, deserialize_with = "plain")]
        input: Value,
        /// How long the job may take, from here to its end, in milliseconds.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        timeout_ms: Option<u64>,
        /// How long an attempt may put out nothing, in milliseconds.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        silence_timeout_ms: Option<u64>,
        /// The SHA-256 of the callback address, in base64url, by which the same submission is known again. The address
        /// itself is nobody else's business.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        callback_digest: Option<String>,
    },
    /// An attempt began. What earlier attempts put out no longer counts unless this one `continues`.
    #[serde(rename = "job:started:v1")]
    Started {
        /// The job's kind.
        kind: Kind,
        /// The worker that runs it, for people to read.
        worker: String,
        /// Whether this attempt goes on where the one before stopped.
        #[serde(default)]
        continues: bool,
    },
    /// Output text; never empty, never part of a character.
    #[serde(rename = "model:chunk:v1")]
    Chunk {
        /// The text.
        text: String,
        /// What the text belongs to.
        #[serde(default)]
        channel: Channel,
    },
    /// Output that is not text.
    #[serde(rename = "job:data:v1")]
    Data {
        /// Any JSON.
        #[serde(deserialize_with = "plain")]
        data: Value,
    },
    /// An attempt is over without having ended the job; another one follows.
    #[serde(rename = "job:retrying:v1")]
    Retrying {
        /// Stable, for programs: a failure code of PROTOCOL.md, or a code of the backend's own.
        code: String,
        /// For people.
        message: String,
        /// How long the next attempt waits at least, in milliseconds.
        #[serde(default)]
        delay_ms: u64,
    },
    /// Somebody asked for the job to be cancelled; whoever owns it ends it.
    #[serde(rename = "job:cancel-requested:v1")]
    CancelRequested {
        /// Who asked, for people to read.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        by: Option<String>,
    },
    /// The job ended well.
    #[serde(rename = "job:done:v1")]
    Done {
        /// What it cost, in the backend's own words.
        #[serde(
            default,
            deserialize_with = "plain_option",
            skip_serializing_if = "Option::is_none"
        )]
        usage: Option<Value>,
        /// Why the backend stopped, for example `stop` or `length`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        finish_reason: Option<String>,
    },
    /// The job ended badly.
    #[serde(rename = "job:failed:v1")]
    Failed(JobFailure),
    /// The job ended because somebody asked for it.
    #[serde(rename = "job:cancelled:v1")]
    Cancelled {},
    /// A type that this version does not know. Clients are given the stored payload as it is.
    #[serde(other)]
    #[schemars(skip)]
    Unknown,
}

/// Why a job failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "Failure")]
pub struct JobFailure {
    /// Stable, for programs: a failure code of PROTOCOL.md, or a code of the backend's own.
    pub code: String,
    /// For people.
    pub message: String,
    /// Whether the same job may do better another time.
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

/// An event's type, read without the rest of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventType {
    /// `job:queued:v1`
    Queued,
    /// `job:started:v1`
    Started,
    /// `model:chunk:v1`
    Chunk,
    /// `job:data:v1`
    Data,
    /// `job:retrying:v1`
    Retrying,
    /// `job:cancel-requested:v1`
    CancelRequested,
    /// `job:done:v1`
    Done,
    /// `job:failed:v1`
    Failed,
    /// `job:cancelled:v1`
    Cancelled,
    /// Any other.
    Unknown,
}

impl EventType {
    /// Whether nothing may follow an event of this type.
    pub const fn is_end(self) -> bool {
        matches!(self, Self::Done | Self::Failed | Self::Cancelled)
    }

    /// The text of the type; `None` when only the event itself has it.
    pub const fn as_str(self) -> Option<&'static str> {
        Some(match self {
            Self::Queued => "job:queued:v1",
            Self::Started => "job:started:v1",
            Self::Chunk => "model:chunk:v1",
            Self::Data => "job:data:v1",
            Self::Retrying => "job:retrying:v1",
            Self::CancelRequested => "job:cancel-requested:v1",
            Self::Done => "job:done:v1",
            Self::Failed => "job:failed:v1",
            Self::Cancelled => "job:cancelled:v1",
            Self::Unknown => return None,
        })
    }

    /// What a job is when its last event has this type.
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
    /// A worker has it, or had it last.
    Running,
    /// Ended well.
    Done,
    /// Ended badly.
    Failed,
    /// Ended on request.
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
                Ok(match text {
                    "job:queued:v1" => EventType::Queued,
                    "job:started:v1" => EventType::Started,
                    "model:chunk:v1" => EventType::Chunk,
                    "job:data:v1" => EventType::Data,
                    "job:retrying:v1" => EventType::Retrying,
                    "job:cancel-requested:v1" => EventType::CancelRequested,
                    "job:done:v1" => EventType::Done,
                    "job:failed:v1" => EventType::Failed,
                    "job:cancelled:v1" => EventType::Cancelled,
                    _ => EventType::Unknown,
                })
            }
        }
        deserializer.deserialize_str(Text)
    }
}

impl Body {
    /// The first event of a job without limits of its own or a callback.
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
    /// The event as it is stored: MessagePack with named fields.
    ///
    /// # Errors
    /// [`codec::Error`]. It checks neither size nor depth; [`Self::encode_within`] does.
    pub fn encode(&self) -> Result<Bytes, codec::Error> {
        codec::to_msgpack(self)
    }

    /// Reads a stored event, in either encoding.
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
    fn every_type_survives_both_encodings() {
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
            assert_eq!(Event::decode(&event.encode().unwrap()).unwrap(), event);
            assert_eq!(
                Event::decode(&serde_json::to_vec(&event).unwrap()).unwrap(),
                event
            );
        }
    }

    #[test]
    fn a_type_of_a_later_version_is_read_as_unknown() {
        let stored =
            br#"{"type":"job:haiku:v9","job":"j1","seq":4,"attempt":2,"ts":1,"mood":"blue"}"#;
        assert_eq!(Event::decode(stored).unwrap().body, Body::Unknown);
    }

    #[test]
    fn a_chunk_of_another_language_may_leave_the_channel_out() {
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
