//! Formats of server-sent events that an endpoint may use, and what each of their events means.
//! Pure.
//!
//! - The AI SDK's UI message stream: <https://ai-sdk.dev/docs/ai-sdk-ui/stream-protocol>.
//! - AG-UI: <https://docs.ag-ui.com/concepts/events>.

use serde_json::Value;

use crate::backend::Channel;

/// A format of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum EventDialect {
    /// Text, or JSON as in the format `ndjson`.
    Plain,
    /// The AI SDK's UI message stream.
    UiMessage,
    AgUi,
}

/// What an event of a dialect means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    /// Its `delta` is text of this channel.
    Text(Channel),
    /// It frames other events, or repeats them in parts.
    Frame,
    /// Output that is not text.
    Data,
    /// The answer failed.
    Error,
    /// The answer was stopped before its end.
    Aborted,
    /// The answer is complete.
    Finish,
}

impl EventDialect {
    /// The dialect of an answer whose first event this is.
    pub(super) fn of_first(event: &Value) -> Self {
        match event.get("type").and_then(Value::as_str) {
            Some("RUN_STARTED") => Self::AgUi,
            Some("start") => Self::UiMessage,
            _ => Self::Plain,
        }
    }

    /// What an event of this type means.
    pub(super) fn meaning(self, event_type: &str) -> Meaning {
        match self {
            Self::Plain => Meaning::Data,
            Self::UiMessage => match event_type {
                "text-delta" => Meaning::Text(Channel::Output),
                "reasoning-delta" => Meaning::Text(Channel::Reasoning),
                // `tool-input-available` has the whole input.
                "start" | "text-start" | "text-end" | "reasoning-start" | "reasoning-end"
                | "start-step" | "finish-step" | "tool-input-start" | "tool-input-delta" => {
                    Meaning::Frame
                }
                "error" => Meaning::Error,
                "abort" => Meaning::Aborted,
                "finish" => Meaning::Finish,
                _ => Meaning::Data,
            },
            Self::AgUi => match event_type {
                "TEXT_MESSAGE_CONTENT" | "TEXT_MESSAGE_CHUNK" => Meaning::Text(Channel::Output),
                "REASONING_MESSAGE_CONTENT"
                | "REASONING_MESSAGE_CHUNK"
                | "THINKING_TEXT_MESSAGE_CONTENT" => Meaning::Text(Channel::Reasoning),
                "RUN_STARTED"
                | "STEP_STARTED"
                | "STEP_FINISHED"
                | "TEXT_MESSAGE_START"
                | "TEXT_MESSAGE_END"
                | "REASONING_START"
                | "REASONING_END"
                | "REASONING_MESSAGE_START"
                | "REASONING_MESSAGE_END"
                | "THINKING_START"
                | "THINKING_END"
                | "THINKING_TEXT_MESSAGE_START"
                | "THINKING_TEXT_MESSAGE_END" => Meaning::Frame,
                "RUN_ERROR" => Meaning::Error,
                "RUN_FINISHED" => Meaning::Finish,
                _ => Meaning::Data,
            },
        }
    }

    /// Whether an answer is complete only after an event that says so.
    pub(super) fn has_finish(self) -> bool {
        self != Self::Plain
    }
}
