//! Reads JSON whose form other protocols define. Pure.

use serde_json::Value;

/// A text field of an object; empty if it is absent or something else.
pub(super) fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value.get(name).and_then(Value::as_str).unwrap_or_default()
}
