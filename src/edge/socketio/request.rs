//! Parses what a Socket.IO client sends: an emit becomes a [`ClientFrame`].

use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use socketioxide::adapter::Adapter;
use socketioxide::handler::{FromConnectParts, FromMessageParts, Value as Payload};
use socketioxide::socket::Socket;

use crate::config::{REPLIES_MAX, WATCHES_MAX};
use crate::wire::limits::{ID_MAX, TOKEN_MAX};
use crate::wire::{BearerToken, ClientFrame, Code, Refusal, RequestRef, Start, job_id, start};

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

impl EmittedRequest {
    /// About how many bytes it holds on the heap, without the input of a submission.
    pub(super) fn memory(&self) -> usize {
        match &self.frame {
            // Only texts of the emit are kept.
            Ok(_) => self.size,
            // Of a large emit, a refusal quotes little.
            Err(Refusal {
                code: _,
                message,
                request: RequestRef { reference, job },
            }) => {
                let texts = [Some(message), reference.as_ref(), job.as_ref()];
                texts.into_iter().flatten().map(String::capacity).sum()
            }
        }
    }
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
        let text = auth.as_ref().and_then(Payload::as_str);
        Ok(Self::parse(text.map_or("", |text| text.as_str())))
    }
}

impl JoinToken {
    /// Reads `{token: <text>}`. A token that is too large is as good as none, and is not copied.
    fn parse(text: &str) -> Self {
        #[derive(Deserialize)]
        struct TokenField<'a> {
            #[serde(borrow)]
            token: Option<&'a RawValue>,
        }
        let field: Option<TokenField<'_>> = serde_json::from_str(text).ok();
        let token = field.and_then(|TokenField { token }| token);
        let token = token.filter(|token| token.get().len() <= TOKEN_MAX);
        Self(token.and_then(|token| serde_json::from_str(token.get()).ok()))
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
        // Kept as text: parsed values would take a hundred times that, and no budget counts them.
        #[derive(Deserialize)]
        struct JoinFields<'a> {
            #[serde(borrow)]
            cursors: Option<&'a RawValue>,
            #[serde(borrow)]
            compact: Option<&'a RawValue>,
        }
        let fields: Option<JoinFields<'_>> = serde_json::from_str(text).ok();
        let (cursors, compact) =
            fields.map_or((None, None), |fields| (fields.cursors, fields.compact));
        let Some(cursors) = cursors else {
            return Self {
                watches: Vec::new(),
            };
        };
        let refuse = |code, message| vec![Err(refusal(code, message, RequestRef::default()))];
        let compact = match compact.map(RawValue::get) {
            None | Some("false") => false,
            Some("true") => true,
            Some(_) => {
                return Self {
                    watches: refuse(Code::BadRequest, "`compact` must be a boolean."),
                };
            }
        };
        let mut reader = serde_json::Deserializer::from_str(cursors.get());
        let watches = match reader.deserialize_map(JoinCursors { compact }) {
            Ok(Some(watches)) => watches,
            Ok(None) => refuse(Code::TooManyWatches, Code::TooManyWatches.info().text),
            Err(_) => refuse(
                Code::BadRequest,
                "`cursors` must be an object with a cursor for each job.",
            ),
        };
        Self { watches }
    }
}

/// Reads where to start in each job; `None` if there are more than [`WATCHES_MAX`].
struct JoinCursors {
    compact: bool,
}

impl<'de> Visitor<'de> for JoinCursors {
    type Value = Option<Vec<Result<ClientFrame, Refusal>>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut cursors: A) -> Result<Self::Value, A::Error> {
        let mut watches = Vec::new();
        let mut jobs = 0;
        let mut refused = 0;
        while let Some((job, position)) = cursors.next_entry::<String, &RawValue>()? {
            if jobs == WATCHES_MAX {
                while cursors.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                return Ok(None);
            }
            jobs += 1;
            let watch = watch(&job, position.get(), self.compact);
            refused += usize::from(watch.is_err());
            // The refusals are replies, and all of them wait for the client at once.
            if watch.is_ok() || refused <= REPLIES_MAX {
                watches.push(watch);
            }
        }
        if refused > REPLIES_MAX {
            watches.push(Err(bad("More `cursors` were refused than have answers.")));
        }
        Ok(Some(watches))
    }
}

fn watch(job: &str, position: &str, compact: bool) -> Result<ClientFrame, Refusal> {
    let read = || -> Result<ClientFrame, Refusal> {
        Ok(ClientFrame::Watch {
            job: job_id(job)?,
            start: start_at(position)?,
            compact,
        })
    };
    read().map_err(|refusal| Refusal {
        request: RequestRef {
            reference: None,
            job: Some(job.chars().take(ID_MAX).collect()),
        },
        ..refusal
    })
}

/// The start that a cursor, a sequence number or `null` names. Other JSON is not read.
fn start_at(position: &str) -> Result<Start, Refusal> {
    let not_one = |_| bad("The start of a job must be a cursor, a sequence number or null.");
    if position.starts_with('"') {
        let cursor: String = serde_json::from_str(position).map_err(not_one)?;
        start(None, Some(cursor.as_str()))
    } else {
        let after: Option<u64> = serde_json::from_str(position).map_err(not_one)?;
        start(after, None)
    }
}

fn bad(message: &str) -> Refusal {
    refusal(Code::BadRequest, message, RequestRef::default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::limits::MESSAGE_MAX;
    use crate::wire::{Cursor, JobId, Seq, Submission, WatchTokenTerms};
    use serde_json::json;

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

    /// How many jobs a client that joins with these fields watches, and the codes of the others.
    fn joined(fields: &str) -> (usize, Vec<Code>) {
        let mut watched = 0;
        let mut codes = Vec::new();
        for watch in JoinRequest::parse(&format!("{{{fields}}}")).watches {
            match watch {
                Ok(_) => watched += 1,
                Err(refusal) => codes.push(refusal.code),
            }
        }
        (watched, codes)
    }

    #[test]
    fn a_client_that_joins_watches_at_most_1024_jobs() {
        let cursors = |count: usize| {
            let jobs: Vec<_> = (0..count).map(|n| format!(r#""j{n}":null"#)).collect();
            format!(r#""cursors":{{{}}}"#, jobs.join(","))
        };
        assert_eq!(joined(&cursors(WATCHES_MAX)), (WATCHES_MAX, vec![]));
        for more in [1, WATCHES_MAX] {
            let refused = joined(&cursors(WATCHES_MAX + more));
            assert_eq!(refused, (0, vec![Code::TooManyWatches]));
        }
    }

    #[test]
    fn few_bad_cursors_of_a_join_are_refused_one_by_one_and_the_good_ones_are_watched() {
        let join = |bad: usize| {
            let jobs: Vec<_> = (0..bad).map(|n| format!(r#""j{n}":"x""#)).collect();
            joined(&format!(r#""cursors":{{{},"good":null}}"#, jobs.join(",")))
        };
        let mut codes = vec![Code::BadCursor; REPLIES_MAX];
        assert_eq!(join(REPLIES_MAX), (1, codes.clone()));
        codes.push(Code::BadRequest);
        for more in [1, 2] {
            assert_eq!(join(REPLIES_MAX + more), (1, codes.clone()));
        }
        assert_eq!(join(WATCHES_MAX - 1), (1, codes));
        assert_eq!(join(WATCHES_MAX), (0, vec![Code::TooManyWatches]));
    }

    #[test]
    fn compact_is_a_boolean_for_all_jobs_of_a_join() {
        let jobs = r#""cursors":{"j":null,"k":1}"#;
        for compact in ["null", "true", "false", " true "] {
            let fields = format!(r#"{jobs},"compact":{compact}"#);
            assert_eq!(joined(&fields), (2, vec![]), "{compact}");
        }
        for compact in ["1", r#""true""#, "[true]", "{}"] {
            let fields = format!(r#""compact":{compact},{jobs}"#);
            let refused = (0, vec![Code::BadRequest]);
            assert_eq!(joined(&fields), refused, "{compact}");
        }
        assert_eq!(joined(r#""compact":7"#), (0, vec![]), "no job needs it");
    }

    #[test]
    fn no_value_of_a_join_is_built() {
        // Building a value that is nested this deep would fail: the codes show that it was not tried.
        let deep = "[".repeat(100_000) + &"]".repeat(100_000);
        let bad = vec![Code::BadRequest];
        assert_eq!(joined(&format!(r#""cursors":{deep}"#)), (0, bad.clone()));
        let start = format!(r#""cursors":{{"j":{deep},"k":null}}"#);
        assert_eq!(joined(&start), (1, bad.clone()));
        let compact = format!(r#""cursors":{{"j":null}},"compact":{deep}"#);
        assert_eq!(joined(&compact), (0, bad));
        let long = format!(r#""cursors":{{"{}":null}}"#, "ä".repeat(100_000));
        let refused = JoinRequest::parse(&format!("{{{long}}}")).watches;
        let refused = refused[0].as_ref().unwrap_err();
        let quoted = refused.request.job.as_ref().unwrap();
        assert_eq!(
            (refused.code, quoted.chars().count()),
            (Code::BadJobId, ID_MAX)
        );
    }

    #[test]
    fn a_token_that_is_too_large_is_as_good_as_none() {
        let token = |length: usize| {
            let text = format!(r#"{{"token":"{}","cursors":7}}"#, "x".repeat(length));
            JoinToken::parse(&text).0
        };
        let longest = TOKEN_MAX - 2;
        assert_eq!(token(longest).unwrap().expose().len(), longest);
        assert_eq!(token(longest + 1), None);
        for none in ["", "[]", "{}", r#"{"token":null}"#, r#"{"token":["x"]}"#] {
            assert_eq!(JoinToken::parse(none).0, None, "{none}");
        }
    }

    #[test]
    fn the_memory_of_a_request_is_that_of_what_it_keeps() {
        let request = |text: String| {
            let payload = Payload::Str(text.into(), None);
            Emit { payload, ack: None }.parse(|_| Ok(())).0
        };
        let token = "x".repeat(TOKEN_MAX - 2);
        let auth = request(format!(r#"["auth",{{"token":"{token}"}}]"#));
        assert!(auth.frame.is_ok() && auth.memory() >= token.len());
        let long = "x".repeat(900_000);
        let refused = request(format!(r#"["watch",{{"job":"{long}","{long}":1}}]"#));
        let memory = refused.memory();
        let refusal = refused.frame.unwrap_err();
        assert!(memory >= refusal.message.len() + ID_MAX, "{memory}");
        assert!(memory <= 2 * (MESSAGE_MAX + ID_MAX), "{memory}");
    }
}
