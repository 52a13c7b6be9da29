//! Decodes server-sent events of an endpoint. Pure.

use serde_json::Value;

use super::dialect::{EventDialect, Meaning};
use super::report::reported;
use crate::backend::format::{Halves, content};
use crate::backend::sse::{Remainder, SseEvent, SseParser};
use crate::backend::surrogates::{mark, settle};
use crate::backend::{Channel, Content, Failure, FailureCode, Finish};
use crate::config::FINISH_REASON_MAX;
use crate::wire::codec::nests_at_most;
use crate::wire::limits::VALUE_DEPTH_MAX;

/// Ends a stream of any dialect.
const DONE: &str = "[DONE]";

/// The events of an answer.
#[derive(Debug, Default)]
pub(super) struct EndpointEvents {
    parser: SseParser,
    /// `None` before the first event.
    dialect: Option<EventDialect>,
    halves: Halves,
    /// Set once the answer is complete.
    finish: Option<Finish>,
    /// Whether the end mark, or the event that completes the answer, was read.
    is_done: bool,
}

impl EndpointEvents {
    /// The events of an answer whose head names this dialect, if it names one.
    pub(super) fn new(dialect: Option<EventDialect>) -> Self {
        Self {
            dialect,
            ..Self::default()
        }
    }

    /// Whether no more events follow.
    pub(super) fn is_done(&self) -> bool {
        self.is_done
    }

    /// Adds the output in the next bytes to `contents`.
    pub(super) fn read(
        &mut self,
        mut bytes: &[u8],
        contents: &mut Vec<Content>,
    ) -> Result<(), Failure> {
        while !self.is_done {
            let event = self.parser.next(&mut bytes).map_err(|error| {
                Failure::fatal(
                    FailureCode::BadStream,
                    format!("the endpoint's answer cannot be read: {error}"),
                )
            })?;
            match event {
                Some(event) => self.event(event, contents)?,
                None => break,
            }
        }
        Ok(())
    }

    /// Ends the answer at the end of its body. `None` if it is incomplete.
    pub(super) fn end(mut self, contents: &mut Vec<Content>) -> Result<Option<Finish>, Failure> {
        let Remainder { events, is_cut, .. } = std::mem::take(&mut self.parser).end();
        for event in events {
            if !self.is_done {
                self.event(event, contents)?;
            }
        }
        contents.extend(self.halves.end());
        let needs_finish = self.dialect.is_some_and(EventDialect::has_finish) && !self.is_done;
        Ok(match self.finish {
            Some(finish) => Some(finish),
            None if needs_finish || is_cut => None,
            None => Some(stopped_by_itself()),
        })
    }

    fn event(&mut self, event: SseEvent, contents: &mut Vec<Content>) -> Result<(), Failure> {
        let SseEvent { name, data } = event;
        if data.trim() == DONE {
            self.is_done = true;
            return Ok(());
        }
        let Some(value) = json(&data)? else {
            if name == "error" {
                return Err(reported(&Value::String(data)));
            }
            self.dialect.get_or_insert(EventDialect::Plain);
            self.text(Channel::Output, &data, contents);
            return Ok(());
        };
        let dialect = *self
            .dialect
            .get_or_insert_with(|| EventDialect::of_first(&value));
        let event_type = value.get("type").and_then(Value::as_str);
        match dialect.meaning(event_type.unwrap_or_default()) {
            Meaning::Text(channel) => {
                let delta = value.get("delta").and_then(Value::as_str);
                self.text(channel, delta.unwrap_or_default(), contents);
            }
            Meaning::Frame => {}
            Meaning::Error => return Err(reported(&value)),
            Meaning::Aborted => {
                let message = "the endpoint stopped its answer before the end";
                return Err(Failure::retryable(FailureCode::StreamCut, message));
            }
            Meaning::Finish => {
                let reason = value.get("finishReason").and_then(Value::as_str);
                let reason = reason.filter(|reason| reason.len() <= FINISH_REASON_MAX);
                self.finish = Some(Finish {
                    usage: None,
                    finish_reason: Some(reason.unwrap_or("stop").to_owned()),
                });
                let has = |field: &str| value.get(field).is_some_and(|found| !found.is_null());
                if has("result") || has("messageMetadata") {
                    contents.push(data_of(value));
                }
                // The server may keep the connection open.
                self.is_done = true;
            }
            Meaning::Data if dialect != EventDialect::Plain => contents.push(data_of(value)),
            Meaning::Data if name == "error" || is_error(&value) => return Err(reported(&value)),
            Meaning::Data => {
                if let Value::String(text) = value {
                    self.text(Channel::Output, &text, contents);
                } else {
                    contents.extend(content(value, &mut self.halves));
                }
            }
        }
        Ok(())
    }

    fn text(&mut self, channel: Channel, text: &str, contents: &mut Vec<Content>) {
        let text = self.halves.push(channel, text);
        if !text.is_empty() {
            contents.push(Content::Text { channel, text });
        }
    }
}

/// How an answer without a reason ended.
pub(super) fn stopped_by_itself() -> Finish {
    Finish {
        usage: None,
        finish_reason: Some("stop".into()),
    }
}

/// Whether a value outside of a dialect is an error: an object whose `error` is a text or an object.
pub(super) fn is_error(value: &Value) -> bool {
    value
        .get("error")
        .is_some_and(|error| error.is_string() || error.is_object())
}

/// The marked value of an event's data; `None` if it is text: anything else than a JSON object,
/// list or string.
fn json(data: &str) -> Result<Option<Value>, Failure> {
    if !data.trim_start().starts_with(['{', '[', '"']) {
        return Ok(None);
    }
    let Ok(value) = serde_json::from_str(&mark(data)) else {
        return Ok(None);
    };
    if !nests_at_most(&value, VALUE_DEPTH_MAX) {
        let message = format!("an event's data nests deeper than {VALUE_DEPTH_MAX} levels");
        return Err(Failure::fatal(FailureCode::BadOutput, message));
    }
    Ok(Some(value))
}

fn data_of(mut value: Value) -> Content {
    settle(&mut value);
    Content::Data(value)
}
