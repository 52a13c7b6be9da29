//! Classifies a model server's error: whether another attempt may succeed. Pure.
//!
//! Servers have no common format. A type or a status decides if the server sends one. The message
//! text decides only without both, because then nothing else shows that the server is busy.

use serde_json::Value;

/// What an error means for the job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ErrorClass {
    /// The server is overloaded and can answer later.
    Busy,
    /// Another attempt may succeed.
    Passing,
    /// Every attempt would fail the same way.
    Final,
}

/// The fields in which servers send the type of an error.
const TYPES: [&str; 8] = [
    "type",
    "code",
    "status",
    "error_type",
    "errorType",
    "error_code",
    "name",
    "error",
];

/// Parts of error types, in small letters and without separators.
const UNPAID: [&str; 5] = [
    "insufficientquota",
    "insufficientbalance",
    "insufficientcredit",
    "billing",
    "paymentrequired",
];
const BUSY: [&str; 9] = [
    "ratelimit",
    "overload",
    "toomanyrequests",
    "throttl",
    "resourceexhausted",
    "serverbusy",
    "atcapacity",
    "modelloading",
    "modelisloading",
];
const FINAL: [&str; 13] = [
    "invalid",
    "badrequest",
    "authentication",
    "permission",
    "forbidden",
    "unauthorized",
    "notfound",
    "unsupported",
    "unprocessable",
    "validation",
    "contextlength",
    "contentfilter",
    "contentpolicy",
];
/// Parts of the messages of servers that are busy and send neither a status nor a type.
const BUSY_WORDS: [&str; 8] = [
    "rate limit",
    "too many requests",
    "overloaded",
    "at capacity",
    "is loading",
    "currently loading",
    "loading model",
    "queue is full",
];

impl ErrorClass {
    /// The class of an error with this HTTP status, if it has one, these values that may name its
    /// type, and this message.
    pub(super) fn of(status: Option<u16>, scopes: &[&Value], message: &str) -> Self {
        let names = scopes
            .iter()
            .flat_map(|scope| TYPES.iter().filter_map(|name| scope.get(name)?.as_str()));
        // A type is a single word.
        let types: Vec<_> = names
            .filter(|name| !name.contains(' '))
            .map(letters)
            .collect();
        let is_one_of = |parts: &[&str]| {
            types
                .iter()
                .any(|name| parts.iter().any(|part| name.contains(part)))
        };
        let says_busy = || {
            let message = message.to_ascii_lowercase();
            BUSY_WORDS.iter().any(|words| message.contains(words))
        };
        match status {
            _ if is_one_of(&UNPAID) => Self::Final,
            Some(429 | 503 | 529) => Self::Busy,
            _ if is_one_of(&BUSY) => Self::Busy,
            Some(408 | 409 | 425) => Self::Passing,
            Some(400..500) => Self::Final,
            None if is_one_of(&FINAL) => Self::Final,
            _ if says_busy() => Self::Busy,
            Some(_) | None => Self::Passing,
        }
    }
}

/// The letters and digits of a text, in small letters.
pub(super) fn letters(text: &str) -> String {
    text.chars()
        .filter(char::is_ascii_alphanumeric)
        .map(|letter| letter.to_ascii_lowercase())
        .collect()
}
