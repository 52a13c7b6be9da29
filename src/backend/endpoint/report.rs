//! The failure that an endpoint reports: in the body of a refusal, or within its answer. Pure.

use std::time::Duration;

use serde_json::Value;

use crate::backend::surrogates::{mark, settle_text};
use crate::backend::{Failure, FailureCode, Retry};
use crate::config::ENDPOINT_CODE_MAX;

/// The fields in which frameworks send a message, the best first: our own, the AI SDK's, FastAPI's,
/// those of RFC 9457.
const MESSAGE_FIELDS: [&str; 6] = ["message", "errorText", "detail", "error", "title", "msg"];

/// The failure of an error within an answer. It is final, unless the error has `"retryable": true`,
/// or `retry_after` in seconds.
pub(super) fn reported(error: &Value) -> Failure {
    let mut scopes = vec![error];
    scopes.extend(error.get("error"));
    let field = |name: &str| scopes.iter().find_map(|scope| scope.get(name));
    let code = field("code")
        .and_then(Value::as_str)
        .filter(|code| is_code(code) && !is_worker_code(code));
    let after = field("retry_after")
        .and_then(Value::as_f64)
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    let retry = match after {
        Some(after) => Retry::After(after),
        None if field("retryable") == Some(&Value::Bool(true)) => Retry::Later,
        None => Retry::Never,
    };
    let message = message_of(error).unwrap_or_else(|| "the endpoint reports an error".to_owned());
    Failure {
        code: code.map_or_else(|| FailureCode::EndpointFailed.into(), str::to_owned),
        message,
        retry,
    }
}

/// Whether an error's code can be the code of a failure.
fn is_code(code: &str) -> bool {
    let is_valid = |byte| matches!(byte, b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'-');
    (1..=ENDPOINT_CODE_MAX).contains(&code.len()) && code.bytes().all(is_valid)
}

/// Whether a failure with this code is handled by its code: an endpoint that passes on the failure of
/// another job must not be taken for a busy one, nor its attempt for one that does not count.
fn is_worker_code(code: &str) -> bool {
    [
        FailureCode::EndpointBusy,
        FailureCode::HandedBack,
        FailureCode::NotBegun,
    ]
    .iter()
    .any(|own| own.as_str() == code)
}

/// The message in the body of a refusal; empty if it is a web page.
pub(super) fn of_body(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    let text = text.trim();
    if text.starts_with('<') {
        return String::new();
    }
    let parsed = serde_json::from_str(&mark(text)).ok();
    parsed
        .and_then(|value| message_of(&value))
        .unwrap_or_else(|| text.to_owned())
}

/// The message of an error: a text, or that of its best field.
fn message_of(error: &Value) -> Option<String> {
    let mut message = match error {
        Value::String(text) => text.trim().to_owned(),
        Value::Object(fields) => {
            let found = MESSAGE_FIELDS
                .iter()
                .find_map(|name| fields.get(*name).filter(|value| !value.is_null()))?;
            return message_of(found);
        }
        Value::Null => return None,
        // FastAPI lists what is wrong with a request, and repeats the input, which is not reported.
        Value::Array(all) => all
            .iter()
            .filter_map(message_of)
            .collect::<Vec<_>>()
            .join("; "),
        Value::Bool(_) | Value::Number(_) => error.to_string(),
    };
    settle_text(&mut message);
    (!message.is_empty()).then_some(message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_message_is_found_in_what_frameworks_send() {
        for (body, message) in [
            ("Internal Server Error", "Internal Server Error"),
            (r#"{"detail":"no such city"}"#, "no such city"),
            (
                r#"{"error":{"message":"no such city","code":3}}"#,
                "no such city",
            ),
            (r#"{"error":"no such city"}"#, "no such city"),
            (
                r#"{"type":"about:blank","title":"no such city"}"#,
                "no such city",
            ),
            (
                r#"{"detail":[{"msg":"field required","input":"secret"},{"msg":"too long"}]}"#,
                "field required; too long",
            ),
            (r#""no such city""#, "no such city"),
            ("<html>502</html>", ""),
            ("", ""),
        ] {
            assert_eq!(of_body(body.as_bytes()), message, "{body}");
        }
    }

    #[test]
    fn an_error_in_an_answer_is_final_unless_it_asks_for_a_retry() {
        let found = |error: Value| {
            let Failure {
                code,
                message,
                retry,
            } = reported(&error);
            (code, message, retry)
        };
        let expected = |code: &str, retry| (code.to_owned(), "m".to_owned(), retry);
        assert_eq!(
            found(json!({"error": "m"})),
            expected("endpoint_failed", Retry::Never)
        );
        assert_eq!(
            found(json!({"error": {"message": "m", "code": "no_city", "retryable": true}})),
            expected("no_city", Retry::Later)
        );
        assert_eq!(
            found(json!({"type": "error", "errorText": "m", "retry_after": 1.5})),
            expected("endpoint_failed", Retry::After(Duration::from_millis(1500)))
        );
        assert_eq!(
            found(json!({"message": "m", "code": "not a code", "retryable": "yes"})),
            expected("endpoint_failed", Retry::Never)
        );
        for code in ["endpoint_busy", "handed_back", "not_begun"] {
            assert_eq!(
                found(json!({"error": {"message": "m", "code": code}})),
                expected("endpoint_failed", Retry::Never)
            );
        }
        assert_eq!(found(json!({})).1, "the endpoint reports an error");
    }
}
