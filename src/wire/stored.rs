//! A stored event with the frames that all of its watchers share. It does not read the log.

use std::borrow::Cow;
use std::fmt;
use std::num::NonZeroU64;
use std::sync::OnceLock;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};

use super::codec::{self, Encoding};
use super::cursor::Cursor;
use super::event::{Event, EventType, Status};
use super::framing::{self, FrameKind};
use super::id::{JobId, Seq, StreamSeq};
use super::msgpack::{self, HeadFields};

/// A stored event: its position, the fields that readers need, its unchanged payload, and its
/// frames, encoded once.
pub struct Stored {
    /// The job whose log holds it.
    pub job: JobId,
    /// Its sequence number in the job's log.
    pub seq: Seq,
    /// Its stream sequence, in the stream of its shard.
    pub stream_seq: StreamSeq,
    /// The stream sequence of the previous message in its job's log, as the broker confirmed when
    /// it stored the event; 0 if there was none. `None` if the broker was not asked to confirm it.
    pub prev: Option<StreamSeq>,
    /// The attempt that wrote it.
    pub attempt: u32,
    /// Its type.
    pub event_type: EventType,
    /// See [`frame_ratio`].
    frame_ratio: u8,
    /// When the broker stored it, in milliseconds since the Unix epoch: only of some live copies,
    /// whose delay is measured.
    pub stored_ms: Option<NonZeroU64>,
    /// The first event that it stands for: itself, unless events were merged.
    first_seq: Seq,
    /// Names it in the log.
    cursor: Cursor,
    payload: Bytes,
    text: OnceLock<Box<[u8]>>,
    binary: OnceLock<Box<[u8]>>,
    sse: OnceLock<Box<[u8]>>,
}

/// What is known of a decoded event besides its payload and its place in its job: enough to make it
/// again without decoding.
#[derive(Clone, Copy, Debug)]
pub struct EventHead {
    stream_seq: StreamSeq,
    /// As [`Stored::prev`]; the largest number stands for `None`.
    prev: StreamSeq,
    attempt: u32,
    checksum: u32,
    payload_len: u32,
    event_type: EventType,
    frame_ratio: u8,
}

impl EventHead {
    /// How many bytes the payload has.
    pub fn payload_len(&self) -> usize {
        self.payload_len as usize
    }
}

/// An event without its payload: which one it is, and what it says about its job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventMeta {
    /// Names it in the log.
    pub cursor: Cursor,
    /// The attempt that wrote it.
    pub attempt: u32,
    /// Its type.
    pub event_type: EventType,
}

impl EventMeta {
    /// The status of a job with this last event.
    pub fn status(&self) -> Status {
        // A job that was to be cancelled before its first attempt is still waiting.
        if self.event_type == EventType::CancelRequested && self.attempt == 0 {
            Status::Queued
        } else {
            self.event_type.status()
        }
    }
}

/// About how many more bytes than its payload the JSON of an event has.
const JSON_MORE: usize = 96;
/// The largest payload whose frames are not measured, in bytes. Almost every event is smaller, and
/// an event of this size cannot cost much, whatever is in it.
const UNMEASURED_MAX: usize = 4096;
/// How many times its bytes as MessagePack a value takes as JSON at most: `false` and a control
/// character take six bytes instead of one.
const JSON_TIMES_MAX: usize = 6;
/// A [`frame_ratio`] of one.
const RATIO_ONE: u8 = 16;

/// How large the largest frame of a payload is, in sixteenths of the payload: at least 16.
fn frame_ratio(payload: &[u8]) -> u8 {
    if payload.len() <= UNMEASURED_MAX {
        return RATIO_ONE;
    }
    let frame = if payload.starts_with(b"{") {
        payload.len() + framing::LINE_MORE * framing::breaks(payload)
    } else {
        msgpack::json_len(payload).unwrap_or(JSON_TIMES_MAX * payload.len())
    };
    let ratio = frame * usize::from(RATIO_ONE) / payload.len();
    u8::try_from(ratio).unwrap_or(u8::MAX).max(RATIO_ONE)
}

/// The fields that readers need of every event; the rest of the payload is passed through.
#[derive(Debug, PartialEq, Eq, Deserialize)]
pub(super) struct Head<'a> {
    #[serde(rename = "type")]
    event_type: EventType,
    #[serde(borrow)]
    job: Cow<'a, str>,
    seq: Seq,
    #[serde(default)]
    attempt: u32,
}

impl<'a> Head<'a> {
    fn decode(payload: &'a [u8]) -> Result<Self, codec::Error> {
        msgpack::head(payload).map_or_else(|| codec::borrowed(payload), |head| Ok(Self::of(head)))
    }

    pub(super) fn of(fields: HeadFields<'a>) -> Self {
        Self {
            event_type: EventType::from_text(fields.event_type),
            job: Cow::Borrowed(fields.job),
            seq: Seq(fields.seq),
            attempt: fields.attempt,
        }
    }
}

/// Why a stored message is undecodable: it is not an event of its log.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// The payload is not an event.
    #[error(transparent)]
    Codec(#[from] codec::Error),
    /// The payload names another job than its subject.
    #[error("the event names another job than its subject")]
    OtherJob,
    /// Sequence numbers start at 1.
    #[error("the event has the sequence number 0")]
    Zero,
    /// Each event before it has a lower stream sequence, so a sequence number is never above its
    /// stream sequence.
    #[error("the event has a sequence number above its stream sequence")]
    AboveStreamSeq,
    /// The sequence number is not the successor of the previous event's.
    #[error("the event's sequence number does not follow the previous event's")]
    OutOfOrder,
}

impl Stored {
    /// Decodes the message at `stream_seq` of the log of `job`.
    ///
    /// # Errors
    /// [`DecodeError`]: another publisher stored something that is not an event of this job.
    pub fn decode(job: &JobId, stream_seq: StreamSeq, payload: Bytes) -> Result<Self, DecodeError> {
        let head = Head::decode(&payload)?;
        if head.job != job.as_str() {
            return Err(DecodeError::OtherJob);
        }
        if head.seq == Seq(0) {
            return Err(DecodeError::Zero);
        }
        if head.seq.0 > stream_seq {
            return Err(DecodeError::AboveStreamSeq);
        }
        Ok(Self {
            job: job.clone(),
            seq: head.seq,
            stream_seq,
            prev: None,
            attempt: head.attempt,
            event_type: head.event_type,
            stored_ms: None,
            first_seq: head.seq,
            cursor: Cursor::of(job, head.seq, stream_seq, &payload),
            frame_ratio: frame_ratio(&payload),
            payload,
            text: OnceLock::new(),
            binary: OnceLock::new(),
            sse: OnceLock::new(),
        })
    }

    /// What [`Self::of_head`] needs to make this event again.
    pub fn head(&self) -> EventHead {
        EventHead {
            stream_seq: self.stream_seq,
            prev: self.prev.unwrap_or(StreamSeq::MAX),
            attempt: self.attempt,
            checksum: self.cursor.checksum(),
            payload_len: self.payload.len() as u32,
            event_type: self.event_type,
            frame_ratio: self.frame_ratio,
        }
    }

    /// The event of `job` with this number, which was decoded before.
    pub fn of_head(job: &JobId, seq: Seq, head: EventHead, payload: Bytes) -> Self {
        Self {
            job: job.clone(),
            seq,
            stream_seq: head.stream_seq,
            prev: Some(head.prev).filter(|prev| *prev != StreamSeq::MAX),
            attempt: head.attempt,
            event_type: head.event_type,
            frame_ratio: head.frame_ratio,
            stored_ms: None,
            first_seq: seq,
            cursor: Cursor::of_checksum(job, seq, head.stream_seq, head.checksum),
            payload,
            text: OnceLock::new(),
            binary: OnceLock::new(),
            sse: OnceLock::new(),
        }
    }

    /// The same event with the stream sequence of the previous message, as the broker confirmed it.
    #[must_use]
    pub fn after(self, prev: Option<StreamSeq>) -> Self {
        Self { prev, ..self }
    }

    /// The same event with the time at which the broker stored it.
    #[must_use]
    pub fn stored_at(self, stored_ms: Option<NonZeroU64>) -> Self {
        Self { stored_ms, ..self }
    }

    /// An event that stands for the events from `first_seq` up to this one.
    pub(super) fn merged(&self, first_seq: Seq, payload: Bytes) -> Self {
        Self {
            job: self.job.clone(),
            prev: None,
            stored_ms: None,
            first_seq,
            frame_ratio: frame_ratio(&payload),
            payload,
            text: OnceLock::new(),
            binary: OnceLock::new(),
            sse: OnceLock::new(),
            ..*self
        }
    }

    /// The first event that it stands for: itself, unless it was merged by a
    /// [`Compactor`](super::Compactor).
    pub fn first_seq(&self) -> Seq {
        self.first_seq
    }

    /// The payload as it is stored.
    pub fn payload(&self) -> &Bytes {
        &self.payload
    }

    /// The whole event.
    ///
    /// # Errors
    /// [`codec::Error`] when a field of its type is missing or invalid.
    pub fn event(&self) -> Result<Event, codec::Error> {
        Event::decode(&self.payload)
    }

    /// The status of a job with this last event.
    pub fn status(&self) -> Status {
        self.meta().status()
    }

    /// What remains of it when there is no room for its payload.
    pub fn meta(&self) -> EventMeta {
        EventMeta {
            cursor: self.cursor,
            attempt: self.attempt,
            event_type: self.event_type,
        }
    }

    /// The cursor that names it.
    pub fn cursor(&self) -> Cursor {
        self.cursor
    }

    /// About how many bytes it uses in memory: the payload, its largest frame, and the rest. The
    /// number never changes, so that a sum of sizes stays correct when an event is removed.
    pub fn size(&self) -> usize {
        let payload = self.payload.len();
        let frame = payload * usize::from(self.frame_ratio) / usize::from(RATIO_ONE);
        payload + frame + 64 + size_of::<Self>()
    }

    /// The event as a JSON object with its `cursor`.
    pub fn json(&self) -> &[u8] {
        framing::websocket_payload(self.websocket_text())
    }

    /// `[cursor, stored payload]`.
    pub fn msgpack(&self) -> &[u8] {
        framing::websocket_payload(self.websocket_binary())
    }

    /// A JSON client's WebSocket frame.
    pub fn websocket_text(&self) -> &[u8] {
        self.text.get_or_init(|| {
            let size = self.payload.len() + JSON_MORE;
            framing::websocket_frame_of(FrameKind::Text, size, |out| self.write_json(out)).into()
        })
    }

    /// A MessagePack client's WebSocket frame.
    pub fn websocket_binary(&self) -> &[u8] {
        self.binary.get_or_init(|| {
            let size = self.payload.len() + 44;
            framing::websocket_frame_of(FrameKind::Binary, size, |out| self.write_msgpack(out))
                .into()
        })
    }

    /// The server-sent event, in a chunk of HTTP/1.1.
    pub fn sse_chunk(&self) -> &[u8] {
        self.sse.get_or_init(|| {
            let id = self.cursor.text();
            let made = self.text.get().map(|text| framing::websocket_payload(text));
            let json = made.map_or_else(
                || {
                    let mut json = Vec::with_capacity(self.payload.len() + JSON_MORE);
                    self.write_json(&mut json);
                    Cow::Owned(json)
                },
                Cow::Borrowed,
            );
            framing::sse_chunk(id.as_bytes(), &json).into()
        })
    }

    /// The server-sent event.
    pub fn sse(&self) -> &[u8] {
        framing::chunk_content(self.sse_chunk())
    }

    /// The event as one line of JSON, as it is stored: without its cursor.
    ///
    /// # Errors
    /// [`codec::Error`] when JSON cannot express it.
    pub fn line(&self) -> Result<Vec<u8>, codec::Error> {
        let mut line = Vec::with_capacity(self.payload.len() + 96);
        match Encoding::of(&self.payload)? {
            Encoding::Json => {
                line.extend_from_slice(self.payload.trim_ascii());
                // Within a text they are escaped.
                line.iter_mut()
                    .filter(|byte| matches!(byte, b'\n' | b'\r'))
                    .for_each(|byte| *byte = b' ');
            }
            Encoding::MsgPack => codec::msgpack_to_json(&self.payload, &mut line)?,
        }
        Ok(line)
    }

    fn write_json(&self, out: &mut Vec<u8>) {
        let begin = out.len();
        let made = match Encoding::of(&self.payload) {
            Ok(Encoding::Json) => {
                let payload = self.payload.trim_ascii_end();
                out.extend_from_slice(payload);
                std::str::from_utf8(payload).is_ok()
            }
            _ => codec::msgpack_to_json(&self.payload, out).is_ok(),
        };
        if !made {
            out.truncate(begin);
            out.extend_from_slice(self.placeholder().to_string().as_bytes());
        }
        out.pop();
        out.extend_from_slice(b",\"cursor\":\"");
        out.extend_from_slice(self.cursor.text().as_bytes());
        out.extend_from_slice(b"\"}");
    }

    fn write_msgpack(&self, out: &mut Vec<u8>) {
        let cursor = self.cursor.text();
        out.push(0x92);
        // A cursor has at most 40 characters: `str 8`.
        out.extend_from_slice(&[0xD9, cursor.as_bytes().len() as u8]);
        out.extend_from_slice(cursor.as_bytes());
        if Encoding::of(&self.payload).is_ok_and(|encoding| encoding == Encoding::MsgPack) {
            out.extend_from_slice(&self.payload);
        } else if codec::json_to_msgpack(&self.payload, out).is_err() {
            let placeholder = rmp_serde::encode::write_named(out, &self.placeholder());
            debug_assert!(
                placeholder.is_ok(),
                "strings and numbers are always MessagePack"
            );
        }
    }

    /// Replaces an event of another publisher that cannot be expressed in the other encoding. It
    /// keeps the sequence number, so that no reader sees a gap.
    fn placeholder(&self) -> Value {
        json!({"type": "unreadable", "job": self.job, "seq": self.seq, "attempt": self.attempt, "ts": 0})
    }
}

impl fmt::Debug for Stored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}#{}@{} {:?}",
            self.job, self.seq, self.stream_seq, self.event_type
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Body, Channel};

    fn job() -> JobId {
        "j1".parse().unwrap()
    }

    fn chunk(text: &str) -> Event {
        let body = Body::Chunk {
            text: text.into(),
            channel: Channel::Output,
        };
        Event {
            body,
            job: job(),
            seq: Seq(7),
            attempt: 1,
            ts: 5,
        }
    }

    #[test]
    fn an_event_is_one_line_whatever_its_stored_encoding() {
        let event = chunk("a \"quoted\" é\r\n");
        for payload in [
            event.encode().unwrap(),
            serde_json::to_vec_pretty(&event).unwrap().into(),
        ] {
            let line = Stored::decode(&job(), 9, payload).unwrap().line().unwrap();
            assert!(!line.contains(&b'\n') && !line.contains(&b'\r'));
            assert_eq!(serde_json::from_slice::<Event>(&line).unwrap(), event);
        }
    }

    #[test]
    fn a_json_frame_is_the_event_with_its_cursor_whatever_the_stored_encoding() {
        let event = chunk("a \"quoted\" é\n");
        for payload in [
            event.encode().unwrap(),
            serde_json::to_vec_pretty(&event).unwrap().into(),
        ] {
            let stored = Stored::decode(&job(), 42, payload.clone()).unwrap();
            let frame: Value = serde_json::from_slice(stored.json()).unwrap();
            let cursor = Cursor::of(&job(), Seq(7), 42, &payload).to_string();
            let expected = json!({"type": "model:chunk:v1", "job": "j1", "seq": 7, "attempt": 1, "ts": 5,
                "text": "a \"quoted\" é\n", "channel": "output", "cursor": cursor});
            assert_eq!(frame, expected);
        }
    }

    #[test]
    fn the_size_of_a_large_event_has_room_for_its_largest_frame() {
        let of = |event: &Event| Stored::decode(&job(), 9, event.encode().unwrap()).unwrap();
        let empty = of(&chunk("")).size() - 2 * of(&chunk("")).payload().len();
        for (text, times) in [("x", 2), ("\u{1}", 7), ("\n", 3), ("é", 2)] {
            let stored = of(&chunk(&text.repeat(10_000)));
            let payload = stored.payload().len();
            let expected = empty + times * payload;
            assert!(
                (expected - payload / 10..=expected).contains(&stored.size()),
                "{text:?}"
            );
            // The ratio is rounded down.
            assert!(stored.size() + payload / 16 >= payload + stored.json().len());
            let head = stored.head();
            let again = Stored::of_head(&job(), stored.seq, head, stored.payload().clone());
            assert_eq!(again.size(), stored.size());
        }
        let small = of(&chunk(&"\u{1}".repeat(1000)));
        assert_eq!(small.size(), empty + 2 * small.payload().len());
    }

    #[test]
    fn the_size_of_a_large_event_in_json_has_room_for_one_line_per_break() {
        let breaks = "\n".repeat(10_000);
        let payload = format!(r#"{{"type":"x",{breaks}"job":"j1","seq":1}}"#);
        let stored = Stored::decode(&job(), 1, payload.into()).unwrap();
        let payload = stored.payload().len();
        // The ratio is rounded down.
        assert!(stored.size() + payload / 16 >= payload + stored.sse_chunk().len());
    }

    #[test]
    fn a_msgpack_frame_holds_the_stored_bytes_unchanged() {
        let payload = chunk("x").encode().unwrap();
        let stored = Stored::decode(&job(), 42, payload.clone()).unwrap();
        assert!(stored.msgpack().ends_with(&payload));
        let (cursor, event): (String, Event) = rmp_serde::from_slice(stored.msgpack()).unwrap();
        assert_eq!((cursor, event), (stored.cursor().to_string(), chunk("x")));
    }

    #[test]
    fn an_event_of_an_unknown_type_is_sent_completely() {
        let payload = json!({"type": "x:y:v3", "job": "j1", "seq": 1, "attempt": 1, "ts": 1, "deep": [{"a": null}]});
        let stored =
            Stored::decode(&job(), 1, rmp_serde::to_vec_named(&payload).unwrap().into()).unwrap();
        let frame: Value = serde_json::from_slice(stored.json()).unwrap();
        assert_eq!(
            (stored.event_type, &frame["deep"]),
            (EventType::Unknown, &json!([{"a": null}]))
        );
    }

    #[test]
    fn a_message_that_is_not_an_event_of_the_job_is_refused() {
        let other = r#"{"type":"x","job":"j2","seq":1}"#;
        let zero = r#"{"type":"x","job":"j1","seq":0}"#;
        let high = r#"{"type":"x","job":"j1","seq":2}"#;
        let highest = r#"{"type":"x","job":"j1","seq":18446744073709551615}"#;
        for bad in [
            "",
            "null",
            "{}",
            "\u{1}\u{2}",
            r#"{"type":"x","job":"j1"}"#,
            other,
            zero,
            high,
            highest,
        ] {
            assert!(
                Stored::decode(&job(), 1, bad.as_bytes().to_vec().into()).is_err(),
                "{bad}"
            );
        }
        let mut long = chunk("x").encode().unwrap().to_vec();
        long.push(0);
        assert!(matches!(
            Stored::decode(&job(), 7, long.into()),
            Err(DecodeError::Codec(codec::Error::Trailing))
        ));
    }

    #[test]
    fn an_event_that_an_encoding_cannot_express_keeps_its_number() {
        // {"odd":{[1]:2},"type":"x","job":"j1","seq":1}
        let mut msgpack = b"\x84\xA3odd\x81\x91\x01\x02".to_vec();
        for text in ["type", "x", "job", "j1", "seq"] {
            msgpack.push(0xA0 | text.len() as u8);
            msgpack.extend_from_slice(text.as_bytes());
        }
        msgpack.push(1);
        // Not UTF-8, half a character, and a number that is too large for any type.
        let mut json = Vec::new();
        for odd in [&b"\"\xFF\""[..], br#""\ud800""#, b"1e999"] {
            json.push([br#"{"type":"x","job":"j1","seq":1,"odd":"#, odd, b"}"].concat());
        }
        for (payload, in_json) in [
            (msgpack, false),
            (json.remove(0), false),
            (json.remove(0), true),
        ]
        .into_iter()
        .chain([(json.remove(0), true)])
        {
            let stored = Stored::decode(&job(), 1, payload.into()).unwrap();
            assert_eq!(
                std::str::from_utf8(stored.json())
                    .unwrap()
                    .contains("unreadable"),
                !in_json
            );
            #[derive(Deserialize)]
            struct Numbered {
                seq: u64,
            }
            let (cursor, event): (String, Numbered) =
                rmp_serde::from_slice(stored.msgpack()).unwrap();
            assert_eq!((cursor, event.seq), (stored.cursor().to_string(), 1));
        }
    }
}
