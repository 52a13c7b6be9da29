//! The cursor: opaque text that names one event and can be checked against it. It does not read the
//! log.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;

use super::id::{JobId, Seq, StreamSeq};

/// Names an event by its position, its job and its content.
///
/// ```text
/// base64url( 1 | crc32(job) LE32 | crc32(payload) LE32 | varint seq | varint stream_seq )
///        version
/// ```
/// The checksums detect a cursor of another job, and an event that was replaced because the stream
/// was rebuilt. They are not a signature: a cursor grants no access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor {
    /// The event's sequence number in its job's log.
    pub seq: Seq,
    /// The event's stream sequence, in the stream of its shard.
    pub stream_seq: StreamSeq,
    job: u32,
    event: u32,
}

/// The text is not a cursor of this version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid cursor: it was not issued by Tailwater")]
pub struct BadCursor;

const VERSION: u8 = 1;

impl Cursor {
    /// The cursor of the event at this position with this stored payload.
    pub fn of(job: &JobId, seq: Seq, stream_seq: StreamSeq, payload: &[u8]) -> Self {
        Self::of_checksum(job, seq, stream_seq, crc32fast::hash(payload))
    }

    /// The cursor of the event at this position whose payload has this [`Self::checksum`].
    pub(super) fn of_checksum(job: &JobId, seq: Seq, stream_seq: StreamSeq, checksum: u32) -> Self {
        Self {
            seq,
            stream_seq,
            job: job.tag(),
            event: checksum,
        }
    }

    /// The checksum of the event's payload.
    pub(super) fn checksum(&self) -> u32 {
        self.event
    }

    /// Whether this cursor names an event of `job`.
    pub fn is_of(&self, job: &JobId) -> bool {
        self.job == job.tag()
    }
}

/// The longest cursor in bytes, and as text.
const RAW_MAX: usize = 29;
const TEXT_MAX: usize = 40;

/// The text of a cursor, without an allocation.
#[derive(Clone, Copy, Debug)]
pub(super) struct CursorText {
    bytes: [u8; TEXT_MAX],
    len: usize,
}

impl CursorText {
    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl Cursor {
    pub(super) fn text(&self) -> CursorText {
        let mut raw = [0; RAW_MAX];
        raw[0] = VERSION;
        raw[1..5].copy_from_slice(&self.job.to_le_bytes());
        raw[5..9].copy_from_slice(&self.event.to_le_bytes());
        let mut used = 9;
        for mut value in [self.seq.0, self.stream_seq] {
            while value >= 0x80 {
                raw[used] = value as u8 | 0x80;
                used += 1;
                value >>= 7;
            }
            raw[used] = value as u8;
            used += 1;
        }
        let mut bytes = [0; TEXT_MAX];
        let len = BASE64.encode_slice(&raw[..used], &mut bytes);
        let len = len.unwrap_or_else(|_| unreachable!("29 bytes are at most 40 characters"));
        CursorText { bytes, len }
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(self.text().as_bytes()))
    }
}

impl FromStr for Cursor {
    type Err = BadCursor;

    fn from_str(text: &str) -> Result<Self, BadCursor> {
        let raw = BASE64.decode(text).map_err(|_| BadCursor)?;
        let (&version, raw) = raw.split_first().ok_or(BadCursor)?;
        let (job, raw) = raw.split_first_chunk().ok_or(BadCursor)?;
        let (event, raw) = raw.split_first_chunk().ok_or(BadCursor)?;
        let (seq, raw) = take_varint(raw).ok_or(BadCursor)?;
        let (stream_seq, raw) = take_varint(raw).ok_or(BadCursor)?;
        if version != VERSION || !raw.is_empty() || seq == 0 || stream_seq == 0 {
            return Err(BadCursor);
        }
        Ok(Self {
            seq: Seq(seq),
            stream_seq,
            job: u32::from_le_bytes(*job),
            event: u32::from_le_bytes(*event),
        })
    }
}

/// LEB128, as in Protocol Buffers.
pub(super) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// The number at the start of `raw`, and the bytes after it.
pub(super) fn take_varint(raw: &[u8]) -> Option<(u64, &[u8])> {
    let mut value = 0_u64;
    for (i, &byte) in raw.iter().enumerate().take(10) {
        let bits = u64::from(byte & 0x7F);
        if i == 9 && bits > 1 {
            return None;
        }
        value |= bits << (7 * i);
        if byte & 0x80 == 0 {
            return Some((value, &raw[i + 1..]));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_cursor_is_read_back_from_its_text(seq in 1..u64::MAX, stream_seq in 1..u64::MAX, payload: Vec<u8>) {
            let job: JobId = "j".parse().unwrap();
            let cursor = Cursor::of(&job, Seq(seq), stream_seq, &payload);
            prop_assert_eq!(cursor.to_string().parse::<Cursor>(), Ok(cursor));
            prop_assert!(cursor.is_of(&job));
            prop_assert!(!cursor.is_of(&"k".parse().unwrap()));
        }

        #[test]
        fn invalid_text_is_refused_and_never_panics(text in ".{0,40}") {
            if let Ok(cursor) = text.parse::<Cursor>() {
                prop_assert_eq!(cursor.to_string().parse::<Cursor>(), Ok(cursor));
            }
        }
    }

    #[test]
    fn a_cursor_with_trailing_bytes_or_another_version_is_refused() {
        let cursor = Cursor::of(&"j".parse().unwrap(), Seq(3), 9, b"x");
        let raw = BASE64.decode(cursor.to_string()).unwrap();
        let longer = [raw.as_slice(), &[0]].concat();
        let newer = [&[2], &raw[1..]].concat();
        for bad in [longer, newer, raw[..raw.len() - 1].to_vec(), Vec::new()] {
            assert_eq!(BASE64.encode(bad).parse::<Cursor>(), Err(BadCursor));
        }
    }
}
