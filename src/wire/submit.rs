//! Parses and checks a submission, the same on every transport. A refused input is never built in
//! memory.

use schemars::JsonSchema;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;
use serde_json::value::RawValue;

use super::bearer::WatchTokenTerms;
use super::code::Code;
use super::codec::nests_at_most;
use super::id::{JobId, Kind};
use super::limits::{
    CALLBACK_MAX, EVENT_MAX, INPUT_MAX, INPUT_MEMORY_MAX, TIMEOUT_MAX_MS, VALUE_DEPTH_MAX,
    WATCH_TOKEN_TTL_MAX_MS,
};
use super::number::whole_number;
use super::plain::plain;
use super::refusal::{self, Refusal};
use super::scan::{self, Size};
use super::submission::{KEY_ID, Limits, RESERVED_KIND, Submission};

/// A job to run, and its limits.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Submission")]
pub(super) struct SubmissionFields<'a> {
    /// Which workers may run it.
    #[schemars(with = "Kind", extend("not" = {"const": RESERVED_KIND}))]
    kind: String,
    /// The input for the worker.
    // Kept as text until its size has been checked.
    #[serde(borrow, default)]
    #[schemars(with = "Option<Value>")]
    input: Option<&'a RawValue>,
    /// The job's id; if absent, the edge generates one. A qualified id must name the job's kind.
    #[schemars(
        with = "Option<JobId>",
        extend("not" = {"pattern": format!("^({RESERVED_KIND}:|([A-Za-z0-9_-]+:)?{KEY_ID}[^:]*$)"), "type": "string"})
    )]
    id: Option<String>,
    /// How long the job may take from submission to its end, including all attempts and waits, in
    /// milliseconds.
    #[serde(default, deserialize_with = "whole_number")]
    #[schemars(range(min = 1, max = TIMEOUT_MAX_MS))]
    timeout_ms: Option<u64>,
    /// How long an attempt may produce no output, in milliseconds.
    #[serde(default, deserialize_with = "whole_number")]
    #[schemars(range(min = 1, max = TIMEOUT_MAX_MS))]
    silence_timeout_ms: Option<u64>,
    /// The address to call when the job has ended.
    #[schemars(regex(pattern = "^https?://"), length(max = CALLBACK_MAX))]
    callback: Option<String>,
    /// What the `watch_token` in the answer should allow.
    watch_token: Option<WatchTokenTerms>,
    /// The fields of a submit frame, which an HTTP request does not have.
    #[schemars(skip)]
    op: Option<IgnoredAny>,
    #[serde(rename = "ref")]
    #[schemars(skip)]
    reference: Option<String>,
    #[schemars(skip)]
    key: Option<String>,
}

/// A frame that submits a job.
#[derive(Debug)]
pub struct SubmitFrame {
    /// The client's own name for the frame.
    pub reference: Option<String>,
    /// The idempotency key: the same submission with the same key is the same job.
    pub key: Option<String>,
    /// What the `watch_token` in the answer should allow.
    pub watch_token: WatchTokenTerms,
    /// The job.
    pub submission: Submission,
}

impl SubmitFrame {
    /// Parses a submit frame: the fields of [`Submission::from_json`] and, optionally, `op`, `ref`
    /// and `key`; `ref` may be required. Before the input is built, `admit` gets about how many bytes
    /// it will take in memory, and may refuse it.
    ///
    /// # Errors
    /// A [`Refusal`] for the client, and what `admit` returns.
    pub fn from_json<R>(
        text: &[u8],
        needs_ref: bool,
        admit: impl FnOnce(usize) -> Result<R, Refusal>,
    ) -> Result<(Self, R), Refusal> {
        let fields: SubmissionFields<'_> = refusal::read_fields(text)?;
        if needs_ref && fields.reference.is_none() {
            return Err(Refusal::new(Code::BadRequest, "missing field `ref`"));
        }
        Self::of(fields, admit)
    }

    /// Parses the body of an HTTP request: as [`Self::from_json`], without `op`, `ref` and `key`.
    ///
    /// # Errors
    /// A [`Refusal`] for the client, and what `admit` returns.
    pub fn from_body<R, E: From<Refusal>>(
        text: &[u8],
        admit: impl FnOnce(usize) -> Result<R, E>,
    ) -> Result<(Self, R), E> {
        let fields: SubmissionFields<'_> = refusal::read_fields(text)?;
        let of_frames = [
            ("op", fields.op.is_some()),
            ("ref", fields.reference.is_some()),
            ("key", fields.key.is_some()),
        ];
        for (name, is_there) in of_frames {
            if is_there {
                let message = format!("unknown field `{name}`");
                return Err(Refusal::new(Code::BadRequest, message).into());
            }
        }
        Self::of(fields, admit)
    }

    fn of<R, E: From<Refusal>>(
        fields: SubmissionFields<'_>,
        admit: impl FnOnce(usize) -> Result<R, E>,
    ) -> Result<(Self, R), E> {
        // A frame may wait for a token or the broker: nothing in it is large but its input.
        refusal::check_reference(fields.reference.as_deref())?;
        refusal::check_key(fields.key.as_deref())?;
        let watch_token = fields.watch_token()?;
        let (submission, admitted) = fields.submission(admit)?;
        let frame = Self {
            submission,
            watch_token,
            reference: fields.reference,
            key: fields.key,
        };
        Ok((frame, admitted))
    }
}

impl SubmissionFields<'_> {
    fn watch_token(&self) -> Result<WatchTokenTerms, Refusal> {
        let terms = self.watch_token.unwrap_or_default();
        match terms.ttl_ms {
            Some(ms) if !(1..=WATCH_TOKEN_TTL_MAX_MS).contains(&ms) => {
                let message = format!("`ttl_ms` must be 1 to {WATCH_TOKEN_TTL_MAX_MS}");
                Err(Refusal::new(Code::BadRequest, message))
            }
            _ => Ok(terms),
        }
    }

    /// Checks everything, then builds the input if `admit` allows it.
    fn submission<R, E: From<Refusal>>(
        &self,
        admit: impl FnOnce(usize) -> Result<R, E>,
    ) -> Result<(Submission, R), E> {
        let kind = refusal::kind(&self.kind)?;
        let id = self.id.as_deref().map(refusal::job_id).transpose()?;
        let mut submission = Submission {
            kind,
            input: Value::Null,
            id,
            limits: Limits {
                timeout_ms: self.timeout_ms,
                silence_timeout_ms: self.silence_timeout_ms,
            },
            callback: self.callback.clone(),
        };
        submission.check_head()?;
        let mut memory = 0;
        if let Some(input) = self.input {
            let size = scan::measure(input.get()).map_err(|error| bad_input(&error))?;
            submission.check_size(size)?;
            memory = size.memory;
        }
        let admitted = admit(memory)?;
        if let Some(input) = self.input {
            let mut reader = serde_json::Deserializer::from_str(input.get());
            submission.input = plain(&mut reader).map_err(|error| bad_input(&error))?;
        }
        Ok((submission, admitted))
    }
}

/// Parses a request in another protocol, which becomes an input. Before it is built, `admit` gets
/// about how many bytes it will take in memory, and may refuse it.
///
/// # Errors
/// A [`Refusal`] for the client, and what `admit` returns.
pub fn foreign_body<R, E: From<Refusal>>(
    text: &[u8],
    admit: impl FnOnce(usize) -> Result<R, E>,
) -> Result<(Value, R), E> {
    let not_text = |error: std::str::Utf8Error| Refusal::new(Code::BadJson, error.to_string());
    let text = std::str::from_utf8(text).map_err(not_text)?;
    let admitted = admit(memory_of(text)?)?;
    let mut reader = serde_json::Deserializer::from_str(text);
    let body = plain(&mut reader).map_err(|error| bad_input(&error))?;
    Ok((body, admitted))
}

/// About how many bytes the input of a job, as it is stored in the queue, will take in memory.
///
/// # Errors
/// A [`Refusal`] of an input that no client may submit, because it would take too many or nests too
/// deep, and of what is not a job.
pub fn input_memory(job: &[u8]) -> Result<usize, Refusal> {
    #[derive(Deserialize)]
    struct InputField<'a> {
        #[serde(borrow, default)]
        input: Option<&'a RawValue>,
    }
    let InputField { input } = refusal::read_fields(job)?;
    input.map_or(Ok(0), |input| memory_of(input.get()))
}

/// About how many bytes a value will take in memory, if that is not too much for an input.
fn memory_of(text: &str) -> Result<usize, Refusal> {
    let size = scan::measure(text).map_err(|error| bad_input(&error))?;
    if size.memory > INPUT_MEMORY_MAX {
        return Err(Refusal::new(Code::TooLarge, too_many_parts(size.memory)));
    }
    Ok(size.memory)
}

fn too_many_parts(memory: usize) -> String {
    format!(
        "the input has too many small parts: it takes {memory} bytes in memory, the limit is {INPUT_MEMORY_MAX}"
    )
}

/// JSON without a syntax error can still be invalid, for example a number that is too large for a
/// float.
fn bad_input(error: &serde_json::Error) -> Refusal {
    let code = if error.is_data() {
        Code::BadRequest
    } else {
        Code::BadJson
    };
    Refusal::new(code, format!("invalid input: {error}"))
}

impl Submission {
    /// Parses a client's submission: a JSON object with `kind` and, optionally, `input`, `id`,
    /// `timeout_ms`, `silence_timeout_ms` and `callback`. A refused input is not built.
    ///
    /// # Errors
    /// A [`Refusal`] for the client.
    pub fn from_json(text: &[u8]) -> Result<Self, Refusal> {
        let admit = |_| Ok::<_, Refusal>(());
        SubmitFrame::from_body(text, admit).map(|(request, ())| request.submission)
    }

    /// Checks that a client, not only a worker, may submit this.
    ///
    /// # Errors
    /// A [`Refusal`] for the client.
    pub fn check(&self) -> Result<(), Refusal> {
        self.check_head()?;
        if !nests_at_most(&self.input, VALUE_DEPTH_MAX) {
            let message = format!("the input nests deeper than {VALUE_DEPTH_MAX} levels");
            return Err(Refusal::new(Code::BadRequest, message));
        }
        self.check_size(scan::measure_value(&self.input).map_err(|error| bad_input(&error))?)
    }

    fn check_size(&self, input: Size) -> Result<(), Refusal> {
        let too_large = |message| Err(Refusal::new(Code::TooLarge, message));
        if input.json > INPUT_MAX {
            return too_large(format!(
                "the input is too large: it has {} bytes, the limit is {INPUT_MAX}",
                input.json
            ));
        }
        let size = self
            .event_len_for(input.msgpack)
            .map_err(|error| Refusal::new(Code::BadRequest, error.to_string()))?;
        if size > EVENT_MAX {
            return too_large(Self::too_large(size, EVENT_MAX));
        }
        if input.memory > INPUT_MEMORY_MAX {
            return too_large(too_many_parts(input.memory));
        }
        Ok(())
    }

    /// Checks everything but the input.
    fn check_head(&self) -> Result<(), Refusal> {
        let refused = |code, message: String| Err(Refusal::new(code, message));
        if self.kind.as_str() == RESERVED_KIND {
            let message = format!("the kind {RESERVED_KIND} is reserved; use another kind");
            return refused(Code::BadKind, message);
        }
        if let Some(id) = &self.id {
            if !id.may_be_of(&self.kind) {
                return refused(Code::BadJobId, Self::of_another_kind(id, &self.kind));
            }
            if id.name().starts_with(KEY_ID) {
                let message = format!("ids that begin with {KEY_ID} are reserved; use another id");
                return refused(Code::BadJobId, message);
            }
        }
        if [self.limits.timeout_ms, self.limits.silence_timeout_ms].contains(&Some(0)) {
            return refused(
                Code::BadRequest,
                "a time limit must be at least 1 ms".into(),
            );
        }
        let callback = self.callback.as_deref().unwrap_or("http://");
        let is_http = callback.starts_with("https://") || callback.starts_with("http://");
        if callback.len() > CALLBACK_MAX || !is_http {
            let message = format!(
                "a callback must be an http or https address of at most {CALLBACK_MAX} bytes"
            );
            return refused(Code::BadRequest, message);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::limits::NAME_MAX;
    use super::*;
    use crate::wire::{Event, Seq};
    use serde_json::json;

    fn read(value: &Value) -> Result<Submission, Refusal> {
        Submission::from_json(value.to_string().as_bytes())
    }

    fn refusal(value: &Value) -> Code {
        read(value).unwrap_err().code
    }

    #[test]
    fn a_submission_needs_a_kind_and_nothing_else() {
        let kind: Kind = "k".parse().unwrap();
        assert_eq!(
            read(&json!({"kind": "k"})),
            Ok(Submission::new(kind, Value::Null))
        );
        let full = json!({"kind": "k", "input": [1], "id": "j", "timeout_ms": 5, "silence_timeout_ms": 6,
            "callback": "https://h/p"});
        let full = read(&full).unwrap();
        assert_eq!(
            full.limits,
            Limits {
                timeout_ms: Some(5),
                silence_timeout_ms: Some(6)
            }
        );
        assert_eq!(full.callback.as_deref(), Some("https://h/p"));
        let floats = json!({"kind": "k", "timeout_ms": 5.0, "silence_timeout_ms": null});
        assert_eq!(read(&floats).unwrap().limits.timeout_ms, Some(5));
    }

    #[test]
    fn the_body_of_another_protocol_is_admitted_before_it_is_built() {
        let refuse = |_| Err::<(), _>(Refusal::new(Code::Overloaded, "no room"));
        let refused = foreign_body(b"[1]", refuse).unwrap_err();
        assert_eq!(refused.code, Code::Overloaded);
        let invalid = foreign_body(b"[1e999]", refuse).unwrap_err();
        assert_eq!(invalid.code, Code::BadJson, "it needs no room");
        let admit = |memory: usize| Ok::<_, Refusal>(memory);
        let (body, memory) = foreign_body(br#"{"a":"bc"}"#, admit).unwrap();
        assert_eq!(body, json!({"a": "bc"}));
        assert_eq!(memory, scan::measure(r#"{"a":"bc"}"#).unwrap().memory);
    }

    #[test]
    fn the_memory_of_a_queued_input_is_known_before_it_is_built() {
        let queued = |input: &str| {
            input_memory(format!(r#"{{"job":"k:j","kind":"k","input":{input}}}"#).as_bytes())
        };
        let size = scan::measure(r#"[{"a":"bc"}]"#).unwrap().memory;
        assert_eq!(queued(r#"[{"a":"bc"}]"#), Ok(size));
        assert_eq!(queued("null"), Ok(0));
        assert_eq!(input_memory(br#"{"job":"k:j","kind":"k"}"#), Ok(0));
        // As deep as the input of a client may be.
        let nested = |levels: usize| "[".repeat(levels) + &"]".repeat(levels);
        queued(&nested(VALUE_DEPTH_MAX)).unwrap();
        queued(&nested(VALUE_DEPTH_MAX + 1)).unwrap_err();
        let objects = format!("[{}0]", "{\"\":0},".repeat(30_000));
        assert_eq!(queued(&objects).unwrap_err().code, Code::TooLarge);
        // serde reads a list like the fields of an object, in their order.
        let list = format!(r#"["k:j","k",{objects}]"#);
        assert_eq!(
            input_memory(list.as_bytes()).unwrap_err().code,
            Code::BadRequest
        );
    }

    #[test]
    fn an_input_is_admitted_by_its_size_in_memory() {
        let body = br#"{"kind":"k","input":[{"a":"bc"}]}"#;
        let size = scan::measure(r#"[{"a":"bc"}]"#).unwrap().memory;
        let within = |limit: usize| {
            SubmitFrame::from_body(body, |memory| {
                let room = limit.checked_sub(memory);
                room.ok_or_else(|| Refusal::new(Code::Overloaded, "no room"))
            })
        };
        let (frame, room) = within(size + 1).unwrap();
        assert_eq!((frame.submission.input, room), (json!([{"a": "bc"}]), 1));
        assert_eq!(within(size - 1).unwrap_err().code, Code::Overloaded);
    }

    #[test]
    fn each_kind_of_bad_submission_has_its_own_code() {
        assert_eq!(refusal(&json!([])), Code::BadRequest);
        assert_eq!(refusal(&json!({"input": 1})), Code::BadRequest);
        assert_eq!(
            refusal(&json!({"kind": "k", "inputt": 1})),
            Code::BadRequest
        );
        assert_eq!(refusal(&json!({"kind": "a.b"})), Code::BadKind);
        assert_eq!(refusal(&json!({"kind": "callback"})), Code::BadKind);
        assert_eq!(refusal(&json!({"kind": "k", "id": "a.b"})), Code::BadJobId);
        for id in ["callback:j", "key-j", "k:key-j"] {
            assert_eq!(refusal(&json!({"kind": "k", "id": id})), Code::BadJobId);
        }
        // A kind may have such a name.
        assert!(read(&json!({"kind": "key-k", "id": "key-k:j"})).is_ok());
        assert_eq!(
            refusal(&json!({"kind": "k", "timeout_ms": 0})),
            Code::BadRequest
        );
        let deep = (0..101).fold(json!(1), |value, _| json!([value]));
        assert_eq!(
            refusal(&json!({"kind": "k", "input": deep})),
            Code::BadRequest
        );
        for bad in [
            json!(-1),
            json!(-1.0),
            json!(1.5),
            json!("5"),
            json!(1e300),
            json!(TIMEOUT_MAX_MS + 1),
        ] {
            assert_eq!(
                refusal(&json!({"kind": "k", "timeout_ms": bad})),
                Code::BadRequest
            );
        }
        assert_eq!(
            refusal(&json!({"kind": "k", "callback": "ftp://h"})),
            Code::BadRequest
        );
        assert_eq!(
            refusal(&json!({"kind": "k", "input": "x".repeat(INPUT_MAX)})),
            Code::TooLarge
        );
    }

    #[test]
    fn an_id_that_names_another_kind_is_refused() {
        let id = |id: &str| json!({"kind": "k", "id": id});
        for bad in ["other:j", "K:j", "kk:j"] {
            let refusal = read(&id(bad)).unwrap_err();
            assert_eq!(refusal.code, Code::BadJobId);
            let expected =
                format!("the id {bad} names another kind than k; name this one, or none");
            assert_eq!(refusal.message, expected);
        }
        for good in ["j", "k:j", "k"] {
            let submission = read(&id(good)).unwrap();
            assert_eq!(submission.id.unwrap().as_str(), good);
        }
    }

    #[test]
    fn an_input_that_is_large_only_in_memory_is_refused() {
        let objects = |object: &str, count: usize| {
            let input = format!("[{}0]", format!("{object},").repeat(count));
            Submission::from_json(format!("{{\"kind\":\"k\",\"input\":{input}}}").as_bytes())
        };
        let error = objects("{\"\":0}", 74_000).unwrap_err();
        assert_eq!(error.code, Code::TooLarge);
        assert!(
            error.message.contains("too many small parts"),
            "{}",
            error.message
        );
        objects("{\"number\":1234567890}", 23_000).unwrap();
        // One that was made of a request in another protocol.
        let input = json!(vec![json!({"": 0}); 30_000]);
        let made = Submission::new("k".parse().unwrap(), input);
        assert_eq!(made.check().unwrap_err().code, Code::TooLarge);
    }

    #[test]
    fn an_input_is_measured_as_it_is_stored() {
        // 512 KiB of JSON, 1.15 MiB of MessagePack.
        let numbers = |count: usize| Submission::new("k".parse().unwrap(), json!(vec![0.5; count]));
        let error = numbers(131_000).check().unwrap_err();
        assert_eq!(error.code, Code::TooLarge);
        assert!(
            error.message.contains(&EVENT_MAX.to_string()),
            "{}",
            error.message
        );
        for (count, fits) in [(116_300, true), (116_400, false)] {
            let submission = numbers(count);
            let submission = Submission {
                id: JobId::qualified(&submission.kind, &"x".repeat(NAME_MAX)).ok(),
                ..submission
            };
            let body = submission.queued();
            let job = submission.id.clone().unwrap();
            let event = Event {
                body,
                job,
                seq: Seq(1),
                attempt: 0,
                ts: u64::MAX,
            };
            let size = event.encode().unwrap().len();
            assert_eq!(
                (submission.event_len().unwrap(), size <= EVENT_MAX),
                (size, fits)
            );
            assert_eq!(submission.check().is_ok(), fits);
            assert!(numbers(count).event_len().unwrap() == size);
        }
    }
}
