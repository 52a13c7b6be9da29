//! A listing of jobs: its rows, its pages, and the opaque text by which a client asks for the next page. It reads no log.

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
    /// The job, under the name that it has in events and frames.
    pub job: JobId,
    /// Its kind; absent when the events that name it have expired.
    pub kind: Option<Kind>,
    /// What it is doing.
    pub status: Status,
    /// The current or last attempt; 0 before the first.
    pub attempt: u32,
    /// The number of its last event.
    pub seq: Seq,
    /// When it was submitted, by the submitter's clock, as in its first event; absent when that has expired.
    pub created_at: Option<u64>,
    /// When the broker stored its last event, by the broker's clock: what a listing is ordered by.
    pub updated_at: u64,
}

/// What a listing takes of a job's first event. The input, which may be large, is passed over.
#[derive(Deserialize)]
struct First {
    #[serde(rename = "type")]
    event_type: EventType,
    #[serde(default)]
    kind: Option<Kind>,
    ts: u64,
}

impl JobRow {
    /// The row of a job whose last event this is, without what only its first event tells.
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

    /// Takes in the first event that the log still has of the job. One that cannot be read tells nothing.
    pub fn begun(&mut self, payload: &[u8]) {
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
    /// The jobs, newest first. There may be fewer than were asked for, even none, and still a next page.
    pub jobs: Vec<JobRow>,
    /// What asks for the next page; absent when there is nothing more.
    #[schemars(with = "Option<String>")]
    pub next: Option<PageToken>,
}

/// How far a listing has come in one shard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ShardPosition {
    /// The shard's last stream sequence when the listing began. Later messages are not part of it.
    pub top: StreamSeq,
    /// The next stream sequence to read, going down; 0 when the shard holds nothing more.
    pub next: StreamSeq,
}

/// Where the next page of a listing begins.
///
/// ```text
/// base64url( 1 | crc32(all that follows) LE32 | streams LE32 | for each shard: varint top, varint top - next )
///        version
/// ```
/// The checksum tells text that was cut or changed, and `streams` a listing of other streams: another system's, or of
/// before they were made anew. They are no signature: a token grants nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageToken {
    /// A checksum of what tells the streams from others.
    pub streams: u32,
    /// One position for each shard, in order.
    pub positions: Vec<ShardPosition>,
}

/// Text that is no page token of this version, or not one of these streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a page that a listing of this log gave out")]
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
            let (passed, below) = take_varint(below).ok_or(BadPage)?;
            positions.push(ShardPosition {
                top,
                next: top.checked_sub(passed).ok_or(BadPage)?,
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
        fn a_token_survives_its_text_form(streams: u32, positions in prop::collection::vec((0..u64::MAX, 0..u64::MAX), 0..9)) {
            let positions = positions.into_iter().map(|(a, b)| ShardPosition { top: a.max(b), next: a.min(b) }).collect();
            let token = PageToken { streams, positions };
            prop_assert_eq!(token.to_string().parse(), Ok(token));
        }

        #[test]
        fn text_that_is_no_token_is_refused_and_never_panics(text in ".{0,60}") {
            prop_assert_eq!(text.parse::<PageToken>(), Err(BadPage));
        }

        #[test]
        fn a_token_of_which_one_byte_was_changed_is_refused(at: prop::sample::Index, other in 1..=255_u8) {
            let mut raw = BASE64.decode(token().to_string()).unwrap();
            let at = at.index(raw.len());
            raw[at] ^= other;
            prop_assert_eq!(BASE64.encode(raw).parse::<PageToken>(), Err(BadPage));
        }
    }

    #[test]
    fn a_token_that_was_cut_or_goes_on_below_nothing_is_refused() {
        let raw = BASE64.decode(token().to_string()).unwrap();
        for end in 0..raw.len() {
            assert_eq!(
                BASE64.encode(&raw[..end]).parse::<PageToken>(),
                Err(BadPage),
                "{end}"
            );
        }
        // A valid checksum over a position that is above its top, or over half a position.
        for positions in [&[1, 2][..], &[1]] {
            let body = [&[0; 4], positions].concat();
            let raw = [&[VERSION][..], &crc32fast::hash(&body).to_le_bytes(), &body].concat();
            assert_eq!(BASE64.encode(raw).parse::<PageToken>(), Err(BadPage));
        }
    }

    #[test]
    fn a_page_is_json_with_null_for_what_is_not_known() {
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
        // An undecodable event, or one that tells nothing, leaves the row as it was.
        for nothing in [
            &b"junk"[..],
            br#"{"type":"model:chunk:v1","kind":"x","ts":4}"#,
        ] {
            row.begun(nothing);
            assert_eq!((&row.kind, row.created_at), (&None, None));
        }
        row.begun(br#"{"type":"job:started:v1","kind":"demo","worker":"w","seq":2,"ts":5}"#);
        assert_eq!(
            (row.kind.as_ref().map(Kind::as_str), row.created_at),
            (Some("demo"), None)
        );
        row.begun(br#"{"type":"job:queued:v1","kind":"exec","input":{"a":[1]},"seq":1,"ts":4}"#);
        assert_eq!(
            (row.kind.as_ref().map(Kind::as_str), row.created_at),
            (Some("exec"), Some(4))
        );
    }
}
