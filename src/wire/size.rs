//! The size of a stored event: an event that is too large is split, cut or refused here. It does
//! not know the broker; the limit is an argument.

use bytes::Bytes;
use serde_json::Value;

use super::codec::{self, nests_at_most};
use super::event::{Body, Event, JobFailure};
use super::limits::{FAILURE_MESSAGE_MAX, LABEL_MAX, VALUE_DEPTH_MAX};

/// Why an event can never be stored.
#[derive(Debug, thiserror::Error)]
pub enum Unfit {
    /// It has more bytes than the limit.
    #[error("the {what} is too large: the stored event has {size} bytes, the limit is {limit}")]
    TooLarge {
        /// The largest field.
        what: &'static str,
        /// The size of the whole event as MessagePack, in bytes.
        size: usize,
        /// The limit, in bytes.
        limit: usize,
    },
    /// A JSON value in it nests too deep for readers to decode.
    #[error("the {0} nests deeper than {VALUE_DEPTH_MAX} levels")]
    TooDeep(&'static str),
    /// It cannot be encoded.
    #[error(transparent)]
    Codec(#[from] codec::Error),
}

impl Event {
    /// Encodes the event in at most `limit` bytes. Text that does not fit is split between
    /// characters; the second value is the body of the next event. The message of a failure is cut.
    ///
    /// # Errors
    /// [`Unfit`].
    pub fn encode_within(mut self, limit: usize) -> Result<(Bytes, Option<Body>), Unfit> {
        self.body.cut_labels();
        if let Some((what, value)) = self.body.value()
            && !nests_at_most(value, VALUE_DEPTH_MAX)
        {
            return Err(Unfit::TooDeep(what));
        }
        let payload = self.encode()?;
        let size = payload.len();
        if size <= limit {
            return Ok((payload, None));
        }
        // MessagePack does not escape: removing a byte of text makes the event a byte smaller.
        let over = size - limit;
        let mut rest = None;
        match &mut self.body {
            Body::Chunk { text, channel } => {
                let fits = text.floor_char_boundary(text.len().saturating_sub(over));
                if fits > 0 {
                    rest = Some(Body::Chunk {
                        text: text.split_off(fits),
                        channel: *channel,
                    });
                }
            }
            Body::Failed(JobFailure { message, .. }) | Body::Retrying { message, .. } => {
                cut(message, message.len().saturating_sub(over));
            }
            Body::Queued { .. }
            | Body::Started { .. }
            | Body::Data { .. }
            | Body::CancelRequested { .. }
            | Body::Done { .. }
            | Body::Cancelled {}
            | Body::Unknown => {}
        }
        let payload = self.encode()?;
        if payload.len() <= limit {
            return Ok((payload, rest));
        }
        Err(Unfit::TooLarge {
            what: self.body.largest(),
            size,
            limit,
        })
    }
}

impl Body {
    /// The event's JSON value, and the name of its field.
    fn value(&self) -> Option<(&'static str, &Value)> {
        match self {
            Self::Queued { input, .. } => Some(("input", input)),
            Self::Data { data } => Some(("data", data)),
            Self::Done { usage, .. } => usage.as_ref().map(|usage| ("usage", usage)),
            Self::Started { .. }
            | Self::Chunk { .. }
            | Self::Retrying { .. }
            | Self::CancelRequested { .. }
            | Self::Failed(_)
            | Self::Cancelled {}
            | Self::Unknown => None,
        }
    }

    /// The name of the largest field.
    fn largest(&self) -> &'static str {
        match self {
            Self::Queued { .. } => "input",
            Self::Chunk { .. } => "text",
            Self::Data { .. } => "data",
            Self::Done {
                usage,
                finish_reason,
            } => {
                let usage = usage
                    .as_ref()
                    .and_then(|usage| codec::msgpack_len(usage).ok())
                    .unwrap_or(0);
                let reason = finish_reason.as_ref().map_or(0, String::len);
                if usage >= reason {
                    "usage"
                } else {
                    "finish_reason"
                }
            }
            Self::Started { .. }
            | Self::Retrying { .. }
            | Self::CancelRequested { .. }
            | Self::Failed(_)
            | Self::Cancelled {}
            | Self::Unknown => "event",
        }
    }

    /// Cuts the fields that are only for people.
    fn cut_labels(&mut self) {
        match self {
            Self::Failed(JobFailure { code, message, .. })
            | Self::Retrying { code, message, .. } => {
                cut(code, LABEL_MAX);
                cut(message, FAILURE_MESSAGE_MAX);
            }
            Self::Started { worker, .. } => cut(worker, LABEL_MAX),
            Self::CancelRequested { by: Some(by) } => cut(by, LABEL_MAX),
            Self::Queued { .. }
            | Self::Chunk { .. }
            | Self::Data { .. }
            | Self::CancelRequested { by: None }
            | Self::Done { .. }
            | Self::Cancelled {}
            | Self::Unknown => {}
        }
    }
}

/// Appended to text that was cut.
const MARK: &str = " … [cut]";

/// Cuts a text to at most `max` bytes, between characters, and marks its end.
pub fn cut(text: &mut String, max: usize) {
    if text.len() > max {
        let mark = if max > MARK.len() { MARK } else { "" };
        text.truncate(text.floor_char_boundary(max - mark.len()));
        text.push_str(mark);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::limits::EVENT_MAX;
    use crate::wire::{Channel, Seq};
    use serde_json::json;

    fn event(body: Body) -> Event {
        Event {
            body,
            job: "j1".parse().unwrap(),
            seq: Seq(1),
            attempt: 1,
            ts: 1_700_000_000_123,
        }
    }

    fn encoded(body: Body, limit: usize) -> (Event, Option<Body>) {
        let (payload, rest) = event(body).encode_within(limit).unwrap();
        assert!(payload.len() <= limit, "{} > {limit}", payload.len());
        (Event::decode(&payload).unwrap(), rest)
    }

    fn refused(body: Body) -> String {
        event(body)
            .encode_within(EVENT_MAX)
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn text_that_does_not_fit_is_split_between_characters() {
        for limit in [150, 151, 152, 153, 1000] {
            let text = "añ€😀".repeat(500);
            let mut rest = Some(Body::Chunk {
                text: text.clone(),
                channel: Channel::Reasoning,
            });
            let mut seen = String::new();
            while let Some(body) = rest {
                let (event, more) = encoded(body, limit);
                let Body::Chunk {
                    text,
                    channel: Channel::Reasoning,
                } = event.body
                else {
                    panic!("{event:?}")
                };
                assert!(!text.is_empty());
                seen.push_str(&text);
                rest = more;
            }
            assert_eq!(seen, text);
        }
    }

    #[test]
    fn an_event_of_exactly_the_limit_fits_and_one_byte_more_does_not() {
        let with = |size: usize| Body::Data {
            data: json!("x".repeat(size)),
        };
        let head = event(with(100_000)).encode().unwrap().len() - 100_000;
        assert!(encoded(with(EVENT_MAX - head), EVENT_MAX).1.is_none());
        let error = refused(with(EVENT_MAX - head + 1));
        let over = EVENT_MAX + 1;
        let limit = EVENT_MAX;
        assert_eq!(
            error,
            format!(
                "the data is too large: the stored event has {over} bytes, the limit is {limit}"
            )
        );
    }

    #[test]
    fn a_field_that_cannot_be_split_is_refused_by_name() {
        let numbers = json!(vec![0.5; 131_072]);
        let kind = "k".parse().unwrap();
        assert!(refused(Body::queued(kind, numbers.clone())).starts_with("the input is too large"));
        let done = |usage, reason: usize| Body::Done {
            usage,
            finish_reason: Some("r".repeat(reason)),
        };
        assert!(refused(done(Some(numbers), 1)).starts_with("the usage is too large"));
        assert!(refused(done(None, EVENT_MAX)).starts_with("the finish_reason is too large"));
    }

    #[test]
    fn a_value_that_nests_too_deep_is_refused() {
        let nested = |levels: usize| (0..levels).fold(json!(1), |value, _| json!([value]));
        for levels in [VALUE_DEPTH_MAX + 1, 130, 1000] {
            let error = refused(Body::Data {
                data: nested(levels),
            });
            assert_eq!(
                error,
                format!("the data nests deeper than {VALUE_DEPTH_MAX} levels")
            );
        }
        let body = Body::Data {
            data: nested(VALUE_DEPTH_MAX),
        };
        assert_eq!(encoded(body.clone(), EVENT_MAX).0.body, body);
    }

    #[test]
    fn the_message_of_a_failure_is_cut_between_characters_and_marked() {
        let failed = |code: &str, message: &str| {
            Body::Failed(JobFailure {
                code: code.into(),
                message: message.into(),
                retryable: false,
            })
        };
        for limit in [300, 1000, EVENT_MAX] {
            let (event, rest) = encoded(failed("exit_status", &"é".repeat(1 << 20)), limit);
            let Body::Failed(JobFailure { code, message, .. }) = event.body else {
                panic!("{event:?}")
            };
            assert!(rest.is_none() && code == "exit_status");
            assert!(
                message.starts_with("éé") && message.ends_with("é … [cut]"),
                "{}",
                message.len()
            );
        }
        let (event, _) = encoded(failed(&"c".repeat(1 << 20), "m"), EVENT_MAX);
        let Body::Failed(JobFailure { code, message, .. }) = event.body else {
            panic!("{event:?}")
        };
        assert!(code.len() <= LABEL_MAX && code.ends_with("[cut]") && message == "m");
    }

    #[test]
    fn numbers_are_stored_without_loss() {
        for text in [
            "18446744073709551615",
            "-9223372036854775808",
            "9223372036854775808",
            "1e308",
            "-0.0",
            "5e-324",
            "0.1",
            "1.0",
            "123456789012345678901234567890",
        ] {
            let data: Value = serde_json::from_str(text).unwrap();
            let (event, _) = encoded(Body::Data { data: data.clone() }, EVENT_MAX);
            assert_eq!(event.body, Body::Data { data: data.clone() }, "{text}");
            let stored = event.encode().unwrap();
            let json: Value = {
                let mut out = Vec::new();
                codec::msgpack_to_json(&stored, &mut out).unwrap();
                serde_json::from_slice(&out).unwrap()
            };
            assert_eq!(json["data"].to_string(), data.to_string(), "{text}");
            assert_eq!(
                serde_json::from_value::<Event>(json).unwrap().body,
                event.body
            );
        }
    }
}
