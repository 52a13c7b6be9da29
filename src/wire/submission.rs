//! A job as somebody submits it, the same through every front door. It queues nothing.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use schemars::JsonSchema;
use serde::Deserialize;
use serde::de::{Deserializer, Error as _, IgnoredAny};
use serde_json::value::RawValue;
use serde_json::{Number, Value, json};
use sha2::{Digest as _, Sha256};
use url::Url;

use super::code::Code;
use super::codec::{self, nests_at_most};
use super::event::{Body, Event};
use super::frame::Refusal;
use super::id::{JobId, Kind, Seq};
use super::limits::{
    CALLBACK_MAX, EVENT_MAX, INPUT_MAX, INPUT_MEMORY_MAX, NAME_MAX, TIMEOUT_MAX_MS, VALUE_DEPTH_MAX,
};
use super::scan::{self, Size};

/// The kind of the jobs that tell a callback address how another job ended. Only workers submit them.
pub const RESERVED_KIND: &str = "callback";
/// [`RESERVED_KIND`].
pub fn reserved_kind() -> Kind {
    RESERVED_KIND
        .parse()
        .unwrap_or_else(|_| unreachable!("it is parsed by a test"))
}

/// What the ids of those jobs begin with.
pub const RESERVED_ID: &str = "callback-";

/// What is to be done, and within what limits.
#[derive(Clone, Debug, PartialEq, Eq, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Submission {
    /// Which workers may take it.
    #[schemars(extend("not" = {"const": RESERVED_KIND}))]
    pub kind: Kind,
    /// What the worker is given.
    #[schemars(default)]
    pub input: Value,
    /// The job's id, when the submitter names one.
    #[schemars(extend("not" = {"pattern": format!("^{RESERVED_ID}"), "type": "string"}))]
    pub id: Option<JobId>,
    /// How long it may take.
    #[schemars(flatten)]
    pub limits: Limits,
    /// The address that is told how the job ended.
    #[schemars(regex(pattern = "^https?://"), length(max = CALLBACK_MAX))]
    pub callback: Option<String>,
}

/// How long a job may take, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
pub struct Limits {
    /// From the submission to the end, all attempts and waits included.
    #[schemars(range(min = 1, max = TIMEOUT_MAX_MS))]
    pub timeout_ms: Option<u64>,
    /// Without any output, in one attempt.
    #[schemars(range(min = 1, max = TIMEOUT_MAX_MS))]
    pub silence_timeout_ms: Option<u64>,
}

impl Limits {
    /// The stricter of both, field by field.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        let stricter = |a: Option<u64>, b: Option<u64>| a.into_iter().chain(b).min();
        Self {
            timeout_ms: stricter(self.timeout_ms, other.timeout_ms),
            silence_timeout_ms: stricter(self.silence_timeout_ms, other.silence_timeout_ms),
        }
    }
}

/// What a client submits. The input is text until it is known to fit.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Fields<'a> {
    kind: String,
    #[serde(borrow)]
    input: Option<&'a RawValue>,
    id: Option<String>,
    #[serde(default, deserialize_with = "whole")]
    timeout_ms: Option<u64>,
    #[serde(default, deserialize_with = "whole")]
    silence_timeout_ms: Option<u64>,
    callback: Option<String>,
    /// The fields of a frame that submits; those that a front door does not have are refused.
    op: Option<IgnoredAny>,
    #[serde(rename = "ref")]
    reference: Option<String>,
    key: Option<String>,
}

/// A submission as a frame says it.
#[derive(Debug)]
pub struct Submit {
    /// The client's own name for the frame.
    pub reference: Option<String>,
    /// By which the same submission again is the same job.
    pub key: Option<String>,
    /// The job.
    pub submission: Submission,
}

/// Reads a time limit, however the whole number is written: to JSON, 5000.0 is one.
fn whole<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    let Some(number) = Option::<Number>::deserialize(deserializer)? else {
        return Ok(None);
    };
    let written_out = || {
        number
            .as_f64()
            .filter(|float| float.fract() == 0.0 && *float >= 0.0)
    };
    let whole = number
        .as_u64()
        .or_else(|| written_out().map(|float| float as u64));
    let whole = whole.filter(|whole| *whole <= TIMEOUT_MAX_MS);
    let refused = || {
        D::Error::custom(format!(
            "{number} is no whole number up to {TIMEOUT_MAX_MS}"
        ))
    };
    whole.map(Some).ok_or_else(refused)
}

impl Submission {
    /// A job without an id, limits or callback.
    pub const fn new(kind: Kind, input: Value) -> Self {
        let limits = Limits {
            timeout_ms: None,
            silence_timeout_ms: None,
        };
        Self {
            kind,
            input,
            id: None,
            limits,
            callback: None,
        }
    }

    /// Reads what a client submits: a JSON object with `kind` and, as it likes, `input`, `id`, `timeout_ms`,
    /// `silence_timeout_ms` and `callback`. Nothing is built of an input that is refused.
    ///
    /// # Errors
    /// A [`Refusal`] with the code that the client is told.
    pub fn from_json(text: &[u8]) -> Result<Self, Refusal> {
        let fields: Fields<'_> = super::frame::fields(text)?;
        for (name, is_there) in [
            ("op", fields.op.is_some()),
            ("ref", fields.reference.is_some()),
            ("key", fields.key.is_some()),
        ] {
            if is_there {
                return Err(Refusal::new(
                    Code::BadRequest,
                    format!("unknown field `{name}`"),
                ));
            }
        }
        Ok(Self::read(fields)?.submission)
    }

    fn read(fields: Fields<'_>) -> Result<Submit, Refusal> {
        let Fields {
            kind,
            input,
            id,
            timeout_ms,
            silence_timeout_ms,
            callback,
            op: _,
            reference,
            key,
        } = fields;
        let kind: Kind = kind
            .parse()
            .map_err(|error| Refusal::new(Code::BadKind, format!("a kind {error}")))?;
        let id: Option<JobId> = id
            .map(|id| id.parse())
            .transpose()
            .map_err(|error| Refusal::new(Code::BadJobId, format!("a job id {error}")))?;
        let limits = Limits {
            timeout_ms,
            silence_timeout_ms,
        };
        let mut submission = Self {
            kind,
            input: Value::Null,
            id,
            limits,
            callback,
        };
        submission.check_head()?;
        if let Some(input) = input {
            // A number beyond all numbers is found out here.
            let unfit = |error: serde_json::Error| {
                let code = if error.is_data() {
                    Code::BadRequest
                } else {
                    Code::BadJson
                };
                Refusal::new(code, format!("the input: {error}"))
            };
            let size = scan::measure(input.get()).map_err(unfit)?;
            submission.check_size(size)?;
            if size.memory > INPUT_MEMORY_MAX {
                let message = format!(
                    "the input has too many small parts: read, it takes {} bytes, the limit is {INPUT_MEMORY_MAX}",
                    size.memory
                );
                return Err(Refusal::new(Code::TooLarge, message));
            }
            let mut reader = serde_json::Deserializer::from_str(input.get());
            submission.input = scan::plain(&mut reader).map_err(unfit)?;
        }
        Ok(Submit {
            reference,
            key,
            submission,
        })
    }

    /// Whether somebody other than a worker may submit this.
    ///
    /// # Errors
    /// A [`Refusal`] with the code that the client is told.
    pub fn check(&self) -> Result<(), Refusal> {
        self.check_head()?;
        if !nests_at_most(&self.input, VALUE_DEPTH_MAX) {
            let message = format!("the input nests deeper than {VALUE_DEPTH_MAX} levels");
            return Err(Refusal::new(Code::BadRequest, message));
        }
        let unsized_input = |error: codec::Error| Refusal::new(Code::BadRequest, error.to_string());
        let json = codec::json_len(&self.input).map_err(unsized_input)?;
        let msgpack = codec::msgpack_len(&self.input).map_err(unsized_input)?;
        // It is in memory already.
        self.check_size(Size {
            json,
            msgpack,
            memory: 0,
        })
    }

    /// Whether an input of this size fits.
    fn check_size(&self, input: Size) -> Result<(), Refusal> {
        let Size {
            json,
            msgpack,
            memory: _,
        } = input;
        if json > INPUT_MAX {
            let message = format!("the input has {json} bytes, the limit is {INPUT_MAX}");
            return Err(Refusal::new(Code::TooLarge, message));
        }
        let head = self.event_head_len();
        let size =
            head.map_err(|error| Refusal::new(Code::BadRequest, error.to_string()))? + msgpack;
        if size > EVENT_MAX {
            return Err(Refusal::new(
                Code::TooLarge,
                Self::too_large(size, EVENT_MAX),
            ));
        }
        Ok(())
    }

    /// Checks everything but the input.
    fn check_head(&self) -> Result<(), Refusal> {
        let refused = |code, message: String| Err(Refusal::new(code, message));
        if self.kind.as_str() == RESERVED_KIND {
            return refused(
                Code::BadKind,
                format!("the kind {RESERVED_KIND} is the system's own"),
            );
        }
        if self
            .id
            .as_ref()
            .is_some_and(|id| id.as_str().starts_with(RESERVED_ID))
        {
            return refused(
                Code::BadJobId,
                format!("ids that begin with {RESERVED_ID} are the system's own"),
            );
        }
        if [self.limits.timeout_ms, self.limits.silence_timeout_ms].contains(&Some(0)) {
            return refused(Code::BadRequest, "a time limit is at least 1 ms".into());
        }
        if let Some(callback) = &self.callback
            && (callback.len() > CALLBACK_MAX
                || !(callback.starts_with("https://") || callback.starts_with("http://")))
        {
            let text =
                format!("a callback is an http or https address of at most {CALLBACK_MAX} bytes");
            return refused(Code::BadRequest, text);
        }
        Ok(())
    }

    /// How many bytes the first event of the job's log has as it is stored, at most. MessagePack may be larger than JSON: a
    /// number of three characters takes nine bytes.
    ///
    /// # Errors
    /// [`codec::Error`] when the input cannot be stored at all.
    pub fn event_len(&self) -> Result<usize, codec::Error> {
        Ok(self.event_head_len()? + codec::msgpack_len(&self.input)?)
    }

    /// [`Self::event_len`] without the input.
    fn event_head_len(&self) -> Result<usize, codec::Error> {
        let longest = || {
            "x".repeat(NAME_MAX)
                .parse()
                .unwrap_or_else(|_| unreachable!("tested"))
        };
        let job = self.id.clone().unwrap_or_else(longest);
        let head = Event {
            body: self.queued_without_input(),
            job,
            seq: Seq(1),
            attempt: 0,
            ts: u64::MAX,
        };
        // In place of the input stands `null`, which is one byte.
        Ok(head.encode()?.len() - 1)
    }

    /// What a submitter is told whose job has `size` bytes as it is stored, more than `limit`.
    pub fn too_large(size: usize, limit: usize) -> String {
        format!(
            "the input is too large: as it is stored the job has {size} bytes, the limit is {limit}"
        )
    }

    /// The first event of the log of a job whose input no log can hold. Such a job can only be ended.
    pub fn queued_without_input(&self) -> Body {
        let Self {
            kind,
            input: _,
            id,
            limits,
            callback,
        } = self;
        let (kind, id, callback) = (kind.clone(), id.clone(), callback.clone());
        Self {
            kind,
            input: Value::Null,
            id,
            limits: *limits,
            callback,
        }
        .queued()
    }

    /// The first event of the job's log. Anyone who may watch the job reads it, so it never holds a callback's address,
    /// which may have a secret in it: of an address, and of the input of a job that delivers a callback, it holds a
    /// digest, by which the same submission is recognised. The address itself is only in the queue.
    pub fn queued(&self) -> Body {
        let Limits {
            timeout_ms,
            silence_timeout_ms,
        } = self.limits;
        let kind = self.kind.clone();
        let input = if kind.as_str() == RESERVED_KIND {
            json!({"digest": digest(&self.input.to_string())})
        } else {
            self.input.clone()
        };
        let callback_digest = self.callback.as_deref().map(digest);
        Body::Queued {
            kind,
            input,
            timeout_ms,
            silence_timeout_ms,
            callback_digest,
        }
    }
}

impl Submit {
    /// Reads a frame that submits a job: what [`Submission::from_json`] reads and, as it likes, `op`, `ref` and `key`.
    ///
    /// # Errors
    /// A [`Refusal`] with the code that the client is told.
    pub fn from_json(text: &[u8]) -> Result<Self, Refusal> {
        let fields: Fields<'_> = super::frame::fields(text)?;
        if let Some(reference) = &fields.reference {
            super::frame::check_reference(reference)?;
        }
        Submission::read(fields)
    }
}

/// SHA-256 in base64url.
fn digest(text: &str) -> String {
    BASE64.encode(Sha256::digest(text))
}

/// Whether the host of `callback` is one of `hosts`, each `name` or `name:port`. A name alone means the scheme's own
/// port.
pub fn may_call_back(callback: &str, hosts: &[String]) -> bool {
    let Ok(url) = Url::parse(callback) else {
        return false;
    };
    let (Some(name), true) = (url.host_str(), matches!(url.scheme(), "http" | "https")) else {
        return false;
    };
    let authority = url
        .port()
        .map_or_else(|| name.to_owned(), |port| format!("{name}:{port}"));
    hosts
        .iter()
        .any(|host| host.eq_ignore_ascii_case(&authority))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_callback_is_another_submission_and_its_address_is_in_no_event() {
        let with = |callback: Option<&str>| Submission {
            callback: callback.map(str::to_owned),
            ..Submission::new("k".parse().unwrap(), json!(1))
        };
        let queued = with(Some("https://h/secret")).queued();
        assert_eq!(queued, with(Some("https://h/secret")).queued());
        assert!(queued != with(Some("https://h/other")).queued() && queued != with(None).queued());
        assert!(!format!("{queued:?}").contains("secret"));
    }

    #[test]
    fn the_first_event_of_a_callback_job_holds_a_digest_in_place_of_its_input() {
        let of = |url: &str| {
            Submission::new(reserved_kind(), json!({"url": url, "type": "job.done"})).queued()
        };
        let queued = of("https://h/secret");
        assert_eq!(queued, of("https://h/secret"));
        assert_ne!(queued, of("https://h/other"));
        let Body::Queued { input, .. } = queued else {
            panic!("{queued:?}")
        };
        assert_eq!(
            input.as_object().unwrap().keys().collect::<Vec<_>>(),
            ["digest"]
        );
        assert!(!input.to_string().contains("https"), "{input}");
    }

    #[test]
    fn the_reserved_kind_is_a_kind() {
        assert_eq!(reserved_kind().as_str(), RESERVED_KIND);
    }

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
        assert_eq!(
            refusal(&json!({"kind": "k", "id": "callback-j"})),
            Code::BadJobId
        );
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
            let submission = Submission {
                id: "x".repeat(NAME_MAX).parse().ok(),
                ..numbers(count)
            };
            let (body, job) = (submission.queued(), submission.id.clone().unwrap());
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

    #[test]
    fn only_a_host_of_the_list_is_called_back() {
        let hosts = ["Good.example".to_owned(), "localhost:8080".to_owned()];
        for good in [
            "https://good.example/x?y",
            "http://GOOD.example",
            "https://u@good.example/",
            "http://localhost:8080/",
        ] {
            assert!(may_call_back(good, &hosts), "{good}");
        }
        for bad in [
            "https://good.example:444/",
            "https://good.example@evil.example/",
            "https://good.example.evil.example/",
            "http://localhost/",
            "ftp://good.example/",
            "good.example",
            "",
        ] {
            assert!(!may_call_back(bad, &hosts), "{bad}");
        }
        assert!(!may_call_back("https://good.example", &[]));
    }

    #[test]
    fn of_two_limits_the_stricter_one_holds() {
        let a = Limits {
            timeout_ms: Some(5),
            silence_timeout_ms: None,
        };
        let b = Limits {
            timeout_ms: Some(9),
            silence_timeout_ms: Some(2),
        };
        assert_eq!(
            a.and(b),
            Limits {
                timeout_ms: Some(5),
                silence_timeout_ms: Some(2)
            }
        );
    }
}
