//! What edge and client say to each other beside the events. It knows no connection and no encoding but JSON.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::code::Code;
use super::cursor::Cursor;
use super::event::Status;
use super::id::{JobId, Seq};

/// The subprotocol with JSON text frames; also what a client gets that offers none.
pub const JSON_PROTOCOL: &str = "tailwater.v1.json";

/// Where a client wants to begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// With the event after this number; 0 is "from the first".
    After(Seq),
    /// With the event after the one that the cursor names.
    Cursor(Cursor),
}

/// What a client asks for.
#[derive(Clone, Debug, PartialEq, Eq, JsonSchema)]
#[schemars(tag = "op", rename_all = "lowercase", deny_unknown_fields)]
pub enum ClientFrame {
    /// Send the job's events.
    Watch {
        /// The job; it need not exist yet.
        job: JobId,
        /// Where to begin.
        #[schemars(flatten)]
        start: Start,
    },
    /// Send no more of them.
    Unwatch {
        /// The job.
        job: JobId,
    },
}

/// Why a client's frame cannot be taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What is wrong.
    pub code: Code,
    /// What is wrong with this frame, for people.
    pub message: String,
    /// The job it was about, as the client wrote it, cut to a length that can be sent back.
    pub job: Option<String>,
}

impl Refusal {
    pub(super) fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), job: None }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Watch {
    #[serde(rename = "op")]
    _op: String,
    job: String,
    after: Option<u64>,
    cursor: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Unwatch {
    #[serde(rename = "op")]
    _op: String,
    job: String,
}

impl ClientFrame {
    /// Reads a client's text frame.
    ///
    /// # Errors
    /// A [`Refusal`] with the code that the client is told.
    pub fn parse(text: &str) -> Result<Self, Refusal> {
        let frame: Value = serde_json::from_str(text)
            .map_err(|error| Refusal::new(Code::BadJson, format!("not JSON: {error}")))?;
        let job = frame.get("job").and_then(Value::as_str).map(|job| job.chars().take(80).collect());
        Self::from_value(frame).map_err(|refusal| Refusal { job, ..refusal })
    }

    fn from_value(frame: Value) -> Result<Self, Refusal> {
        let Some(op) = frame.get("op").and_then(Value::as_str) else {
            return Err(Refusal::new(Code::BadRequest, "a frame is an object with an `op`"));
        };
        match op {
            "watch" => {
                let Watch { job, after, cursor, .. } = fields(frame)?;
                let (job, start) = (job_id(&job)?, start(after, cursor.as_deref())?);
                Ok(Self::Watch { job, start })
            }
            "unwatch" => {
                let Unwatch { job, .. } = fields(frame)?;
                Ok(Self::Unwatch { job: job_id(&job)? })
            }
            other => {
                let other: String = other.chars().take(40).collect();
                Err(Refusal::new(Code::UnknownOp, format!("no op `{other}`; there are watch and unwatch")))
            }
        }
    }
}

fn fields<T: serde::de::DeserializeOwned>(frame: Value) -> Result<T, Refusal> {
    serde_json::from_value(frame).map_err(|error| Refusal::new(Code::BadRequest, error.to_string()))
}

fn job_id(text: &str) -> Result<JobId, Refusal> {
    text.parse().map_err(|error| Refusal::new(Code::BadJobId, format!("a job id {error}")))
}

/// Reads where to begin, as WebSocket frames and query strings say it.
///
/// # Errors
/// A [`Refusal`] when both are given or the cursor is none.
pub fn start(after: Option<u64>, cursor: Option<&str>) -> Result<Start, Refusal> {
    match (after, cursor) {
        (Some(_), Some(_)) => Err(Refusal::new(Code::BadRequest, "give `after` or `cursor`, not both")),
        (after, None) => Ok(Start::After(Seq(after.unwrap_or(0)))),
        (None, Some(text)) => text
            .parse()
            .map(Start::Cursor)
            .map_err(|error| Refusal::new(Code::BadCursor, format!("the cursor is {error}"))),
    }
}

/// What an edge says beside the events. Event frames have no `op`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "op", rename_all = "lowercase")]
pub enum ServerFrame {
    /// The first frame of a connection.
    Hello {
        /// The subprotocol in use.
        protocol: String,
        /// The version of the edge.
        version: String,
    },
    /// The job is watched; its events follow.
    Watching {
        /// The job.
        job: JobId,
        /// What the job was doing when the watch began; absent while it has no event.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        status: Option<Status>,
    },
    /// Everything that was stored before now was sent; what follows is live.
    Live {
        /// The job.
        job: JobId,
    },
    /// Events that the log no longer has.
    Missing {
        /// The job.
        job: JobId,
        /// The first of them.
        from: Seq,
        /// The last of them.
        to: Seq,
        /// Why they are gone.
        reason: Gone,
    },
    /// The job has ended and all of it was sent. The watch is over.
    End {
        /// The job.
        job: JobId,
    },
    /// The job is not watched any more.
    Unwatched {
        /// The job.
        job: JobId,
    },
    /// Something went wrong; the connection goes on unless a close follows.
    Error {
        /// The stable code.
        code: String,
        /// For people.
        message: String,
        /// The job it is about, as the client named it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        job: Option<String>,
    },
}

impl ServerFrame {
    /// The frame as JSON text.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).unwrap_or_else(|_| unreachable!("strings and numbers are always JSON"))
    }
}

/// Why events are gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Gone {
    /// They were older, or more, than the log keeps.
    Expired,
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn refusal(text: &str) -> Code {
        ClientFrame::parse(text).unwrap_err().code
    }

    #[test]
    fn a_watch_begins_after_a_number_or_a_cursor_or_at_the_first_event() {
        let job: JobId = "j1".parse().unwrap();
        let cursor = Cursor::of(&job, Seq(3), 9, b"x");
        let watch = |extra: &str| ClientFrame::parse(&format!(r#"{{"op":"watch","job":"j1"{extra}}}"#));
        let with = |start| Ok(ClientFrame::Watch { job: job.clone(), start });
        assert_eq!(watch(""), with(Start::After(Seq(0))));
        assert_eq!(watch(r#","after":17"#), with(Start::After(Seq(17))));
        assert_eq!(watch(&format!(r#","cursor":"{cursor}""#)), with(Start::Cursor(cursor)));
        assert_eq!(watch(r#","after":null"#), with(Start::After(Seq(0))));
    }

    #[test]
    fn each_kind_of_bad_frame_has_its_own_code() {
        assert_eq!(refusal("hello"), Code::BadJson);
        assert_eq!(refusal("[]"), Code::BadRequest);
        assert_eq!(refusal(r#"{"op":7}"#), Code::BadRequest);
        assert_eq!(refusal(r#"{"op":"dance"}"#), Code::UnknownOp);
        assert_eq!(refusal(r#"{"op":"watch"}"#), Code::BadRequest);
        assert_eq!(refusal(r#"{"op":"watch","job":"j","after":-1}"#), Code::BadRequest);
        assert_eq!(refusal(r#"{"op":"watch","job":"j","afterr":1}"#), Code::BadRequest);
        assert_eq!(refusal(r#"{"op":"watch","job":"a.b"}"#), Code::BadJobId);
        assert_eq!(refusal(r#"{"op":"watch","job":"j","cursor":"nope"}"#), Code::BadCursor);
        assert_eq!(refusal(r#"{"op":"watch","job":"j","cursor":"x","after":1}"#), Code::BadRequest);
    }

    #[test]
    fn a_refusal_names_the_job_as_the_client_wrote_it_but_not_endlessly() {
        let long = format!(r#"{{"op":"watch","job":"{}"}}"#, "ä".repeat(5000));
        assert_eq!(ClientFrame::parse(&long).unwrap_err().job.unwrap().chars().count(), 80);
    }

    #[test]
    fn server_frames_have_the_names_of_the_protocol() {
        let job: JobId = "j1".parse().unwrap();
        let frame =
            ServerFrame::Missing { job: job.clone(), from: Seq(1), to: Seq(9), reason: Gone::Expired };
        let expected = json!({"op": "missing", "job": "j1", "from": 1, "to": 9, "reason": "expired"});
        assert_eq!(serde_json::from_str::<Value>(&frame.to_json()).unwrap(), expected);
        let frame = ServerFrame::Watching { job, status: Some(Status::Running) };
        let expected = json!({"op": "watching", "job": "j1", "status": "running"});
        assert_eq!(serde_json::from_str::<Value>(&frame.to_json()).unwrap(), expected);
    }
}
