//! What each fuzz target requires of a decoder, besides that it returns. `tests/fuzz` replays the corpus with the same
//! functions, so that each finding stays fixed.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use bytes::Bytes;

use crate::sse::{SseEvent, SseParser};
use crate::wire::codec::{json_to_msgpack, msgpack_to_json};
use crate::wire::limits::MESSAGE_MAX;
use crate::wire::{ClientFrame, Cursor, Encoding, Event, JobId, PageToken, Refusal, Stored};

/// A function that gets the input of a target.
pub type Target = fn(&[u8]);

/// Every target, by the name of its folder in `corpus`.
pub const TARGETS: [(&str, Target); 7] = [
    ("client_frame_json", client_frame_json),
    ("client_frame_msgpack", client_frame_msgpack),
    ("stored", stored),
    ("cursor", cursor),
    ("page_token", page_token),
    ("sse", sse),
    ("submission", submission),
];

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
    assert!(serde_json::from_slice::<serde_json::Value>(event.json()).is_ok());
    assert!(!event.msgpack().is_empty());
    if event.event().is_ok() {
        let decoded = Event::decode(data).expect("it was decoded before");
        let again = decoded.encode().expect("an event that was decoded");
        assert!(Event::decode(&again).is_ok());
    }
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
    let Some((cut, data)) = data.split_first() else {
        return;
    };
    let whole = events([data]);
    let step = usize::from(*cut).max(1);
    assert_eq!(whole, events(data.chunks(step)), "cut every {step} bytes");
}

fn events<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Option<Vec<SseEvent>> {
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
        assert!(
            serde_json::from_slice::<serde_json::Value>(&json).is_ok(),
            "{json:?}"
        );
    }
}
