//! What a model server says of an error: where an answer has one, in which words, and whether another attempt can pass:
//! pure. Servers follow no common form; this file knows the forms, and no other file does.

use serde_json::Value;

use super::{Failure, FailureCode};
use crate::backend::{Retry, surrogates};
use crate::config::MODEL_MESSAGE_MAX;

/// An error in a server's words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Said {
    pub(super) class: Class,
    /// On one line.
    pub(super) message: String,
    /// The HTTP status, or the one that an answer with status 200 names.
    pub(super) status: Option<u16>,
    /// It may be news and not an error, unless the answer ends with it.
    pub(super) unsure: bool,
}

/// What an error means for the job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// The server has too much to do: it can answer later.
    Busy,
    /// Another attempt may pass.
    Passing,
    /// Every attempt would meet it.
    Final,
}

/// Reasons to finish that mean that the server broke off: OpenRouter, vLLM, DeepSeek and others say so in these words.
const BROKEN: [&str; 9] = [
    "error",
    "abort",
    "aborted",
    "canceled",
    "cancelled",
    "failed",
    "timeout",
    "network_error",
    "insufficient_system_resource",
];
/// Fields that only an error has.
const ERROR_FIELDS: [&str; 6] = [
    "error_type",
    "error_message",
    "errorMessage",
    "error_msg",
    "error_code",
    "errorCode",
];
/// Under which names servers give their words, the best first.
const WORDS: [&str; 13] = [
    "message",
    "msg",
    "detail",
    "error_message",
    "errorMessage",
    "error_msg",
    "status_msg",
    "error_description",
    "error",
    "description",
    "reason",
    "error_type",
    "title",
];
/// Under which names they give a status as a number.
const NUMBERS: [&str; 7] = [
    "code",
    "status",
    "status_code",
    "statusCode",
    "http_status",
    "error_code",
    "errorCode",
];
/// Under which names they name a type of error.
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

/// Parts of types of errors, in small letters without anything between the words.
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
/// What servers that name neither a status nor a type say when they are busy.
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

impl Said {
    /// What the answer with this status, which is not a success, says.
    pub(super) fn of_answer(status: u16, body: &[u8]) -> Self {
        let text = String::from_utf8_lossy(body);
        let text = text.trim_start_matches('\u{FEFF}').trim();
        // An error as the only event of a stream.
        let text = text.strip_prefix("data:").unwrap_or(text).trim();
        let parsed = serde_json::from_str::<Value>(&surrogates::mark(text)).unwrap_or_default();
        let value = if let Value::Array(values) = &parsed {
            values.first()
        } else {
            Some(&parsed)
        };
        match value {
            Some(value) if value.is_object() => Self::of(&scopes(value), Some(status)),
            _ => Self::of_text(text, Some(status)),
        }
    }

    /// What text says that is not JSON.
    pub(super) fn of_text(text: &str, status: Option<u16>) -> Self {
        // A page for people is not for here.
        let text = if text.trim_start().starts_with('<') {
            ""
        } else {
            text
        };
        let message = line(text);
        Self {
            class: class(status, &[], &message),
            message,
            status,
            unsure: false,
        }
    }

    /// The error that an event has, if it has one. `named` says that the event's own type is an error.
    pub(super) fn of_event(event: &Value, named: bool) -> Option<Self> {
        let is = |name: &str| event.get(name).and_then(Value::as_str) == Some("error");
        let has = |name: &str| event.get(name).is_some_and(is_something);
        if named || is("object") || is("type") || has("error") {
            return Some(Self::of(&scopes(event), None));
        }
        if ERROR_FIELDS.iter().any(|name| has(name)) {
            return Some(Self::of(&[event], None));
        }
        if let Some(response) = event.get("base_resp")
            && response.get("status_code").is_some_and(is_something)
        {
            return Some(Self::of(&[response], None));
        }
        if let Some(choices) = event
            .get("choices")
            .and_then(Value::as_array)
            .filter(|all| !all.is_empty())
        {
            return choices
                .iter()
                .find_map(|choice| Self::of_choice(choice, event));
        }
        let is_text = |name: &str| {
            event
                .get(name)
                .is_some_and(|text| text.is_string() && is_something(text))
        };
        let is_ping = event
            .get("type")
            .and_then(Value::as_str)
            .is_some_and(is_heartbeat);
        // `code` 0 or 200 beside a message such as "success".
        let is_well = event
            .get("code")
            .is_some_and(|code| matches!(code.as_u64(), Some(0 | 200)));
        let fails = number(&[event]).is_some();
        let speaks = is_text("message") || is_text("msg") || has("detail");
        let found = (fails || speaks) && !is_well && !is_ping && !has("usage");
        found.then(|| Self {
            unsure: !fails,
            ..Self::of(&[event], None)
        })
    }

    /// The error within a choice.
    fn of_choice(choice: &Value, event: &Value) -> Option<Self> {
        let within = |path: &str| choice.pointer(path).filter(|error| is_something(error));
        let error = within("/error")
            .or_else(|| within("/delta/error"))
            .or_else(|| within("/message/error"));
        if let Some(error) = error.filter(|error| !error.is_string()) {
            return Some(Self::of(&[error], None));
        }
        let reason = choice.get("finish_reason").and_then(Value::as_str);
        let reason = reason.filter(|reason| BROKEN.contains(&reason.to_ascii_lowercase().as_str()));
        if error.is_none()
            && reason.is_none()
            && !ERROR_FIELDS
                .iter()
                .any(|name| within(&format!("/{name}")).is_some())
        {
            return None;
        }
        // Only texts: a message may be the answer's.
        let scopes = [choice, event];
        let mut texts: Vec<_> = reason
            .into_iter()
            .chain(error.and_then(Value::as_str))
            .collect();
        for scope in scopes {
            let named = WORDS.iter().find_map(|name| scope.get(name)?.as_str());
            texts.extend(named.filter(|text| error.is_none_or(|error| error != text)));
        }
        if error.is_some() || texts.len() > 1 {
            // "error" adds nothing to words.
            texts.retain(|text| Some(*text) != reason || !text.eq_ignore_ascii_case("error"));
        }
        let mut message = line(&texts.join(": "));
        surrogates::settle_text(&mut message);
        let status = number(&scopes);
        Some(Self {
            class: class(status, &scopes, &message),
            message,
            status,
            unsure: false,
        })
    }

    fn of(scopes: &[&Value], status: Option<u16>) -> Self {
        let mut message = words(scopes);
        // OpenRouter's own words are "Provider returned error"; these are the provider's.
        let raw = scopes
            .iter()
            .find_map(|scope| scope.pointer("/metadata/raw")?.as_str());
        if let Some(raw) = raw.map(line).filter(|raw| !message.contains(raw)) {
            message = format!("{message}: {raw}");
            surrogates::settle_text(&mut message);
        }
        let status = status.or_else(|| number(scopes));
        Self {
            class: class(status, scopes, &message),
            message,
            status,
            unsure: false,
        }
    }

    /// The failure that this is, with `what` the server did.
    pub(super) fn failure(self, what: &str, retry: Retry) -> Failure {
        let message = format!("{what}: {}", self.message);
        match self.class {
            Class::Busy => Failure {
                code: FailureCode::ModelBusy.into(),
                message,
                retry,
            },
            Class::Passing => Failure {
                code: FailureCode::ModelFailed.into(),
                message,
                retry,
            },
            Class::Final => Failure::fatal(FailureCode::ModelRefused, message),
        }
    }
}

/// Whether an event of this type only shows that the server is there.
pub(super) fn is_heartbeat(kind: &str) -> bool {
    matches!(
        letters(kind).as_str(),
        "ping" | "heartbeat" | "keepalive" | "noop"
    )
}

/// The values in which to look for words, types and numbers, the innermost first.
fn scopes(value: &Value) -> Vec<&Value> {
    match value.get("error") {
        Some(error) if error.is_object() => {
            // Some servers wrap the error of another one.
            let inner = error.get("error").filter(|inner| inner.is_object());
            inner.into_iter().chain([error, value]).collect()
        }
        _ => vec![value],
    }
}

/// Whether a field says anything: some servers always send every field, with zeros and empty texts.
fn is_something(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::Bool(true) => true,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !matches!(text.as_str(), "" | "0"),
        Value::Array(values) => values.iter().any(is_something),
        Value::Object(fields) => fields.values().any(is_something),
    }
}

/// The server's words.
fn words(scopes: &[&Value]) -> String {
    let fields = scopes
        .iter()
        .flat_map(|scope| WORDS.iter().filter_map(|name| scope.get(name)));
    let mut found = match fields.into_iter().find(|found| is_something(found)) {
        Some(found) => found.clone(),
        None => scopes.first().map_or(Value::Null, |&scope| scope.clone()),
    };
    surrogates::settle(&mut found);
    found
        .as_str()
        .map_or_else(|| line(&found.to_string()), line)
}

/// Text on one line; what is empty is said to be.
fn line(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if line.is_empty() {
        "no message".into()
    } else {
        line
    }
}

/// Not more of a text than is passed on.
pub(super) fn shorten(mut text: String) -> String {
    if text.len() > MODEL_MESSAGE_MAX {
        text.truncate(text.floor_char_boundary(MODEL_MESSAGE_MAX));
        text.push('…');
    }
    text
}

/// The HTTP status of an error that is named as a number, or as the text of one.
fn number(scopes: &[&Value]) -> Option<u16> {
    let fields = scopes
        .iter()
        .flat_map(|scope| NUMBERS.iter().filter_map(|name| scope.get(name)));
    fields
        .filter_map(|found| {
            found
                .as_str()
                .map_or_else(|| found.as_u64(), |text| text.parse().ok())
        })
        .filter_map(|number| u16::try_from(number).ok())
        .find(|number| (400..600).contains(number))
}

fn letters(text: &str) -> String {
    text.chars()
        .filter(char::is_ascii_alphanumeric)
        .map(|letter| letter.to_ascii_lowercase())
        .collect()
}

fn class(status: Option<u16>, scopes: &[&Value], message: &str) -> Class {
    let names = scopes
        .iter()
        .flat_map(|scope| TYPES.iter().filter_map(|name| scope.get(name)?.as_str()));
    // A type is one word.
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
        _ if is_one_of(&UNPAID) => Class::Final,
        Some(429 | 503 | 529) => Class::Busy,
        _ if is_one_of(&BUSY) => Class::Busy,
        Some(408 | 409 | 425) => Class::Passing,
        Some(400..500) => Class::Final,
        None if is_one_of(&FINAL) => Class::Final,
        _ if says_busy() => Class::Busy,
        Some(_) | None => Class::Passing,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn of_event(event: &Value) -> Said {
        Said::of_event(event, false).unwrap_or_else(|| panic!("no error: {event}"))
    }

    #[test]
    fn an_error_is_found_in_every_form_with_its_words() {
        let words = "the prompt is too long";
        for event in [
            json!({"error": {"message": words, "code": 500}}),
            json!({"error": words}),
            json!({"error": {"message": words}, "choices": [{"delta": {}, "finish_reason": "error"}]}),
            json!({"error": {"error": {"message": words}}}),
            json!({"object": "error", "message": words, "choices": []}),
            json!({"type": "error", "error": {"type": "api_error", "message": words}}),
            json!({"choices": null, "error_type": "ServerError", "error_message": words}),
            json!({"choices": [{"index": 0, "delta": {}, "error": {"message": words}, "finish_reason": "error"}]}),
            json!({"choices": [{"index": 0, "delta": {}, "error": words}]}),
            json!({"choices": [{"message": {"error": {"message": words}}}]}),
            json!({"choices": [{"delta": {}, "error": words, "finish_reason": "error"}]}),
            json!({"choices": [{"delta": {}, "error_code": 7, "error_message": words}]}),
            json!({"detail": words}),
            json!({"code": 500, "msg": words}),
            json!({"choices": null, "message": words}),
            json!({"base_resp": {"status_code": 1004, "status_msg": words}}),
        ] {
            assert_eq!(of_event(&event).message, words, "{event}");
        }
        assert_eq!(
            of_event(&json!({"error": {"code": 5}})).message,
            r#"{"code":5}"#
        );
        assert_eq!(
            of_event(&json!({"choices": null, "error_type": "Oops"})).message,
            "Oops"
        );
        let reason = json!({"choices": [{"delta": {"content": "x"}, "finish_reason": "ERROR"}], "message": words});
        assert_eq!(of_event(&reason).message, words);
        let wrapped =
            json!({"error": {"message": "Provider returned error", "metadata": {"raw": words}}});
        assert_eq!(
            of_event(&wrapped).message,
            format!("Provider returned error: {words}")
        );
    }

    #[test]
    fn what_is_not_an_error_is_not_taken_for_one() {
        for event in [
            json!({"error": null, "choices": []}),
            json!({"error": {"code": 0, "message": ""}, "choices": [{"delta": {"content": "x"}}]}),
            json!({"error_code": "0", "error_msg": "", "choices": [{"delta": {"content": "x"}, "error": null}]}),
            json!({"choices": [{"delta": {"content": "x"}, "message": {"content": "x"}}], "code": 200}),
            json!({"choices": [], "usage": {"total_tokens": 1}, "message": "bye"}),
            json!({"code": 0, "message": "success", "choices": [{"index": 0, "delta": {"content": ""}}]}),
            json!({"code": 200, "message": "success"}),
            json!({"type": "ping", "message": "still here"}),
            json!({"type": "message_start", "message": {"id": "m"}}),
            json!({"id": "x"}),
            json!({}),
        ] {
            assert_eq!(Said::of_event(&event, false), None, "{event}");
        }
    }

    #[test]
    fn an_error_is_final_passing_or_a_sign_of_too_much_work() {
        let error = |error: Value| of_event(&json!({ "error": error })).class;
        for busy in [
            json!({"code": 429, "message": "slow down"}),
            json!({"code": "503"}),
            json!({"type": "overloaded_error"}),
            json!({"type": "requests", "code": "rate_limit_exceeded"}),
            json!({"type": "RateLimitError", "code": 400}),
            json!({"status": "RESOURCE_EXHAUSTED"}),
            json!({"type": "engine_overloaded_error"}),
            json!("Model m is currently loading"),
            json!({"code": 500, "message": "The server is overloaded"}),
        ] {
            assert_eq!(error(busy.clone()), Class::Busy, "{busy}");
        }
        for refused in [
            json!({"type": "insufficient_quota", "code": 429}),
            json!({"code": "insufficient_quota"}),
            json!({"type": "invalid_request_error", "message": "the rate limit of x is too many requests"}),
            json!({"type": "BadRequestError"}),
            json!({"code": "context_length_exceeded"}),
            json!({"code": 400, "message": "no"}),
            json!({"type": "authentication_error"}),
            json!({"code": 401}),
        ] {
            assert_eq!(error(refused.clone()), Class::Final, "{refused}");
        }
        for passing in [
            json!("out of memory"),
            json!({"code": 500}),
            json!({"code": 409}),
            json!({"type": "server_error"}),
        ] {
            assert_eq!(error(passing.clone()), Class::Passing, "{passing}");
        }
    }

    #[test]
    fn the_status_of_an_answer_decides_unless_its_type_says_more() {
        let class = |status, body: &str| Said::of_answer(status, body.as_bytes()).class;
        for (status, body, expected) in [
            (429, "", Class::Busy),
            (503, "", Class::Busy),
            (529, "", Class::Busy),
            (
                429,
                r#"{"error":{"code":"insufficient_quota","message":"pay"}}"#,
                Class::Final,
            ),
            (500, "", Class::Passing),
            (502, "<html>", Class::Passing),
            (
                500,
                r#"{"error":{"type":"invalid_request_error"}}"#,
                Class::Passing,
            ),
            (500, r#"{"error":"Model x is loading"}"#, Class::Busy),
            (408, "", Class::Passing),
            (400, r#"{"error":"model is loading"}"#, Class::Final),
            (404, "", Class::Final),
            (402, "", Class::Final),
        ] {
            assert_eq!(class(status, body), expected, "{status} {body}");
        }
    }

    #[test]
    fn the_words_are_one_line_however_the_server_gives_them() {
        let message = |said: &str| Said::of_answer(400, said.as_bytes()).message;
        for said in [
            r#"{"error":{"message":"no\n such model","type":"x"}}"#,
            r#"{"error":"no such model"}"#,
            r#"{"object":"error","message":"no such model","code":404}"#,
            r#"{"detail":"no such model"}"#,
            r#"[{"error":{"message":"no such model"}}]"#,
            r#"data: {"error":{"message":"no such model"}}"#,
            " no such\r\nmodel ",
        ] {
            assert_eq!(message(said), "no such model", "{said}");
        }
        assert_eq!(
            message(r#"{"detail":[{"loc":["body"]}]}"#),
            r#"[{"loc":["body"]}]"#
        );
        assert_eq!(message(r#"{"error":"a\ud83d"}"#), "a\u{FFFD}");
        assert_eq!(message("<html>502</html>"), "no message");
        assert_eq!(message(""), "no message");
        let long = shorten("é".repeat(MODEL_MESSAGE_MAX));
        assert!(long.len() <= MODEL_MESSAGE_MAX + '…'.len_utf8() && long.ends_with("é…"));
    }
}
