//! A job's events as the events of a response, and as the response object: a fold over the log,
//! without I/O. The same log always gives the same events with the same numbers, so a client resumes
//! after a number.
//!
//! An attempt that supersedes another begins new items; those of the earlier one are incomplete, and
//! absent from the final response.

use std::mem;
use std::sync::Arc;

use serde_json::{Value, json};

use super::error::OpenAiProblem;
use super::job::held;
use crate::edge::json_pieces::JsonPieces;
use crate::source::LogFold;
use crate::wire::limits::OUTPUT_MAX;
use crate::wire::{Body, Channel, Event, JobFailure, JobId, Seq, Stored};

/// A response as far as the log has it.
#[derive(Debug)]
pub(super) struct ResponseFold {
    job: JobId,
    kind: String,
    created: Option<u64>,
    status: &'static str,
    /// The items that count.
    items: Vec<JsonPieces>,
    /// How many items were begun, superseded ones included.
    begun: u64,
    open: Option<OpenItem>,
    error: Value,
    /// Why it is incomplete.
    incomplete: Value,
    usage: Value,
    /// The number of the next event.
    next_number: u64,
    is_ended: bool,
    /// About how many bytes the items hold.
    items_size: usize,
}

/// A message or reasoning that is being written.
#[derive(Debug)]
struct OpenItem {
    channel: Channel,
    index: u64,
    id: String,
    text: Arc<String>,
}

/// An event of a response. It shares long texts with the response.
#[derive(Debug)]
pub(super) struct ResponseEvent {
    pub(super) event_type: String,
    pub(super) number: u64,
    pub(super) json: JsonPieces,
}

impl ResponseFold {
    pub(super) fn new(job: JobId) -> Self {
        Self {
            job,
            kind: String::new(),
            created: None,
            status: "queued",
            items: Vec::new(),
            begun: 0,
            open: None,
            error: Value::Null,
            incomplete: Value::Null,
            usage: Value::Null,
            next_number: 0,
            is_ended: false,
            items_size: 0,
        }
    }

    /// The response events of the next event. If it has too many tool calls, the others are left out, and
    /// the size is more than [`OUTPUT_MAX`].
    pub(super) fn apply(&mut self, stored: &Stored) -> Vec<ResponseEvent> {
        let mut out = Vec::new();
        if self.is_ended {
            return out;
        }
        match stored.event() {
            Ok(event) => {
                self.begin(&event, &mut out);
                self.apply_event(event, &mut out);
            }
            Err(_) if stored.event_type.is_end() => {
                out = self.break_off(&OpenAiProblem::incomplete(&self.job));
            }
            // A part of the answer may be lost with it.
            Err(_) => self.set_incomplete("events_missing"),
        }
        out
    }

    /// The event when no more events can be read.
    pub(super) fn close(&mut self) -> Vec<ResponseEvent> {
        self.break_off(&OpenAiProblem::unreadable(&self.job))
    }

    /// Fails the response with a problem of its log.
    fn break_off(&mut self, problem: &OpenAiProblem) -> Vec<ResponseEvent> {
        let mut out = Vec::new();
        if !mem::replace(&mut self.is_ended, true) {
            let problem = problem.to_json();
            let mut error = json!({
                "code": problem["error"]["code"], "message": problem["error"]["message"],
            });
            self.status = "failed";
            self.error = error.clone();
            error["param"] = Value::Null;
            self.put("error", error, [], &mut out);
        }
        out
    }

    fn set_incomplete(&mut self, reason: &str) {
        self.incomplete = json!({"reason": reason});
    }

    /// About how many bytes it holds.
    pub(super) fn size(&self) -> usize {
        let open = self.open.as_ref().map_or(0, |open| open.text.len());
        self.items_size + open + held(&self.usage)
    }

    /// Whether the response is complete, or has failed.
    pub(super) const fn is_ended(&self) -> bool {
        self.is_ended
    }

    /// The response object.
    pub(super) fn snapshot(&self) -> JsonPieces {
        let mut items = self.items.clone();
        let status = if self.is_ended {
            "incomplete"
        } else {
            "in_progress"
        };
        items.extend(self.open.as_ref().map(|open| open.item(status)));
        self.object(items)
    }

    fn object(&self, output: Vec<JsonPieces>) -> JsonPieces {
        let object = json!({
            "id": self.job, "object": "response", "created_at": self.created.unwrap_or(0),
            "status": self.status, "background": true, "error": self.error,
            "incomplete_details": self.incomplete, "instructions": null, "metadata": {},
            "model": self.kind, "parallel_tool_calls": true, "temperature": null,
            "tool_choice": "auto", "tools": [], "top_p": null, "usage": self.usage,
        });
        JsonPieces::object(object, [("output", JsonPieces::array(output))])
    }

    /// Begins the response with its first event.
    fn begin(&mut self, event: &Event, out: &mut Vec<ResponseEvent>) {
        if let Body::Queued { kind, .. } | Body::Started { kind, .. } = &event.body {
            kind.as_str().clone_into(&mut self.kind);
        }
        if self.created.is_none() {
            self.created = Some(event.ts / 1000);
            self.put_response("response.created", out);
            self.put_response("response.queued", out);
        }
    }

    fn apply_event(&mut self, event: Event, out: &mut Vec<ResponseEvent>) {
        match event.body {
            Body::Started { continues, .. } => {
                if !continues {
                    self.supersede(out);
                }
                if self.status == "queued" {
                    self.status = "in_progress";
                    self.put_response("response.in_progress", out);
                }
            }
            Body::Chunk { text, channel } if !text.is_empty() => self.text(channel, text, out),
            Body::Data { mut data } => {
                self.end_item("completed", out);
                match data.get_mut("tool_calls") {
                    Some(Value::Array(calls)) => {
                        for call in mem::take(calls) {
                            // Each becomes hundreds of bytes, and may have two in the log.
                            if self.size() > OUTPUT_MAX {
                                break;
                            }
                            self.call(call, out);
                        }
                    }
                    _ => self.put("tailwater.data", json!({"data": data}), [], out),
                }
            }
            Body::Done {
                usage,
                finish_reason,
            } => self.done(usage.as_ref(), finish_reason.as_deref(), out),
            Body::Failed(JobFailure { code, message, .. }) => {
                self.end_item("incomplete", out);
                self.error = json!({"code": code, "message": message});
                self.end("failed", "response.failed", out);
            }
            Body::Cancelled {} => {
                self.end_item("incomplete", out);
                // No type of event is for this status.
                self.end("cancelled", "response.incomplete", out);
            }
            Body::Queued { .. }
            | Body::Chunk { .. }
            | Body::Retrying { .. }
            | Body::CancelRequested { .. }
            | Body::Unknown => {}
        }
    }

    fn supersede(&mut self, out: &mut Vec<ResponseEvent>) {
        self.end_item("incomplete", out);
        self.items.clear();
        self.items_size = 0;
        self.incomplete = Value::Null;
    }

    /// Adds an item that is complete.
    fn keep(&mut self, item: JsonPieces) {
        self.items_size += item.size();
        self.items.push(item);
    }

    fn text(&mut self, channel: Channel, text: String, out: &mut Vec<ResponseEvent>) {
        let mut open = match self.open.take() {
            Some(open) if open.channel == channel => open,
            other => {
                self.open = other;
                self.end_item("completed", out);
                self.begin_item(channel, out)
            }
        };
        let mut delta = open.place();
        if channel == Channel::Output {
            delta["logprobs"] = json!([]);
        }
        // No event shares the text before it is complete, so this does not copy it.
        Arc::make_mut(&mut open.text).push_str(&text);
        let event_type = format!("response.{}.delta", open.part_type());
        let text = JsonPieces::text(Arc::new(text));
        self.put(&event_type, delta, [("delta", text)], out);
        self.open = Some(open);
    }

    fn begin_item(&mut self, channel: Channel, out: &mut Vec<ResponseEvent>) -> OpenItem {
        let index = self.begun;
        self.begun += 1;
        let prefix = match channel {
            Channel::Output => "msg",
            Channel::Reasoning => "rs",
        };
        let open = OpenItem {
            channel,
            index,
            id: format!("{prefix}_{}_{index}", self.job),
            text: Arc::default(),
        };
        let item = open.item_with("in_progress", []);
        self.put_item("response.output_item.added", index, item, out);
        let part = [("part", open.part())];
        self.put("response.content_part.added", open.place(), part, out);
        open
    }

    /// Ends the open item.
    fn end_item(&mut self, status: &str, out: &mut Vec<ResponseEvent>) {
        let Some(open) = self.open.take() else { return };
        let mut done = open.place();
        if open.channel == Channel::Output {
            done["logprobs"] = json!([]);
        }
        let event_type = format!("response.{}.done", open.part_type());
        let text = JsonPieces::text(Arc::clone(&open.text));
        self.put(&event_type, done, [("text", text)], out);
        let part = [("part", open.part())];
        self.put("response.content_part.done", open.place(), part, out);
        let item = open.item(status);
        self.put_item("response.output_item.done", open.index, item.clone(), out);
        self.keep(item);
    }

    /// A complete tool call in the form of a chat completion.
    fn call(&mut self, mut call: Value, out: &mut Vec<ResponseEvent>) {
        let index = self.begun;
        self.begun += 1;
        let mut function = taken(&mut call, "function");
        let arguments = taken(&mut function, "arguments");
        let arguments = if arguments.is_string() {
            JsonPieces::of(arguments)
        } else {
            JsonPieces::text(Arc::default())
        };
        let name = JsonPieces::of(taken(&mut function, "name"));
        let call_id = JsonPieces::of(taken(&mut call, "id"));
        let id = format!("fc_{}_{index}", self.job);
        let item = |status: &str, arguments: JsonPieces| {
            let item = json!({"type": "function_call", "id": id, "status": status});
            let call_id = ("call_id", call_id.clone());
            let name = ("name", name.clone());
            JsonPieces::object(item, [call_id, name, ("arguments", arguments)])
        };
        let added = item("in_progress", JsonPieces::text(Arc::default()));
        self.put_item("response.output_item.added", index, added, out);
        let place = || json!({"item_id": id, "output_index": index});
        let delta = [("delta", arguments.clone())];
        self.put(
            "response.function_call_arguments.delta",
            place(),
            delta,
            out,
        );
        let done = [("name", name.clone()), ("arguments", arguments.clone())];
        self.put("response.function_call_arguments.done", place(), done, out);
        let item = item("completed", arguments);
        self.put_item("response.output_item.done", index, item.clone(), out);
        self.keep(item);
    }

    fn done(&mut self, usage: Option<&Value>, reason: Option<&str>, out: &mut Vec<ResponseEvent>) {
        match reason {
            Some("length") => self.set_incomplete("max_output_tokens"),
            Some("content_filter") => self.set_incomplete("content_filter"),
            Some(_) | None => {}
        }
        self.usage = usage.map_or(Value::Null, usage_of);
        if self.incomplete.is_null() {
            self.end_item("completed", out);
            self.end("completed", "response.completed", out);
        } else {
            self.end_item("incomplete", out);
            self.end("incomplete", "response.incomplete", out);
        }
    }

    fn end(&mut self, status: &'static str, event_type: &str, out: &mut Vec<ResponseEvent>) {
        self.status = status;
        self.put_response(event_type, out);
        self.is_ended = true;
    }

    fn put_response(&mut self, event_type: &str, out: &mut Vec<ResponseEvent>) {
        let response = self.object(self.items.clone());
        self.put(event_type, json!({}), [("response", response)], out);
    }

    fn put_item(
        &mut self,
        event_type: &str,
        index: u64,
        item: JsonPieces,
        out: &mut Vec<ResponseEvent>,
    ) {
        let place = json!({"output_index": index});
        self.put(event_type, place, [("item", item)], out);
    }

    /// Adds an event with these fields, and those that `event` has.
    fn put<const N: usize>(
        &mut self,
        event_type: &str,
        mut event: Value,
        fields: [(&str, JsonPieces); N],
        out: &mut Vec<ResponseEvent>,
    ) {
        let number = self.next_number;
        self.next_number += 1;
        event["type"] = event_type.into();
        event["sequence_number"] = number.into();
        out.push(ResponseEvent {
            event_type: event_type.to_owned(),
            number,
            json: JsonPieces::object(event, fields),
        });
    }
}

impl LogFold for ResponseFold {
    fn apply(&mut self, stored: &Stored) {
        Self::apply(self, stored);
    }

    fn missing(&mut self, _: Seq, _: Seq) {
        // They may have been output, or an attempt that replaced the earlier output.
        self.supersede(&mut Vec::new());
        self.set_incomplete("events_missing");
    }

    fn size(&self) -> usize {
        Self::size(self)
    }
}

impl OpenItem {
    const fn part_type(&self) -> &'static str {
        match self.channel {
            Channel::Output => "output_text",
            Channel::Reasoning => "reasoning_text",
        }
    }

    /// The fields that name its text.
    fn place(&self) -> Value {
        json!({"item_id": self.id, "output_index": self.index, "content_index": 0})
    }

    fn part(&self) -> JsonPieces {
        let part = match self.channel {
            Channel::Output => json!({"type": "output_text", "annotations": [], "logprobs": []}),
            Channel::Reasoning => json!({"type": "reasoning_text"}),
        };
        let text = JsonPieces::text(Arc::clone(&self.text));
        JsonPieces::object(part, [("text", text)])
    }

    fn item(&self, status: &str) -> JsonPieces {
        self.item_with(status, [self.part()])
    }

    fn item_with<const N: usize>(&self, status: &str, parts: [JsonPieces; N]) -> JsonPieces {
        let mut item = match self.channel {
            Channel::Output => json!({"type": "message", "role": "assistant"}),
            Channel::Reasoning => json!({"type": "reasoning", "summary": []}),
        };
        item["id"] = self.id.as_str().into();
        item["status"] = status.into();
        JsonPieces::object(item, [("content", JsonPieces::array(parts))])
    }
}

/// A field of an object, which then is null; null if there is none.
fn taken(object: &mut Value, name: &str) -> Value {
    object.get_mut(name).map(Value::take).unwrap_or_default()
}

/// The usage of a chat completion under the names of a response.
fn usage_of(usage: &Value) -> Value {
    let number = |names: &[&str]| {
        let found = names.iter().find_map(|name| usage.pointer(name)?.as_u64());
        found.unwrap_or(0)
    };
    let input = number(&["/prompt_tokens", "/input_tokens"]);
    let output = number(&["/completion_tokens", "/output_tokens"]);
    let total = number(&["/total_tokens"]).max(input + output);
    let cached = number(&["/prompt_tokens_details/cached_tokens"]);
    let reasoning = number(&["/completion_tokens_details/reasoning_tokens"]);
    json!({
        "input_tokens": input, "input_tokens_details": {"cached_tokens": cached},
        "output_tokens": output, "output_tokens_details": {"reasoning_tokens": reasoning},
        "total_tokens": total,
    })
}

#[cfg(test)]
mod tests;
