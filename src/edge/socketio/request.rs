//! Parses what a Socket.IO client sends: an emit becomes a [`ClientFrame`].

use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, SeqAccess, Visitor};
use serde_json::value::RawValue;
use serde_json::{Value, json};
use socketioxide::adapter::Adapter;
use socketioxide::handler::{FromConnectParts, FromMessageParts, Value as Payload};
use socketioxide::socket::Socket;

use crate::config::WATCHES_MAX;
use crate::wire::{BearerToken, ClientFrame, Code, Refusal, RequestRef};

/// One emit of a client, not parsed yet.
#[derive(Debug)]
pub(super) struct Emit {
    payload: Payload,
    /// The acknowledgement that the client wants, if any.
    ack: Option<i64>,
}

/// The request that an emit contains.
#[derive(Debug)]
pub(super) struct EmittedRequest {
    pub(super) frame: Result<ClientFrame, Refusal>,
    /// The acknowledgement that the client wants, if any.
    pub(super) ack: Option<i64>,
    /// Its size in bytes.
    pub(super) size: usize,
}

impl<A: Adapter> FromMessageParts<A> for Emit {
    type Error = Infallible;

    fn from_message_parts(
        _: &Arc<Socket<A>>,
        payload: &mut Payload,
        ack: &Option<i64>,
    ) -> Result<Self, Infallible> {
        let payload = payload.clone();
        Ok(Self { payload, ack: *ack })
    }
}

impl Emit {
    /// Its size in bytes.
    pub(super) fn size(&self) -> usize {
        self.text().len()
    }

    fn text(&self) -> &str {
        self.payload.as_str().map_or("", |text| text.as_str())
    }

    /// Parses it. Before the input of a submission is built, `admit` gets about how many bytes it
    /// will take in memory, and may refuse it.
    pub(super) fn parse<R>(
        self,
        admit: impl FnOnce(usize) -> Result<R, Refusal>,
    ) -> (EmittedRequest, Option<R>) {
        let has_attachments = matches!(self.payload, Payload::Str(_, Some(_)));
        let (frame, admitted) = match parse(self.text(), has_attachments, admit) {
            Ok((frame, admitted)) => (Ok(frame), admitted),
            Err(refusal) => (Err(refusal), None),
        };
        let request = EmittedRequest {
            frame,
            ack: self.ack,
            size: self.size(),
        };
        (request, admitted)
    }
}

/// The array of an emit: the event's name and its first argument.
struct EmitArray<'a> {
    name: Option<&'a RawValue>,
    fields: Option<&'a RawValue>,
}

impl<'de: 'a, 'a> Deserialize<'de> for EmitArray<'a> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Arguments;
        impl<'de> Visitor<'de> for Arguments {
            type Value = EmitArray<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an array")
            }

            fn visit_seq<A: SeqAccess<'de>>(
                self,
                mut items: A,
            ) -> Result<EmitArray<'de>, A::Error> {
                let emit = EmitArray {
                    name: items.next_element()?,
                    fields: items.next_element()?,
                };
                while items.next_element::<IgnoredAny>()?.is_some() {}
                Ok(emit)
            }
        }
        from.deserialize_seq(Arguments)
    }
}

fn parse<R>(
    text: &str,
    has_attachments: bool,
    admit: impl FnOnce(usize) -> Result<R, Refusal>,
) -> Result<(ClientFrame, Option<R>), Refusal> {
    let unnamed = |message| refusal(Code::BadRequest, message, RequestRef::default());
    let EmitArray { name, fields } =
        serde_json::from_str(text).map_err(|_| unnamed("The emit is not a JSON array."))?;
    let name = name.and_then(|name| serde_json::from_str::<String>(name.get()).ok());
    let name = name.ok_or_else(|| unnamed("The emit has no event name."))?;
    let fields = fields.map_or("null", RawValue::get).as_bytes();
    let refuse = |code, message: &str| Err(refusal(code, message, RequestRef::of(fields)));
    if has_attachments {
        let message = "A request has no binary attachments (Buffer, ArrayBuffer, Blob, bytes). \
            Send plain JSON.";
        return refuse(Code::UnsupportedMediaType, message);
    }
    match name.as_str() {
        "auth" | "watch" | "unwatch" | "submit" | "cancel" if fields.starts_with(b"{") => {
            ClientFrame::from_fields(&name, fields, admit)
        }
        "auth" | "watch" | "unwatch" | "submit" | "cancel" => {
            refuse(Code::BadRequest, "The first argument is not an object.")
        }
        other => {
            let other: String = other.chars().take(40).collect();
            let message = format!(
                "Unknown event `{other}`. Emit `auth`, `watch`, `unwatch`, `submit` or `cancel`."
            );
            refuse(Code::UnknownOp, &message)
        }
    }
}

fn refusal(code: Code, message: &str, request: RequestRef) -> Refusal {
    Refusal {
        code,
        message: message.to_owned(),
        request,
    }
}

/// The token that a client sends when it joins.
#[derive(Debug)]
pub(super) struct JoinToken(pub(super) Option<BearerToken>);

impl<A: Adapter> FromConnectParts<A> for JoinToken {
    type Error = Infallible;

    fn from_connect_parts(_: &Arc<Socket<A>>, auth: &Option<Payload>) -> Result<Self, Infallible> {
        #[derive(Deserialize)]
        struct TokenField {
            token: Option<BearerToken>,
        }
        let text = auth.as_ref().and_then(Payload::as_str);
        let fields = text.and_then(|text| serde_json::from_str(text.as_str()).ok());
        Ok(Self(fields.and_then(|TokenField { token }| token)))
    }
}

/// The jobs that a client names when it joins.
#[derive(Debug)]
pub(super) struct JoinRequest {
    /// The jobs that it watches from the start.
    pub(super) watches: Vec<Result<ClientFrame, Refusal>>,
}

impl<A: Adapter> FromConnectParts<A> for JoinRequest {
    type Error = Infallible;

    fn from_connect_parts(_: &Arc<Socket<A>>, auth: &Option<Payload>) -> Result<Self, Infallible> {
        let text = auth.as_ref().and_then(Payload::as_str);
        Ok(Self::parse(text.map_or("", |text| text.as_str())))
    }
}

impl JoinRequest {
    /// Reads `{cursors: {<job>: <cursor>, …}, compact: <bool>}`. A number means `after`, `null` from
    /// the first event.
    fn parse(text: &str) -> Self {
        #[derive(Deserialize)]
        struct JoinFields {
            cursors: Option<Value>,
            compact: Option<Value>,
        }
        let fields: Option<JoinFields> = serde_json::from_str(text).ok();
        let (cursors, compact) =
            fields.map_or((None, None), |fields| (fields.cursors, fields.compact));
        let compact = compact.unwrap_or_default();
        let refuse = |code, message| vec![Err(refusal(code, message, RequestRef::default()))];
        let watches = match cursors {
            None => Vec::new(),
            Some(Value::Object(cursors)) if cursors.len() <= WATCHES_MAX => cursors
                .into_iter()
                .map(|(job, start)| watch(&job, &start, &compact))
                .collect(),
            Some(Value::Object(_)) => {
                refuse(Code::TooManyWatches, Code::TooManyWatches.info().text)
            }
            Some(_) => refuse(
                Code::BadRequest,
                "`cursors` must be an object with a cursor for each job.",
            ),
        };
        Self { watches }
    }
}

fn watch(job: &str, start: &Value, compact: &Value) -> Result<ClientFrame, Refusal> {
    let fields = match start {
        Value::Null => json!({"job": job, "compact": compact}),
        Value::String(cursor) => json!({"job": job, "cursor": cursor, "compact": compact}),
        Value::Number(after) if after.is_u64() => {
            json!({"job": job, "after": after, "compact": compact})
        }
        Value::Number(_) | Value::Bool(_) | Value::Array(_) | Value::Object(_) => {
            let request = RequestRef::of(json!({"job": job}).to_string().as_bytes());
            let message = "The start of a job must be a cursor, a sequence number or null.";
            return Err(refusal(Code::BadRequest, message, request));
        }
    };
    let fields = fields.to_string();
    ClientFrame::from_fields("watch", fields.as_bytes(), |_| Ok(())).map(|(frame, _)| frame)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::WatchTokenTerms;
    use crate::wire::{Cursor, JobId, Seq, Start, Submission};

    fn refused(text: &str) -> (Code, Option<String>) {
        let refusal = parse(text, false, |_| Ok(())).unwrap_err();
        (refusal.code, refusal.request.job)
    }

    #[test]
    fn an_emit_is_read_as_the_frame_of_the_same_name() {
        let job: JobId = "j".parse().unwrap();
        let watch = |start| ClientFrame::Watch {
            job: job.clone(),
            start,
            compact: false,
        };
        let read = |text| parse(text, false, |_| Ok(())).unwrap().0;
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
            ClientFrame::Unwatch { job: job.clone() }
        );
        let cancel = ClientFrame::Cancel {
            reference: None,
            job: job.clone(),
        };
        assert_eq!(read(r#"["cancel",{"job":"j"}]"#), cancel);
        assert_eq!(
            read(r#"["submit",{"kind":"k","input":[1],"key":"a","ref":"b"}]"#),
            ClientFrame::Submit {
                submission: Submission::new("k".parse().unwrap(), json!([1])),
                key: Some("a".into()),
                watch_token: WatchTokenTerms::default(),
                reference: Some("b".into())
            }
        );
        let submit = read(r#"["submit",{"kind":"k"}]"#);
        assert!(matches!(
            submit,
            ClientFrame::Submit {
                reference: None,
                ..
            }
        ));
    }

    #[test]
    fn each_bad_emit_has_its_own_code() {
        let job = Some("j".to_owned());
        assert_eq!(refused(""), (Code::BadRequest, None));
        assert_eq!(refused(r#"["watch"]"#), (Code::BadRequest, None));
        assert_eq!(refused(r#"["watch","j"]"#), (Code::BadRequest, None));
        assert_eq!(
            refused(r#"["watch",{"job":"j","afterr":1}]"#),
            (Code::BadRequest, job.clone())
        );
        assert_eq!(
            refused(r#"["watch",{"job":"j","cursor":"x"}]"#),
            (Code::BadCursor, job.clone())
        );
        assert_eq!(
            refused(r#"["watch",{"job":"a.b"}]"#),
            (Code::BadJobId, Some("a.b".into()))
        );
        assert_eq!(
            refused(r#"["submit",{"kind":"k","key":1}]"#),
            (Code::BadRequest, None)
        );
        assert_eq!(
            refused(r#"["submit",{"kind":"a.b","ref":"r"}]"#),
            (Code::BadKind, None)
        );
        assert_eq!(refused(r#"["dance",{"job":"j"}]"#), (Code::UnknownOp, job));
        assert_eq!(refused(r#"["dance"]"#), (Code::UnknownOp, None));
        assert_eq!(refused(r#"["auth",{"token":1}]"#), (Code::BadRequest, None));
    }

    #[test]
    fn a_client_that_joins_names_where_to_start_in_each_job() {
        let job: JobId = "j".parse().unwrap();
        let cursor = Cursor::of(&job, Seq(3), 9, b"x");
        let auth = format!(
            r#"{{"token":"t","compact":true,"cursors":{{"j":"{cursor}","k":7,"l":null,"m":"x","a.b":1,"n":[]}}}}"#
        );
        let mut starts = Vec::new();
        let mut refusals = Vec::new();
        for watch in JoinRequest::parse(&auth).watches {
            match watch {
                Ok(ClientFrame::Watch {
                    job,
                    start,
                    compact,
                }) => starts.push((job.to_string(), start, compact)),
                Ok(other) => panic!("{other:?}"),
                Err(refusal) => refusals.push((refusal.request.job.unwrap(), refusal.code)),
            }
        }
        starts.sort_by(|a, b| a.0.cmp(&b.0));
        refusals.sort_by(|a, b| a.0.cmp(&b.0));
        assert_eq!(
            starts,
            [
                ("j".into(), Start::Cursor(cursor), true),
                ("k".into(), Start::After(Seq(7)), true),
                ("l".into(), Start::After(Seq(0)), true)
            ]
        );
        assert_eq!(
            refusals,
            [
                ("a.b".into(), Code::BadJobId),
                ("m".into(), Code::BadCursor),
                ("n".into(), Code::BadRequest)
            ]
        );
        for none in [
            "",
            "null",
            "{}",
            r#"{"token":1}"#,
            r#"{"cursors":null}"#,
            "[]",
        ] {
            assert!(JoinRequest::parse(none).watches.is_empty(), "{none}");
        }
        assert!(JoinRequest::parse(r#"{"cursors":[]}"#).watches[0].is_err());
    }
}
