//! A job's events as UI message parts of the AI SDK: a fold over the log, without I/O. One job is one
//! assistant message with one step, and an attempt that supersedes another resets that step.

use serde_json::{Value, json};

use crate::edge::json::text;
use crate::wire::limits::NAME_MAX;
use crate::wire::{Body, Channel, Event, JobFailure, JobId, Seq, Stored};

/// The parts of one job's message.
#[derive(Debug)]
pub(super) struct MessageParts {
    job: JobId,
    is_started: bool,
    is_ended: bool,
    /// Whether the step has parts that a reset would remove.
    has_parts: bool,
    /// How many texts and reasonings were begun. Their ids are never used again.
    begun: u64,
    /// The text or reasoning that is not ended, and its id.
    open: Option<(Channel, String)>,
}

impl MessageParts {
    pub(super) fn new(job: JobId) -> Self {
        Self {
            job,
            is_started: false,
            is_ended: false,
            has_parts: false,
            begun: 0,
            open: None,
        }
    }

    /// The parts of the next event. One with invalid fields is missing, or the end if its type is.
    pub(super) fn apply(&mut self, stored: &Stored) -> Vec<Value> {
        let mut parts = Vec::new();
        self.start(&mut parts);
        match stored.event() {
            Ok(event) => self.apply_event(event, &mut parts),
            Err(_) if stored.event_type.is_end() => self.close_with(UNREADABLE, &mut parts),
            Err(_) => self.put_missing(stored.seq, stored.seq, &mut parts),
        }
        parts
    }

    /// The part for events that have expired.
    pub(super) fn missing(&mut self, from: Seq, to: Seq) -> Vec<Value> {
        let mut parts = Vec::new();
        self.start(&mut parts);
        self.put_missing(from, to, &mut parts);
        parts
    }

    /// The parts when no more events can be read.
    pub(super) fn close(&mut self) -> Vec<Value> {
        let mut parts = Vec::new();
        if !self.is_ended {
            self.start(&mut parts);
            self.close_with(UNREADABLE, &mut parts);
        }
        parts
    }

    /// Whether the message is complete.
    pub(super) fn is_ended(&self) -> bool {
        self.is_ended
    }

    fn start(&mut self, parts: &mut Vec<Value>) {
        if self.is_started {
            return;
        }
        self.is_started = true;
        let metadata = json!({"job": self.job});
        parts.push(json!({"type": "start", "messageId": self.job, "messageMetadata": metadata}));
        parts.push(json!({"type": "start-step"}));
    }

    fn apply_event(&mut self, event: Event, parts: &mut Vec<Value>) {
        match event.body {
            Body::Started {
                continues: false, ..
            } => self.reset(parts),
            Body::Chunk { text, channel } if !text.is_empty() => self.text(channel, &text, parts),
            Body::Data { data } => self.data(event.seq, &data, parts),
            Body::Done {
                usage,
                finish_reason,
            } => self.done(usage, finish_reason.as_deref(), parts),
            Body::Failed(JobFailure { code, message, .. }) => {
                self.close_with(&format!("{code}: {message}"), parts);
            }
            Body::Cancelled {} => {
                self.end_open(parts);
                parts.push(json!({"type": "abort", "reason": "The job was cancelled."}));
                self.is_ended = true;
            }
            Body::Queued { .. }
            | Body::Started { .. }
            | Body::Chunk { .. }
            | Body::Retrying { .. }
            | Body::CancelRequested { .. }
            | Body::Unknown => {}
        }
    }

    /// Withdraws what earlier attempts wrote. The client drops open texts itself.
    fn reset(&mut self, parts: &mut Vec<Value>) {
        if std::mem::take(&mut self.has_parts) {
            self.open = None;
            parts.push(json!({"type": "reset-step"}));
        }
    }

    fn text(&mut self, channel: Channel, text: &str, parts: &mut Vec<Value>) {
        let id = match &self.open {
            Some((open, id)) if *open == channel => id.clone(),
            Some(_) | None => self.begin(channel, parts),
        };
        let delta = format!("{}-delta", name_of(channel));
        parts.push(json!({"type": delta, "id": id, "delta": text}));
    }

    fn begin(&mut self, channel: Channel, parts: &mut Vec<Value>) -> String {
        self.end_open(parts);
        self.has_parts = true;
        self.begun += 1;
        let id = self.begun.to_string();
        let start = format!("{}-start", name_of(channel));
        parts.push(json!({"type": start, "id": id}));
        self.open = Some((channel, id.clone()));
        id
    }

    fn end_open(&mut self, parts: &mut Vec<Value>) {
        if let Some((channel, id)) = self.open.take() {
            let end = format!("{}-end", name_of(channel));
            parts.push(json!({"type": end, "id": id}));
        }
    }

    fn data(&mut self, seq: Seq, data: &Value, parts: &mut Vec<Value>) {
        self.end_open(parts);
        self.has_parts = true;
        match data.get("tool_calls").and_then(Value::as_array) {
            Some(calls) => {
                for (index, call) in calls.iter().enumerate() {
                    tool_call(seq, index, call, parts);
                }
            }
            None => {
                let named = data.get("type").and_then(Value::as_str);
                let part = format!(
                    "data-{}",
                    named.filter(|name| is_name(name)).unwrap_or("job")
                );
                parts.push(json!({"type": part, "id": seq.to_string(), "data": data}));
            }
        }
    }

    fn done(&mut self, usage: Option<Value>, reason: Option<&str>, parts: &mut Vec<Value>) {
        self.end_open(parts);
        parts.push(json!({"type": "finish-step"}));
        if let Some(usage) = usage {
            parts.push(json!({"type": "message-metadata", "messageMetadata": {"usage": usage}}));
        }
        let reason = match reason {
            None | Some("stop") => "stop",
            Some("length") => "length",
            Some("content_filter") => "content-filter",
            Some("tool_calls") => "tool-calls",
            Some(_) => "other",
        };
        parts.push(json!({"type": "finish", "finishReason": reason}));
        self.is_ended = true;
    }

    fn put_missing(&mut self, from: Seq, to: Seq, parts: &mut Vec<Value>) {
        self.end_open(parts);
        parts.push(json!({"type": "data-missing", "data": {"from": from, "to": to}}));
    }

    fn close_with(&mut self, error: &str, parts: &mut Vec<Value>) {
        self.end_open(parts);
        parts.push(json!({"type": "error", "errorText": error}));
        self.is_ended = true;
    }
}

/// Whether data with this type gets a part of that name.
fn is_name(text: &str) -> bool {
    let is_part = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    (1..=NAME_MAX).contains(&text.len()) && text.bytes().all(is_part)
}

const UNREADABLE: &str = "The rest of the answer cannot be read. Resume the chat to read it again.";

const fn name_of(channel: Channel) -> &'static str {
    match channel {
        Channel::Output => "text",
        Channel::Reasoning => "reasoning",
    }
}

/// The parts of a complete tool call in the form of a chat completion.
fn tool_call(seq: Seq, index: usize, call: &Value, parts: &mut Vec<Value>) {
    let function = call.get("function").unwrap_or(&Value::Null);
    let name = text(function, "name");
    let id = match text(call, "id") {
        "" => format!("call-{seq}-{index}"),
        id => id.to_owned(),
    };
    parts.push(json!({"type": "tool-input-start", "toolCallId": id, "toolName": name}));
    let arguments = text(function, "arguments");
    parts.push(match serde_json::from_str::<Value>(arguments) {
        Ok(input) => {
            json!({"type": "tool-input-available", "toolCallId": id, "toolName": name, "input": input})
        }
        Err(error) => json!({
            "type": "tool-input-error", "toolCallId": id, "toolName": name, "input": arguments,
            "errorText": format!("The arguments are not JSON: {error}"),
        }),
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The parts of each event, in a short form: the type, and the value of one field.
    fn translated(bodies: Vec<Body>) -> Vec<String> {
        let job: JobId = "j".parse().unwrap();
        let mut message = MessageParts::new(job.clone());
        let mut all = Vec::new();
        for (seq, body) in (1..).zip(bodies) {
            let event = Event {
                body,
                job: job.clone(),
                seq: Seq(seq),
                attempt: 1,
                ts: 1,
            };
            let stored = Stored::decode(&job, seq, event.encode().unwrap()).unwrap();
            all.extend(message.apply(&stored));
        }
        assert!(message.close().is_empty());
        let fields = [
            "delta",
            "errorText",
            "input",
            "data",
            "finishReason",
            "id",
            "reason",
        ];
        all.iter()
            .map(|part| {
                let shown = fields.iter().find_map(|field| part.get(*field));
                let shown = shown.map_or(String::new(), |value| match value.as_str() {
                    Some(text) => format!(" {text}"),
                    None => format!(" {value}"),
                });
                format!("{}{shown}", part["type"].as_str().unwrap())
            })
            .collect()
    }

    fn started(continues: bool) -> Body {
        Body::Started {
            kind: "k".parse().unwrap(),
            worker: "w".into(),
            continues,
        }
    }

    fn chunk(channel: Channel, text: &str) -> Body {
        Body::Chunk {
            text: text.into(),
            channel,
        }
    }

    fn done(finish_reason: &str) -> Body {
        Body::Done {
            usage: None,
            finish_reason: Some(finish_reason.into()),
        }
    }

    fn lines(text: &str) -> Vec<String> {
        text.lines().map(|line| line.trim().to_owned()).collect()
    }

    #[test]
    fn text_and_reasoning_are_parts_of_their_own() {
        let found = translated(vec![
            Body::queued("k".parse().unwrap(), Value::Null),
            started(false),
            chunk(Channel::Reasoning, "hm"),
            chunk(Channel::Output, "a"),
            chunk(Channel::Output, ""),
            chunk(Channel::Output, "b"),
            done("length"),
        ]);
        let expected = "start
            start-step
            reasoning-start 1
            reasoning-delta hm
            reasoning-end 1
            text-start 2
            text-delta a
            text-delta b
            text-end 2
            finish-step
            finish length";
        assert_eq!(found, lines(expected));
    }

    #[test]
    fn an_attempt_that_supersedes_output_resets_the_step() {
        let found = translated(vec![
            started(false),
            chunk(Channel::Output, "old"),
            started(false),
            started(false),
            chunk(Channel::Output, "new"),
            started(true),
            chunk(Channel::Output, "er"),
            Body::Cancelled {},
        ]);
        let expected = "start
            start-step
            text-start 1
            text-delta old
            reset-step
            text-start 2
            text-delta new
            text-delta er
            text-end 2
            abort The job was cancelled.";
        assert_eq!(found, lines(expected));
    }

    #[test]
    fn tool_calls_and_data_end_the_text_before_them() {
        let call = json!({"id": "c", "type": "function", "function": {"name": "f", "arguments": "{\"x\":1}"}});
        let bad = json!({"function": {"name": "f", "arguments": "{"}});
        let found = translated(vec![
            chunk(Channel::Output, "a"),
            Body::Data {
                data: json!({"tool_calls": [call, bad]}),
            },
            Body::Data { data: json!(7) },
            Body::Data {
                data: json!({"type": "weather", "c": 3}),
            },
            done("tool_calls"),
        ]);
        let expected = "start
            start-step
            text-start 1
            text-delta a
            text-end 1
            tool-input-start
            tool-input-available {\"x\":1}
            tool-input-start
            tool-input-error The arguments are not JSON: EOF while parsing an object at line 1 column 1
            data-job 7
            data-weather {\"c\":3,\"type\":\"weather\"}
            finish-step
            finish tool-calls";
        assert_eq!(found, lines(expected));
    }

    #[test]
    fn a_failed_job_is_an_error_and_usage_is_metadata() {
        let failure = JobFailure {
            code: "c".into(),
            message: "m".into(),
            retryable: false,
        };
        assert_eq!(
            translated(vec![chunk(Channel::Output, "a"), Body::Failed(failure)])[3..],
            lines("text-delta a\ntext-end 1\nerror c: m")[..]
        );
        let mut message = MessageParts::new("j".parse().unwrap());
        let mut parts = Vec::new();
        message.done(Some(json!({"total_tokens": 3})), None, &mut parts);
        assert_eq!(
            parts[1],
            json!({"type": "message-metadata", "messageMetadata": {"usage": {"total_tokens": 3}}})
        );
        assert_eq!(parts[2]["finishReason"], "stop");
    }

    #[test]
    fn a_log_without_an_end_is_an_error_and_a_gap_is_data() {
        let mut message = MessageParts::new("j".parse().unwrap());
        let gap = message.missing(Seq(1), Seq(3));
        assert_eq!(
            gap[2],
            json!({"type": "data-missing", "data": {"from": 1, "to": 3}})
        );
        assert_eq!(message.close()[0]["type"], "error");
        assert!(message.close().is_empty());
    }

    #[test]
    fn an_event_that_cannot_be_decoded_is_missing_and_ends_the_text_before_it() {
        let job: JobId = "j".parse().unwrap();
        let mut message = MessageParts::new(job.clone());
        let mut parts = Vec::new();
        message.text(Channel::Output, "a", &mut parts);
        let mut apply = |seq: u64, event_type: &str| {
            let event = json!({"type": event_type, "job": "j", "seq": seq, "attempt": 1, "ts": 1});
            let payload = event.to_string().into_bytes().into();
            message.apply(&Stored::decode(&job, seq, payload).unwrap())
        };
        let found = apply(7, "model:chunk:v1");
        let expected = [
            json!({"type": "text-end", "id": "1"}),
            json!({"type": "data-missing", "data": {"from": 7, "to": 7}}),
        ];
        assert!(found.ends_with(&expected), "{found:?}");
        let found = apply(8, "job:failed:v1");
        assert_eq!(found[0]["type"], "error");
        assert_eq!(found.len(), 1);
    }
}
