//! What `useChat` sends, as the input of a job: its UI messages become the messages of a chat
//! completion. Pure.

use serde_json::{Map, Value, json};

use crate::edge::json::text;
use crate::wire::{Code, Refusal};

/// A request to answer a chat.
#[derive(Debug)]
pub(super) struct ChatSubmission {
    pub(super) chat: String,
    /// `messages`, and the fields that the page added.
    pub(super) input: Value,
}

impl ChatSubmission {
    /// Reads the body of a request.
    pub(super) fn of(body: Value) -> Result<Self, Refusal> {
        let Value::Object(mut fields) = body else {
            return Err(bad("The body is not a JSON object."));
        };
        let Some(Value::String(chat)) = fields.remove("id") else {
            return Err(bad("`id`, the id of the chat, is missing."));
        };
        // A page may send only the last message.
        let messages = match (fields.remove("messages"), fields.remove("message")) {
            (Some(Value::Array(messages)), _) => messages,
            (None, Some(message)) => vec![message],
            _ => return Err(bad("`messages` is not a list.")),
        };
        fields.remove("trigger");
        fields.remove("messageId");
        let mut converted = Vec::new();
        for message in &messages {
            convert(message, &mut converted)?;
        }
        if converted.is_empty() {
            return Err(bad("`messages` has no message with content."));
        }
        fields.insert("messages".into(), converted.into());
        Ok(Self {
            chat,
            input: fields.into(),
        })
    }
}

fn bad(message: &str) -> Refusal {
    Refusal::new(Code::BadRequest, message)
}

/// Appends what a UI message says.
fn convert(message: &Value, converted: &mut Vec<Value>) -> Result<(), Refusal> {
    let role = text(message, "role");
    let parts = message.get("parts").and_then(Value::as_array);
    let parts = parts.ok_or_else(|| bad("A message has no list of `parts`."))?;
    match role {
        "assistant" => {
            for step in parts.split(|part| text(part, "type") == "step-start") {
                convert_step(step, converted);
            }
            Ok(())
        }
        "system" | "user" => {
            let content = content_of(parts);
            if !content.is_null() {
                converted.push(json!({"role": role, "content": content}));
            }
            Ok(())
        }
        _ => Err(bad(
            "The `role` of a message is not system, user or assistant.",
        )),
    }
}

/// The text of parts, or a list if there are files too; null if there is neither.
fn content_of(parts: &[Value]) -> Value {
    let has_files = parts.iter().any(|part| text(part, "type") == "file");
    if !has_files {
        let joined = joined_text(parts);
        return if joined.is_empty() {
            Value::Null
        } else {
            joined.into()
        };
    }
    let content = parts.iter().filter_map(|part| match text(part, "type") {
        "text" => Some(json!({"type": "text", "text": part["text"]})),
        "file" if text(part, "mediaType").starts_with("image/") => {
            Some(json!({"type": "image_url", "image_url": {"url": part["url"]}}))
        }
        "file" => {
            let mut file = Map::from_iter([("file_data".to_owned(), part["url"].clone())]);
            if let Some(name) = part.get("filename") {
                file.insert("filename".into(), name.clone());
            }
            Some(json!({"type": "file", "file": file}))
        }
        _ => None,
    });
    content.collect()
}

/// Appends a step of the assistant: its text and tool calls, then their results. A call without a
/// result is left out, because model servers refuse it.
fn convert_step(parts: &[Value], converted: &mut Vec<Value>) {
    let mut calls = Vec::new();
    let mut results = Vec::new();
    for part in parts {
        let kind = text(part, "type");
        let name = match kind {
            "dynamic-tool" => text(part, "toolName"),
            _ => kind.strip_prefix("tool-").unwrap_or_default(),
        };
        let result = match text(part, "state") {
            "output-available" => as_text(&part["output"]),
            "output-error" => text(part, "errorText").to_owned(),
            "output-denied" => "The user denied this call.".to_owned(),
            _ => continue,
        };
        if name.is_empty() {
            continue;
        }
        let id = text(part, "toolCallId");
        let function = json!({"name": name, "arguments": part["input"].to_string()});
        calls.push(json!({"id": id, "type": "function", "function": function}));
        results.push(json!({"role": "tool", "tool_call_id": id, "content": result}));
    }
    let content = joined_text(parts);
    if content.is_empty() && calls.is_empty() {
        return;
    }
    let mut message = json!({"role": "assistant", "content": content});
    if !calls.is_empty() {
        message["tool_calls"] = calls.into();
    }
    converted.push(message);
    converted.extend(results);
}

fn joined_text(parts: &[Value]) -> String {
    let texts = parts.iter().filter(|part| text(part, "type") == "text");
    texts.map(|part| text(part, "text")).collect()
}

fn as_text(value: &Value) -> String {
    value
        .as_str()
        .map_or_else(|| value.to_string(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn converted(messages: &Value) -> Value {
        let body =
            json!({"id": "c", "trigger": "submit-message", "messageId": "m", "messages": messages});
        ChatSubmission::of(body).unwrap().input["messages"].clone()
    }

    #[test]
    fn ui_messages_become_the_messages_of_a_chat_completion() {
        let image = json!({"type": "file", "mediaType": "image/png", "url": "data:1"});
        let file =
            json!({"type": "file", "mediaType": "text/plain", "url": "data:2", "filename": "f"});
        let words = json!({"type": "text", "text": "see"});
        for (parts, expected) in [
            (json!([words]), json!([{"role": "user", "content": "see"}])),
            (
                json!([words, image, file, {"type": "data-x", "data": 1}]),
                json!([{"role": "user", "content": [
                    {"type": "text", "text": "see"},
                    {"type": "image_url", "image_url": {"url": "data:1"}},
                    {"type": "file", "file": {"file_data": "data:2", "filename": "f"}},
                ]}]),
            ),
        ] {
            assert_eq!(
                converted(&json!([{"id": "u", "role": "user", "parts": parts}])),
                expected
            );
        }
    }

    #[test]
    fn each_step_of_the_assistant_is_a_message_with_the_results_after_it() {
        let call = |id: &str, state: &str| json!({"type": "tool-f", "toolCallId": id, "state": state, "input": {"x": 1}, "output": {"y": 2}, "errorText": "no"});
        let parts = json!([
            {"type": "step-start"}, {"type": "reasoning", "text": "hm"}, {"type": "text", "text": "a"},
            call("1", "output-available"), call("2", "input-available"), call("3", "output-error"),
            {"type": "step-start"}, {"type": "text", "text": "b"},
        ]);
        let calls = ["1", "3"].map(|id| {
            json!({"id": id, "type": "function", "function": {"name": "f", "arguments": "{\"x\":1}"}})
        });
        assert_eq!(
            converted(&json!([{"id": "a", "role": "assistant", "parts": parts}])),
            json!([
                {"role": "assistant", "content": "a", "tool_calls": calls},
                {"role": "tool", "tool_call_id": "1", "content": "{\"y\":2}"},
                {"role": "tool", "tool_call_id": "3", "content": "no"},
                {"role": "assistant", "content": "b"},
            ])
        );
    }

    #[test]
    fn fields_that_the_page_adds_are_part_of_the_input() {
        let message = json!({"role": "user", "parts": [{"type": "text", "text": "hi"}]});
        let body = json!({"id": "c", "message": message, "temperature": 0.5});
        let submission = ChatSubmission::of(body).unwrap();
        assert_eq!(submission.chat, "c");
        assert_eq!(
            submission.input,
            json!({"messages": [{"role": "user", "content": "hi"}], "temperature": 0.5})
        );
    }

    #[test]
    fn a_body_that_is_not_a_chat_is_refused() {
        let parts = json!([{"type": "text", "text": "hi"}]);
        for body in [
            json!([]),
            json!({}),
            json!({"id": 1, "messages": []}),
            json!({"id": "c"}),
            json!({"id": "c", "messages": []}),
            json!({"id": "c", "messages": {}}),
            json!({"id": "c", "messages": ["hi"]}),
            json!({"id": "c", "messages": [{"role": "user", "content": "hi"}]}),
            json!({"id": "c", "messages": [{"role": "tool", "parts": parts}]}),
            json!({"id": "c", "messages": [{"role": "user", "parts": [{"type": "step-start"}]}]}),
        ] {
            let refusal = ChatSubmission::of(body.clone()).unwrap_err();
            assert_eq!(refusal.code, Code::BadRequest, "{body}");
        }
    }
}
