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
    put_head(&mut frame, kind, payload.len());
    frame.extend_from_slice(payload);
    frame
}

/// A WebSocket frame with the payload that `write` appends, of about `size` bytes.
pub fn websocket_frame_of(
    kind: FrameKind,
    size: usize,
    write: impl FnOnce(&mut Vec<u8>),
) -> Vec<u8> {
    /// Of a payload of 126 bytes to 64 KiB, as most have.
    const HEAD: usize = 4;
    let mut frame = Vec::with_capacity(HEAD + size);
    put_head(&mut frame, kind, 126);
    write(&mut frame);
    let length = frame.len() - HEAD;
    if let (126.., Ok(length)) = (length, u16::try_from(length)) {
        frame[2..HEAD].copy_from_slice(&length.to_be_bytes());
        return frame;
    }
    websocket_frame(kind, &frame[HEAD..])
}

fn put_head(frame: &mut Vec<u8>, kind: FrameKind, length: usize) {
    frame.push(kind.first_byte());
    match length {
        0..=125 => frame.push(length as u8),
        126..=0xFFFF => {
            frame.push(126);
            frame.extend_from_slice(&(length as u16).to_be_bytes());
        }
        _ => {
            frame.push(127);
            frame.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
}

/// The payload of a frame that [`websocket_frame`] made.
pub fn websocket_payload(frame: &[u8]) -> &[u8] {
    match frame.get(1) {
        Some(126) => &frame[4..],
        Some(127) => &frame[10..],
        _ => &frame[2..],
    }
}

/// What precedes each line of the data of a server-sent event.
const DATA: &[u8] = b"\ndata: ";
/// How many bytes more than the break itself a break in the data costs.
pub const LINE_MORE: usize = DATA.len() - 1;

fn is_break(byte: &u8) -> bool {
    matches!(byte, b'\n' | b'\r')
}

/// How many line breaks these data have. JSON that another publisher stored may have some between
/// its tokens.
pub fn breaks(data: &[u8]) -> usize {
    data.iter().filter(|byte| is_break(byte)).count()
}

/// A server-sent event (the HTML standard, section 9.2) with this id and these data, in a chunk.
pub fn sse_chunk(id: &[u8], data: &[u8]) -> Vec<u8> {
    const ID: &[u8] = b"id: ";
    const END: &[u8] = b"\n\n";
    // Counted first, since splitting is slow and an event rarely has one.
    let breaks = breaks(data);
    let of_lines = DATA.len() + data.len() + breaks * LINE_MORE;
    let mut chunk = chunk_head(ID.len() + id.len() + of_lines + END.len());
    chunk.extend_from_slice(ID);
    chunk.extend_from_slice(id);
    if breaks == 0 {
        chunk.extend_from_slice(DATA);
        chunk.extend_from_slice(data);
    } else {
        for line in data.split(is_break) {
            chunk.extend_from_slice(DATA);
            chunk.extend_from_slice(line);
        }
    }
    chunk.extend_from_slice(END);
    chunk.extend_from_slice(b"\r\n");
    chunk
}

/// A chunk of a body (RFC 9112, section 7.1) with this content, which is not empty: an empty chunk
/// ends the body.
pub fn http_chunk(content: &[u8]) -> Vec<u8> {
    let mut chunk = chunk_head(content.len());
    chunk.extend_from_slice(content);
    chunk.extend_from_slice(b"\r\n");
    chunk
}

/// The head of a chunk, with room for its content.
fn chunk_head(size: usize) -> Vec<u8> {
    let mut chunk = Vec::with_capacity(size + 20);
    let digits = (usize::BITS - size.leading_zeros()).div_ceil(4).max(1);
    for digit in (0..digits).rev() {
        chunk.push(b"0123456789abcdef"[size >> (4 * digit) & 0xF]);
    }
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
            let write = |out: &mut Vec<u8>| out.extend_from_slice(&payload);
            assert_eq!(websocket_frame_of(FrameKind::Text, 100, write), frame);
        }
        assert_eq!(websocket_frame(FrameKind::Binary, b"x"), b"\x82\x01x");
        assert_eq!(websocket_frame(FrameKind::Close, b""), b"\x88\x00");
        assert_eq!(websocket_frame(FrameKind::Ping, b""), b"\x89\x00");
        assert_eq!(websocket_frame(FrameKind::Pong, b"p"), b"\x8A\x01p");
    }

    #[test]
    fn a_chunk_holds_an_event_whose_line_breaks_stay_inside_its_data() {
        let chunk = sse_chunk(b"c", b"{\r\n1\n}");
        let event = b"id: c\ndata: {\ndata: \ndata: 1\ndata: }\n\n";
        assert_eq!(chunk_content(&chunk), event);
        assert_eq!(chunk, [&b"26\r\n"[..], event, b"\r\n"].concat());
        for size in [1, 15, 16, 255, 256, 4096, 70_000] {
            let head = format!("{size:x}\r\n");
            assert!(http_chunk(&vec![b'x'; size]).starts_with(head.as_bytes()));
        }
    }
}
