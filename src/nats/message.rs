//! Messages of a stream, with their headers, as the broker sends them: from a direct get, as a live
//! copy, or as a leader's answer. It does not know jobs or events.

use std::time::SystemTime;

use async_nats::jetstream::ErrorCode;
use async_nats::{Client, HeaderMap, Message};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD as BASE64, URL_SAFE_NO_PAD as BASE64_URL};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::error::NatsError;
use super::{api, names};
use crate::config::{PAGE, PAGE_BYTES};
use crate::wire::{SegmentDigest, StreamSeq};

/// A request for a message of a stream, to its leader or to any replica.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct GetMessage<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    seq: Option<StreamSeq>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_by_subj: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_by_subj: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    batch: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_bytes: Option<usize>,
}

impl<'a> GetMessage<'a> {
    /// The message at this stream sequence.
    pub(super) fn at(stream_seq: StreamSeq) -> Self {
        Self {
            seq: Some(stream_seq),
            ..Self::default()
        }
    }

    /// The last message of a subject.
    pub(super) fn last_of(subject: &'a str) -> Self {
        Self {
            last_by_subj: Some(subject),
            ..Self::default()
        }
    }

    /// The first message of a subject at or after this stream sequence.
    pub(super) fn next_of(subject: &'a str, from: StreamSeq) -> Self {
        Self {
            seq: Some(from),
            next_by_subj: Some(subject),
            ..Self::default()
        }
    }

    /// A page of the messages of a subject at or after this stream sequence. For a batched direct
    /// get only.
    pub(super) fn page_of(subject: &'a str, from: StreamSeq) -> Self {
        Self {
            batch: Some(PAGE as u64),
            max_bytes: Some(PAGE_BYTES),
            ..Self::next_of(subject, from)
        }
    }

    /// The messages of a stream from one stream sequence up to another. For a batched direct get
    /// only.
    pub(super) fn range(from: StreamSeq, to: StreamSeq, max_bytes: usize) -> Self {
        Self {
            batch: Some(to - from + 1),
            max_bytes: Some(max_bytes),
            ..Self::at(from)
        }
    }

    /// The body of the request.
    pub(super) fn body(&self) -> Bytes {
        serde_json::to_vec(self)
            .unwrap_or_else(|_| unreachable!("text and numbers are always JSON"))
            .into()
    }
}

/// A message as a stream's leader returns it.
#[derive(Debug)]
pub(super) struct LeaderMessage {
    pub(super) subject: String,
    pub(super) stream_seq: StreamSeq,
    /// As [`confirmed`].
    pub(super) prev: Option<StreamSeq>,
    pub(super) payload: Bytes,
    /// When it was stored.
    pub(super) time: Option<SystemTime>,
}

/// The same on the wire. `data` is absent for an empty payload, and `hdrs` for a message without
/// headers.
#[derive(Deserialize)]
struct MessageAnswer {
    message: EncodedMessage,
}

#[derive(Deserialize)]
struct EncodedMessage {
    subject: String,
    seq: StreamSeq,
    #[serde(default)]
    hdrs: String,
    #[serde(default)]
    data: String,
    time: String,
}

impl From<EncodedMessage> for LeaderMessage {
    fn from(message: EncodedMessage) -> Self {
        // Invalid base64, which no server sends, becomes an undecodable message.
        let decode = |text: &str| BASE64.decode(text).unwrap_or_default();
        Self {
            prev: confirmed_in(&String::from_utf8_lossy(&decode(&message.hdrs))),
            payload: decode(&message.data).into(),
            time: humantime::parse_rfc3339(&message.time).ok(),
            subject: message.subject,
            stream_seq: message.seq,
        }
    }
}

/// Asks a server that leads the stream, or believes that it does; `None` when no message matches.
pub(super) async fn ask_leader(
    client: &Client,
    stream: &str,
    get: &GetMessage<'_>,
) -> Result<Option<LeaderMessage>, NatsError> {
    let request = format!("STREAM.MSG.GET.{stream}");
    let answer: Option<MessageAnswer> =
        api::find(client, &request, get.body(), ErrorCode::NO_MESSAGE_FOUND).await?;
    Ok(answer.map(|answer| answer.message.into()))
}

/// The stream sequence of the previous message of the subject, as the publisher expected and the
/// broker checked; `None` when the publisher did not request the check, or for another subject.
pub(super) fn confirmed(headers: Option<&HeaderMap>) -> Option<StreamSeq> {
    let headers = headers?;
    let mut expected = headers.get_all(names::EXPECTED_LAST);
    let only = expected.next().filter(|_| expected.next().is_none())?;
    let of_this_subject = headers.get(names::EXPECTED_LAST_OF).is_none();
    only.as_str().parse().ok().filter(|_| of_this_subject)
}

/// As [`confirmed`], from headers in their wire format. The client library's parser keeps only the
/// last of several headers with one name.
fn confirmed_in(headers: &str) -> Option<StreamSeq> {
    let named = |name: &'static str| {
        headers
            .lines()
            .filter_map(|line| line.split_once(':'))
            .filter(move |(key, _)| *key == name)
    };
    let mut expected = named(names::EXPECTED_LAST);
    let (_, only) = expected.next().filter(|_| expected.next().is_none())?;
    let of_this_subject = named(names::EXPECTED_LAST_OF).next().is_none();
    only.trim().parse().ok().filter(|_| of_this_subject)
}

/// The value of a header that the broker sets: the last one, since the publisher's come first.
pub(super) fn header<'a>(message: &'a Message, name: &'static str) -> Option<&'a str> {
    let value = message.headers.as_ref()?.get_last(name)?;
    Some(value.as_str())
}

/// The number in a header that the broker sets.
pub(super) fn number(message: &Message, name: &'static str) -> Option<u64> {
    header(message, name)?.parse().ok()
}

/// The digest of the segment that an event completes.
pub(super) fn segment_digest(message: &Message) -> Option<SegmentDigest> {
    let text = header(message, names::SEGMENT_DIGEST)?;
    BASE64_URL.decode(text).ok()?.try_into().ok()
}

/// Such a digest as the value of a header.
pub(super) fn digest_text(digest: SegmentDigest) -> String {
    BASE64_URL.encode(digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_formats_of_headers_give_the_same_confirmed_sequence() {
        let last = names::EXPECTED_LAST;
        let of = names::EXPECTED_LAST_OF;
        for (given, expected) in [
            (vec![(last, "7")], Some(7)),
            (vec![("X", "1"), (last, "0")], Some(0)),
            (vec![], None),
            (vec![(last, "x")], None),
            (vec![(last, "7"), (last, "8")], None),
            (vec![(last, "7"), (of, "other.subject")], None),
        ] {
            let mut headers = HeaderMap::new();
            let mut wire = String::from("NATS/1.0\r\n");
            for (name, value) in given {
                headers.append(name, value);
                wire.push_str(&format!("{name}: {value}\r\n"));
            }
            assert_eq!(confirmed(Some(&headers)), expected, "{wire}");
            assert_eq!(confirmed_in(&wire), expected, "{wire}");
        }
        assert_eq!(confirmed(None), None);
        assert_eq!(confirmed_in(""), None);
    }

    #[test]
    fn a_request_contains_only_the_fields_that_are_set() {
        let body = |get: GetMessage<'_>| String::from_utf8(get.body().to_vec()).unwrap();
        assert_eq!(body(GetMessage::at(7)), r#"{"seq":7}"#);
        assert_eq!(
            body(GetMessage::last_of("a.b")),
            r#"{"last_by_subj":"a.b"}"#
        );
        assert_eq!(
            body(GetMessage::next_of("a.b", 1)),
            r#"{"seq":1,"next_by_subj":"a.b"}"#
        );
    }
}
