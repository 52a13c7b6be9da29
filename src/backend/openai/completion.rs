//! Turns the events of an answer into output and an end. Pure.
//!
//! ```text
//! content, reasoning, refusal, tool calls ─▶ … ─▶ finish_reason ─▶ usage ─▶ [DONE]
//!    ▲  └─ an end here is a cut: another attempt       │  └─ an end here is a whole answer, if the reason can be trusted
//!    └──────────── content revokes the reason ─────────┘
//! ```

use serde_json::{Value, json};

use super::chunk::{Choice, ChunkPart, Source};
use super::completeness::{ChoiceContent, Completeness};
use super::fault::{Fault, damaged, unreadable};
use super::server_error::{ServerError, is_heartbeat};
use super::tools::ToolCalls;
use crate::backend::http::shorten;
use crate::backend::sse::SseEvent;
use crate::backend::surrogates::{self, Joiner};
use crate::backend::{Channel, Content, Failure, Finish, Retry};
use crate::config::{FINISH_REASON_MAX, USAGE_MAX};

/// What precedes the server's message when it reports an error in its answer.
const BROKE_OFF: &str = "the model server broke off";

/// The answer so far.
#[derive(Debug, Default)]
pub(super) struct Completion {
    tools: ToolCalls,
    output: Joiner,
    reasoning: Joiner,
    /// The model has begun to refuse.
    refused: bool,
    finish: Finish,
    /// The end mark was read.
    done: bool,
    /// How many events had choices or usage.
    events: u64,
    /// How many events were JSON without either.
    others: u64,
    /// The index of the choice that is output.
    index: Option<Value>,
    /// An event had choices with different indexes, so that the index also distinguishes those of
    /// later events.
    several: bool,
    /// Text came in deltas.
    deltas: bool,
    /// The last data that was not JSON: some servers report errors this way.
    last_words: String,
    /// The error that the last event may be.
    unsure: Option<ServerError>,
    completeness: Completeness,
}

impl Completion {
    /// Reads an event and adds its output to `contents`.
    pub(super) fn push(
        &mut self,
        event: &SseEvent,
        contents: &mut Vec<Content>,
    ) -> Result<(), Fault> {
        let data = event.data.trim();
        let is_error = event.name.to_ascii_lowercase().contains("error");
        if data.trim_matches('"').eq_ignore_ascii_case("[DONE]") {
            self.done = true;
            return Ok(());
        }
        let values = match values(data) {
            Ok(values) => values,
            Err(_) if is_error => return Err(broken(ServerError::of_text(data, None))),
            // A heartbeat, or text: damaged JSON of a chunk has braces.
            Err(_) if !data.contains(['{', '}']) => {
                self.note_words(data, event);
                return Ok(());
            }
            Err(error) => {
                return Err(damaged(&format!("an event is not valid JSON: {error}")).into());
            }
        };
        if is_error && !values.iter().any(Value::is_object) {
            return Err(broken(ServerError::of_text(data, None)));
        }
        values
            .iter()
            .filter_map(Value::as_str)
            .for_each(|words| self.note_words(words, event));
        let is_ping = is_heartbeat(&event.name);
        let objects = values.iter().filter(|value| value.is_object());
        for value in objects.filter(|value| !is_ping || value.get("choices").is_some()) {
            self.push_object(value, is_error, contents)?;
        }
        Ok(())
    }

    /// Keeps text that is not part of the answer, in case the answer ends with it.
    fn note_words(&mut self, words: &str, event: &SseEvent) {
        if !is_heartbeat(words) && !is_heartbeat(&event.name) {
            self.last_words = shorten(words.to_owned());
            surrogates::settle_text(&mut self.last_words);
        }
    }

    fn push_object(
        &mut self,
        value: &Value,
        is_error: bool,
        contents: &mut Vec<Content>,
    ) -> Result<(), Fault> {
        if let Some(error) = ServerError::of_event(value, is_error) {
            if !error.unsure {
                return Err(broken(error));
            }
            self.unsure = Some(error);
            return Ok(());
        }
        let choices = match value.get("choices") {
            Some(Value::Array(choices)) => choices.as_slice(),
            None | Some(Value::Null) => &[],
            Some(_) => return Err(unreadable("choices is not a list").into()),
        };
        let usage = value.get("usage").or_else(|| choices.first()?.get("usage"));
        let usage = usage.filter(|usage| !usage.is_null());
        if choices.is_empty() && usage.is_none() {
            // Azure sends an empty list first.
            self.others += u64::from(value.get("choices").is_none());
            return Ok(());
        }
        self.events += 1;
        self.unsure = None;
        let mut has_content = false;
        for choice in self.select(choices) {
            let choice = Choice::read(choice, self.deltas)
                .map_err(|error| unreadable(&error.to_string()))?;
            has_content |= !choice.parts.is_empty();
            self.push_choice(choice, contents)?;
        }
        if let Some(usage) = usage {
            if !has_content {
                self.completeness.note_usage();
            }
            if usage.to_string().len() <= USAGE_MAX {
                let mut usage = usage.clone();
                surrogates::settle(&mut usage);
                self.finish.usage = Some(usage);
            }
        }
        Ok(())
    }

    /// The choices to output. The request is for one choice. The only choice of an event is that
    /// one, with any index, because some servers count up. Of several, only those with the first
    /// index are output, so that no other choice is mixed into the text.
    fn select<'a>(&mut self, choices: &'a [Value]) -> Vec<&'a Value> {
        let index = |choice: &Value| choice.get("index").cloned().unwrap_or_default();
        let Some(first) = choices.first().map(index) else {
            return Vec::new();
        };
        self.several |= choices.iter().any(|choice| index(choice) != first);
        if !self.several {
            self.index.get_or_insert(first);
            return choices.iter().collect();
        }
        let wanted = self.index.get_or_insert_with(|| first.clone());
        if choices.len() > 1 && !choices.iter().any(|choice| index(choice) == *wanted) {
            *wanted = first;
        }
        choices
            .iter()
            .filter(|choice| index(choice) == *wanted)
            .collect()
    }

    fn push_choice(&mut self, choice: Choice, contents: &mut Vec<Content>) -> Result<(), Failure> {
        let Choice {
            parts,
            finish_reason,
            source,
        } = choice;
        let reasons = |part: &ChunkPart| {
            matches!(
                part,
                ChunkPart::Text {
                    channel: Channel::Reasoning,
                    ..
                }
            )
        };
        let content = match parts.as_slice() {
            [] => ChoiceContent::Nothing,
            parts if parts.iter().all(reasons) => ChoiceContent::Reasoning,
            _ => ChoiceContent::Answer,
        };
        let has_content = content != ChoiceContent::Nothing;
        let is_message = source == Source::Message && has_content && self.events == 1;
        self.completeness
            .note_choice(content, finish_reason.is_some(), is_message);
        self.deltas |= source == Source::Delta && has_content;
        parts
            .into_iter()
            .try_for_each(|part| self.push_part(part, contents))?;
        if let Some(mut reason) = finish_reason {
            surrogates::settle_text(&mut reason);
            reason.truncate(reason.floor_char_boundary(FINISH_REASON_MAX));
            self.finish.finish_reason = Some(reason);
        }
        Ok(())
    }

    fn push_part(&mut self, part: ChunkPart, contents: &mut Vec<Content>) -> Result<(), Failure> {
        if !matches!(part, ChunkPart::Call { .. }) && self.tools.are_whole() {
            // Whole calls come before the text that follows them.
            contents.extend(self.tools.drain().map(Content::Data));
        }
        match part {
            ChunkPart::Text { channel, text } => self.push_text(channel, &text, contents),
            ChunkPart::Refusal(text) => {
                // The text of a refusal is output; this event lets programs recognize it.
                if !std::mem::replace(&mut self.refused, true) {
                    contents.push(Content::Data(json!({"refusal": true})));
                }
                self.push_text(Channel::Output, &text, contents);
            }
            ChunkPart::Call { piece, position } => self.tools.push(&piece, position)?,
            ChunkPart::Other(mut value) => {
                surrogates::settle(&mut value);
                contents.push(Content::Data(value));
            }
        }
        Ok(())
    }

    fn push_text(&mut self, channel: Channel, text: &str, contents: &mut Vec<Content>) {
        let joiner = match channel {
            Channel::Output => &mut self.output,
            Channel::Reasoning => &mut self.reasoning,
        };
        let text = joiner.push(text);
        if !text.is_empty() {
            contents.push(Content::Text { channel, text });
        }
    }

    /// Whether the end mark was read.
    pub(super) fn is_done(&self) -> bool {
        self.done
    }

    /// Whether the answer is complete even if no end mark follows.
    pub(super) fn is_trusted(&self) -> bool {
        self.completeness.is_trusted()
    }

    /// How many events had a part of the answer; heartbeats have none.
    pub(super) fn events(&self) -> u64 {
        self.events
    }

    /// Whether there were events, but none in a known form.
    pub(super) fn is_unrecognized(&self) -> bool {
        self.events == 0 && self.others > 0
    }

    /// The last text that was not part of the answer, to append to a sentence.
    pub(super) fn last_words(&self) -> String {
        if self.last_words.is_empty() {
            String::new()
        } else {
            format!("; its last words: {}", self.last_words)
        }
    }

    /// Ends the answer and adds the rest of its output to `contents`; `cut` is the failure if the
    /// answer is not whole.
    pub(super) fn end(
        mut self,
        cut: Failure,
        contents: &mut Vec<Content>,
    ) -> Result<Finish, Failure> {
        let is_whole = self.done && self.finish.finish_reason.is_some() || self.is_trusted();
        if !is_whole {
            return Err(self
                .unsure
                .map_or(cut, |error| error.failure(BROKE_OFF, Retry::Later)));
        }
        for (channel, joiner) in [
            (Channel::Reasoning, &mut self.reasoning),
            (Channel::Output, &mut self.output),
        ] {
            contents.extend(joiner.end().map(|half| Content::Text {
                channel,
                text: half.into(),
            }));
        }
        contents.extend(self.tools.drain().map(Content::Data));
        Ok(self.finish)
    }
}

/// The JSON values of an event's data; a list is flattened. The error quotes none of the data.
fn values(data: &str) -> Result<Vec<Value>, serde_json::Error> {
    let marked = surrogates::mark(data);
    let mut found = Vec::new();
    for value in serde_json::Deserializer::from_str(&marked).into_iter() {
        let mut value: Value = value?;
        if let Value::Array(values) = &mut value {
            found.append(values);
        } else {
            found.push(value);
        }
    }
    Ok(found)
}

/// A failure that the server reported in its answer.
fn broken(error: ServerError) -> Fault {
    Fault {
        status: error.status,
        failure: error.failure(BROKE_OFF, Retry::Later),
    }
}

#[cfg(test)]
mod tests;
