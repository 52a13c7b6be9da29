//! What a Socket.IO client asks for and is answered: an emit becomes a request, an outcome a reply. It does nothing about
//! either.

use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;

use serde::de::{Deserializer, IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Value, json};
use socketioxide::adapter::Adapter;
use socketioxide::extract::AckSender;
use socketioxide::handler::{FromConnectParts, FromMessageParts, Value as Packet};
use socketioxide::socket::Socket;

use crate::config::WATCHES_MAX;
use crate::edge::error::Problem;
use crate::edge::jobs::job_id;
use crate::wire::limits::REF_MAX;
use crate::wire::{Code, JobId, RequestRef, ServerFrame, Start, Submission, Submit, fields, start};

/// The event by which the server tells what went wrong with a request that wants no acknowledgement. Clients reserve no
/// such name, and no event of a job has it.
pub(super) const ERROR: &str = "tailwater:error";

/// What a client wants.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Request {
    Watch {
        job: JobId,
        start: Start,
    },
    Unwatch {
        job: JobId,
    },
    Submit {
        submission: Box<Submission>,
        key: Option<String>,
        reference: Option<String>,
    },
    Cancel {
        job: JobId,
    },
}

/// Why a request is not taken, and what it was about, as the client wrote it.
#[derive(Debug)]
pub(super) struct Refused {
    pub(super) problem: Problem,
    pub(super) job: Option<String>,
    pub(super) reference: Option<String>,
}

/// One emit of a client.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) request: Result<Request, Refused>,
    /// The acknowledgement that it wants, if any.
    pub(super) ack: Option<i64>,
    /// Its size in bytes.
    pub(super) size: usize,
}

impl<A: Adapter> FromMessageParts<A> for Asked {
    type Error = Infallible;

    fn from_message_parts(
        _: &Arc<Socket<A>>,
        packet: &mut Packet,
        ack: &Option<i64>,
    ) -> Result<Self, Infallible> {
        let text = packet.as_str().map_or("", |text| text.as_str());
        let mut request = parse(text);
        if matches!(packet, Packet::Str(_, Some(_))) {
            request = Err(with_attachments(request));
        }
        Ok(Self {
            request,
            ack: *ack,
            size: text.len(),
        })
    }
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
struct Job {
    job: String,
}

/// An emit: an array of the event's name and its arguments, of which the first counts.
struct Emit<'a> {
    name: Option<&'a RawValue>,
    data: Option<&'a RawValue>,
}

impl<'de: 'a, 'a> Deserialize<'de> for Emit<'a> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Arguments;
        impl<'de> Visitor<'de> for Arguments {
            type Value = Emit<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an array")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Emit<'de>, A::Error> {
                let emit = Emit {
                    name: items.next_element()?,
                    data: items.next_element()?,
                };
                while items.next_element::<IgnoredAny>()?.is_some() {}
                Ok(emit)
            }
        }
        from.deserialize_seq(Arguments)
    }
}

/// The refusal of a request that has attachments, whatever it says.
fn with_attachments(request: Result<Request, Refused>) -> Refused {
    let message =
        "a request has no binary attachments (Buffer, ArrayBuffer, Blob, bytes): send plain JSON";
    let (job, reference) = match request {
        Ok(Request::Watch { job, .. } | Request::Unwatch { job } | Request::Cancel { job }) => {
            (Some(job.to_string()), None)
        }
        Ok(Request::Submit { reference, .. }) => (None, reference),
        Err(Refused { job, reference, .. }) => (job, reference),
    };
    Refused {
        problem: Problem::new(Code::UnsupportedMediaType, message),
        job,
        reference,
    }
}

/// Reads an emit.
fn parse(text: &str) -> Result<Request, Refused> {
    let bad = |message: &str| Refused::from(Problem::new(Code::BadRequest, message));
    let Emit { name, data } = serde_json::from_str(text).map_err(|_| bad("this is no emit"))?;
    let name = name.and_then(|name| serde_json::from_str::<String>(name.get()).ok());
    let name = name.ok_or_else(|| bad("an emit has a name"))?;
    let data = data.map_or("null", RawValue::get);
    request(&name, data).map_err(|problem| {
        let RequestRef { job, reference } = RequestRef::of(data.as_bytes());
        Refused {
            problem,
            job,
            reference,
        }
    })
}

fn request(event: &str, data: &str) -> Result<Request, Problem> {
    if !data.starts_with('{') && ["watch", "unwatch", "submit", "cancel"].contains(&event) {
        return Err(Problem::new(
            Code::BadRequest,
            "the first argument is an object",
        ));
    }
    match event {
        "watch" => {
            let Watch { job, after, cursor } = fields(data.as_bytes())?;
            Ok(Request::Watch {
                job: job_id(&job)?,
                start: start(after, cursor.as_deref())?,
            })
        }
        "unwatch" => {
            let Job { job } = fields(data.as_bytes())?;
            Ok(Request::Unwatch { job: job_id(&job)? })
        }
        "cancel" => {
            let Job { job } = fields(data.as_bytes())?;
            Ok(Request::Cancel { job: job_id(&job)? })
        }
        "submit" => {
            let Submit {
                reference,
                key,
                submission,
            } = Submit::from_json(data.as_bytes())?;
            Ok(Request::Submit {
                submission: Box::new(submission),
                key,
                reference,
            })
        }
        other => {
            let other: String = other.chars().take(40).collect();
            let there_are = "there are watch, unwatch, submit and cancel";
            Err(Problem::new(
                Code::UnknownOp,
                format!("no request `{other}`; {there_are}"),
            ))
        }
    }
}

impl From<Problem> for Refused {
    fn from(problem: Problem) -> Self {
        Self {
            problem,
            job: None,
            reference: None,
        }
    }
}

impl Refused {
    /// A refusal about one job.
    pub(super) fn of(problem: impl Into<Problem>, job: &JobId) -> Self {
        Self {
            problem: problem.into(),
            job: Some(job.to_string()),
            reference: None,
        }
    }
}

/// What a client says when it joins. The token means nothing in this version.
#[derive(Debug)]
pub(super) struct Auth {
    /// The jobs that it watches from the start, as far as they can be read.
    pub(super) watches: Vec<Result<(JobId, Start), Refused>>,
}

impl<A: Adapter> FromConnectParts<A> for Auth {
    type Error = Infallible;

    fn from_connect_parts(_: &Arc<Socket<A>>, auth: &Option<Packet>) -> Result<Self, Infallible> {
        Ok(Self::parse(
            auth.as_ref()
                .and_then(Packet::as_str)
                .map_or("", |text| text.as_str()),
        ))
    }
}

impl Auth {
    /// Reads `{cursors: {<job>: <cursor>, …}}`; a number stands for `after`, `null` for the first event.
    fn parse(text: &str) -> Self {
        #[derive(Deserialize)]
        struct Fields {
            cursors: Option<Value>,
        }
        let cursors = serde_json::from_str(text)
            .ok()
            .and_then(|Fields { cursors }| cursors);
        let watches = match cursors {
            None => Vec::new(),
            Some(Value::Object(cursors)) if cursors.len() <= WATCHES_MAX => cursors
                .into_iter()
                .map(|(job, place)| watch(&job, &place))
                .collect(),
            Some(Value::Object(_)) => vec![Err(Problem::from(Code::TooManyWatches).into())],
            Some(_) => {
                let message = "`cursors` is an object that has a cursor for each job";
                vec![Err(Problem::new(Code::BadRequest, message).into())]
            }
        };
        Self { watches }
    }
}

/// As much of a client's text as is sent back to it.
fn cut(text: &str) -> String {
    text.chars().take(REF_MAX).collect()
}

fn watch(job: &str, place: &Value) -> Result<(JobId, Start), Refused> {
    let read = || {
        let start = match place {
            Value::Null => start(None, None)?,
            Value::String(cursor) => start(None, Some(cursor))?,
            Value::Number(number) if number.is_u64() => start(number.as_u64(), None)?,
            Value::Number(_) | Value::Bool(_) | Value::Array(_) | Value::Object(_) => {
                return Err(Problem::new(
                    Code::BadRequest,
                    "a place is a cursor, a number or null",
                ));
            }
        };
        Ok((job_id(job)?, start))
    };
    read().map_err(|problem| Refused {
        problem,
        job: Some(cut(job)),
        reference: None,
    })
}

/// Whom a reply is for.
pub(super) enum To {
    /// The emit that waits for an acknowledgement of this number.
    Ack(AckSender, i64),
    /// Whoever listens to the event.
    Event,
}

/// What is said about a request: by acknowledgement, or as an event.
#[derive(Debug)]
pub(super) struct Reply {
    /// The event's name when there is nobody to acknowledge to.
    pub(super) event: &'static str,
    /// A JSON object.
    pub(super) json: String,
}

impl Reply {
    fn new(event: &'static str, object: &impl Serialize) -> Self {
        let json = serde_json::to_string(object);
        Self {
            event,
            json: json.unwrap_or_else(|_| unreachable!("strings and numbers are always JSON")),
        }
    }

    /// The first event of a connection.
    pub(super) fn connected() -> Self {
        Self::new(
            "connected",
            &json!({"protocol": "tailwater.v1", "version": env!("CARGO_PKG_VERSION")}),
        )
    }

    /// What a WebSocket client is told by a frame.
    pub(super) fn frame(event: &'static str, frame: &ServerFrame) -> Self {
        Self::new(event, frame)
    }

    pub(super) fn submitted(job: &JobId, status: &impl Serialize, reference: Option<&str>) -> Self {
        let mut object = json!({"op": "submitted", "job": job, "status": status});
        if let Some(reference) = reference {
            object["ref"] = reference.into();
        }
        Self::new("submitted", &object)
    }

    pub(super) fn cancelling(job: &JobId, seq: &impl Serialize) -> Self {
        Self::new(
            "cancelling",
            &json!({"op": "cancelling", "job": job, "seq": seq}),
        )
    }

    pub(super) fn refused(refused: &Refused) -> Self {
        let Refused {
            problem,
            job,
            reference,
        } = refused;
        let mut object =
            json!({"op": "error", "code": problem.code().as_str(), "message": problem.message()});
        if let Some(job) = job {
            object["job"] = job.as_str().into();
        }
        if let Some(reference) = reference {
            object["ref"] = reference.as_str().into();
        }
        Self::new(ERROR, &object)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Cursor, Seq};

    fn refusal(text: &str) -> (Code, Option<String>) {
        let refused = parse(text).unwrap_err();
        (refused.problem.code(), refused.job)
    }

    #[test]
    fn an_emit_is_read_as_the_frame_of_the_same_name_is() {
        let job: JobId = "j".parse().unwrap();
        let watch = |start| Request::Watch {
            job: job.clone(),
            start,
        };
        let read = |text| parse(text).unwrap();
        assert_eq!(
            read(r#"["watch",{"job":"j"}]"#),
            watch(Start::After(Seq(0)))
        );
        assert_eq!(
            read(r#"["watch",{"job":"j","after":7},"more"]"#),
            watch(Start::After(Seq(7)))
        );
        assert_eq!(
            read(r#"["unwatch",{"job":"j"}]"#),
            Request::Unwatch { job: job.clone() }
        );
        assert_eq!(read(r#"["cancel",{"job":"j"}]"#), Request::Cancel { job });
        let submission = Submission::new("k".parse().unwrap(), json!([1]));
        assert_eq!(
            read(r#"["submit",{"kind":"k","input":[1],"key":"a","ref":"b"}]"#),
            Request::Submit {
                submission: Box::new(submission),
                key: Some("a".into()),
                reference: Some("b".into())
            }
        );
    }

    #[test]
    fn each_kind_of_bad_emit_has_its_own_code() {
        let job = Some("j".to_owned());
        assert_eq!(refusal(""), (Code::BadRequest, None));
        assert_eq!(refusal(r#"["watch"]"#), (Code::BadRequest, None));
        assert_eq!(refusal(r#"["watch","j"]"#), (Code::BadRequest, None));
        assert_eq!(
            refusal(r#"["watch",{"job":"j","afterr":1}]"#),
            (Code::BadRequest, job.clone())
        );
        assert_eq!(
            refusal(r#"["watch",{"job":"j","cursor":"x"}]"#),
            (Code::BadCursor, job.clone())
        );
        assert_eq!(
            refusal(r#"["watch",{"job":"a.b"}]"#),
            (Code::BadJobId, Some("a.b".into()))
        );
        assert_eq!(
            refusal(r#"["submit",{"kind":"k","key":1}]"#),
            (Code::BadRequest, None)
        );
        assert_eq!(
            refusal(r#"["submit",{"kind":"a.b","ref":"r"}]"#),
            (Code::BadKind, None)
        );
        assert_eq!(refusal(r#"["dance",{"job":"j"}]"#), (Code::UnknownOp, job));
        assert_eq!(refusal(r#"["dance"]"#), (Code::UnknownOp, None));
    }

    #[test]
    fn a_client_that_joins_names_where_it_stands_in_each_job() {
        let job: JobId = "j".parse().unwrap();
        let cursor = Cursor::of(&job, Seq(3), 9, b"x");
        let auth = format!(
            r#"{{"token":"t","cursors":{{"j":"{cursor}","k":7,"l":null,"m":"x","a.b":1}}}}"#
        );
        let mut watches: Vec<_> = Auth::parse(&auth).watches.into_iter().collect();
        watches.sort_by_key(|watch| {
            watch
                .as_ref()
                .map_or("", |(job, _)| job.as_str())
                .to_owned()
        });
        let (bad, good): (Vec<_>, Vec<_>) = watches.into_iter().partition(Result::is_err);
        let starts: Vec<_> = good.into_iter().map(|watch| watch.unwrap().1).collect();
        assert_eq!(
            starts,
            [
                Start::Cursor(cursor),
                Start::After(Seq(7)),
                Start::After(Seq(0))
            ]
        );
        let mut codes: Vec<_> = bad
            .into_iter()
            .map(|watch| watch.unwrap_err().problem.code().as_str())
            .collect();
        codes.sort_unstable();
        assert_eq!(codes, ["bad_cursor", "bad_job_id"]);
        for none in [
            "",
            "null",
            "{}",
            r#"{"token":1}"#,
            r#"{"cursors":null}"#,
            "[]",
        ] {
            assert!(Auth::parse(none).watches.is_empty(), "{none}");
        }
        assert!(Auth::parse(r#"{"cursors":[]}"#).watches[0].is_err());
    }
}
