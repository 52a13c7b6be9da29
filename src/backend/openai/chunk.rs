//! Reads one choice of an event, in any of the forms that servers use. Pure, without state between
//! events.
//!
//! A server may put text into `delta`, `message` or `text`; `content` may be text, a list of parts,
//! or one part; reasoning has many names. A form that this file cannot read is an error, so that no
//! text is lost silently.

use serde_json::{Map, Value, json};

use crate::backend::Channel;

/// The fields in which servers send reasoning. Some send the same text in several.
const REASONING: [&str; 5] = [
    "reasoning_content",
    "reasoning",
    "thinking",
    "reasoning_text",
    "reasoning_details",
];
/// Texts that serializers write for a missing reason.
const NO_REASON: [&str; 5] = ["", "null", "none", "nil", "undefined"];

/// A piece of the answer.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum ChunkPart {
    Text {
        channel: Channel,
        text: String,
    },
    Refusal(String),
    /// A piece of a tool call, and its position in its list if the list has several without
    /// distinct indexes.
    Call {
        piece: Value,
        position: Option<usize>,
    },
    /// Content that is not text.
    Other(Value),
}

/// One choice.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Choice {
    pub(super) parts: Vec<ChunkPart>,
    pub(super) finish_reason: Option<String>,
    pub(super) source: Source,
}

/// The field of a choice that its parts are from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Source {
    #[default]
    Delta,
    /// A complete message.
    Message,
    /// The form of completions without chat.
    Text,
}

/// A choice that is not in a known form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} is {1}")]
pub(super) struct UnreadableChunk(&'static str, &'static str);

impl Choice {
    /// Reads a choice. `deltas` says that earlier ones came as deltas, which a message then only
    /// repeats.
    pub(super) fn read(choice: &Value, deltas: bool) -> Result<Self, UnreadableChunk> {
        let Value::Object(fields) = choice else {
            return Err(unreadable("a choice", choice));
        };
        let mut parts = match fields.get("delta") {
            Some(delta) => body(delta)?,
            None => Vec::new(),
        };
        let mut source = Source::Delta;
        if parts.is_empty() && !deltas {
            if let Some(message) = fields.get("message") {
                parts = body(message)?;
                source = Source::Message;
            }
            if let Some(text) = fields.get("text").filter(|_| parts.is_empty()) {
                content(text, Channel::Output, &mut parts)?;
                source = Source::Text;
            }
        }
        let finish_reason = match fields.get("finish_reason") {
            Some(Value::String(reason)) => {
                let is_none = NO_REASON
                    .iter()
                    .any(|none| reason.trim().eq_ignore_ascii_case(none));
                (!is_none).then(|| reason.clone())
            }
            Some(Value::Number(number)) if number.as_f64() != Some(0.0) => Some(number.to_string()),
            _ => None,
        };
        Ok(Self {
            parts,
            finish_reason,
            source,
        })
    }
}

/// The parts of a delta or a message.
fn body(body: &Value) -> Result<Vec<ChunkPart>, UnreadableChunk> {
    let mut parts = Vec::new();
    let fields = match body {
        Value::Object(fields) => fields,
        Value::Null => return Ok(parts),
        Value::String(_) => {
            content(body, Channel::Output, &mut parts)?;
            return Ok(parts);
        }
        Value::Bool(_) | Value::Number(_) | Value::Array(_) => {
            return Err(unreadable("a choice's delta", body));
        }
    };
    for reasoning in REASONING.iter().filter_map(|name| fields.get(*name)) {
        content(reasoning, Channel::Reasoning, &mut parts)?;
        if !parts.is_empty() {
            break;
        }
    }
    if let Some(value) = fields.get("content") {
        content(value, Channel::Output, &mut parts)?;
    }
    if let Some(Value::String(text)) = fields.get("refusal")
        && !text.is_empty()
    {
        parts.push(ChunkPart::Refusal(text.clone()));
    }
    calls(fields, &mut parts)?;
    Ok(parts)
}

/// Adds the parts of content: text, a part, or a list of either.
fn content(
    value: &Value,
    channel: Channel,
    parts: &mut Vec<ChunkPart>,
) -> Result<(), UnreadableChunk> {
    match value {
        Value::Null => {}
        Value::String(text) if text.is_empty() => {}
        Value::String(text) => parts.push(ChunkPart::Text {
            channel,
            text: text.clone(),
        }),
        Value::Array(values) => {
            values
                .iter()
                .try_for_each(|value| content(value, channel, parts))?;
        }
        Value::Object(fields) => part(fields, channel, parts)?,
        Value::Bool(_) | Value::Number(_) => return Err(unreadable("a choice's content", value)),
    }
    Ok(())
}

/// Adds one part of content.
fn part(
    fields: &Map<String, Value>,
    channel: Channel,
    parts: &mut Vec<ChunkPart>,
) -> Result<(), UnreadableChunk> {
    let kind = fields
        .get("type")
        .and_then(Value::as_str)
        .unwrap_or_default();
    let thinks = ["thinking", "reasoning", "thought"]
        .iter()
        .any(|word| kind.contains(word))
        || kind.is_empty() && (fields.contains_key("thinking") || fields.contains_key("reasoning"))
        || fields.get("thought") == Some(&Value::Bool(true));
    let channel = if thinks { Channel::Reasoning } else { channel };
    // `value` is the text within a text of the Assistants API.
    let names: &[&str] = if channel == Channel::Reasoning {
        &[
            "thinking",
            "reasoning",
            "text",
            "content",
            "summary",
            "value",
        ]
    } else {
        &["text", "content", "value"]
    };
    let inner = names
        .iter()
        .find_map(|name| fields.get(*name).filter(|inner| !inner.is_null()));
    match (kind, inner) {
        ("refusal", _) => match fields.get("refusal").or(inner) {
            Some(Value::String(text)) if text.is_empty() => {}
            Some(Value::String(text)) => parts.push(ChunkPart::Refusal(text.clone())),
            Some(other) => return Err(unreadable("a refusal", other)),
            None => {}
        },
        (_, Some(inner)) => content(inner, channel, parts)?,
        // Signatures and encrypted reasoning are for the server only; a field that is null means
        // nothing.
        (_, None)
            if channel == Channel::Reasoning
                || names.iter().any(|name| fields.contains_key(*name)) => {}
        (_, None) if fields.keys().all(|name| name == "type") => {}
        (_, None) => parts.push(ChunkPart::Other(json!({"content": [fields]}))),
    }
    Ok(())
}

/// Adds the tool calls of a delta or a message.
fn calls(fields: &Map<String, Value>, parts: &mut Vec<ChunkPart>) -> Result<(), UnreadableChunk> {
    match fields.get("tool_calls") {
        None | Some(Value::Null) => {}
        Some(Value::Array(pieces)) => {
            let mut indexes: Vec<_> = pieces
                .iter()
                .filter_map(|piece| piece.get("index")?.as_u64())
                .collect();
            indexes.sort_unstable();
            indexes.dedup();
            let by_position = indexes.len() < pieces.len() && pieces.len() > 1;
            for (at, piece) in pieces.iter().enumerate() {
                parts.push(call(piece, by_position.then_some(at))?);
            }
        }
        Some(piece) => parts.push(call(piece, None)?),
    }
    // The form before `tool_calls`, which had one call and no id.
    match fields.get("function_call") {
        None | Some(Value::Null) => Ok(()),
        Some(Value::Object(function)) if function.is_empty() => Ok(()),
        Some(function @ Value::Object(_)) => {
            parts.push(ChunkPart::Call {
                piece: json!({ "function": function }),
                position: None,
            });
            Ok(())
        }
        Some(other) => Err(unreadable("a function call", other)),
    }
}

/// A piece of a call, with its name and arguments within `function`, and the arguments as text.
fn call(piece: &Value, position: Option<usize>) -> Result<ChunkPart, UnreadableChunk> {
    let Value::Object(fields) = piece else {
        return Err(unreadable("a tool call", piece));
    };
    let mut fields = fields.clone();
    if !fields.contains_key("function") && fields.contains_key("arguments") {
        let inner = ["name", "arguments"]
            .iter()
            .filter_map(|name| fields.remove_entry(*name));
        let function: Map<_, _> = inner.collect();
        fields.insert("function".into(), function.into());
    }
    Ok(ChunkPart::Call {
        piece: fields.into(),
        position,
    })
}

fn unreadable(what: &'static str, value: &Value) -> UnreadableChunk {
    let kind = match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    };
    UnreadableChunk(what, kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(choice: &Value) -> Vec<ChunkPart> {
        Choice::read(choice, false)
            .unwrap_or_else(|error| panic!("{choice}: {error}"))
            .parts
    }

    fn delta(delta: &Value) -> Vec<ChunkPart> {
        parts(&json!({ "delta": delta }))
    }

    fn output(text: &str) -> ChunkPart {
        ChunkPart::Text {
            channel: Channel::Output,
            text: text.into(),
        }
    }

    fn reasoning(text: &str) -> ChunkPart {
        ChunkPart::Text {
            channel: Channel::Reasoning,
            text: text.into(),
        }
    }

    #[test]
    fn content_is_text_a_part_or_a_list_of_either() {
        for content in [
            json!("Hi"),
            json!(["Hi"]),
            json!([{"type": "text", "text": "Hi"}]),
            json!({"type": "text", "text": "Hi"}),
            json!([{"text": "Hi"}]),
            json!([{"type": "output_text", "text": "Hi", "annotations": []}]),
            json!([{"type": "text", "text": {"value": "Hi", "annotations": []}}]),
            json!([[{"type": "text", "content": "Hi"}], null, "", {"type": "text", "text": ""}, {"type": "text", "text": null}]),
        ] {
            assert_eq!(
                delta(&json!({ "content": content })),
                [output("Hi")],
                "{content}"
            );
        }
        for nothing in [
            Value::Null,
            json!(""),
            json!([]),
            json!([null, {"type": "text"}]),
        ] {
            assert_eq!(delta(&json!({ "content": nothing })), [], "{nothing}");
        }
    }

    #[test]
    fn parts_of_thinking_are_reasoning() {
        for part in [
            json!({"type": "thinking", "thinking": "hm"}),
            json!({"type": "thinking", "thinking": [{"type": "text", "text": "hm"}], "closed": true}),
            json!({"type": "thinking", "thinking": ["hm"]}),
            json!({"type": "reasoning", "text": "hm"}),
            json!({"type": "reasoning", "reasoning": "hm"}),
            json!({"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]}),
            json!({"type": "text", "text": "hm", "thought": true}),
            json!({"thinking": "hm"}),
        ] {
            let expected = [reasoning("hm"), output("Hi")];
            assert_eq!(
                delta(&json!({"content": [part, {"type": "text", "text": "Hi"}]})),
                expected,
                "{part}"
            );
        }
        assert_eq!(
            delta(&json!({"content": [{"type": "redacted_thinking", "data": "x"}]})),
            []
        );
    }

    #[test]
    fn reasoning_is_read_once_under_any_of_its_names() {
        for fields in [
            json!({"reasoning_content": "hm", "content": null}),
            json!({"reasoning": "hm", "reasoning_content": "hm"}),
            json!({"reasoning": "hm", "reasoning_content": ""}),
            json!({"reasoning": {"content": "hm"}}),
            json!({"reasoning_content": null, "thinking": "hm"}),
            json!({"reasoning": null, "reasoning_details": [{"type": "reasoning.text", "text": "hm"}]}),
            json!({"reasoning": "hm", "reasoning_details": [{"type": "reasoning.summary", "summary": "hm"}]}),
        ] {
            assert_eq!(delta(&fields), [reasoning("hm")], "{fields}");
        }
        let hidden = json!({"reasoning_details": [{"type": "reasoning.encrypted", "data": "x"}], "content": "Hi"});
        assert_eq!(delta(&hidden), [output("Hi")]);
    }

    #[test]
    fn a_choice_has_its_text_in_a_delta_a_message_or_itself() {
        assert_eq!(
            parts(&json!({"delta": {"content": "a"}, "message": {"content": "b"}})),
            [output("a")]
        );
        assert_eq!(
            parts(&json!({"delta": {}, "message": {"content": "b"}})),
            [output("b")]
        );
        assert_eq!(parts(&json!({"delta": null, "text": "c"})), [output("c")]);
        assert_eq!(parts(&json!({"delta": "d"})), [output("d")]);
        let repeated =
            json!({"delta": {}, "message": {"content": "all of it"}, "text": "all of it"});
        assert_eq!(Choice::read(&repeated, true).unwrap().parts, []);
        let source = |choice: Value| Choice::read(&choice, false).unwrap().source;
        assert_eq!(
            source(json!({"delta": {}, "message": {"content": "b"}})),
            Source::Message
        );
        assert_eq!(source(json!({"text": "b"})), Source::Text);
        assert_eq!(source(json!({"delta": {"content": "b"}})), Source::Delta);
        assert_eq!(
            delta(&json!({"refusal": "no"})),
            [ChunkPart::Refusal("no".into())]
        );
        assert_eq!(
            delta(&json!({"content": [{"type": "refusal", "refusal": "no"}]})),
            [ChunkPart::Refusal("no".into())]
        );
    }

    #[test]
    fn a_text_for_a_missing_reason_is_ignored() {
        let reason = |reason: Value| {
            Choice::read(&json!({"finish_reason": reason}), false)
                .unwrap()
                .finish_reason
        };
        for none in [
            Value::Null,
            json!(""),
            json!("null"),
            json!("None"),
            json!(" "),
            json!(false),
            json!(0),
        ] {
            assert_eq!(reason(none.clone()), None, "{none}");
        }
        assert_eq!(reason(json!("stop")).as_deref(), Some("stop"));
        assert_eq!(reason(json!(1)).as_deref(), Some("1"));
    }

    #[test]
    fn calls_are_normalized() {
        let whole = json!({"id": "a", "function": {"name": "f", "arguments": "{}"}});
        let call = |position| ChunkPart::Call {
            piece: whole.clone(),
            position,
        };
        assert_eq!(delta(&json!({"tool_calls": [whole]})), [call(None)]);
        assert_eq!(delta(&json!({"tool_calls": whole})), [call(None)]);
        assert_eq!(
            delta(&json!({"tool_calls": [whole, whole]})),
            [call(Some(0)), call(Some(1))]
        );
        let indexed = |index: u64| json!({"index": index, "function": {"arguments": "{"}});
        let positions = |indexes: [u64; 2]| {
            let parts = delta(&json!({"tool_calls": indexes.map(indexed)}));
            parts
                .into_iter()
                .map(|part| {
                    matches!(
                        part,
                        ChunkPart::Call {
                            position: Some(_),
                            ..
                        }
                    )
                })
                .collect::<Vec<_>>()
        };
        assert_eq!(positions([0, 1]), [false, false]);
        assert_eq!(positions([0, 0]), [true, true]);
        assert_eq!(
            delta(&json!({"tool_calls": [{"id": "a", "name": "f", "arguments": "{}"}]})),
            [call(None)]
        );
        let legacy = ChunkPart::Call {
            piece: json!({"function": {"name": "f", "arguments": "{"}}),
            position: None,
        };
        assert_eq!(
            delta(&json!({"function_call": {"name": "f", "arguments": "{"}})),
            [legacy]
        );
        assert_eq!(
            delta(&json!({"function_call": null, "tool_calls": null})),
            []
        );
    }

    #[test]
    fn content_that_is_not_text_is_kept() {
        let image = json!({"type": "image_url", "image_url": {"url": "x"}});
        assert_eq!(
            delta(&json!({"content": [image]})),
            [ChunkPart::Other(json!({"content": [image]}))]
        );
    }

    #[test]
    fn an_unknown_form_is_an_error_that_quotes_nothing() {
        for choice in [
            json!("secret"),
            json!({"delta": ["secret"]}),
            json!({"delta": {"content": 7}}),
            json!({"delta": {"content": [true]}}),
            json!({"delta": {"tool_calls": "secret"}}),
            json!({"delta": {"tool_calls": ["secret"]}}),
            json!({"delta": {"function_call": "secret"}}),
        ] {
            let error = Choice::read(&choice, false).unwrap_err().to_string();
            assert!(!error.contains("secret"), "{error}");
        }
    }
}
