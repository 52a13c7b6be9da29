//! What edge and client say to each other beside the events, in both encodings. It knows no connection.

use bytes::Bytes;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::code::Code;
use super::codec::{self, Encoding};
use super::cursor::Cursor;
use super::event::Status;
use super::id::{JobId, Seq};
use super::submission::Submission;
use crate::config::{MESSAGE_MAX, REF_MAX};

/// The subprotocol with one JSON object a text message; also what a client gets that offers none.
pub const JSON_PROTOCOL: &str = "tailwater.v1.json";
/// The subprotocol with one MessagePack value a binary message.
pub const MSGPACK_PROTOCOL: &str = "tailwater.v1.msgpack";

impl Encoding {
    /// The subprotocol whose frames are encoded like this.
    pub const fn subprotocol(self) -> &'static str {
        match self {
            Self::Json => JSON_PROTOCOL,
            Self::MsgPack => MSGPACK_PROTOCOL,
        }
    }

    /// What the first subprotocol of a client's list says that is known; `None` when none is.
    pub fn of_offer<'a>(names: impl IntoIterator<Item = &'a str>) -> Option<Self> {
        let known = |name| [Self::Json, Self::MsgPack].into_iter().find(|known| known.subprotocol() == name);
        names.into_iter().find_map(known)
    }
}

/// Where a client wants to begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// With the event after this number; 0 is "from the first".
    After(Seq),
    /// With the event after the one that the cursor names.
    Cursor(Cursor),
}

/// What a client asks for.
#[derive(Clone, Debug, PartialEq, JsonSchema)]
#[schemars(tag = "op", rename_all = "lowercase", deny_unknown_fields)]
pub enum ClientFrame {
    /// Says who the client is.
    Auth {
        /// Any value.
        token: Value,
    },
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
    /// Submit a job.
    Submit {
        /// The client's own name for this frame; the answer has it.
        #[schemars(rename = "ref", length(max = REF_MAX))]
        reference: String,
        /// By which the same submission again is the same job.
        key: Option<String>,
        /// The job.
        #[schemars(flatten)]
        submission: Submission,
    },
    /// Cancel a job.
    Cancel {
        /// The client's own name for this frame; the answer has it.
        #[schemars(rename = "ref", length(max = REF_MAX))]
        reference: Option<String>,
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
    /// What it was about.
    pub about: About,
}

/// What an answer is about, as the client wrote it, cut to a length that can be sent back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct About {
    /// The client's own name for the frame.
    pub reference: Option<String>,
    /// The job.
    pub job: Option<String>,
}

impl About {
    fn of(frame: &Value) -> Self {
        let text = |field| Some(frame.get(field)?.as_str()?.chars().take(REF_MAX).collect());
        Self { reference: text("ref"), job: text("job") }
    }
}

impl Refusal {
    pub(super) fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: shortened(message.into()), about: About::default() }
    }
}

/// A sentence about a request, which may quote it: a parser quotes what it did not expect, whatever its length.
pub fn shortened(mut message: String) -> String {
    message.truncate(message.floor_char_boundary(MESSAGE_MAX));
    // It may be kept for a while, and a long one should not.
    message.shrink_to_fit();
    message
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Auth {
    token: Value,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Watch {
    job: String,
    after: Option<u64>,
    cursor: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Unwatch {
    job: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Cancel {
    #[serde(rename = "ref")]
    reference: Option<String>,
    job: String,
}

/// The fields of a submit that are not the job's.
#[derive(Deserialize)]
struct Submit {
    #[serde(rename = "ref")]
    reference: String,
    key: Option<String>,
}

impl ClientFrame {
    /// Reads a client's message.
    ///
    /// # Errors
    /// A [`Refusal`] with the code that the client is told.
    pub fn parse(message: &[u8], encoding: Encoding) -> Result<Self, Refusal> {
        let frame = match encoding {
            Encoding::Json => serde_json::from_slice(message)
                .map_err(|error| Refusal::new(Code::BadJson, format!("not JSON: {error}")))?,
            Encoding::MsgPack => codec::from_msgpack(message)
                .map_err(|error| Refusal::new(Code::BadMsgPack, error.to_string()))?,
        };
        let about = About::of(&frame);
        Self::from_value(frame).map_err(|refusal| Refusal { about, ..refusal })
    }

    fn from_value(mut frame: Value) -> Result<Self, Refusal> {
        let op = frame.as_object_mut().and_then(|fields| fields.remove("op"));
        let Some(op) = op.as_ref().and_then(Value::as_str) else {
            return Err(Refusal::new(Code::BadRequest, "a frame is an object with an `op`"));
        };
        match op {
            "auth" => fields(frame).map(|Auth { token }| Self::Auth { token }),
            "watch" => {
                let Watch { job, after, cursor } = fields(frame)?;
                let (job, start) = (job_id(&job)?, start(after, cursor.as_deref())?);
                Ok(Self::Watch { job, start })
            }
            "unwatch" => {
                let Unwatch { job } = fields(frame)?;
                Ok(Self::Unwatch { job: job_id(&job)? })
            }
            "submit" => Self::submit(frame),
            "cancel" => {
                let Cancel { reference, job } = fields(frame)?;
                Ok(Self::Cancel { reference: reference.map(short).transpose()?, job: job_id(&job)? })
            }
            other => {
                let other: String = other.chars().take(40).collect();
                Err(Refusal::new(Code::UnknownOp, format!("no op `{other}`")))
            }
        }
    }

    fn submit(mut frame: Value) -> Result<Self, Refusal> {
        let mut own = serde_json::Map::new();
        for field in ["ref", "key"] {
            own.extend(frame.as_object_mut().and_then(|fields| fields.remove_entry(field)));
        }
        let Submit { reference, key } = fields(own.into())?;
        Ok(Self::Submit { reference: short(reference)?, key, submission: Submission::from_value(frame)? })
    }
}

fn fields<T: serde::de::DeserializeOwned>(frame: Value) -> Result<T, Refusal> {
    serde_json::from_value(frame).map_err(|error| Refusal::new(Code::BadRequest, error.to_string()))
}

fn short(reference: String) -> Result<String, Refusal> {
    if reference.chars().count() > REF_MAX {
        return Err(Refusal::new(Code::BadRequest, format!("a `ref` has at most {REF_MAX} characters")));
    }
    Ok(reference)
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
    /// The job is submitted.
    Submitted {
        /// The `ref` of the submit.
        #[serde(rename = "ref")]
        reference: String,
        /// The job.
        job: JobId,
        /// What it is doing: queued, unless the same was submitted before.
        status: Status,
    },
    /// The job's log says that it is to be cancelled.
    Cancelling {
        /// The `ref` of the cancel.
        #[serde(rename = "ref", default, skip_serializing_if = "Option::is_none")]
        reference: Option<String>,
        /// The job.
        job: JobId,
        /// The number of the event that says so.
        seq: Seq,
    },
    /// Something went wrong; the connection goes on unless a close follows.
    Error {
        /// The stable code.
        code: String,
        /// For people.
        message: String,
        /// The `ref` of the frame that it is about.
        #[serde(rename = "ref", default, skip_serializing_if = "Option::is_none")]
        reference: Option<String>,
        /// The job it is about, as the client named it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        job: Option<String>,
    },
}

impl ServerFrame {
    /// A frame that says what went wrong.
    pub fn error(code: Code, message: impl Into<String>, about: About) -> Self {
        let About { reference, job } = about;
        Self::Error { code: code.as_str().to_owned(), message: message.into(), reference, job }
    }

    /// The frame as MessagePack: a map with the names of the JSON object.
    pub fn to_msgpack(&self) -> Bytes {
        codec::to_msgpack(self).unwrap_or_else(|_| unreachable!("strings and numbers are always MessagePack"))
    }

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
    use crate::wire::Stored;
    use serde_json::json;

    /// What the frame is in JSON, after having made sure that it is the same in MessagePack.
    fn parse(frame: &Value) -> Result<ClientFrame, Refusal> {
        let json = ClientFrame::parse(frame.to_string().as_bytes(), Encoding::Json);
        let msgpack = ClientFrame::parse(&rmp_serde::to_vec_named(frame).unwrap(), Encoding::MsgPack);
        assert_eq!(json, msgpack, "{frame}");
        json
    }

    fn refusal(frame: &Value) -> Code {
        parse(frame).unwrap_err().code
    }

    #[test]
    fn the_first_subprotocol_of_the_clients_list_that_is_known_is_spoken() {
        let both = ["soap", MSGPACK_PROTOCOL, JSON_PROTOCOL];
        assert_eq!(Encoding::of_offer(both), Some(Encoding::MsgPack));
        assert_eq!(Encoding::of_offer(both.into_iter().rev()), Some(Encoding::Json));
        assert_eq!(Encoding::of_offer(["soap", "Tailwater.v1.json"]), None);
    }

    #[test]
    fn a_watch_begins_after_a_number_or_a_cursor_or_at_the_first_event() {
        let job: JobId = "j1".parse().unwrap();
        let cursor = Cursor::of(&job, Seq(3), 9, b"x");
        let with = |start| Ok(ClientFrame::Watch { job: job.clone(), start });
        assert_eq!(parse(&json!({"op": "watch", "job": "j1"})), with(Start::After(Seq(0))));
        assert_eq!(parse(&json!({"op": "watch", "job": "j1", "after": 17})), with(Start::After(Seq(17))));
        assert_eq!(
            parse(&json!({"op": "watch", "job": "j1", "cursor": cursor.to_string()})),
            with(Start::Cursor(cursor))
        );
        assert_eq!(parse(&json!({"op": "watch", "job": "j1", "after": null})), with(Start::After(Seq(0))));
    }

    #[test]
    fn a_submit_is_a_job_with_a_ref_and_perhaps_a_key() {
        let submit = parse(&json!({"op": "submit", "ref": "a", "kind": "k", "input": [1], "key": "once",
            "id": "j", "timeout_ms": 5, "silence_timeout_ms": 6, "callback": "https://h/p"}));
        let job = json!({"kind": "k", "input": [1], "id": "j", "timeout_ms": 5, "silence_timeout_ms": 6,
            "callback": "https://h/p"});
        let submission = Submission::from_value(job).unwrap();
        let (reference, key) = ("a".to_owned(), Some("once".to_owned()));
        assert_eq!(submit, Ok(ClientFrame::Submit { reference, key, submission }));
        assert_eq!(refusal(&json!({"op": "submit", "kind": "k"})), Code::BadRequest);
        assert_eq!(refusal(&json!({"op": "submit", "ref": 1, "kind": "k"})), Code::BadRequest);
        assert_eq!(refusal(&json!({"op": "submit", "ref": "a"})), Code::BadRequest);
        assert_eq!(refusal(&json!({"op": "submit", "ref": "a", "kind": "k", "inputt": 1})), Code::BadRequest);
        assert_eq!(refusal(&json!({"op": "submit", "ref": "a", "kind": "k.k"})), Code::BadKind);
        assert_eq!(refusal(&json!({"op": "submit", "ref": "a", "kind": "k", "id": "a.b"})), Code::BadJobId);
    }

    #[test]
    fn a_cancel_may_have_a_ref_and_auth_takes_anything() {
        let job: JobId = "j1".parse().unwrap();
        let cancel = |reference| Ok(ClientFrame::Cancel { reference, job: job.clone() });
        assert_eq!(parse(&json!({"op": "cancel", "job": "j1"})), cancel(None));
        assert_eq!(parse(&json!({"op": "cancel", "job": "j1", "ref": ""})), cancel(Some(String::new())));
        for token in [json!("secret"), json!(null), json!({"any": [1]})] {
            assert_eq!(parse(&json!({"op": "auth", "token": token})), Ok(ClientFrame::Auth { token }));
        }
        assert_eq!(refusal(&json!({"op": "auth"})), Code::BadRequest);
    }

    #[test]
    fn each_kind_of_bad_frame_has_its_own_code() {
        for frame in [
            json!([]),
            json!({}),
            json!({"op": 7}),
            json!({"op": "watch"}),
            json!({"op": "watch", "job": 7}),
            json!({"op": "watch", "job": "j", "after": -1}),
            json!({"op": "watch", "job": "j", "afterr": 1}),
            json!({"op": "watch", "job": "j", "cursor": "x", "after": 1}),
            json!({"op": "unwatch", "job": "j", "after": 1}),
            json!({"op": "cancel", "job": "j", "by": "me"}),
        ] {
            assert_eq!(refusal(&frame), Code::BadRequest, "{frame}");
        }
        assert_eq!(refusal(&json!({"op": "dance"})), Code::UnknownOp);
        assert_eq!(refusal(&json!({"op": "watch", "job": "a.b"})), Code::BadJobId);
        assert_eq!(refusal(&json!({"op": "watch", "job": "j", "cursor": "nope"})), Code::BadCursor);
    }

    #[test]
    fn what_is_not_in_the_encoding_of_the_connection_says_so() {
        let code = |bytes: &[u8], encoding| ClientFrame::parse(bytes, encoding).unwrap_err().code;
        let frame = json!({"op": "unwatch", "job": "j"});
        let (json, msgpack) = (frame.to_string().into_bytes(), rmp_serde::to_vec_named(&frame).unwrap());
        assert_eq!(code(b"hello", Encoding::Json), Code::BadJson);
        assert_eq!(code(&msgpack, Encoding::Json), Code::BadJson);
        // `{` is the number 123, and more follows.
        assert_eq!(code(&json, Encoding::MsgPack), Code::BadMsgPack);
        assert_eq!(code(b"", Encoding::MsgPack), Code::BadMsgPack);
        assert_eq!(code(&msgpack[..msgpack.len() - 1], Encoding::MsgPack), Code::BadMsgPack);
        assert_eq!(code(&[msgpack, vec![0xC0]].concat(), Encoding::MsgPack), Code::BadMsgPack);
        // A number as key, bytes, an extension, a length of 4 GiB, and arrays deeper than any frame.
        for bytes in [&[0x81, 1, 1][..], &[0xC4, 1, 0], &[0xD4, 1, 0], &[0xDD, 255, 255, 255, 255]] {
            assert_eq!(code(bytes, Encoding::MsgPack), Code::BadMsgPack, "{bytes:x?}");
        }
        assert_eq!(code(&[0x91; 100_000], Encoding::MsgPack), Code::BadMsgPack);
    }

    #[test]
    fn a_refusal_names_the_frame_as_the_client_wrote_it_but_not_endlessly() {
        let long = "ä".repeat(5000);
        let about = parse(&json!({"op": "watch", "job": long, "ref": long})).unwrap_err().about;
        for text in [about.job, about.reference] {
            assert_eq!(text.unwrap().chars().count(), REF_MAX);
        }
        let message = parse(&json!({"op": "watch", "job": "j", long: 1})).unwrap_err().message;
        assert!(message.contains("unknown field") && message.len() <= MESSAGE_MAX);
        // The longest `ref` is taken, and one more is not.
        let cancel = |length| parse(&json!({"op": "cancel", "job": "j", "ref": "ä".repeat(length)}));
        assert!(cancel(REF_MAX).is_ok());
        let refused = cancel(REF_MAX + 1).unwrap_err();
        assert_eq!((refused.code, refused.about.job.as_deref()), (Code::BadRequest, Some("j")));
    }

    #[test]
    fn server_frames_have_the_names_of_the_protocol_in_both_encodings() {
        let job: JobId = "j1".parse().unwrap();
        let (reference, about) = (Some("r".to_owned()), About { reference: None, job: Some("x".into()) });
        for (frame, expected) in [
            (
                ServerFrame::Missing { job: job.clone(), from: Seq(1), to: Seq(9), reason: Gone::Expired },
                json!({"op": "missing", "job": "j1", "from": 1, "to": 9, "reason": "expired"}),
            ),
            (
                ServerFrame::Watching { job: job.clone(), status: Some(Status::Running) },
                json!({"op": "watching", "job": "j1", "status": "running"}),
            ),
            (
                ServerFrame::Submitted { reference: "r".into(), job: job.clone(), status: Status::Queued },
                json!({"op": "submitted", "ref": "r", "job": "j1", "status": "queued"}),
            ),
            (
                ServerFrame::Cancelling { reference, job, seq: Seq(4) },
                json!({"op": "cancelling", "ref": "r", "job": "j1", "seq": 4}),
            ),
            (
                ServerFrame::error(Code::BadJson, "no", about),
                json!({"op": "error", "code": "bad_json", "message": "no", "job": "x"}),
            ),
        ] {
            assert_eq!(serde_json::from_str::<Value>(&frame.to_json()).unwrap(), expected);
            assert_eq!(rmp_serde::from_slice::<Value>(&frame.to_msgpack()).unwrap(), expected);
        }
    }

    /// A block of hex of the protocol document, without its remarks.
    fn hex_blocks() -> Vec<Vec<u8>> {
        let blocks = include_str!("PROTOCOL.md").split("```hex\n").skip(1);
        let digits = |block: &str| -> String {
            let lines = block.split("```").next().unwrap().lines();
            lines.map(|line| line.split("--").next().unwrap().replace(' ', "")).collect()
        };
        let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
        blocks.map(|block| digits(block).as_bytes().chunks(2).map(byte).collect()).collect()
    }

    #[test]
    fn the_bytes_in_the_protocol_document_are_what_it_says() {
        let blocks = hex_blocks();
        let [watch, watching, event] = &blocks[..] else { panic!("{} blocks", blocks.len()) };
        let job: JobId = "j1".parse().unwrap();
        let start = Start::After(Seq(3));
        let expected = ClientFrame::Watch { job: job.clone(), start };
        assert_eq!(ClientFrame::parse(watch, Encoding::MsgPack), Ok(expected));
        let frame = ServerFrame::Watching { job: job.clone(), status: Some(Status::Done) };
        assert_eq!(frame.to_msgpack(), watching);
        // The event stands in the stream at 4, behind three bytes of array and text head and the cursor.
        let payload = event[3 + "AeiRFY_5-udOBAQ".len()..].to_vec();
        let stored = Stored::decode(&job, 4, payload.into()).unwrap();
        assert_eq!(stored.msgpack(), event);
        let json = std::str::from_utf8(stored.json()).unwrap();
        assert!(include_str!("PROTOCOL.md").contains(&format!("\n< {json}\n")), "{json}");
    }

    #[test]
    fn the_session_in_the_protocol_document_is_made_of_frames() {
        let (_, session) = include_str!("PROTOCOL.md").split_once("```text\n-- connects").unwrap();
        let (mut heard, mut said, mut events) = (0, 0, 0);
        for line in session.lines() {
            if let Some(frame) = line.strip_prefix("> ") {
                assert!(ClientFrame::parse(frame.as_bytes(), Encoding::Json).is_ok(), "{frame}");
                heard += 1;
            } else if let Some(frame) = line.strip_prefix("< ").filter(|line| line.starts_with(r#"{"op""#)) {
                assert_eq!(serde_json::from_str::<ServerFrame>(frame).unwrap().to_json(), frame);
                said += 1;
            } else if line.starts_with("< {") {
                events += 1;
            }
        }
        assert!(heard > 5 && said > 5 && events > 5, "{heard} {said} {events}");
    }
}
