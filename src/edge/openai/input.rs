//! The requests of the OpenAI API as inputs of jobs. Pure. A worker gets the fields of a chat
//! completion; a request for a response is converted.

use serde_json::{Map, Value, json};

use crate::edge::json::text;
use crate::wire::{Code, Refusal};

/// A request for a completion or a response.
#[derive(Debug, PartialEq)]
pub(super) struct ModelRequest {
    pub(super) model: String,
    pub(super) is_streamed: bool,
    /// Whether a response is answered before it is complete.
    pub(super) is_background: bool,
    pub(super) input: Value,
}

fn bad(message: &str) -> Refusal {
    Refusal::new(Code::BadRequest, message)
}

impl ModelRequest {
    /// A request for a chat completion. All fields but the model are the input.
    pub(super) fn of_completion(body: Value) -> Result<Self, Refusal> {
        let (request, fields) = Self::common(body)?;
        let messages = fields.get("messages").and_then(Value::as_array);
        if !messages
            .is_some_and(|messages| !messages.is_empty() && messages.iter().all(Value::is_object))
        {
            return Err(bad("`messages` must be a list of at least one message."));
        }
        if fields.get("n").is_some_and(|n| !n.is_null() && n != 1) {
            return Err(bad("`n` must be 1: a job has one answer."));
        }
        Ok(Self {
            input: fields.into(),
            ..request
        })
    }

    /// A request for a response. Fields that a chat completion does not have are dropped or refused.
    pub(super) fn of_response(body: Value) -> Result<Self, Refusal> {
        let (request, mut fields) = Self::common(body)?;
        for name in ["previous_response_id", "conversation", "prompt"] {
            if fields.remove(name).is_some_and(|value| !value.is_null()) {
                return Err(bad(&format!(
                    "`{name}` is not supported: an edge keeps no conversations. Send the whole input."
                )));
            }
        }
        // They concern how OpenAI stores and runs a response.
        for name in [
            "store",
            "include",
            "metadata",
            "truncation",
            "max_tool_calls",
            "background",
        ] {
            fields.remove(name);
        }
        let mut messages = Vec::new();
        if let Some(Value::String(text)) = fields.remove("instructions") {
            messages.push(json!({"role": "system", "content": text}));
        }
        match fields.remove("input") {
            Some(Value::String(text)) => messages.push(json!({"role": "user", "content": text})),
            Some(Value::Array(items)) if !items.is_empty() => {
                for item in items {
                    convert_item(item, &mut messages)?;
                }
            }
            _ => {
                return Err(bad(
                    "`input` must be a text or a list of at least one item.",
                ));
            }
        }
        fields.insert("messages".into(), messages.into());
        rename(&mut fields, "max_output_tokens", "max_tokens");
        if let Some(effort) = fields
            .remove("reasoning")
            .and_then(|mut r| r.get_mut("effort").map(Value::take))
        {
            fields.insert("reasoning_effort".into(), effort);
        }
        if let Some(format) = fields
            .remove("text")
            .and_then(|mut text| text.get_mut("format").map(Value::take))
        {
            fields.insert("response_format".into(), response_format(format));
        }
        convert_tools(&mut fields)?;
        Ok(Self {
            input: fields.into(),
            ..request
        })
    }

    /// What both have, and the other fields.
    fn common(body: Value) -> Result<(Self, Map<String, Value>), Refusal> {
        let Value::Object(mut fields) = body else {
            return Err(bad("The body is not a JSON object."));
        };
        let Some(Value::String(model)) = fields.remove("model") else {
            return Err(bad("`model`, the kind of the job, is missing."));
        };
        let mut flag = |name: &str| match fields.remove(name) {
            None | Some(Value::Null) => Ok(false),
            Some(Value::Bool(value)) => Ok(value),
            Some(_) => Err(bad(&format!("`{name}` is not true or false."))),
        };
        let request = Self {
            model,
            is_streamed: flag("stream")?,
            is_background: flag("background")?,
            input: Value::Null,
        };
        Ok((request, fields))
    }
}

fn rename(fields: &mut Map<String, Value>, from: &str, to: &str) {
    if let Some(value) = fields.remove(from).filter(|value| !value.is_null()) {
        fields.insert(to.into(), value);
    }
}

/// Appends an item of an input as a message.
fn convert_item(mut item: Value, messages: &mut Vec<Value>) -> Result<(), Refusal> {
    match text(&item, "type") {
        "" | "message" => {
            let role = match text(&item, "role") {
                "" => return Err(bad("An item of `input` has no `role`.")),
                "developer" => "system".to_owned(),
                role => role.to_owned(),
            };
            let content = match item.get_mut("content").map(Value::take) {
                Some(Value::Array(parts)) => parts.into_iter().map(convert_part).collect(),
                Some(text @ Value::String(_)) => text,
                _ => return Err(bad("A message of `input` has no `content`.")),
            };
            messages.push(json!({"role": role, "content": content}));
        }
        "function_call" => {
            let function = json!({"name": item["name"], "arguments": item["arguments"]});
            let call = json!({"id": item["call_id"], "type": "function", "function": function});
            match messages.last_mut() {
                // Calls that follow each other are one message.
                Some(last) if last.get("tool_calls").is_some() => {
                    if let Some(calls) = last["tool_calls"].as_array_mut() {
                        calls.push(call);
                    }
                }
                _ => messages
                    .push(json!({"role": "assistant", "content": null, "tool_calls": [call]})),
            }
        }
        "function_call_output" => {
            let mut output = item["output"].take();
            if !output.is_string() {
                output = output.to_string().into();
            }
            messages
                .push(json!({"role": "tool", "tool_call_id": item["call_id"], "content": output}));
        }
        // A client sends back what it got; models do not read it again.
        "reasoning" => {}
        other => {
            let message = format!("Items of the type {other:?} are not supported.");
            return Err(bad(&message));
        }
    }
    Ok(())
}

/// A part of a message's content under the names of a chat completion.
fn convert_part(part: Value) -> Value {
    match text(&part, "type") {
        "input_text" | "output_text" => json!({"type": "text", "text": part["text"]}),
        "input_image" => {
            let mut image = json!({"url": part["image_url"]});
            if let Some(detail) = part.get("detail") {
                image["detail"] = detail.clone();
            }
            json!({"type": "image_url", "image_url": image})
        }
        _ => part,
    }
}

/// Tools are nested in a chat completion.
fn convert_tools(fields: &mut Map<String, Value>) -> Result<(), Refusal> {
    if let Some(Value::Array(tools)) = fields.get_mut("tools") {
        for tool in tools {
            if text(tool, "type") != "function" {
                return Err(bad("Only tools of the type function are supported."));
            }
            let mut function = tool.take();
            if let Some(function) = function.as_object_mut() {
                function.remove("type");
            }
            *tool = json!({"type": "function", "function": function});
        }
    }
    if let Some(choice) = fields.get_mut("tool_choice")
        && let Some(name) = choice.get("name").cloned()
    {
        *choice = json!({"type": "function", "function": {"name": name}});
    }
    Ok(())
}

/// The schema is nested in a chat completion.
fn response_format(mut format: Value) -> Value {
    if text(&format, "type") != "json_schema" {
        return format;
    }
    if let Some(schema) = format.as_object_mut() {
        schema.remove("type");
    }
    json!({"type": "json_schema", "json_schema": format})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn response(body: Value) -> Value {
        ModelRequest::of_response(body).unwrap().input
    }

    #[test]
    fn a_completion_is_passed_on_without_its_model() {
        let messages = json!([{"role": "user", "content": "hi"}]);
        let body =
            json!({"model": "k", "stream": true, "messages": messages, "temperature": 0, "n": 1});
        let request = ModelRequest::of_completion(body).unwrap();
        assert_eq!((request.model.as_str(), request.is_streamed), ("k", true));
        assert_eq!(
            request.input,
            json!({"messages": messages, "temperature": 0, "n": 1})
        );
    }

    #[test]
    fn a_response_becomes_the_messages_of_a_completion() {
        for (body, expected) in [
            (
                json!({"model": "k", "input": "hi", "instructions": "be brief", "store": true}),
                json!({"messages": [
                    {"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"},
                ]}),
            ),
            (
                json!({"model": "k", "background": true, "max_output_tokens": 5, "reasoning": {"effort": "low"}, "input": [
                    {"role": "developer", "content": [{"type": "input_text", "text": "a"}]},
                    {"type": "message", "role": "user", "content": [{"type": "input_image", "image_url": "data:1"}]},
                ]}),
                json!({"max_tokens": 5, "reasoning_effort": "low", "messages": [
                    {"role": "system", "content": [{"type": "text", "text": "a"}]},
                    {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:1"}}]},
                ]}),
            ),
        ] {
            assert_eq!(response(body), expected);
        }
    }

    #[test]
    fn calls_and_results_are_messages() {
        let call = |id: &str| json!({"type": "function_call", "call_id": id, "name": "f", "arguments": "{}"});
        let converted = response(json!({"model": "k", "input": [
            {"role": "user", "content": "hi"}, {"type": "reasoning", "summary": []}, call("1"), call("2"),
            {"type": "function_call_output", "call_id": "1", "output": "x"},
            {"type": "function_call_output", "call_id": "2", "output": [1]},
        ]}));
        let call = |id: &str| json!({"id": id, "type": "function", "function": {"name": "f", "arguments": "{}"}});
        assert_eq!(
            converted["messages"],
            json!([
                {"role": "user", "content": "hi"},
                {"role": "assistant", "content": null, "tool_calls": [call("1"), call("2")]},
                {"role": "tool", "tool_call_id": "1", "content": "x"},
                {"role": "tool", "tool_call_id": "2", "content": "[1]"},
            ])
        );
    }

    #[test]
    fn tools_and_formats_are_nested_as_in_a_completion() {
        let converted = response(json!({
            "model": "k", "input": "hi", "tool_choice": {"type": "function", "name": "f"},
            "tools": [{"type": "function", "name": "f", "parameters": {}}],
            "text": {"format": {"type": "json_schema", "name": "s", "schema": {}}},
        }));
        assert_eq!(
            converted["tools"],
            json!([{"type": "function", "function": {"name": "f", "parameters": {}}}])
        );
        assert_eq!(
            converted["tool_choice"],
            json!({"type": "function", "function": {"name": "f"}})
        );
        assert_eq!(
            converted["response_format"],
            json!({"type": "json_schema", "json_schema": {"name": "s", "schema": {}}})
        );
    }

    #[test]
    fn what_cannot_be_converted_is_refused() {
        for body in [
            json!([]),
            json!({"input": "hi"}),
            json!({"model": "k"}),
            json!({"model": "k", "input": []}),
            json!({"model": "k", "input": "hi", "stream": 1}),
            json!({"model": "k", "input": "hi", "previous_response_id": "r"}),
            json!({"model": "k", "input": [{"content": "hi"}]}),
            json!({"model": "k", "input": [{"role": "user"}]}),
            json!({"model": "k", "input": [{"type": "item_reference", "id": "x"}]}),
            json!({"model": "k", "input": "hi", "tools": [{"type": "web_search"}]}),
        ] {
            let refusal = ModelRequest::of_response(body.clone()).unwrap_err();
            assert_eq!(refusal.code, Code::BadRequest, "{body}");
        }
        let messages = json!([{"role": "user", "content": "hi"}]);
        for body in [
            json!({"model": "k"}),
            json!({"model": "k", "messages": []}),
            json!({"model": "k", "messages": ["hi"]}),
            json!({"model": "k", "messages": messages, "n": 2}),
            json!({"messages": messages}),
        ] {
            assert!(ModelRequest::of_completion(body.clone()).is_err(), "{body}");
        }
    }
}
