//! Finds a model server's error in a response, its message, and the failure that it means. Pure.
//! Servers have no common format; only this file knows their fields.

use serde_json::Value;

use super::error_class::{ErrorClass, letters};
use crate::backend::{Failure, FailureCode, Retry, surrogates};

/// An error that a server reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ServerError {
    pub(super) class: ErrorClass,
    /// One line.
    pub(super) message: String,
    /// The HTTP status, or the one that an answer with status 200 contains.
    pub(super) status: Option<u16>,
    /// It may be only information, unless the answer ends with it.
    pub(super) unsure: bool,
}

/// Values of `finish_reason` that mean that the server stopped early, from OpenRouter, vLLM,
/// DeepSeek and others.
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
/// The fields in which servers send a message, the best first.
const MESSAGE_FIELDS: [&str; 13] = [
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
/// The fields in which servers send a status.
const STATUS_FIELDS: [&str; 7] = [
    "code",
    "status",
    "status_code",
    "statusCode",
    "http_status",
    "error_code",
    "errorCode",
];
impl ServerError {
    /// The error of a response with this status, which is not a success.
    pub(super) fn of_answer(status: u16, body: &[u8]) -> Self {
        let text = String::from_utf8_lossy(body);
        let text = text.trim_start_matches('\u{FEFF}').trim();
        // The error may be the only event of a stream.
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

    /// The error in text that is not JSON.
    pub(super) fn of_text(text: &str, status: Option<u16>) -> Self {
        // A web page does not help in a message.
        let text = if text.trim_start().starts_with('<') {
            ""
        } else {
            text
        };
        let message = line(text);
        Self {
            class: ErrorClass::of(status, &[], &message),
            message,
            status,
            unsure: false,
        }
    }

    /// The error in an event, if there is one; `named` says that the event's type is an error.
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
        let fails = status_of(&[event]).is_some();
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
        // Only text: a `message` that is an object may be the answer.
        let scopes = [choice, event];
        let mut texts: Vec<_> = reason
            .into_iter()
            .chain(error.and_then(Value::as_str))
            .collect();
        for scope in scopes {
            let named = MESSAGE_FIELDS
                .iter()
                .find_map(|name| scope.get(name)?.as_str());
            texts.extend(named.filter(|text| error.is_none_or(|error| error != text)));
        }
        if error.is_some() || texts.len() > 1 {
            // "error" adds nothing to a message.
            texts.retain(|text| Some(*text) != reason || !text.eq_ignore_ascii_case("error"));
        }
        let mut message = line(&texts.join(": "));
        surrogates::settle_text(&mut message);
        let status = status_of(&scopes);
        Some(Self {
            class: ErrorClass::of(status, &scopes, &message),
            message,
            status,
            unsure: false,
        })
    }

    fn of(scopes: &[&Value], status: Option<u16>) -> Self {
        let mut message = message_of(scopes);
        // OpenRouter's own message is "Provider returned error"; this is the provider's.
        let raw = scopes
            .iter()
            .find_map(|scope| scope.pointer("/metadata/raw")?.as_str());
        if let Some(raw) = raw.map(line).filter(|raw| !message.contains(raw)) {
            message = format!("{message}: {raw}");
            surrogates::settle_text(&mut message);
        }
        let status = status.or_else(|| status_of(scopes));
        Self {
            class: ErrorClass::of(status, scopes, &message),
            message,
            status,
            unsure: false,
        }
    }

    /// The failure of an attempt: `what` the server did, then its message.
    pub(super) fn failure(self, what: &str, retry: Retry) -> Failure {
        let message = format!("{what}: {}", self.message);
        match self.class {
            ErrorClass::Busy => Failure {
                code: FailureCode::ModelBusy.into(),
                message,
                retry,
            },
            ErrorClass::Passing => Failure {
                code: FailureCode::ModelFailed.into(),
                message,
                retry,
            },
            ErrorClass::Final => Failure::fatal(FailureCode::ModelRefused, message),
        }
    }
}

/// Whether an event of this type only shows that the server is alive.
pub(super) fn is_heartbeat(event_type: &str) -> bool {
    matches!(
        letters(event_type).as_str(),
        "ping" | "heartbeat" | "keepalive" | "noop"
    )
}

/// The values in which to look for a message, a type and a status, the innermost first.
fn scopes(value: &Value) -> Vec<&Value> {
    match value.get("error") {
        Some(error) if error.is_object() => {
            // Some servers wrap the error of another server.
            let inner = error.get("error").filter(|inner| inner.is_object());
            inner.into_iter().chain([error, value]).collect()
        }
        _ => vec![value],
    }
}

/// Whether a field has a value: some servers always send every field, with zeros and empty texts.
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

/// The server's message.
fn message_of(scopes: &[&Value]) -> String {
    let fields = scopes
        .iter()
        .flat_map(|scope| MESSAGE_FIELDS.iter().filter_map(|name| scope.get(name)));
    let mut found = match fields.into_iter().find(|found| is_something(found)) {
        Some(found) => found.clone(),
        None => scopes.first().map_or(Value::Null, |&scope| scope.clone()),
    };
    surrogates::settle(&mut found);
    found
        .as_str()
        .map_or_else(|| line(&found.to_string()), line)
}

/// Text on one line, or "no message".
fn line(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if line.is_empty() {
        "no message".into()
    } else {
        line
    }
}

/// The HTTP status of an error, given as a number or as its text.
fn status_of(scopes: &[&Value]) -> Option<u16> {
    let fields = scopes
        .iter()
        .flat_map(|scope| STATUS_FIELDS.iter().filter_map(|name| scope.get(name)));
    fields
        .filter_map(|found| {
            found
                .as_str()
                .map_or_else(|| found.as_u64(), |text| text.parse().ok())
        })
        .filter_map(|number| u16::try_from(number).ok())
        .find(|number| (400..600).contains(number))
}

#[cfg(test)]
mod tests;
