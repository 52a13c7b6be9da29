//! A submission of a job, and the first event of the job's log. `submit.rs` parses it.

use std::mem;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use url::Url;

use super::codec;
use super::event::{Body, Event};
use super::id::{JobId, Kind, Seq};
use super::limits::NAME_MAX;

/// The kind of jobs that deliver callbacks. Only workers submit them.
pub const RESERVED_KIND: &str = "callback";

/// [`RESERVED_KIND`] as a kind.
pub fn reserved_kind() -> Kind {
    RESERVED_KIND
        .parse()
        .unwrap_or_else(|_| unreachable!("a test checks it"))
}

/// How the ids that an edge gives to jobs with an idempotency key begin, after the kind. A client
/// that could choose one would take the job of another client's key.
pub const KEY_ID: &str = "key-";

/// A job to run, and its limits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Submission {
    /// Which workers may run it.
    pub kind: Kind,
    /// The input for the worker.
    pub input: Value,
    /// The job's id, if the client names one.
    pub id: Option<JobId>,
    /// How long it may take.
    pub limits: Limits,
    /// The address to call when the job has ended.
    pub callback: Option<String>,
}

/// How long a job may take, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// From submission to the job's end, including all attempts and waits.
    pub timeout_ms: Option<u64>,
    /// Without output, in one attempt.
    pub silence_timeout_ms: Option<u64>,
}

impl Limits {
    /// The stricter limit, field by field.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        let stricter = |a: Option<u64>, b: Option<u64>| a.into_iter().chain(b).min();
        Self {
            timeout_ms: stricter(self.timeout_ms, other.timeout_ms),
            silence_timeout_ms: stricter(self.silence_timeout_ms, other.silence_timeout_ms),
        }
    }
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

    /// The size of the first event of the job's log, in bytes as stored, for the longest qualified id
    /// if there is no id yet. MessagePack may be larger than JSON: a number of three characters takes
    /// nine bytes.
    ///
    /// # Errors
    /// [`codec::Error`] when the input cannot be stored at all.
    pub fn event_len(&self) -> Result<usize, codec::Error> {
        self.event_len_for(codec::msgpack_len(&self.input)?)
    }

    /// [`Self::event_len`], for an input of this size.
    pub(super) fn event_len_for(&self, input: usize) -> Result<usize, codec::Error> {
        let longest = || {
            JobId::qualified(&self.kind, &"x".repeat(NAME_MAX))
                .unwrap_or_else(|_| unreachable!("a test checks it"))
        };
        let head = Event {
            body: self.queued_without_input(),
            job: self.id.clone().unwrap_or_else(longest),
            seq: Seq(1),
            attempt: 0,
            ts: u64::MAX,
        };
        // The head has `null`, one byte, in place of the input.
        Ok(head.encode()?.len() - 1 + input)
    }

    /// The error message for an id that names another kind than the job's.
    pub fn of_another_kind(id: &JobId, kind: &Kind) -> String {
        format!("the id {id} names another kind than {kind}; name this one, or none")
    }

    /// The error message for a stored job of `size` bytes, more than `limit`.
    pub fn too_large(size: usize, limit: usize) -> String {
        format!("the input is too large: the stored job has {size} bytes, the limit is {limit}")
    }

    /// The first event of a job whose input is too large for any log. Such a job can only be ended.
    pub fn queued_without_input(&self) -> Body {
        self.queued_with(Value::Null)
    }

    /// The first event of the job's log. Everyone who may watch the job can read it, so it never
    /// holds the address of a callback, which may contain a secret. Instead of the address, and of
    /// the input of a job that delivers a callback, it holds a digest, which identifies a repeated
    /// submission. The address itself is only in the queue.
    pub fn queued(&self) -> Body {
        self.queued_with(self.input.clone())
    }

    /// Whether `body` is that event, found without a copy of the input.
    pub fn is_queued_by(&self, mut body: Body) -> bool {
        let Body::Queued { kind, input, .. } = &mut body else {
            return false;
        };
        if kind.as_str() == RESERVED_KIND {
            return body == self.queued();
        }
        let input = mem::take(input);
        input == self.input && body == self.queued_without_input()
    }

    fn queued_with(&self, input: Value) -> Body {
        let input = if self.kind.as_str() == RESERVED_KIND {
            json!({"digest": digest(&input.to_string())})
        } else {
            input
        };
        Body::Queued {
            kind: self.kind.clone(),
            input,
            timeout_ms: self.limits.timeout_ms,
            silence_timeout_ms: self.limits.silence_timeout_ms,
            callback_digest: self.callback.as_deref().map(digest),
        }
    }
}

/// SHA-256 in base64url.
fn digest(text: &str) -> String {
    BASE64.encode(Sha256::digest(text))
}

/// Whether the host of `callback` is one of `hosts`, each `name` or `name:port`. A name alone means
/// the scheme's own port.
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
    fn a_different_callback_is_a_different_submission_and_events_hide_its_address() {
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
    fn a_repeated_submission_is_recognized_by_the_first_event() {
        let callback = |url: &str| Submission::new(reserved_kind(), json!({"url": url}));
        let submissions = [
            Submission::new("k".parse().unwrap(), json!([1])),
            Submission::new("k".parse().unwrap(), json!([2])),
            Submission::new("k".parse().unwrap(), json!(null)),
            Submission::new("other".parse().unwrap(), json!([1])),
            Submission {
                callback: Some("https://h".into()),
                ..Submission::new("k".parse().unwrap(), json!([1]))
            },
            callback("https://h"),
            callback("https://other"),
        ];
        for (index, submission) in submissions.iter().enumerate() {
            let others = submissions.iter().enumerate();
            for (other, queued) in others {
                let is_same = submission.is_queued_by(queued.queued());
                assert_eq!(is_same, index == other, "{submission:?} {queued:?}");
            }
            let started = Body::Started {
                kind: submission.kind.clone(),
                worker: String::new(),
                continues: false,
            };
            assert!(!submission.is_queued_by(started));
        }
    }

    #[test]
    fn the_reserved_kind_is_valid() {
        assert_eq!(reserved_kind().as_str(), RESERVED_KIND);
    }

    #[test]
    fn only_listed_hosts_are_called_back() {
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

    /// Addresses of this machine or of the operator's network, in forms that a comparison of texts
    /// does not see.
    #[test]
    fn no_form_of_an_address_or_a_name_is_taken_for_another_host() {
        let hosts = ["hooks.test".to_owned()];
        for bad in [
            "http://localhost/",
            "http://LOCALHOST./",
            "http://127.0.0.1/",
            "http://127.1/",
            "http://2130706433/",
            "http://0x7f000001/",
            "http://0x7f.1/",
            "http://0177.0.0.1/",
            "http://017700000001/",
            "http://0/",
            "http://[::1]/",
            "http://[::]/",
            "http://[::ffff:127.0.0.1]/",
            "http://[0:0:0:0:0:ffff:7f00:1]/",
            "http://[::127.0.0.1]/",
            "http://[64:ff9b::7f00:1]/",
            "http://[64:ff9b:1::7f00:1]/",
            "http://[2002:7f00:1::]/",
            "http://[fe80::1%25eth0]/",
            "http://169.254.169.254/latest/meta-data/",
            "http://10.0.0.1/",
            "http://hooks.test@127.0.0.1/",
            "http://127.0.0.1#@hooks.test/",
            "http://127.0.0.1?@hooks.test/",
            "http://127.0.0.1\\@hooks.test/",
            "http://hooks.test.evil.example/",
            "http://hooks.test%2eevil.example/",
            "http://evilhooks.test/",
            "http://hooks.test:22/",
            "http://\u{ff11}\u{ff12}\u{ff17}.0.0.1/",
            "http://hooks\u{3002}test.evil.example/",
            "file:///etc/passwd",
            "gopher://hooks.test/",
            "ftp://hooks.test/",
            "javascript:alert(1)",
            "//hooks.test/",
        ] {
            assert!(!may_call_back(bad, &hosts), "{bad}");
        }
        // An address is the same in each form; a name is not, whatever it resolves to: no name is
        // resolved to decide, so no answer of a name server changes the decision.
        let hosts = ["127.0.0.1:9000".to_owned()];
        for (url, expected) in [
            ("http://127.0.0.1:9000/", true),
            ("http://2130706433:9000/", true),
            ("http://0x7f.1:9000/", true),
            ("http://localhost:9000/", false),
            ("http://127.0.0.1.nip.example:9000/", false),
            ("http://[::1]:9000/", false),
            ("http://[::ffff:127.0.0.1]:9000/", false),
            ("http://[64:ff9b::7f00:1]:9000/", false),
            ("http://[2002:7f00:1::]:9000/", false),
            ("http://127.0.0.2:9000/", false),
            ("http://127.0.0.1/", false),
            ("http://127.0.0.1:9001/", false),
        ] {
            assert_eq!(may_call_back(url, &hosts), expected, "{url}");
        }
    }

    #[test]
    fn the_stricter_of_two_limits_applies() {
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
