//! A job's events as the chunks of a chat completion, and as the whole completion: folds over the
//! log, without I/O.
//!
//! A chat completion cannot withdraw text. An attempt that supersedes another is therefore sent only
//! from where the earlier one stopped, if it begins with the same output; otherwise the stream ends
//! with an error, and the client reads the completion again.

use serde_json::{Value, json};

use super::error::OpenAiProblem;
use super::job::held;
use super::sent::{OtherOutput, SentText};
use crate::source::LogFold;
use crate::wire::{Body, Channel, Event, JobId, Seq, Stored};

/// What all chunks of a completion say about it.
#[derive(Debug)]
pub(super) struct CompletionHead {
    job: JobId,
    kind: String,
    created: u64,
}

impl CompletionHead {
    pub(super) fn new(job: JobId) -> Self {
        Self {
            job,
            kind: String::new(),
            created: 0,
        }
    }

    fn apply(&mut self, event: &Event) {
        if self.created == 0 {
            self.created = event.ts / 1000;
        }
        if let Body::Queued { kind, .. } | Body::Started { kind, .. } = &event.body {
            kind.as_str().clone_into(&mut self.kind);
        }
    }

    fn object(&self, object: &str) -> Value {
        json!({"id": self.job, "object": object, "created": self.created, "model": self.kind})
    }
}

/// The chunks of one completion.
#[derive(Debug)]
pub(super) struct CompletionChunks {
    head: CompletionHead,
    /// The client has the chunks of events up to this one.
    after: Seq,
    wants_usage: bool,
    has_role: bool,
    output: SentText,
    reasoning: SentText,
    /// The tool calls that were sent, as JSON, and how many there are.
    calls: SentText,
    call_count: usize,
    /// Whether the client may have read output that is not in `output`, `reasoning` and `calls`.
    lacks_known: bool,
    is_ended: bool,
}

impl CompletionChunks {
    /// The chunks after the event `after`; 0 for all.
    pub(super) fn new(job: JobId, after: Seq) -> Self {
        Self {
            head: CompletionHead::new(job),
            after,
            wants_usage: false,
            has_role: after > Seq(0),
            output: SentText::default(),
            reasoning: SentText::default(),
            calls: SentText::default(),
            call_count: 0,
            lacks_known: false,
            is_ended: false,
        }
    }

    /// The chunks of the next event. An error ends them.
    pub(super) fn apply(&mut self, stored: &Stored) -> Vec<Value> {
        if self.is_ended {
            return Vec::new();
        }
        let mut chunks = Vec::new();
        match stored.event() {
            Ok(event) => {
                self.head.apply(&event);
                if self.apply_event(event, &mut chunks).is_err() {
                    self.is_ended = true;
                    chunks = vec![OpenAiProblem::superseded(&self.head.job).to_json()];
                }
            }
            // A part of the answer may be lost with it.
            Err(_) if stored.seq > self.after || stored.event_type.is_end() => {
                self.is_ended = true;
                chunks = vec![OpenAiProblem::incomplete(&self.head.job).to_json()];
            }
            Err(_) => self.lacks_known = true,
        }
        if stored.seq <= self.after {
            // The client may have read a later attempt than the first one.
            chunks.clear();
        }
        chunks
    }

    /// The chunks when the events up to `to` have expired: an error, unless the client has read them.
    pub(super) fn missing(&mut self, to: Seq) -> Vec<Value> {
        if to > self.after {
            return self.close();
        }
        self.lacks_known = true;
        Vec::new()
    }

    /// The chunks when no more events can be read.
    pub(super) fn close(&mut self) -> Vec<Value> {
        if std::mem::replace(&mut self.is_ended, true) {
            return Vec::new();
        }
        vec![OpenAiProblem::unreadable(&self.head.job).to_json()]
    }

    fn apply_event(&mut self, event: Event, chunks: &mut Vec<Value>) -> Result<(), OtherOutput> {
        let is_known = event.seq <= self.after;
        match event.body {
            Body::Queued { input, .. } => {
                let usage = input.pointer("/stream_options/include_usage");
                self.wants_usage = usage.is_some_and(|usage| usage == true);
            }
            Body::Started {
                continues: false, ..
            } => self.repeat(is_known)?,
            Body::Chunk { text, channel } => {
                let (sent, field) = match channel {
                    Channel::Output => (&mut self.output, "content"),
                    Channel::Reasoning => (&mut self.reasoning, "reasoning_content"),
                };
                let new = sent.push(&text)?;
                if !new.is_empty() {
                    let delta = json!({field: new});
                    self.put_delta(delta, &Value::Null, chunks);
                }
            }
            Body::Data { data } => self.data(data, chunks)?,
            Body::Done {
                usage,
                finish_reason,
            } => {
                if [&self.output, &self.reasoning, &self.calls]
                    .iter()
                    .any(|sent| sent.is_short())
                {
                    return Err(OtherOutput);
                }
                let reason = finish_reason.unwrap_or_else(|| "stop".into());
                self.put_delta(json!({}), &reason.into(), chunks);
                if let Some(usage) = usage.filter(|_| self.wants_usage) {
                    let mut chunk = self.head.object(CHUNK);
                    chunk["choices"] = json!([]);
                    chunk["usage"] = usage;
                    chunks.push(chunk);
                }
                self.is_ended = true;
            }
            Body::Failed(failure) => {
                chunks.push(OpenAiProblem::of_failure(&failure).to_json());
                self.is_ended = true;
            }
            Body::Cancelled {} => {
                chunks.push(OpenAiProblem::cancelled().to_json());
                self.is_ended = true;
            }
            Body::Started { .. }
            | Body::Retrying { .. }
            | Body::CancelRequested { .. }
            | Body::Unknown => {}
        }
        Ok(())
    }

    /// An attempt begins that does not continue. What the client has read up to `after` is of the
    /// last attempt before that, whatever earlier ones wrote.
    ///
    /// # Errors
    /// It is not known what the client has read, so the attempt cannot be compared with it.
    fn repeat(&mut self, is_known: bool) -> Result<(), OtherOutput> {
        if self.lacks_known && !is_known {
            return Err(OtherOutput);
        }
        for sent in [&mut self.output, &mut self.reasoning, &mut self.calls] {
            if is_known {
                *sent = SentText::default();
            } else {
                sent.repeat();
            }
        }
        if is_known {
            self.call_count = 0;
            self.lacks_known = false;
        }
        Ok(())
    }

    fn data(&mut self, data: Value, chunks: &mut Vec<Value>) -> Result<(), OtherOutput> {
        let Some(calls) = data.get("tool_calls").and_then(Value::as_array) else {
            let text = data.to_string();
            // Data that was sent before is part of what is compared.
            if self.calls.push(&text)? == text {
                let mut chunk = self.chunk(&json!({}), &Value::Null);
                chunk["data"] = data;
                chunks.push(chunk);
            }
            return Ok(());
        };
        for call in calls {
            // A worker may write anything there; clients expect objects.
            let Value::Object(fields) = call else {
                continue;
            };
            let text = call.to_string();
            if self.calls.push(&text)? != text {
                continue;
            }
            let mut call = fields.clone();
            call.insert("index".into(), self.call_count.into());
            self.call_count += 1;
            self.put_delta(json!({"tool_calls": [call]}), &Value::Null, chunks);
        }
        Ok(())
    }

    fn put_delta(&mut self, mut delta: Value, reason: &Value, chunks: &mut Vec<Value>) {
        if !std::mem::replace(&mut self.has_role, true) {
            delta["role"] = "assistant".into();
        }
        chunks.push(self.chunk(&delta, reason));
    }

    fn chunk(&self, delta: &Value, reason: &Value) -> Value {
        let mut chunk = self.head.object(CHUNK);
        chunk["choices"] = json!([{"index": 0, "delta": delta, "finish_reason": reason}]);
        if self.wants_usage {
            chunk["usage"] = Value::Null;
        }
        chunk
    }

    /// Whether the completion is complete, or has failed.
    pub(super) const fn is_ended(&self) -> bool {
        self.is_ended
    }
}

const CHUNK: &str = "chat.completion.chunk";

/// The whole completion, as far as the log has it.
#[derive(Debug)]
pub(super) struct WholeCompletion {
    head: CompletionHead,
    output: String,
    reasoning: String,
    calls: Vec<Value>,
    data: Vec<Value>,
    end: Option<Result<(Option<Value>, String), OpenAiProblem>>,
    /// Whether events are missing that may have been output of the attempt that counts.
    is_incomplete: bool,
    /// About how many bytes the JSON values hold.
    values: usize,
}

impl WholeCompletion {
    pub(super) fn new(job: JobId) -> Self {
        Self {
            head: CompletionHead::new(job),
            output: String::new(),
            reasoning: String::new(),
            calls: Vec::new(),
            data: Vec::new(),
            end: None,
            is_incomplete: false,
            values: 0,
        }
    }

    fn apply_stored(&mut self, stored: &Stored) {
        match stored.event() {
            Ok(event) => {
                self.head.apply(&event);
                self.apply_event(event);
            }
            Err(_) if stored.event_type.is_end() => {
                self.end = Some(Err(OpenAiProblem::incomplete(&self.head.job)));
            }
            Err(_) => self.is_incomplete = true,
        }
    }

    /// Drops the output of the attempts so far.
    fn clear(&mut self) {
        self.output.clear();
        self.reasoning.clear();
        self.calls.clear();
        self.data.clear();
        self.values = 0;
    }

    fn apply_event(&mut self, event: Event) {
        match event.body {
            Body::Started {
                continues: false, ..
            } => {
                self.clear();
                self.is_incomplete = false;
            }
            Body::Chunk {
                text,
                channel: Channel::Output,
            } => self.output += &text,
            Body::Chunk { text, .. } => self.reasoning += &text,
            Body::Data { mut data } => match data.get_mut("tool_calls") {
                Some(Value::Array(calls)) => {
                    self.values += calls.iter().map(held).sum::<usize>();
                    self.calls.append(calls);
                }
                _ => {
                    self.values += held(&data);
                    self.data.push(data);
                }
            },
            Body::Done {
                usage,
                finish_reason,
            } => {
                self.values += usage.as_ref().map_or(0, held);
                self.end = Some(Ok((usage, finish_reason.unwrap_or_else(|| "stop".into()))));
            }
            Body::Failed(failure) => self.end = Some(Err(OpenAiProblem::of_failure(&failure))),
            Body::Cancelled {} => self.end = Some(Err(OpenAiProblem::cancelled())),
            Body::Queued { .. }
            | Body::Started { .. }
            | Body::Retrying { .. }
            | Body::CancelRequested { .. }
            | Body::Unknown => {}
        }
    }

    /// The completion, or why there is none.
    pub(super) fn into_json(self) -> Result<Value, OpenAiProblem> {
        let Some(end) = self.end else {
            return Err(OpenAiProblem::still_running(&self.head.job));
        };
        let (usage, reason) = end?;
        if self.is_incomplete {
            return Err(OpenAiProblem::incomplete(&self.head.job));
        }
        let content = if self.output.is_empty() && !self.calls.is_empty() {
            Value::Null
        } else {
            self.output.into()
        };
        // `json!` would copy the large values.
        let mut message = json!({"role": "assistant", "refusal": null});
        message["content"] = content;
        if !self.reasoning.is_empty() {
            message["reasoning_content"] = self.reasoning.into();
        }
        if !self.calls.is_empty() {
            message["tool_calls"] = self.calls.into();
        }
        let mut completion = self.head.object("chat.completion");
        let mut choice = json!({"index": 0, "logprobs": null, "finish_reason": reason});
        choice["message"] = message;
        completion["choices"] = Value::Array(vec![choice]);
        completion["usage"] = usage.unwrap_or(Value::Null);
        if !self.data.is_empty() {
            completion["data"] = self.data.into();
        }
        Ok(completion)
    }
}

impl LogFold for WholeCompletion {
    fn apply(&mut self, stored: &Stored) {
        self.apply_stored(stored);
    }

    fn missing(&mut self, _: Seq, _: Seq) {
        // They may have been output, or an attempt that replaced the earlier output.
        self.clear();
        self.is_incomplete = true;
    }

    fn size(&self) -> usize {
        self.output.len() + self.reasoning.len() + self.values
    }
}

#[cfg(test)]
mod tests;
