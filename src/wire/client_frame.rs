//! The frames that a client sends, in both encodings, and how they are parsed. It does not know
//! connections.

use schemars::JsonSchema;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

use super::bearer::{BearerToken, WatchTokenTerms};
use super::code::Code;
use super::codec::{self, Encoding};
use super::cursor::{BadCursor, Cursor};
use super::id::{JobId, Seq};
use super::limits::{BODY_MAX, KEY_MAX, REF_MAX, TOKEN_MAX};
use super::object::{Misread, object};
use super::refusal::{self, Refusal, RequestHead, RequestRef, job_id, read_fields};
use super::submission::Submission;
use super::submit::{SubmissionFields, SubmitFrame};

/// Where a watch starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// With the event after this sequence number; 0 means the first event.
    After(Seq),
    /// With the event after the one that the cursor names.
    Cursor(Cursor),
}

/// A frame that a client sends.
#[derive(Clone, Debug, PartialEq, JsonSchema)]
#[schemars(tag = "op", rename_all = "lowercase", deny_unknown_fields)]
pub enum ClientFrame {
    /// Authenticates the connection, or renews its token.
    Auth {
        /// The token.
        token: BearerToken,
    },
    /// Send the job's events.
    Watch {
        /// The job; it need not exist yet.
        job: JobId,
        /// Where to start.
        #[schemars(flatten)]
        start: Start,
        /// Whether the text that is stored when the watch begins comes merged, in few large chunks.
        #[schemars(with = "Option<bool>")]
        compact: bool,
    },
    /// Stop sending the job's events.
    Unwatch {
        /// The job.
        job: JobId,
    },
    /// Submit a job.
    Submit {
        /// The client's own name for this frame; the answer carries it.
        #[schemars(rename = "ref", length(max = REF_MAX), required)]
        reference: Option<String>,
        /// The idempotency key: the same submission with the same key is the same job.
        #[schemars(length(min = 1, max = KEY_MAX))]
        key: Option<String>,
        /// What the `watch_token` in the answer should allow.
        #[schemars(skip)]
        watch_token: WatchTokenTerms,
        /// The job.
        #[schemars(flatten, with = "SubmissionFields<'static>")]
        submission: Submission,
    },
    /// Answer with a `pong`.
    Ping,
    /// Cancel a job.
    Cancel {
        /// The client's own name for this frame; the answer carries it.
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
    // Kept as text until its size has been checked.
    #[serde(borrow)]
    token: &'a RawValue,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PingFields {
    #[serde(rename = "op")]
    _op: Option<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WatchFields {
    #[serde(rename = "op")]
    _op: Option<IgnoredAny>,
    job: String,
    after: Option<u64>,
    cursor: Option<String>,
    compact: Option<bool>,
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
    /// Parses a client's message. Of a frame that is refused, no input or token is built in memory.
    ///
    /// # Errors
    /// A [`Refusal`] for the client.
    pub fn parse(message: &[u8], encoding: Encoding) -> Result<Self, Refusal> {
        Self::parse_admitted(message, encoding, |_| Ok(())).map(|(frame, _)| frame)
    }

    /// Parses a client's message. Before the input of a submission is built, `admit` gets about how
    /// many bytes it will take in memory, and may refuse it. What it returns comes with the frame.
    ///
    /// # Errors
    /// A [`Refusal`] for the client.
    pub fn parse_admitted<R>(
        message: &[u8],
        encoding: Encoding,
        admit: impl FnOnce(usize) -> Result<R, Refusal>,
    ) -> Result<(Self, Option<R>), Refusal> {
        match encoding {
            Encoding::Json => Self::from_json(message, admit),
            Encoding::MsgPack => match codec::json_within(message, BODY_MAX) {
                Ok(Some(json)) => Self::from_json(&json, admit),
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

    fn from_json<R>(
        text: &[u8],
        admit: impl FnOnce(usize) -> Result<R, Refusal>,
    ) -> Result<(Self, Option<R>), Refusal> {
        let bad = |message| Refusal::new(Code::BadRequest, message);
        let not_a_frame = || bad("a frame must be an object with an `op`");
        let mut head: RequestHead = object(text).map_err(|misread| match misread {
            Misread::NotJson(error) => {
                Refusal::new(Code::BadJson, format!("not valid JSON: {error}"))
            }
            Misread::Other(_) => not_a_frame(),
        })?;
        let op = head.op.0.take();
        let request = RequestRef::from(head);
        let frame = op
            .ok_or_else(not_a_frame)
            .and_then(|op| Self::read(&op, text, true, admit));
        frame.map_err(|refusal| Refusal { request, ..refusal })
    }

    /// Parses a frame whose `op` is separate, as Socket.IO sends it, and otherwise as
    /// [`Self::parse_admitted`] does. A submission needs no `ref`, because the acknowledgement
    /// identifies it.
    ///
    /// # Errors
    /// A [`Refusal`] for the client.
    pub fn from_fields<R>(
        op: &str,
        fields: &[u8],
        admit: impl FnOnce(usize) -> Result<R, Refusal>,
    ) -> Result<(Self, Option<R>), Refusal> {
        Self::read(op, fields, false, admit).map_err(|refusal| Refusal {
            request: RequestRef::of(fields),
            ..refusal
        })
    }

    fn read<R>(
        op: &str,
        text: &[u8],
        needs_ref: bool,
        admit: impl FnOnce(usize) -> Result<R, Refusal>,
    ) -> Result<(Self, Option<R>), Refusal> {
        if op != "submit" {
            return Self::read_small(op, text).map(|frame| (frame, None));
        }
        let (frame, admitted) = SubmitFrame::from_json(text, needs_ref, admit)?;
        let SubmitFrame {
            reference,
            key,
            watch_token,
            submission,
        } = frame;
        let frame = Self::Submit {
            reference,
            key,
            watch_token,
            submission,
        };
        Ok((frame, Some(admitted)))
    }

    /// Reads a frame that is no submission.
    fn read_small(op: &str, text: &[u8]) -> Result<Self, Refusal> {
        match op {
            "auth" => {
                let AuthFields { _op, token } = read_fields(text)?;
                if token.get().len() > TOKEN_MAX {
                    let message = format!("the token is too large: the limit is {TOKEN_MAX} bytes");
                    return Err(Refusal::new(Code::TooLarge, message));
                }
                // The error of the parser would quote the token.
                let token = serde_json::from_str(token.get())
                    .map_err(|_| Refusal::new(Code::BadRequest, "`token` must be a text"))?;
                Ok(Self::Auth { token })
            }
            "watch" => {
                let WatchFields {
                    _op,
                    job,
                    after,
                    cursor,
                    compact,
                } = read_fields(text)?;
                Ok(Self::Watch {
                    job: job_id(&job)?,
                    start: start(after, cursor.as_deref())?,
                    compact: compact.unwrap_or(false),
                })
            }
            "ping" => {
                let PingFields { _op } = read_fields(text)?;
                Ok(Self::Ping)
            }
            "unwatch" => {
                let UnwatchFields { _op, job } = read_fields(text)?;
                Ok(Self::Unwatch { job: job_id(&job)? })
            }
            "cancel" => {
                let CancelFields {
                    _op,
                    reference,
                    job,
                } = read_fields(text)?;
                refusal::check_reference(reference.as_deref())?;
                Ok(Self::Cancel {
                    reference,
                    job: job_id(&job)?,
                })
            }
            other => Err(Refusal::new(
                Code::UnknownOp,
                format!("unknown op `{other}`"),
            )),
        }
    }
}

/// Parses where a watch starts, for WebSocket frames and query strings.
///
/// # Errors
/// A [`Refusal`] when both are given or the cursor is invalid.
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
            .map_err(|error: BadCursor| Refusal::new(Code::BadCursor, error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::limits::{ID_MAX, INPUT_MAX, MESSAGE_MAX, WATCH_TOKEN_TTL_MAX_MS};
    use crate::wire::{Event, ServerFrame, Status, Stored};
    use serde_json::{Value, json};

    const PROTOCOL: &str = include_str!("PROTOCOL.md");

    /// Parses the frame from JSON, and checks that MessagePack gives the same result.
    fn parse(frame: &Value) -> Result<ClientFrame, Refusal> {
        let json = ClientFrame::parse(frame.to_string().as_bytes(), Encoding::Json);
        let msgpack =
            ClientFrame::parse(&rmp_serde::to_vec_named(frame).unwrap(), Encoding::MsgPack);
        assert_eq!(json, msgpack, "{frame}");
        json
    }

    #[test]
    fn an_input_that_is_not_admitted_is_refused_with_the_ref_of_its_frame() {
        let refuse = |_| Err::<(), _>(Refusal::new(Code::Overloaded, "no room"));
        let admit = |memory: usize| Ok(memory);
        let submit = json!({"op": "submit", "ref": "r", "kind": "k", "input": ["four"]});
        let watch = json!({"op": "watch", "job": "j"});
        for encoding in [Encoding::Json, Encoding::MsgPack] {
            let message = |frame: &Value| match encoding {
                Encoding::Json => frame.to_string().into_bytes(),
                Encoding::MsgPack => rmp_serde::to_vec_named(frame).unwrap(),
            };
            let refused = ClientFrame::parse_admitted(&message(&submit), encoding, refuse);
            let refused = refused.unwrap_err();
            assert_eq!(refused.code, Code::Overloaded);
            assert_eq!(refused.request.reference.as_deref(), Some("r"));
            let (_, admitted) =
                ClientFrame::parse_admitted(&message(&submit), encoding, admit).unwrap();
            assert!(admitted > Some(4), "{admitted:?}");
            let watch = ClientFrame::parse_admitted(&message(&watch), encoding, refuse);
            assert_eq!(watch.unwrap().1, None);
        }
    }

    /// Requires that each of these frames is refused with this code.
    fn assert_refused(code: Code, frames: impl IntoIterator<Item = Value>) {
        for frame in frames {
            assert_eq!(parse(&frame).unwrap_err().code, code, "{frame}");
        }
    }

    #[test]
    fn a_watch_starts_after_a_number_or_a_cursor_or_at_the_first_event() {
        let job: JobId = "j1".parse().unwrap();
        let cursor = Cursor::of(&job, Seq(3), 9, b"x");
        let text = cursor.to_string();
        for (mut frame, start) in [
            (json!({"op": "watch", "job": "j1"}), Start::After(Seq(0))),
            (
                json!({"op": "watch", "job": "j1", "after": 17}),
                Start::After(Seq(17)),
            ),
            (
                json!({"op": "watch", "job": "j1", "cursor": text}),
                Start::Cursor(cursor),
            ),
            (
                json!({"op": "watch", "job": "j1", "after": null}),
                Start::After(Seq(0)),
            ),
        ] {
            let plain = ClientFrame::Watch {
                job: job.clone(),
                start,
                compact: false,
            };
            assert_eq!(parse(&frame), Ok(plain));
            for compact in [json!(null), json!(false), json!(true)] {
                let expected = ClientFrame::Watch {
                    job: job.clone(),
                    start,
                    compact: compact == true,
                };
                frame["compact"] = compact;
                assert_eq!(parse(&frame), Ok(expected));
            }
            frame["compact"] = json!(1);
            assert_refused(Code::BadRequest, [frame]);
        }
    }

    #[test]
    fn a_submit_is_a_job_with_a_ref_and_an_optional_key() {
        let submit = parse(
            &json!({"op": "submit", "ref": "a", "kind": "k", "input": [1], "key": "once",
            "id": "j", "timeout_ms": 5, "silence_timeout_ms": 6, "callback": "https://h/p"}),
        );
        let job = json!({"kind": "k", "input": [1], "id": "j", "timeout_ms": 5, "silence_timeout_ms": 6,
            "callback": "https://h/p"});
        let expected = ClientFrame::Submit {
            reference: Some("a".to_owned()),
            key: Some("once".to_owned()),
            watch_token: WatchTokenTerms::default(),
            submission: Submission::from_json(job.to_string().as_bytes()).unwrap(),
        };
        assert_eq!(submit, Ok(expected));
        assert_refused(
            Code::BadRequest,
            [
                json!({"op": "submit", "kind": "k"}),
                json!({"op": "submit", "ref": 1, "kind": "k"}),
                json!({"op": "submit", "ref": "a"}),
                json!({"op": "submit", "ref": "a", "kind": "k", "inputt": 1}),
            ],
        );
        let keyed = |key: String| json!({"op": "submit", "ref": "a", "kind": "k", "key": key});
        assert!(parse(&keyed("x".repeat(KEY_MAX))).is_ok());
        let bad = [
            String::new(),
            "x".repeat(KEY_MAX + 1),
            "ä".repeat(KEY_MAX / 2 + 1),
        ];
        assert_refused(Code::BadRequest, bad.map(keyed));
        assert_refused(
            Code::BadKind,
            [json!({"op": "submit", "ref": "a", "kind": "k.k"})],
        );
        assert_refused(
            Code::BadJobId,
            [json!({"op": "submit", "ref": "a", "kind": "k", "id": "a.b"})],
        );
    }

    #[test]
    fn a_cancel_may_have_a_ref_and_a_token_is_a_text() {
        for (frame, reference) in [
            (json!({"op": "cancel", "job": "j1"}), None),
            (
                json!({"op": "cancel", "job": "j1", "ref": ""}),
                Some(String::new()),
            ),
        ] {
            let job = "j1".parse().unwrap();
            assert_eq!(parse(&frame), Ok(ClientFrame::Cancel { reference, job }));
        }
        let auth = parse(&json!({"op": "auth", "token": "secret"}));
        let token = BearerToken::new("secret");
        assert_eq!(auth, Ok(ClientFrame::Auth { token }));
        for token in [json!(null), json!(7), json!({"any": [1]})] {
            let frame = json!({"op": "auth", "token": token});
            assert_refused(Code::BadRequest, [frame]);
        }
        assert_refused(Code::BadRequest, [json!({"op": "auth"})]);
        let long = json!({"op": "auth", "token": "x".repeat(TOKEN_MAX)});
        assert_refused(Code::TooLarge, [long]);
    }

    #[test]
    fn a_submit_may_say_what_its_watch_token_allows() {
        let frame = json!({"op": "submit", "ref": "a", "kind": "k", "watch_token": {"cancel": true, "ttl_ms": 5.0}});
        let terms = WatchTokenTerms {
            cancel: true,
            ttl_ms: Some(5),
        };
        let Ok(ClientFrame::Submit { watch_token, .. }) = parse(&frame) else {
            panic!("not a submit");
        };
        assert_eq!(watch_token, terms);
        for bad in [
            json!(7),
            json!({"ttl_ms": 0}),
            json!({"ttl_ms": WATCH_TOKEN_TTL_MAX_MS + 1}),
            json!({"cancels": true}),
        ] {
            let frame = json!({"op": "submit", "ref": "a", "kind": "k", "watch_token": bad});
            assert_refused(Code::BadRequest, [frame]);
        }
    }

    #[test]
    fn each_kind_of_bad_frame_has_its_own_code() {
        assert_refused(
            Code::BadRequest,
            [
                json!([]),
                json!(["unwatch", "j"]),
                json!(["submit", "r", null, "k"]),
                json!({}),
                json!({"op": 7}),
                json!({"op": "watch"}),
                json!({"op": "watch", "job": 7}),
                json!({"op": "watch", "job": "j", "after": -1}),
                json!({"op": "watch", "job": "j", "afterr": 1}),
                json!({"op": "watch", "job": "j", "cursor": "x", "after": 1}),
                json!({"op": "unwatch", "job": "j", "after": 1}),
                json!({"op": "cancel", "job": "j", "by": "me"}),
                json!({"op": "ping", "job": "j"}),
            ],
        );
        for (code, frame) in [
            (Code::UnknownOp, json!({"op": "dance"})),
            (Code::BadJobId, json!({"op": "watch", "job": "a.b"})),
            (
                Code::BadCursor,
                json!({"op": "watch", "job": "j", "cursor": "nope"}),
            ),
        ] {
            assert_refused(code, [frame]);
        }
    }

    #[test]
    fn a_refused_value_is_not_built() {
        // Building a value that is nested this deep would fail: the code shows that it was not
        // tried.
        let deep = "[".repeat(100_000) + &"]".repeat(100_000);
        let large = "0,".repeat(INPUT_MAX);
        for (rest, code) in [
            (format!(r#""op":"dance","x":{deep}"#), Code::UnknownOp),
            (format!(r#""x":{deep}"#), Code::BadRequest),
            (format!(r#""op":"watch","job":{deep}"#), Code::BadRequest),
            (
                format!(r#""op":"submit","kind":"k.k","input":{deep}"#),
                Code::BadKind,
            ),
            (
                format!(r#""op":"submit","kind":"k","input":{deep}"#),
                Code::BadRequest,
            ),
            (
                format!(r#""op":"submit","kind":"k","input":[{large}0]"#),
                Code::TooLarge,
            ),
            (
                format!(r#""op":"auth","token":[{large}0]"#),
                Code::BadRequest,
            ),
        ] {
            let frame = format!(r#"{{{rest},"ref":"r"}}"#);
            let refusal = ClientFrame::parse(frame.as_bytes(), Encoding::Json).unwrap_err();
            let reference = refusal.request.reference.as_deref();
            assert_eq!((refusal.code, reference), (code, Some("r")), "{frame:.60}");
        }
        assert_refused(
            Code::TooLarge,
            [json!({"op": "auth", "token": "x".repeat(TOKEN_MAX)})],
        );
        // MessagePack is read only as far as its JSON fits into a frame.
        let long = json!({"op": "dance", "ref": "r", "x": "\u{1}".repeat(BODY_MAX / 4)});
        let long = rmp_serde::to_vec_named(&long).unwrap();
        let refusal = ClientFrame::parse(&long, Encoding::MsgPack).unwrap_err();
        let reference = refusal.request.reference.as_deref();
        assert_eq!((refusal.code, reference), (Code::TooLarge, Some("r")));
    }

    #[test]
    fn an_input_is_read_unchanged_whatever_its_keys_are() {
        let input = json!({"$serde_json::private::RawValue": "[1,2]", "a": 0.1});
        for input in [
            input.to_string(),
            r#"{"$serde_json::private::RawValue":"{}"}"#.into(),
        ] {
            let text = format!(r#"{{"op":"submit","ref":"r","kind":"k","input":{input}}}"#);
            let mut msgpack = Vec::new();
            codec::json_to_msgpack(text.as_bytes(), &mut msgpack).unwrap();
            for (message, encoding) in [
                (text.as_bytes(), Encoding::Json),
                (&msgpack, Encoding::MsgPack),
            ] {
                let frame = ClientFrame::parse(message, encoding).unwrap();
                let ClientFrame::Submit { submission, .. } = frame else {
                    panic!("{text}")
                };
                assert_eq!(submission.input.to_string(), input);
                let event = Event {
                    body: submission.queued(),
                    job: "j".parse().unwrap(),
                    seq: Seq(1),
                    attempt: 0,
                    ts: 1,
                };
                assert_eq!(Event::decode(&event.encode().unwrap()).unwrap(), event);
            }
        }
    }

    #[test]
    fn a_message_in_the_wrong_encoding_is_refused() {
        let frame = json!({"op": "unwatch", "job": "j"});
        let json = frame.to_string().into_bytes();
        let msgpack = rmp_serde::to_vec_named(&frame).unwrap();
        for bytes in [b"hello", &msgpack[..]] {
            let refusal = ClientFrame::parse(bytes, Encoding::Json).unwrap_err();
            assert_eq!(refusal.code, Code::BadJson);
        }
        for bytes in [
            // As MessagePack, `{` is the number 123, and more bytes follow.
            &json[..],
            b"",
            &msgpack[..msgpack.len() - 1],
            &[&msgpack[..], &[0xC0]].concat(),
            // A number as key, bytes, an extension, a length of 4 GiB, and arrays deeper than any
            // frame.
            &[0x81, 1, 1],
            &[0xC4, 1, 0],
            &[0xD4, 1, 0],
            &[0xDD, 255, 255, 255, 255],
            &[0x91; 100_000],
        ] {
            let refusal = ClientFrame::parse(bytes, Encoding::MsgPack).unwrap_err();
            assert_eq!(refusal.code, Code::BadMsgPack, "{bytes:.40x?}");
        }
    }

    #[test]
    fn a_refusal_quotes_the_clients_frame_up_to_a_limit() {
        let long = "ä".repeat(5000);
        let request = parse(&json!({"op": "watch", "job": long, "ref": long}))
            .unwrap_err()
            .request;
        for (text, limit) in [(request.job, ID_MAX), (request.reference, REF_MAX)] {
            assert_eq!(text.unwrap().chars().count(), limit);
        }
        let refusal = parse(&json!({"op": "watch", "job": "j", long: 1})).unwrap_err();
        let message = refusal.message;
        assert!(message.contains("unknown field") && message.len() <= MESSAGE_MAX);
        let cancel =
            |length| parse(&json!({"op": "cancel", "job": "j", "ref": "ä".repeat(length)}));
        assert!(cancel(REF_MAX).is_ok());
        let refused = cancel(REF_MAX + 1).unwrap_err();
        let job = refused.request.job.as_deref();
        assert_eq!((refused.code, job), (Code::BadRequest, Some("j")));
    }

    /// The hex blocks of the protocol document, without their comments.
    fn hex_blocks() -> Vec<Vec<u8>> {
        let blocks = PROTOCOL.split("```hex\n").skip(1);
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
    fn the_bytes_in_the_protocol_document_are_correct() {
        let blocks = hex_blocks();
        let [watch, watching, event] = &blocks[..] else {
            panic!("{} blocks", blocks.len())
        };
        let job: JobId = "j1".parse().unwrap();
        let expected = ClientFrame::Watch {
            job: job.clone(),
            start: Start::After(Seq(3)),
            compact: false,
        };
        assert_eq!(ClientFrame::parse(watch, Encoding::MsgPack), Ok(expected));
        let frame = ServerFrame::Watching {
            job: job.clone(),
            status: Some(Status::Done),
        };
        assert_eq!(frame.to_msgpack(), watching);
        // The payload is after three bytes of array and text head and the cursor. Its stream
        // sequence is 4.
        let payload = event[3 + "AeiRFY_5-udOBAQ".len()..].to_vec();
        let stored = Stored::decode(&job, 4, payload.into()).unwrap();
        assert_eq!(stored.msgpack(), event);
        let json = std::str::from_utf8(stored.json()).unwrap();
        assert!(PROTOCOL.contains(&format!("\n< {json}\n")), "{json}");
    }

    #[test]
    fn the_session_in_the_protocol_document_consists_of_valid_frames() {
        let (_, session) = PROTOCOL.split_once("```text\n-- connects").unwrap();
        let mut client_frames = 0;
        let mut server_frames = 0;
        let mut events = 0;
        for line in session.lines() {
            if let Some(frame) = line.strip_prefix("> ") {
                let parsed = ClientFrame::parse(frame.as_bytes(), Encoding::Json);
                assert!(parsed.is_ok(), "{frame}");
                client_frames += 1;
            } else if line.starts_with(r#"< {"op""#) {
                let frame: ServerFrame = serde_json::from_str(&line[2..]).unwrap();
                assert_eq!(frame.to_json(), line[2..]);
                server_frames += 1;
            } else if line.starts_with("< {") {
                events += 1;
            }
        }
        assert!(
            client_frames > 5 && server_frames > 5 && events > 5,
            "{client_frames} {server_frames} {events}"
        );
    }
}
