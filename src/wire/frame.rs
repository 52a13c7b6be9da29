//! What edge and client say to each other beside the events, in both encodings. It knows no connection.

use bytes::Bytes;
use schemars::{JsonSchema, Schema};
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

use super::code::Code;
use super::codec::{self, Encoding};
use super::cursor::Cursor;
use super::event::Status;
use super::id::{JobId, Seq};
use super::limits::{BODY_MAX, REF_MAX, TOKEN_MAX};
use super::refusal::{self, Refusal, RequestHead, RequestRef, fields, job_id};
use super::scan::{self, Misread};
use super::submission::Submission;
use super::submit::{SubmissionFields, SubmitFrame};

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
        let known = |name| {
            [Self::Json, Self::MsgPack]
                .into_iter()
                .find(|known| known.subprotocol() == name)
        };
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
        #[schemars(rename = "ref", length(max = REF_MAX), required)]
        reference: Option<String>,
        /// By which the same submission again is the same job.
        key: Option<String>,
        /// The job.
        #[schemars(flatten, with = "SubmissionFields<'static>")]
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

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AuthFields<'a> {
    #[serde(rename = "op")]
    _op: Option<IgnoredAny>,
    #[serde(borrow)]
    token: &'a RawValue,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WatchFields {
    #[serde(rename = "op")]
    _op: Option<IgnoredAny>,
    job: String,
    after: Option<u64>,
    cursor: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct UnwatchFields {
    #[serde(rename = "op")]
    _op: Option<IgnoredAny>,
    job: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CancelFields {
    #[serde(rename = "op")]
    _op: Option<IgnoredAny>,
    #[serde(rename = "ref")]
    reference: Option<String>,
    job: String,
}

impl ClientFrame {
    /// Reads a client's message. What is refused was skimmed; only a submission that fits is built.
    ///
    /// # Errors
    /// A [`Refusal`] with the code that the client is told.
    pub fn parse(message: &[u8], encoding: Encoding) -> Result<Self, Refusal> {
        match encoding {
            Encoding::Json => Self::from_json(message),
            Encoding::MsgPack => match codec::json_within(message, BODY_MAX) {
                Ok(Some(json)) => Self::from_json(&json),
                Ok(None) => {
                    let request = codec::from_msgpack::<RequestHead>(message)
                        .map(Into::into)
                        .unwrap_or_default();
                    let refusal = Refusal::new(Code::TooLarge, Code::TooLarge.info().text);
                    Err(Refusal { request, ..refusal })
                }
                Err(error) => Err(Refusal::new(Code::BadMsgPack, error.to_string())),
            },
        }
    }

    fn from_json(text: &[u8]) -> Result<Self, Refusal> {
        let mut head: RequestHead = scan::object(text).map_err(|misread| match misread {
            Misread::NotJson(error) => Refusal::new(Code::BadJson, format!("not JSON: {error}")),
            Misread::Other(_) => {
                Refusal::new(Code::BadRequest, "a frame is an object with an `op`")
            }
        })?;
        let op = head.op.0.take();
        let request = RequestRef::from(head);
        let bad = |message| Refusal::new(Code::BadRequest, message);
        let frame = match op {
            None => Err(bad("a frame is an object with an `op`")),
            Some(op) => Self::read(&op, text),
        };
        let frame = frame.and_then(|frame| match frame {
            Self::Submit {
                reference: None, ..
            } => Err(bad("missing field `ref`")),
            frame => Ok(frame),
        });
        frame.map_err(|refusal| Refusal { request, ..refusal })
    }

    /// Reads a frame whose `op` stands beside it, as Socket.IO sends it. A submission needs no
    /// `ref`: the acknowledgement belongs to it.
    ///
    /// # Errors
    /// A [`Refusal`] with the code that the client is told.
    pub fn from_fields(op: &str, fields: &[u8]) -> Result<Self, Refusal> {
        Self::read(op, fields).map_err(|refusal| Refusal {
            request: RequestRef::of(fields),
            ..refusal
        })
    }

    fn read(op: &str, text: &[u8]) -> Result<Self, Refusal> {
        match op {
            "auth" => {
                let AuthFields { _op, token } = fields(text)?;
                if token.get().len() > TOKEN_MAX {
                    let message = format!("a token has at most {TOKEN_MAX} bytes");
                    return Err(Refusal::new(Code::TooLarge, message));
                }
                let token = codec::value(&mut serde_json::Deserializer::from_str(token.get()));
                let deep =
                    |error: serde_json::Error| Refusal::new(Code::BadRequest, error.to_string());
                Ok(Self::Auth {
                    token: token.map_err(deep)?,
                })
            }
            "watch" => {
                let WatchFields {
                    _op,
                    job,
                    after,
                    cursor,
                } = fields(text)?;
                let (job, start) = (job_id(&job)?, start(after, cursor.as_deref())?);
                Ok(Self::Watch { job, start })
            }
            "unwatch" => {
                let UnwatchFields { _op, job } = fields(text)?;
                Ok(Self::Unwatch { job: job_id(&job)? })
            }
            "submit" => {
                let SubmitFrame {
                    reference,
                    key,
                    submission,
                } = SubmitFrame::from_json(text)?;
                Ok(Self::Submit {
                    reference,
                    key,
                    submission,
                })
            }
            "cancel" => {
                let CancelFields {
                    _op,
                    reference,
                    job,
                } = fields(text)?;
                refusal::check_reference(reference.as_deref())?;
                Ok(Self::Cancel {
                    reference,
                    job: job_id(&job)?,
                })
            }
            other => Err(Refusal::new(Code::UnknownOp, format!("no op `{other}`"))),
        }
    }
}

/// Reads where to begin, as WebSocket frames and query strings say it.
///
/// # Errors
/// A [`Refusal`] when both are given or the cursor is none.
pub fn start(after: Option<u64>, cursor: Option<&str>) -> Result<Start, Refusal> {
    match (after, cursor) {
        (Some(_), Some(_)) => Err(Refusal::new(
            Code::BadRequest,
            "give `after` or `cursor`, not both",
        )),
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
        reason: GapReason,
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
    #[schemars(transform = require_ref)]
    Submitted {
        /// The `ref` of the submit.
        #[serde(rename = "ref", default, skip_serializing_if = "Option::is_none")]
        #[schemars(required)]
        reference: Option<String>,
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

/// Over a WebSocket every submit has a `ref`.
fn require_ref(schema: &mut Schema) {
    if let Some(Value::Array(required)) = schema.get_mut("required") {
        required.insert(1, "ref".into());
    }
}

impl ServerFrame {
    /// A frame that says what went wrong.
    pub fn error(code: Code, message: impl Into<String>, request: RequestRef) -> Self {
        let RequestRef { reference, job } = request;
        Self::Error {
            code: code.as_str().to_owned(),
            message: message.into(),
            reference,
            job,
        }
    }

    /// The frame as MessagePack: a map with the names of the JSON object.
    pub fn to_msgpack(&self) -> Bytes {
        codec::to_msgpack(self)
            .unwrap_or_else(|_| unreachable!("strings and numbers are always MessagePack"))
    }

    /// The frame as JSON text.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self)
            .unwrap_or_else(|_| unreachable!("strings and numbers are always JSON"))
    }
}

/// Why events are gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum GapReason {
    /// They were older, or more, than the log keeps.
    Expired,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Stored;
    use crate::wire::limits::{INPUT_MAX, MESSAGE_MAX};
    use serde_json::json;

    /// What the frame is in JSON, after having made sure that it is the same in MessagePack.
    fn parse(frame: &Value) -> Result<ClientFrame, Refusal> {
        let json = ClientFrame::parse(frame.to_string().as_bytes(), Encoding::Json);
        let msgpack =
            ClientFrame::parse(&rmp_serde::to_vec_named(frame).unwrap(), Encoding::MsgPack);
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
        assert_eq!(
            Encoding::of_offer(both.into_iter().rev()),
            Some(Encoding::Json)
        );
        assert_eq!(Encoding::of_offer(["soap", "Tailwater.v1.json"]), None);
    }

    #[test]
    fn a_watch_begins_after_a_number_or_a_cursor_or_at_the_first_event() {
        let job: JobId = "j1".parse().unwrap();
        let cursor = Cursor::of(&job, Seq(3), 9, b"x");
        let with = |start| {
            Ok(ClientFrame::Watch {
                job: job.clone(),
                start,
            })
        };
        assert_eq!(
            parse(&json!({"op": "watch", "job": "j1"})),
            with(Start::After(Seq(0)))
        );
        assert_eq!(
            parse(&json!({"op": "watch", "job": "j1", "after": 17})),
            with(Start::After(Seq(17)))
        );
        assert_eq!(
            parse(&json!({"op": "watch", "job": "j1", "cursor": cursor.to_string()})),
            with(Start::Cursor(cursor))
        );
        assert_eq!(
            parse(&json!({"op": "watch", "job": "j1", "after": null})),
            with(Start::After(Seq(0)))
        );
    }

    #[test]
    fn a_submit_is_a_job_with_a_ref_and_perhaps_a_key() {
        let submit = parse(
            &json!({"op": "submit", "ref": "a", "kind": "k", "input": [1], "key": "once",
            "id": "j", "timeout_ms": 5, "silence_timeout_ms": 6, "callback": "https://h/p"}),
        );
        let job = json!({"kind": "k", "input": [1], "id": "j", "timeout_ms": 5, "silence_timeout_ms": 6,
            "callback": "https://h/p"});
        let submission = Submission::from_json(job.to_string().as_bytes()).unwrap();
        let reference = Some("a".to_owned());
        let key = Some("once".to_owned());
        assert_eq!(
            submit,
            Ok(ClientFrame::Submit {
                reference,
                key,
                submission
            })
        );
        assert_eq!(
            refusal(&json!({"op": "submit", "kind": "k"})),
            Code::BadRequest
        );
        assert_eq!(
            refusal(&json!({"op": "submit", "ref": 1, "kind": "k"})),
            Code::BadRequest
        );
        assert_eq!(
            refusal(&json!({"op": "submit", "ref": "a"})),
            Code::BadRequest
        );
        assert_eq!(
            refusal(&json!({"op": "submit", "ref": "a", "kind": "k", "inputt": 1})),
            Code::BadRequest
        );
        assert_eq!(
            refusal(&json!({"op": "submit", "ref": "a", "kind": "k.k"})),
            Code::BadKind
        );
        assert_eq!(
            refusal(&json!({"op": "submit", "ref": "a", "kind": "k", "id": "a.b"})),
            Code::BadJobId
        );
    }

    #[test]
    fn a_cancel_may_have_a_ref_and_auth_takes_anything() {
        let job: JobId = "j1".parse().unwrap();
        let cancel = |reference| {
            Ok(ClientFrame::Cancel {
                reference,
                job: job.clone(),
            })
        };
        assert_eq!(parse(&json!({"op": "cancel", "job": "j1"})), cancel(None));
        assert_eq!(
            parse(&json!({"op": "cancel", "job": "j1", "ref": ""})),
            cancel(Some(String::new()))
        );
        for token in [json!("secret"), json!(null), json!({"any": [1]})] {
            assert_eq!(
                parse(&json!({"op": "auth", "token": token})),
                Ok(ClientFrame::Auth { token })
            );
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
        assert_eq!(
            refusal(&json!({"op": "watch", "job": "a.b"})),
            Code::BadJobId
        );
        assert_eq!(
            refusal(&json!({"op": "watch", "job": "j", "cursor": "nope"})),
            Code::BadCursor
        );
    }

    #[test]
    fn what_is_refused_is_not_built() {
        // No tree could hold what nests so deep: the code says that none was begun.
        let deep = "[".repeat(100_000) + &"]".repeat(100_000);
        let refused = |frame: &str| {
            let refusal = ClientFrame::parse(frame.as_bytes(), Encoding::Json).unwrap_err();
            assert_eq!(
                refusal.request.reference.as_deref(),
                Some("r"),
                "{frame:.60}"
            );
            refusal.code
        };
        assert_eq!(
            refused(&format!(r#"{{"op":"dance","x":{deep},"ref":"r"}}"#)),
            Code::UnknownOp
        );
        assert_eq!(
            refused(&format!(r#"{{"x":{deep},"ref":"r"}}"#)),
            Code::BadRequest
        );
        assert_eq!(
            refused(&format!(r#"{{"op":"watch","ref":"r","job":{deep}}}"#)),
            Code::BadRequest
        );
        assert_eq!(
            refused(&format!(
                r#"{{"op":"submit","ref":"r","kind":"k.k","input":{deep}}}"#
            )),
            Code::BadKind
        );
        assert_eq!(
            refused(&format!(
                r#"{{"op":"submit","ref":"r","kind":"k","input":{deep}}}"#
            )),
            Code::BadRequest
        );
        let large = "0,".repeat(INPUT_MAX);
        assert_eq!(
            refused(&format!(
                r#"{{"op":"submit","ref":"r","kind":"k","input":[{large}0]}}"#
            )),
            Code::TooLarge
        );
        assert_eq!(
            refused(&format!(r#"{{"op":"auth","ref":"r","token":[{large}0]}}"#)),
            Code::BadRequest
        );
        let token = json!({"op": "auth", "token": "x".repeat(TOKEN_MAX)});
        assert_eq!(refusal(&token), Code::TooLarge);
        // Of MessagePack only what has the size of a frame as JSON is read.
        let long = json!({"op": "dance", "ref": "r", "x": "\u{1}".repeat(BODY_MAX / 4)});
        let refusal =
            ClientFrame::parse(&rmp_serde::to_vec_named(&long).unwrap(), Encoding::MsgPack);
        let refusal = refusal.unwrap_err();
        assert_eq!(
            (refusal.code, refusal.request.reference.as_deref()),
            (Code::TooLarge, Some("r"))
        );
    }

    #[test]
    fn an_input_is_taken_as_it_stands_whatever_its_keys_are() {
        let input = json!({"$serde_json::private::RawValue": "[1,2]", "a": 0.1});
        let submit = format!(r#"{{"op":"submit","ref":"r","kind":"k","input":{input}}}"#);
        for input_only in [
            input.to_string(),
            r#"{"$serde_json::private::RawValue":"{}"}"#.into(),
        ] {
            let text = submit.replace(&input.to_string(), &input_only);
            let mut msgpack = Vec::new();
            codec::json_to_msgpack(text.as_bytes(), &mut msgpack).unwrap();
            for (message, encoding) in [
                (text.as_bytes(), Encoding::Json),
                (&msgpack, Encoding::MsgPack),
            ] {
                let ClientFrame::Submit { submission, .. } =
                    ClientFrame::parse(message, encoding).unwrap()
                else {
                    panic!("{text}")
                };
                assert_eq!(submission.input.to_string(), input_only);
                let event = crate::wire::Event {
                    body: submission.queued(),
                    job: "j".parse().unwrap(),
                    seq: Seq(1),
                    attempt: 0,
                    ts: 1,
                };
                assert_eq!(
                    crate::wire::Event::decode(&event.encode().unwrap()).unwrap(),
                    event
                );
            }
        }
    }

    #[test]
    fn an_array_is_not_a_frame() {
        assert_eq!(refusal(&json!(["unwatch", "j"])), Code::BadRequest);
        assert_eq!(
            refusal(&json!(["submit", "r", null, "k"])),
            Code::BadRequest
        );
    }

    #[test]
    fn what_is_not_in_the_encoding_of_the_connection_says_so() {
        let code = |bytes: &[u8], encoding| ClientFrame::parse(bytes, encoding).unwrap_err().code;
        let frame = json!({"op": "unwatch", "job": "j"});
        let (json, msgpack) = (
            frame.to_string().into_bytes(),
            rmp_serde::to_vec_named(&frame).unwrap(),
        );
        assert_eq!(code(b"hello", Encoding::Json), Code::BadJson);
        assert_eq!(code(&msgpack, Encoding::Json), Code::BadJson);
        // `{` is the number 123, and more follows.
        assert_eq!(code(&json, Encoding::MsgPack), Code::BadMsgPack);
        assert_eq!(code(b"", Encoding::MsgPack), Code::BadMsgPack);
        assert_eq!(
            code(&msgpack[..msgpack.len() - 1], Encoding::MsgPack),
            Code::BadMsgPack
        );
        assert_eq!(
            code(&[msgpack, vec![0xC0]].concat(), Encoding::MsgPack),
            Code::BadMsgPack
        );
        // A number as key, bytes, an extension, a length of 4 GiB, and arrays deeper than any frame.
        for bytes in [
            &[0x81, 1, 1][..],
            &[0xC4, 1, 0],
            &[0xD4, 1, 0],
            &[0xDD, 255, 255, 255, 255],
        ] {
            assert_eq!(
                code(bytes, Encoding::MsgPack),
                Code::BadMsgPack,
                "{bytes:x?}"
            );
        }
        assert_eq!(code(&[0x91; 100_000], Encoding::MsgPack), Code::BadMsgPack);
    }

    #[test]
    fn a_refusal_names_the_frame_as_the_client_wrote_it_but_not_endlessly() {
        let long = "ä".repeat(5000);
        let request = parse(&json!({"op": "watch", "job": long, "ref": long}))
            .unwrap_err()
            .request;
        for text in [request.job, request.reference] {
            assert_eq!(text.unwrap().chars().count(), REF_MAX);
        }
        let message = parse(&json!({"op": "watch", "job": "j", long: 1}))
            .unwrap_err()
            .message;
        assert!(message.contains("unknown field") && message.len() <= MESSAGE_MAX);
        // The longest `ref` is taken, and one more is not.
        let cancel =
            |length| parse(&json!({"op": "cancel", "job": "j", "ref": "ä".repeat(length)}));
        assert!(cancel(REF_MAX).is_ok());
        let refused = cancel(REF_MAX + 1).unwrap_err();
        assert_eq!(
            (refused.code, refused.request.job.as_deref()),
            (Code::BadRequest, Some("j"))
        );
    }

    #[test]
    fn server_frames_have_the_names_of_the_protocol_in_both_encodings() {
        let job: JobId = "j1".parse().unwrap();
        let (reference, request) = (
            Some("r".to_owned()),
            RequestRef {
                reference: None,
                job: Some("x".into()),
            },
        );
        for (frame, expected) in [
            (
                ServerFrame::Missing {
                    job: job.clone(),
                    from: Seq(1),
                    to: Seq(9),
                    reason: GapReason::Expired,
                },
                json!({"op": "missing", "job": "j1", "from": 1, "to": 9, "reason": "expired"}),
            ),
            (
                ServerFrame::Watching {
                    job: job.clone(),
                    status: Some(Status::Running),
                },
                json!({"op": "watching", "job": "j1", "status": "running"}),
            ),
            (
                ServerFrame::Submitted {
                    reference: Some("r".into()),
                    job: job.clone(),
                    status: Status::Queued,
                },
                json!({"op": "submitted", "ref": "r", "job": "j1", "status": "queued"}),
            ),
            (
                ServerFrame::Cancelling {
                    reference,
                    job,
                    seq: Seq(4),
                },
                json!({"op": "cancelling", "ref": "r", "job": "j1", "seq": 4}),
            ),
            (
                ServerFrame::error(Code::BadJson, "no", request),
                json!({"op": "error", "code": "bad_json", "message": "no", "job": "x"}),
            ),
        ] {
            assert_eq!(
                serde_json::from_str::<Value>(&frame.to_json()).unwrap(),
                expected
            );
            assert_eq!(
                rmp_serde::from_slice::<Value>(&frame.to_msgpack()).unwrap(),
                expected
            );
        }
    }

    /// A block of hex of the protocol document, without its remarks.
    fn hex_blocks() -> Vec<Vec<u8>> {
        let blocks = include_str!("PROTOCOL.md").split("```hex\n").skip(1);
        let digits = |block: &str| -> String {
            let lines = block.split("```").next().unwrap().lines();
            lines
                .map(|line| line.split("--").next().unwrap().replace(' ', ""))
                .collect()
        };
        let byte =
            |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
        blocks
            .map(|block| digits(block).as_bytes().chunks(2).map(byte).collect())
            .collect()
    }

    #[test]
    fn the_bytes_in_the_protocol_document_are_what_it_says() {
        let blocks = hex_blocks();
        let [watch, watching, event] = &blocks[..] else {
            panic!("{} blocks", blocks.len())
        };
        let job: JobId = "j1".parse().unwrap();
        let start = Start::After(Seq(3));
        let expected = ClientFrame::Watch {
            job: job.clone(),
            start,
        };
        assert_eq!(ClientFrame::parse(watch, Encoding::MsgPack), Ok(expected));
        let frame = ServerFrame::Watching {
            job: job.clone(),
            status: Some(Status::Done),
        };
        assert_eq!(frame.to_msgpack(), watching);
        // The event stands in the stream at 4, behind three bytes of array and text head and the cursor.
        let payload = event[3 + "AeiRFY_5-udOBAQ".len()..].to_vec();
        let stored = Stored::decode(&job, 4, payload.into()).unwrap();
        assert_eq!(stored.msgpack(), event);
        let json = std::str::from_utf8(stored.json()).unwrap();
        assert!(
            include_str!("PROTOCOL.md").contains(&format!("\n< {json}\n")),
            "{json}"
        );
    }

    #[test]
    fn the_session_in_the_protocol_document_is_made_of_frames() {
        let (_, session) = include_str!("PROTOCOL.md")
            .split_once("```text\n-- connects")
            .unwrap();
        let (mut heard, mut said, mut events) = (0, 0, 0);
        for line in session.lines() {
            if let Some(frame) = line.strip_prefix("> ") {
                assert!(
                    ClientFrame::parse(frame.as_bytes(), Encoding::Json).is_ok(),
                    "{frame}"
                );
                heard += 1;
            } else if let Some(frame) = line
                .strip_prefix("< ")
                .filter(|line| line.starts_with(r#"{"op""#))
            {
                assert_eq!(
                    serde_json::from_str::<ServerFrame>(frame)
                        .unwrap()
                        .to_json(),
                    frame
                );
                said += 1;
            } else if line.starts_with("< {") {
                events += 1;
            }
        }
        assert!(
            heard > 5 && said > 5 && events > 5,
            "{heard} {said} {events}"
        );
    }
}
