//! A listing of jobs: its rows, its pages, and the opaque token of the next page. It does not read
//! the log.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize, Serializer};

use super::codec;
use super::cursor::{put_varint, take_varint};
use super::event::{EventType, Status};
use super::id::{JobId, Kind, Seq, StreamSeq};
use super::stored::Stored;

/// A job, as a listing shows it. Times are milliseconds since the Unix epoch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct JobRow {
    /// The job.
    pub id: JobId,
    /// The same, under the name that events and frames use.
    pub job: JobId,
    /// Its kind; absent when the events that name it have expired.
    pub kind: Option<Kind>,
    /// What it is doing.
    pub status: Status,
    /// The current or last attempt; 0 before the first.
    pub attempt: u32,
    /// The sequence number of its last event.
    pub seq: Seq,
    /// When it was submitted, by the submitter's clock; absent when its first event has expired.
    pub created_at: Option<u64>,
    /// When the broker stored its last event, by the broker's clock. Listings are ordered by it.
    pub updated_at: u64,
}

/// The fields of a job's first event that a listing or a state needs. The input, which may be large,
/// is skipped.
#[derive(Deserialize)]
pub(super) struct First {
    #[serde(rename = "type")]
    event_type: EventType,
    #[serde(default)]
    pub(super) kind: Option<Kind>,
    pub(super) ts: u64,
}

impl JobRow {
    /// The row of the job with this last event, without the fields that only the first event has.
    pub fn new(last: &Stored, updated_at: u64) -> Self {
        Self {
            job: last.job.clone(),
            id: last.job.clone(),
            kind: None,
            status: last.status(),
            attempt: last.attempt,
            seq: last.seq,
            created_at: None,
            updated_at,
        }
    }

    /// Applies the first event that the log still has of the job. An undecodable one is ignored.
    pub fn apply_first(&mut self, payload: &[u8]) {
        let Ok(First {
            event_type,
            kind,
            ts,
        }) = codec::from_stored(payload)
        else {
            return;
        };
        if matches!(event_type, EventType::Queued | EventType::Started) {
            self.kind = kind;
        }
        if event_type == EventType::Queued {
            self.created_at = Some(ts);
        }
    }
}

/// One page of a listing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct JobPage {
    /// The jobs, newest first. There may be a next page even if there are fewer than requested, or
    /// none.
    pub jobs: Vec<JobRow>,
    /// The token of the next page; absent on the last page.
    #[schemars(with = "Option<String>")]
    pub next: Option<PageToken>,
}

/// How far a listing has come in one shard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ShardPosition {
    /// The shard's last stream sequence when the listing began. Later messages are not part of it.
    pub top: StreamSeq,
    /// The next stream sequence to read, in descending order; 0 when the shard has been read.
    pub next: StreamSeq,
}

/// Where the next page of a listing starts.
///
/// ```text
/// base64url( 1 | crc32(all that follows) LE32 | streams LE32 | for each shard: varint top, varint top - next )
///        version
/// ```
/// The checksum detects text that was cut or changed. `streams` detects a token for other streams:
/// those of another system, or those from before the streams were recreated. They are not a
/// signature: a token grants no access.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageToken {
    /// A checksum that identifies the streams.
    pub streams: u32,
    /// One position for each shard, in order.
    pub positions: Vec<ShardPosition>,
}

/// The text is not a page token of this version, or not one for these streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid page token: it was not issued for this log")]
pub struct BadPage;

const VERSION: u8 = 1;

impl fmt::Display for PageToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut body = self.streams.to_le_bytes().to_vec();
        for ShardPosition { top, next } in &self.positions {
            put_varint(&mut body, *top);
            put_varint(&mut body, top.saturating_sub(*next));
        }
        let mut raw = vec![VERSION];
        raw.extend_from_slice(&crc32fast::hash(&body).to_le_bytes());
        raw.extend_from_slice(&body);
        f.write_str(&BASE64.encode(raw))
    }
}

impl FromStr for PageToken {
    type Err = BadPage;

    fn from_str(text: &str) -> Result<Self, BadPage> {
        let raw = BASE64.decode(text).map_err(|_| BadPage)?;
        let (&version, raw) = raw.split_first().ok_or(BadPage)?;
        let (sum, body) = raw.split_first_chunk().ok_or(BadPage)?;
        if version != VERSION || u32::from_le_bytes(*sum) != crc32fast::hash(body) {
            return Err(BadPage);
        }
        let (streams, mut rest) = body.split_first_chunk().ok_or(BadPage)?;
        let mut positions = Vec::new();
        while !rest.is_empty() {
            let (top, below) = take_varint(rest).ok_or(BadPage)?;
            let (read, below) = take_varint(below).ok_or(BadPage)?;
            positions.push(ShardPosition {
                top,
                next: top.checked_sub(read).ok_or(BadPage)?,
            });
            rest = below;
        }
        Ok(Self {
            streams: u32::from_le_bytes(*streams),
            positions,
        })
    }
}

impl Serialize for PageToken {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn token() -> PageToken {
        let positions = vec![
            ShardPosition { top: 900, next: 17 },
            ShardPosition::default(),
            ShardPosition { top: 5, next: 5 },
        ];
        PageToken {
            streams: 7,
            positions,
        }
    }

    proptest! {
        #[test]
        fn a_token_is_read_back_from_its_text(streams: u32, positions in prop::collection::vec((0..u64::MAX, 0..u64::MAX), 0..9)) {
            let positions = positions.into_iter().map(|(a, b)| ShardPosition { top: a.max(b), next: a.min(b) }).collect();
            let token = PageToken { streams, positions };
            prop_assert_eq!(token.to_string().parse(), Ok(token));
        }

        #[test]
        fn invalid_text_is_refused_and_never_panics(text in ".{0,60}") {
            prop_assert_eq!(text.parse::<PageToken>(), Err(BadPage));
        }

        #[test]
        fn a_token_with_one_changed_byte_is_refused(at: prop::sample::Index, other in 1..=255_u8) {
            let mut raw = BASE64.decode(token().to_string()).unwrap();
            let at = at.index(raw.len());
            raw[at] ^= other;
            prop_assert_eq!(BASE64.encode(raw).parse::<PageToken>(), Err(BadPage));
        }
    }

    #[test]
    fn a_token_that_was_cut_or_has_an_invalid_position_is_refused() {
        let raw = BASE64.decode(token().to_string()).unwrap();
        for end in 0..raw.len() {
            assert_eq!(
                BASE64.encode(&raw[..end]).parse::<PageToken>(),
                Err(BadPage),
                "{end}"
            );
        }
        // Valid checksums, but a position above its top, or half a position.
        for positions in [&[1, 2][..], &[1]] {
            let body = [&[0; 4], positions].concat();
            let raw = [&[VERSION][..], &crc32fast::hash(&body).to_le_bytes(), &body].concat();
            assert_eq!(BASE64.encode(raw).parse::<PageToken>(), Err(BadPage));
        }
    }

    #[test]
    fn a_page_is_json_with_null_for_unknown_values() {
        let last = json!({"type": "job:done:v1", "job": "j1", "seq": 9, "attempt": 2, "ts": 70});
        let job: JobId = "j1".parse().unwrap();
        let last = Stored::decode(&job, 30, last.to_string().into()).unwrap();
        let mut row = JobRow::new(&last, 71);
        let page = JobPage {
            jobs: vec![row.clone()],
            next: None,
        };
        let expected = json!({"jobs": [{"id": "j1", "job": "j1", "kind": null, "status": "done", "attempt": 2, "seq": 9,
            "created_at": null, "updated_at": 71}], "next": null});
        assert_eq!(serde_json::to_value(page).unwrap(), expected);
        // An undecodable event, or one of another type, does not change the row.
        for (first, kind, created_at) in [
            ("junk", None, None),
            (r#"{"type":"model:chunk:v1","kind":"x","ts":4}"#, None, None),
            (
                r#"{"type":"job:started:v1","kind":"demo","worker":"w","seq":2,"ts":5}"#,
                Some("demo"),
                None,
            ),
            (
                r#"{"type":"job:queued:v1","kind":"exec","input":{"a":[1]},"seq":1,"ts":4}"#,
                Some("exec"),
                Some(4),
            ),
        ] {
            row.apply_first(first.as_bytes());
            let row_kind = row.kind.as_ref().map(Kind::as_str);
            assert_eq!((row_kind, row.created_at), (kind, created_at), "{first}");
        }
    }
}
