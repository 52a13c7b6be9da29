//! What each fuzz target requires of a decoder, besides that it returns. `tests/fuzz` replays the corpus with the same
//! functions, so that each finding stays fixed.

use std::fmt::Debug;
use std::slice::Chunks;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use bytes::Bytes;
use serde::de::IgnoredAny;
use serde_json::Value;

use crate::auth::{KeySet, Operation, SigningSecret, TokenKeys, decide};
use crate::reader::{ClientInput, FrameError, FrameReader};
use crate::sse::{SseEvent, SseParser};
use crate::wire::codec::{json_to_msgpack, msgpack_to_json};
use crate::wire::limits::{LABEL_MAX, MESSAGE_MAX};
use crate::wire::{
    ClientFrame, Cursor, Encoding, Event, JobId, PageToken, Refusal, Segment, Stored,
    completes_segment, first_of_segment,
};

/// A function that gets the input of a target.
pub type Target = fn(&[u8]);

/// Every target, by the name of its folder in `corpus`.
pub const TARGETS: [(&str, Target); 11] = [
    ("websocket", websocket),
    ("client_frame_json", client_frame_json),
    ("client_frame_msgpack", client_frame_msgpack),
    ("stored", stored),
    ("segment", segment),
    ("cursor", cursor),
    ("page_token", page_token),
    ("sse", sse),
    ("submission", submission),
    ("token", token),
    ("key_set", key_set),
];

/// The bytes of a client's WebSocket. They give the same messages however they are cut, and hold no more than
/// has arrived.
pub fn websocket(data: &[u8]) {
    assert_same_when_cut(data, messages);
}

/// What is read from a stream does not depend on how it is cut. The first byte says how.
fn assert_same_when_cut<T: Debug + PartialEq>(data: &[u8], read: fn(Chunks<'_, u8>) -> T) {
    let Some((cut, data)) = data.split_first() else {
        return;
    };
    let whole = read(data.chunks(data.len().max(1)));
    let step = usize::from(*cut).max(1);
    assert_eq!(whole, read(data.chunks(step)), "cut every {step} bytes");
}

fn messages(pieces: Chunks<'_, u8>) -> (Vec<ClientInput>, Option<FrameError>) {
    let mut reader = FrameReader::new();
    let mut messages = Vec::new();
    let mut arrived = 0;
    for mut piece in pieces {
        arrived += piece.len();
        loop {
            match reader.read(&mut piece) {
                Ok(Some(message)) => messages.push(message),
                Ok(None) => break,
                Err(error) => return (messages, Some(error)),
            }
        }
        assert!(piece.is_empty(), "everything is read");
        assert!(reader.held() <= arrived);
    }
    (messages, None)
}

/// A client's frame in JSON.
pub fn client_frame_json(data: &[u8]) {
    if let Err(refusal) = ClientFrame::parse(data, Encoding::Json) {
        assert_short(&refusal);
    }
}

/// A client's frame in MessagePack. It means the same as in JSON.
pub fn client_frame_msgpack(data: &[u8]) {
    let frame = ClientFrame::parse(data, Encoding::MsgPack);
    if let Err(refusal) = &frame {
        assert_short(refusal);
    }
    let mut json = Vec::new();
    if frame.is_ok() && msgpack_to_json(data, &mut json).is_ok() {
        assert!(
            ClientFrame::parse(&json, Encoding::Json).is_ok(),
            "{json:?}"
        );
    }
}

/// A refusal is sent to the client, so it must not be as long as what the client sent.
fn assert_short(refusal: &Refusal) {
    assert!(
        refusal.message.len() <= 2 * MESSAGE_MAX,
        "{}",
        refusal.message.len()
    );
}

/// A stored message. What can be decoded can be sent in both encodings, and names itself by its cursor.
pub fn stored(data: &[u8]) {
    let job: JobId = "j".parse().expect("a valid id");
    let Ok(event) = Stored::decode(&job, u64::MAX, Bytes::copy_from_slice(data)) else {
        return;
    };
    let cursor = event.cursor();
    assert!(cursor.is_of(&job));
    assert_eq!(cursor.to_string().parse::<Cursor>().ok(), Some(cursor));
    // A number may be too large for any type, as in what another publisher stored: it is JSON all the same.
    assert!(serde_json::from_slice::<IgnoredAny>(event.json()).is_ok());
    assert!(std::str::from_utf8(event.json()).is_ok());
    assert!(!event.msgpack().is_empty());
    if event.event().is_ok() {
        let decoded = Event::decode(data).expect("it was decoded before");
        let again = decoded.encode().expect("an event that was decoded");
        assert!(Event::decode(&again).is_ok());
    }
}

/// A segment of a job's log, after its number. It has the events of this number, without a gap, and is complete.
pub fn segment(data: &[u8]) {
    let job: JobId = "j".parse().expect("a valid id");
    let Some((number, payload)) = data.split_first() else {
        return;
    };
    let number = u64::from(*number);
    let Some(segment) = Segment::decode(&job, number, payload) else {
        return;
    };
    let seqs = segment.events().iter().map(|event| event.seq.0);
    assert!(seqs.eq((first_of_segment(number).0..).take(segment.events().len())));
    let positions = segment.events().iter().map(|event| event.stream_seq);
    assert!(positions.is_sorted_by(|before, after| before < after));
    let last = segment.last().expect("a segment has events");
    assert!(completes_segment(last.seq, last.event_type.is_end()));
}

/// A cursor, as text and as the bytes in it.
pub fn cursor(data: &[u8]) {
    let texts = [
        String::from_utf8_lossy(data).into_owned(),
        BASE64.encode(data),
    ];
    for text in texts {
        if let Ok(cursor) = text.parse::<Cursor>() {
            assert_eq!(cursor.to_string().parse::<Cursor>().ok(), Some(cursor));
        }
    }
}

/// The token of a page, as text and as the bytes in it, with a correct checksum.
pub fn page_token(data: &[u8]) {
    let mut texts = vec![
        String::from_utf8_lossy(data).into_owned(),
        BASE64.encode(data),
    ];
    if let Some((version, body)) = data.split_first() {
        let mut raw = vec![*version];
        raw.extend(crc32fast::hash(body).to_le_bytes());
        raw.extend(body);
        texts.push(BASE64.encode(raw));
    }
    for text in texts {
        if let Ok(token) = text.parse::<PageToken>() {
            assert_eq!(token.to_string().parse::<PageToken>().ok(), Some(token));
        }
    }
}

/// A stream of server-sent events. It gives the same events however it is cut.
pub fn sse(data: &[u8]) {
    assert_same_when_cut(data, events);
}

fn events(pieces: Chunks<'_, u8>) -> Option<Vec<SseEvent>> {
    let mut parser = SseParser::default();
    let mut events = Vec::new();
    for mut piece in pieces {
        while let Some(event) = parser.next(&mut piece).ok()? {
            events.push(event);
        }
    }
    let rest = parser.end();
    assert!(rest.other_text.len() <= 64 * 1024);
    events.extend(rest.events);
    Some(events)
}

/// Any JSON or MessagePack, from one to the other and back.
pub fn submission(data: &[u8]) {
    let mut msgpack = Vec::new();
    if json_to_msgpack(data, &mut msgpack).is_ok() {
        let mut json = Vec::new();
        assert!(msgpack_to_json(&msgpack, &mut json).is_ok());
    }
    let mut json = Vec::new();
    if msgpack_to_json(data, &mut json).is_ok() {
        assert!(serde_json::from_slice::<Value>(&json).is_ok(), "{json:?}");
    }
}

const SECRET: &[u8] = b"a secret of more than thirty-two bytes";
/// When tokens are verified, in milliseconds since the Unix epoch.
const NOW_MS: u64 = 1_800_000_000_000;

/// A token as a client sends it, which no key verifies; and a header and claims, separated by a line
/// feed, that are signed correctly. A valid token allows exactly what its claims say.
pub fn token(data: &[u8]) {
    let keys = TokenKeys {
        secret: SigningSecret::new(SECRET).ok(),
        ..TokenKeys::default()
    };
    let verify = |token: &str| keys.verify(token, &KeySet::default(), NOW_MS);
    assert!(verify(&String::from_utf8_lossy(data)).is_err());
    let line_end = data.iter().position(|byte| *byte == b'\n');
    let (header, claims) = match line_end {
        Some(at) => (&data[..at], &data[at + 1..]),
        None => (&br#"{"alg":"HS256"}"#[..], data),
    };
    let message = format!("{}.{}", BASE64.encode(header), BASE64.encode(claims));
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, SECRET);
    let tag = ring::hmac::sign(&key, message.as_bytes());
    let Ok(subject) = verify(&format!("{message}.{}", BASE64.encode(tag))) else {
        return;
    };
    assert!(subject.expires_at_ms.is_some_and(|at| at > NOW_MS));
    assert!((1..=LABEL_MAX).contains(&subject.name.len()));
    let Ok(claims) = serde_json::from_slice::<Value>(claims) else {
        // A claim that is not read may have a number that no type can hold.
        let text = std::str::from_utf8(claims).expect("valid claims are text");
        serde_json::from_str::<IgnoredAny>(text).expect("valid claims are JSON");
        return;
    };
    let grants = &claims["tailwater"];
    let is_admin = grants["admin"] == true;
    let allows = |field: &str, pattern: &str| {
        let patterns = grants[field].as_array();
        is_admin || patterns.is_some_and(|list| list.iter().any(|one| one == pattern))
    };
    let (job, kind) = ("j", "k");
    let allows_any = |field: &str, name: &str| {
        allows(field, name) || allows(field, "*") || allows(field, &format!("{name}*"))
    };
    let (job_id, kind_id) = (job.parse().expect("an id"), kind.parse().expect("a kind"));
    for (operation, expected) in [
        (Operation::Watch(&job_id), allows_any("watch", job)),
        (Operation::Cancel(&job_id), allows_any("cancel", job)),
        (Operation::Submit(&kind_id), allows_any("submit", kind)),
        (Operation::List, is_admin || grants["list"] == true),
        (Operation::Observe, is_admin),
    ] {
        assert_eq!(
            decide(&subject, operation).is_ok(),
            expected,
            "{operation:?}"
        );
    }
}

/// A JWK set. No key of it verifies a token that it did not sign.
pub fn key_set(data: &[u8]) {
    let Ok(set) = KeySet::from_json(data) else {
        return;
    };
    let keys = TokenKeys::default();
    for header in [
        r#"{"alg":"RS256"}"#,
        r#"{"alg":"ES256","kid":"a"}"#,
        r#"{"alg":"EdDSA"}"#,
    ] {
        let token = format!(
            "{}.{}.AAAA",
            BASE64.encode(header),
            BASE64.encode(r#"{"sub":"a","exp":2e9}"#)
        );
        assert!(keys.verify(&token, &set, NOW_MS).is_err());
    }
}
