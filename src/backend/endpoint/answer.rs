//! Decodes an endpoint's answer by its media type. Pure.
//!
//! | media type | is |
//! |---|---|
//! | `text/event-stream` | server-sent events |
//! | `application/x-ndjson`, `…/ndjson`, `…/jsonl` and others | a JSON value per line |
//! | `application/json`, `…+json` | one JSON value |
//! | any other | text |

use super::dialect::EventDialect;
use super::events::{EndpointEvents, is_error, stopped_by_itself};
use super::report::reported;
use crate::backend::format::{Decoder, Format, Halves, content};
use crate::backend::surrogates::mark;
use crate::backend::{Content, Failure, FailureCode, Finish};
use crate::config::EXEC_JSON_LINE_MAX;
use crate::wire::codec::nests_at_most;
use crate::wire::limits::VALUE_DEPTH_MAX;

/// The body of an answer, as far as it was read.
#[derive(Debug)]
pub(super) enum EndpointAnswer {
    Stream(Decoder),
    Json(Vec<u8>),
    Events(EndpointEvents),
}

impl EndpointAnswer {
    /// The body of an answer with this `Content-Type`. `is_ui_message` says that the head names the
    /// AI SDK's UI message stream.
    pub(super) fn new(content_type: &str, is_ui_message: bool) -> Self {
        let media_type = content_type.split(';').next().unwrap_or_default();
        let media_type = media_type.trim().to_ascii_lowercase();
        let lines = ["ndjson", "jsonl", "json-lines", "jsonlines", "json-seq"];
        let (_, subtype) = media_type.split_once('/').unwrap_or_default();
        if media_type == "text/event-stream" {
            Self::Events(EndpointEvents::new(
                is_ui_message.then_some(EventDialect::UiMessage),
            ))
        } else if lines.contains(&subtype.strip_prefix("x-").unwrap_or(subtype)) {
            Self::Stream(Decoder::new(Format::Ndjson))
        } else if subtype == "json" || subtype.ends_with("+json") {
            Self::Json(Vec::new())
        } else {
            Self::Stream(Decoder::new(Format::Text))
        }
    }

    /// Adds the output in the next bytes to `contents`. A failure may follow some output.
    pub(super) fn read(
        &mut self,
        bytes: &[u8],
        contents: &mut Vec<Content>,
    ) -> Result<(), Failure> {
        match self {
            Self::Stream(decoder) => {
                decoder.buffer().extend_from_slice(bytes);
                drain(decoder, false, contents)
            }
            Self::Json(body) => {
                body.extend_from_slice(bytes);
                if body.len() <= EXEC_JSON_LINE_MAX {
                    return Ok(());
                }
                let message =
                    format!("the endpoint's JSON answer has more than {EXEC_JSON_LINE_MAX} bytes");
                Err(Failure::fatal(FailureCode::BadOutput, message))
            }
            Self::Events(events) => events.read(bytes, contents),
        }
    }

    /// Whether the answer is complete, although the body has not ended.
    pub(super) fn is_done(&self) -> bool {
        matches!(self, Self::Events(events) if events.is_done())
    }

    /// Ends the answer at the end of its body.
    pub(super) fn end(self, contents: &mut Vec<Content>) -> Result<Finish, Failure> {
        match self {
            Self::Stream(mut decoder) => drain(&mut decoder, true, contents)?,
            Self::Json(body) => contents.extend(json(&body)?),
            Self::Events(events) => {
                return events.end(contents)?.ok_or_else(|| {
                    let message = "the endpoint's stream ended before its answer was complete";
                    Failure::retryable(FailureCode::StreamCut, message)
                });
            }
        }
        Ok(stopped_by_itself())
    }
}

fn drain(decoder: &mut Decoder, ended: bool, contents: &mut Vec<Content>) -> Result<(), Failure> {
    while let Some(content) = decoder.next(ended)? {
        if let Content::Data(value) = &content
            && is_error(value)
        {
            return Err(reported(value));
        }
        contents.push(content);
    }
    Ok(())
}

/// The content of a whole JSON body: a string is text, anything else as in the format `ndjson`.
fn json(body: &[u8]) -> Result<Option<Content>, Failure> {
    let bad = |why: String| {
        Failure::fatal(
            FailureCode::BadOutput,
            format!("the endpoint's answer is not JSON: {why}"),
        )
    };
    let text = std::str::from_utf8(body).map_err(|error| bad(error.to_string()))?;
    let text = text.trim_start_matches('\u{FEFF}').trim();
    if text.is_empty() {
        return Ok(None);
    }
    let value: serde_json::Value =
        serde_json::from_str(&mark(text)).map_err(|error| bad(error.to_string()))?;
    if !nests_at_most(&value, VALUE_DEPTH_MAX) {
        return Err(bad(format!(
            "it nests deeper than {VALUE_DEPTH_MAX} levels"
        )));
    }
    if is_error(&value) {
        return Err(reported(&value));
    }
    let value = if value.is_string() {
        serde_json::json!({"text": value})
    } else {
        value
    };
    Ok(content(value, &mut Halves::default()))
}

#[cfg(test)]
mod tests;
