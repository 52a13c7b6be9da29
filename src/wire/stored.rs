//! An event as the log holds it, with the frames that every watcher of it shares. It does not fetch anything.

use std::borrow::Cow;
use std::fmt;
use std::sync::OnceLock;

use bytes::Bytes;
use serde::Deserialize;

use super::codec::{self, Encoding};
use super::cursor::Cursor;
use super::event::{Event, Status, Type};
use super::id::{JobId, Pos, Seq};

/// A stored event: its place, what a reader must know of it, its payload untouched, and its frames, made once.
pub struct Stored {
    /// The job whose log holds it.
    pub job: JobId,
    /// Its number in the job's log.
    pub seq: Seq,
    /// Its place in the shard's stream.
    pub pos: Pos,
    /// The attempt that wrote it.
    pub attempt: u32,
    /// Its type.
    pub kind: Type,
    payload: Bytes,
    json: OnceLock<Bytes>,
    msgpack: OnceLock<Bytes>,
}

/// What must be known of every event; the rest of the payload is only passed through.
#[derive(Deserialize)]
struct Head<'a> {
    #[serde(rename = "type")]
    kind: Type,
    #[serde(borrow)]
    job: Cow<'a, str>,
    seq: Seq,
    #[serde(default)]
    attempt: u32,
}

/// Why a stored message is no event of the log it stands in.
#[derive(Debug, thiserror::Error)]
pub enum Unreadable {
    /// The payload is not an event.
    #[error(transparent)]
    Codec(#[from] codec::Error),
    /// The payload names another job than its subject.
    #[error("the event names another job than its subject")]
    OtherJob,
    /// Events are counted from 1.
    #[error("the event has the number 0")]
    Zero,
}

impl Stored {
    /// Reads the message at `pos` of the log of `job`.
    ///
    /// # Errors
    /// [`Unreadable`]: a foreign publisher wrote something that is no event of this job.
    pub fn decode(job: &JobId, pos: Pos, payload: Bytes) -> Result<Self, Unreadable> {
        let head: Head<'_> = codec::borrowed(&payload)?;
        if head.job != job.as_str() {
            return Err(Unreadable::OtherJob);
        }
        if head.seq == Seq(0) {
            return Err(Unreadable::Zero);
        }
        let (json, msgpack) = (OnceLock::new(), OnceLock::new());
        Ok(Self {
            job: job.clone(),
            seq: head.seq,
            pos,
            attempt: head.attempt,
            kind: head.kind,
            payload,
            json,
            msgpack,
        })
    }

    /// The payload as it is stored.
    pub fn payload(&self) -> &Bytes {
        &self.payload
    }

    /// The whole event.
    ///
    /// # Errors
    /// [`codec::Error`] when a field that belongs to the type is missing or of another shape.
    pub fn event(&self) -> Result<Event, codec::Error> {
        Event::decode(&self.payload)
    }

    /// What a job is whose last event this is.
    pub fn status(&self) -> Status {
        // Asked to be cancelled before any attempt, it still waits.
        if self.kind == Type::CancelRequested && self.attempt == 0 {
            Status::Queued
        } else {
            self.kind.status()
        }
    }

    /// The cursor that names it.
    pub fn cursor(&self) -> Cursor {
        Cursor::of(&self.job, self.seq, self.pos, &self.payload)
    }

    /// How many bytes it holds in memory, about: the payload, one frame of it, and the rest. Always the same number
    /// for the same event, so that who adds it up can subtract it again.
    pub fn size(&self) -> usize {
        2 * self.payload.len() + 64 + size_of::<Self>()
    }

    /// The event as a JSON object with its `cursor`: a JSON client's frame.
    pub fn json(&self) -> &Bytes {
        self.json.get_or_init(|| self.make_json().into())
    }

    /// `[cursor, stored payload]`: a MessagePack client's frame.
    pub fn msgpack(&self) -> &Bytes {
        self.msgpack.get_or_init(|| self.make_msgpack().into())
    }

    fn make_json(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.payload.len() + 96);
        match Encoding::of(&self.payload) {
            Ok(Encoding::Json) => out.extend_from_slice(self.payload.trim_ascii_end()),
            _ => {
                if codec::msgpack_to_json(&self.payload, &mut out).is_err() {
                    // Stored by a foreign publisher, and not to be said in JSON: its place is kept, so that no
                    // reader sees a hole.
                    out.clear();
                    let (job, seq, attempt) = (&self.job, self.seq, self.attempt);
                    let text = format!(
                        r#"{{"type":"unreadable","job":"{job}","seq":{seq},"attempt":{attempt},"ts":0}}"#
                    );
                    out.extend_from_slice(text.as_bytes());
                }
            }
        }
        out.pop();
        out.extend_from_slice(format!(r#","cursor":"{}"}}"#, self.cursor()).as_bytes());
        out
    }

    fn make_msgpack(&self) -> Vec<u8> {
        let cursor = self.cursor().to_string();
        let mut out = Vec::with_capacity(self.payload.len() + cursor.len() + 4);
        out.push(0x92);
        // A cursor has at most 40 characters: `str 8`.
        out.extend_from_slice(&[0xD9, cursor.len() as u8]);
        out.extend_from_slice(cursor.as_bytes());
        let written = match Encoding::of(&self.payload) {
            Ok(Encoding::Json) => codec::json_to_msgpack(&self.payload, &mut out).is_ok(),
            _ => false,
        };
        if !written {
            out.extend_from_slice(&self.payload);
        }
        out
    }
}

impl fmt::Debug for Stored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}#{}@{} {:?}", self.job, self.seq, self.pos, self.kind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Body, Channel};
    use serde_json::{Value, json};

    fn job() -> JobId {
        "j1".parse().unwrap()
    }

    fn chunk(text: &str) -> Event {
        let body = Body::Chunk { text: text.into(), channel: Channel::Output };
        Event { body, job: job(), seq: Seq(7), attempt: 1, ts: 5 }
    }

    #[test]
    fn a_json_frame_is_the_event_with_its_cursor_whatever_the_stored_encoding() {
        let event = chunk("a \"quoted\" é\n");
        for payload in [event.encode().unwrap(), serde_json::to_vec_pretty(&event).unwrap().into()] {
            let stored = Stored::decode(&job(), 42, payload.clone()).unwrap();
            let frame: Value = serde_json::from_slice(stored.json()).unwrap();
            let cursor = Cursor::of(&job(), Seq(7), 42, &payload).to_string();
            let expected = json!({"type": "model:chunk:v1", "job": "j1", "seq": 7, "attempt": 1, "ts": 5,
                "text": "a \"quoted\" é\n", "channel": "output", "cursor": cursor});
            assert_eq!(frame, expected);
        }
    }

    #[test]
    fn a_msgpack_frame_holds_the_stored_bytes_untouched() {
        let payload = chunk("x").encode().unwrap();
        let stored = Stored::decode(&job(), 42, payload.clone()).unwrap();
        assert!(stored.msgpack().ends_with(&payload));
        let (cursor, event): (String, Event) = rmp_serde::from_slice(stored.msgpack()).unwrap();
        assert_eq!((cursor, event), (stored.cursor().to_string(), chunk("x")));
    }

    #[test]
    fn an_event_of_an_unknown_type_is_passed_on_whole() {
        let payload =
            json!({"type": "x:y:v3", "job": "j1", "seq": 1, "attempt": 1, "ts": 1, "deep": [{"a": null}]});
        let stored = Stored::decode(&job(), 1, rmp_serde::to_vec_named(&payload).unwrap().into()).unwrap();
        let frame: Value = serde_json::from_slice(stored.json()).unwrap();
        assert_eq!((stored.kind, &frame["deep"]), (Type::Unknown, &json!([{"a": null}])));
    }

    #[test]
    fn what_is_no_event_of_this_job_is_unreadable() {
        let other = r#"{"type":"x","job":"j2","seq":1}"#;
        let zero = r#"{"type":"x","job":"j1","seq":0}"#;
        for bad in ["", "null", "{}", "\u{1}\u{2}", r#"{"type":"x","job":"j1"}"#, other, zero] {
            assert!(Stored::decode(&job(), 1, bad.as_bytes().to_vec().into()).is_err(), "{bad}");
        }
        let mut long = chunk("x").encode().unwrap().to_vec();
        long.push(0);
        assert!(matches!(
            Stored::decode(&job(), 1, long.into()),
            Err(Unreadable::Codec(codec::Error::Trailing))
        ));
    }

    #[test]
    fn what_json_cannot_say_keeps_its_place_in_the_stream() {
        // {"type":"x","job":"j1","seq":1, [1]: 2}
        let mut payload = vec![0x84];
        for text in ["type", "x", "job", "j1", "seq"] {
            payload.push(0xA0 | text.len() as u8);
            payload.extend_from_slice(text.as_bytes());
        }
        payload.extend_from_slice(&[1, 0x91, 1, 2]);
        if let Ok(stored) = Stored::decode(&job(), 1, payload.into()) {
            let frame: Value = serde_json::from_slice(stored.json()).unwrap();
            assert_eq!(frame["seq"], 1);
        }
    }
}
