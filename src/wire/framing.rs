//! The bytes around an event on a connection: a WebSocket frame, and a server-sent event in a chunk
//! of HTTP/1.1. It knows neither events nor connections.

/// The largest head of a frame that a server sends.
pub const HEAD_MAX: usize = 10;

/// What a WebSocket frame holds (RFC 6455, section 5.2), as a server sends it: whole and unmasked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameKind {
    /// A text message.
    Text,
    /// A binary message.
    Binary,
    /// A close.
    Close,
    /// A ping.
    Ping,
    /// A pong.
    Pong,
}

impl FrameKind {
    /// The first byte of an unfragmented frame.
    const fn first_byte(self) -> u8 {
        0x80 | match self {
            Self::Text => 0x1,
            Self::Binary => 0x2,
            Self::Close => 0x8,
            Self::Ping => 0x9,
            Self::Pong => 0xA,
        }
    }
}

/// A WebSocket frame with this payload.
pub fn websocket_frame(kind: FrameKind, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(HEAD_MAX + payload.len());
    frame.push(kind.first_byte());
    match payload.len() {
        len @ 0..=125 => frame.push(len as u8),
        len @ 126..=0xFFFF => {
            frame.push(126);
            frame.extend_from_slice(&(len as u16).to_be_bytes());
        }
        len => {
            frame.push(127);
            frame.extend_from_slice(&(len as u64).to_be_bytes());
        }
    }
    frame.extend_from_slice(payload);
    frame
}

/// The payload of a frame that [`websocket_frame`] made.
pub fn websocket_payload(frame: &[u8]) -> &[u8] {
    match frame.get(1) {
        Some(126) => &frame[4..],
        Some(127) => &frame[10..],
        _ => &frame[2..],
    }
}

/// A server-sent event (the HTML standard, section 9.2) with this id and these data, in a chunk.
pub fn sse_chunk(id: &str, data: &[u8]) -> Vec<u8> {
    let mut event = Vec::with_capacity(id.len() + data.len() + 16);
    event.extend_from_slice(b"id: ");
    event.extend_from_slice(id.as_bytes());
    // JSON that another publisher stored may have line breaks between its tokens.
    for line in data.split(|byte| matches!(byte, b'\n' | b'\r')) {
        event.extend_from_slice(b"\ndata: ");
        event.extend_from_slice(line);
    }
    event.extend_from_slice(b"\n\n");
    http_chunk(&event)
}

/// A chunk of a body (RFC 9112, section 7.1) with this content, which is not empty: an empty chunk
/// ends the body.
pub fn http_chunk(content: &[u8]) -> Vec<u8> {
    let mut chunk = format!("{:x}\r\n", content.len()).into_bytes();
    chunk.reserve_exact(content.len() + 2);
    chunk.extend_from_slice(content);
    chunk.extend_from_slice(b"\r\n");
    chunk
}

/// The content of a chunk that [`http_chunk`] made.
pub fn chunk_content(chunk: &[u8]) -> &[u8] {
    let head = chunk
        .iter()
        .position(|byte| *byte == b'\n')
        .map_or(0, |at| at + 1);
    &chunk[head..chunk.len() - 2]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_has_the_shortest_length_and_its_payload() {
        for (len, head) in [
            (0, &b"\x81\x00"[..]),
            (125, b"\x81\x7D"),
            (126, b"\x81\x7E\x00\x7E"),
            (65_535, b"\x81\x7E\xFF\xFF"),
            (65_536, b"\x81\x7F\x00\x00\x00\x00\x00\x01\x00\x00"),
        ] {
            let payload = vec![b'x'; len];
            let frame = websocket_frame(FrameKind::Text, &payload);
            assert_eq!(frame.len(), head.len() + len);
            assert!(frame.starts_with(head) && websocket_payload(&frame) == payload);
        }
        assert_eq!(websocket_frame(FrameKind::Binary, b"x"), b"\x82\x01x");
        assert_eq!(websocket_frame(FrameKind::Close, b""), b"\x88\x00");
        assert_eq!(websocket_frame(FrameKind::Ping, b""), b"\x89\x00");
        assert_eq!(websocket_frame(FrameKind::Pong, b"p"), b"\x8A\x01p");
    }

    #[test]
    fn a_chunk_holds_an_event_whose_line_breaks_stay_inside_its_data() {
        let chunk = sse_chunk("c", b"{\r\n1\n}");
        let event = b"id: c\ndata: {\ndata: \ndata: 1\ndata: }\n\n";
        assert_eq!(chunk_content(&chunk), event);
        assert_eq!(chunk, [&b"26\r\n"[..], event, b"\r\n"].concat());
    }
}
