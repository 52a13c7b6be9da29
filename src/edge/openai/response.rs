//! A job's events as the events of a response, and as the response object: a fold over the log,
//! without I/O. The same log always gives the same events with the same numbers, so a client resumes
//! after a number.
//!
//! An attempt that supersedes another begins new items; those of the earlier one are incomplete, and
//! absent from the final response.

use std::mem;

use serde_json::{Value, json};

use super::error::OpenAiProblem;
use super::job::held;
use crate::source::LogFold;
use crate::wire::{Body, Channel, Event, JobFailure, JobId, Seq, Stored};

/// A response as far as the log has it.
#[derive(Debug)]
pub(super) struct ResponseFold {
    job: JobId,
    kind: String,
    created: Option<u64>,
    status: &'static str,
    /// The items that count.
    items: Vec<Value>,
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
    text: String,
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

    /// The response events of the next event.
    pub(super) fn apply(&mut self, stored: &Stored) -> Vec<Value> {
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
    pub(super) fn close(&mut self) -> Vec<Value> {
        self.break_off(&OpenAiProblem::unreadable(&self.job))
    }

    /// Fails the response with a problem of its log.
    fn break_off(&mut self, problem: &OpenAiProblem) -> Vec<Value> {
        let mut out = Vec::new();
        if !mem::replace(&mut self.is_ended, true) {
            let problem = problem.to_json();
            let mut error = json!({
                "code": problem["error"]["code"], "message": problem["error"]["message"],
            });
            self.status = "failed";
            self.error = error.clone();
            error["param"] = Value::Null;
            self.put("error", error, &mut out);
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
    pub(super) fn snapshot(&self) -> Value {
        let mut items = self.items.clone();
        let status = if self.is_ended {
            "incomplete"
        } else {
            "in_progress"
        };
        items.extend(self.open.as_ref().map(|open| open.item(status)));
        self.object(items)
    }

    fn object(&self, output: Vec<Value>) -> Value {
        let mut object = json!({
            "id": self.job, "object": "response", "created_at": self.created.unwrap_or(0),
            "status": self.status, "background": true, "error": self.error,
            "incomplete_details": self.incomplete, "instructions": null, "metadata": {},
            "model": self.kind, "parallel_tool_calls": true, "temperature": null,
            "tool_choice": "auto", "tools": [], "top_p": null, "usage": self.usage,
        });
        // `json!` would copy it.
        object["output"] = output.into();
        object
    }

    /// Begins the response with its first event.
    fn begin(&mut self, event: &Event, out: &mut Vec<Value>) {
        if let Body::Queued { kind, .. } | Body::Started { kind, .. } = &event.body {
            kind.as_str().clone_into(&mut self.kind);
        }
        if self.created.is_none() {
            self.created = Some(event.ts / 1000);
            self.put_response("response.created", out);
            self.put_response("response.queued", out);
        }
    }

    fn apply_event(&mut self, event: Event, out: &mut Vec<Value>) {
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
            Body::Chunk { text, channel } if !text.is_empty() => self.text(channel, &text, out),
            Body::Data { mut data } => {
                self.end_item("completed", out);
                match data.get_mut("tool_calls") {
                    Some(Value::Array(calls)) => {
                        for call in mem::take(calls) {
                            self.call(&call, out);
                        }
                    }
                    _ => self.put("tailwater.data", json!({"data": data}), out),
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

    fn supersede(&mut self, out: &mut Vec<Value>) {
        self.end_item("incomplete", out);
        self.items.clear();
        self.items_size = 0;
        self.incomplete = Value::Null;
    }

    /// Adds an item that is complete.
    fn keep(&mut self, item: Value) {
        self.items_size += held(&item);
        self.items.push(item);
    }

    fn text(&mut self, channel: Channel, text: &str, out: &mut Vec<Value>) {
        let mut open = match self.open.take() {
            Some(open) if open.channel == channel => open,
            other => {
                self.open = other;
                self.end_item("completed", out);
                self.begin_item(channel, out)
            }
        };
        let mut delta = open.place();
        delta["delta"] = text.into();
        if channel == Channel::Output {
            delta["logprobs"] = json!([]);
        }
        self.put(&format!("response.{}.delta", open.part_type()), delta, out);
        open.text += text;
        self.open = Some(open);
    }

    fn begin_item(&mut self, channel: Channel, out: &mut Vec<Value>) -> OpenItem {
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
            text: String::new(),
        };
        let mut item = open.item("in_progress");
        item["content"] = json!([]);
        self.put(
            "response.output_item.added",
            json!({"output_index": index, "item": item}),
            out,
        );
        let mut part = open.place();
        part["part"] = open.part();
        self.put("response.content_part.added", part, out);
        open
    }

    /// Ends the open item.
    fn end_item(&mut self, status: &str, out: &mut Vec<Value>) {
        let Some(open) = self.open.take() else { return };
        let mut text = open.place();
        text["text"] = open.text.as_str().into();
        if open.channel == Channel::Output {
            text["logprobs"] = json!([]);
        }
        self.put(&format!("response.{}.done", open.part_type()), text, out);
        let mut part = open.place();
        part["part"] = open.part();
        self.put("response.content_part.done", part, out);
        let item = open.item(status);
        let done = json!({"output_index": open.index, "item": item});
        self.put("response.output_item.done", done, out);
        self.keep(item);
    }

    /// A complete tool call in the form of a chat completion.
    fn call(&mut self, call: &Value, out: &mut Vec<Value>) {
        let index = self.begun;
        self.begun += 1;
        let function = &call["function"];
        let arguments = function["arguments"].as_str().unwrap_or_default();
        let id = format!("fc_{}_{index}", self.job);
        let item = |status: &str, arguments: &str| {
            json!({
                "type": "function_call", "id": id, "call_id": call["id"], "name": function["name"],
                "arguments": arguments, "status": status,
            })
        };
        let added = json!({"output_index": index, "item": item("in_progress", "")});
        self.put("response.output_item.added", added, out);
        let delta = json!({"item_id": id, "output_index": index, "delta": arguments});
        self.put("response.function_call_arguments.delta", delta, out);
        let done = json!({
            "item_id": id, "output_index": index, "name": function["name"], "arguments": arguments,
        });
        self.put("response.function_call_arguments.done", done, out);
        let item = item("completed", arguments);
        let done = json!({"output_index": index, "item": item});
        self.put("response.output_item.done", done, out);
        self.keep(item);
    }

    fn done(&mut self, usage: Option<&Value>, reason: Option<&str>, out: &mut Vec<Value>) {
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

    fn end(&mut self, status: &'static str, event_type: &str, out: &mut Vec<Value>) {
        self.status = status;
        self.put_response(event_type, out);
        self.is_ended = true;
    }

    fn put_response(&mut self, event_type: &str, out: &mut Vec<Value>) {
        let mut event = json!({});
        event["response"] = self.object(self.items.clone());
        self.put(event_type, event, out);
    }

    /// Adds an event with these fields.
    fn put(&mut self, event_type: &str, mut event: Value, out: &mut Vec<Value>) {
        event["type"] = event_type.into();
        event["sequence_number"] = self.next_number.into();
        self.next_number += 1;
        out.push(event);
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

    fn part(&self) -> Value {
        match self.channel {
            Channel::Output => {
                json!({"type": "output_text", "text": self.text, "annotations": [], "logprobs": []})
            }
            Channel::Reasoning => json!({"type": "reasoning_text", "text": self.text}),
        }
    }

    fn item(&self, status: &str) -> Value {
        let mut item = match self.channel {
            Channel::Output => json!({"type": "message", "role": "assistant"}),
            Channel::Reasoning => json!({"type": "reasoning", "summary": []}),
        };
        item["id"] = self.id.as_str().into();
        item["status"] = status.into();
        item["content"] = json!([self.part()]);
        item
    }
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
