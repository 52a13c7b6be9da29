//! Splits a server's byte stream into messages, and finds in them what a measurement needs. It
//! trusts the server: input that it cannot read is an error that ends the run.

use std::io;

use memchr::memmem;

/// Opcodes of WebSocket frames (RFC 6455).
pub(super) const TEXT: u8 = 1;
pub(super) const BINARY: u8 = 2;
pub(super) const PONG: u8 = 10;

/// How a transport separates messages in its byte stream.
#[derive(Debug)]
pub(super) enum Framing {
    /// WebSocket frames (RFC 6455), unmasked and unfragmented, as an edge sends them.
    WebSocket(Vec<u8>),
    /// Server-Sent Events in a chunked HTTP/1.1 body.
    EventStream(Chunked),
}

/// One message of a byte stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Received<'a> {
    /// A text or binary message, or one server-sent event.
    Data(&'a [u8]),
    /// A WebSocket ping with this payload.
    Ping(&'a [u8]),
    /// The server ended the stream; of a WebSocket the close frame's payload.
    Close(&'a [u8]),
}

impl Framing {
    /// Reads the next bytes, and calls `deliver` for each complete message.
    ///
    /// # Errors
    /// When the bytes are not of this framing.
    pub(super) fn feed(
        &mut self,
        bytes: &[u8],
        mut deliver: impl FnMut(Received<'_>),
    ) -> io::Result<()> {
        match self {
            Self::WebSocket(partial) => {
                if partial.is_empty() {
                    let used = websocket(bytes, &mut deliver)?;
                    partial.extend_from_slice(&bytes[used..]);
                } else {
                    partial.extend_from_slice(bytes);
                    let used = websocket(partial, &mut deliver)?;
                    partial.drain(..used);
                }
                if partial.is_empty() {
                    *partial = Vec::new();
                }
                Ok(())
            }
            Self::EventStream(chunked) => chunked.feed(bytes, deliver),
        }
    }
}

/// Delivers all complete frames, and returns their total size.
fn websocket(bytes: &[u8], deliver: &mut impl FnMut(Received<'_>)) -> io::Result<usize> {
    let mut at = 0;
    while let [first, second, ref rest @ ..] = bytes[at..] {
        let (head, length) = match second {
            126 => match *rest {
                [a, b, ..] => (4, usize::from(u16::from_be_bytes([a, b]))),
                _ => break,
            },
            127 => match rest.first_chunk::<8>() {
                Some(length) => (
                    10,
                    usize::try_from(u64::from_be_bytes(*length)).unwrap_or(0),
                ),
                None => break,
            },
            length @ ..126 => (2, usize::from(length)),
            _ => return Err(broken("a masked frame from a server")),
        };
        let Some(payload) = bytes.get(at + head..at + head + length) else {
            break;
        };
        deliver(match first {
            0x81 | 0x82 => Received::Data(payload),
            0x88 => Received::Close(payload),
            0x89 => Received::Ping(payload),
            0x8a => {
                at += head + length;
                continue;
            }
            _ => return Err(broken("a fragmented or unknown WebSocket frame")),
        });
        at += head + length;
    }
    Ok(at)
}

/// A chunked body of server-sent events.
#[derive(Debug, Default)]
pub(super) struct Chunked {
    /// How many bytes of the current chunk remain, with its line end.
    remaining: usize,
    /// The beginning of a chunk's size line.
    head: Vec<u8>,
    /// The beginning of an event.
    partial: Vec<u8>,
    /// The last chunk was read; its line end may follow later.
    ended: bool,
}

impl Chunked {
    fn feed(&mut self, mut bytes: &[u8], mut deliver: impl FnMut(Received<'_>)) -> io::Result<()> {
        const LINE_END: usize = 2;
        while !bytes.is_empty() && !self.ended {
            if self.remaining > 0 {
                let (now, later) = bytes.split_at(self.remaining.min(bytes.len()));
                let data = self.remaining.saturating_sub(LINE_END).min(now.len());
                self.partial.extend_from_slice(&now[..data]);
                self.remaining -= now.len();
                bytes = later;
                continue;
            }
            self.events(&mut deliver);
            let Some(end) = memchr::memchr(b'\n', bytes) else {
                self.head.extend_from_slice(bytes);
                break;
            };
            self.head.extend_from_slice(&bytes[..end]);
            bytes = &bytes[end + 1..];
            let size = std::str::from_utf8(&self.head).unwrap_or_default().trim();
            let size = usize::from_str_radix(size, 16).map_err(|_| broken("a bad chunk size"))?;
            self.head.clear();
            if size == 0 {
                self.ended = true;
                deliver(Received::Close(&[]));
                return Ok(());
            }
            self.remaining = size + LINE_END;
        }
        self.events(&mut deliver);
        Ok(())
    }

    fn events(&mut self, deliver: &mut impl FnMut(Received<'_>)) {
        let mut at = 0;
        while let Some(end) = memmem::find(&self.partial[at..], b"\n\n") {
            deliver(Received::Data(&self.partial[at..at + end]));
            at += end + 2;
        }
        self.partial.drain(..at);
    }
}

/// The sequence number of an event frame, in JSON, MessagePack, or a server-sent event; `None` of
/// any other message. It reads only the benchmark's own events, in which no other field looks the
/// same.
pub(super) fn sequence(message: &[u8]) -> Option<u64> {
    if let Some(at) = memmem::find(message, b"\"seq\":") {
        return Some(json_number(&message[at + 6..]));
    }
    let at = memmem::find(message, b"\xa3seq")?;
    msgpack_number(&message[at + 4..])
}

/// The sequence numbers of a JSON message with several events.
pub(super) fn sequences(message: &[u8]) -> impl Iterator<Item = u64> {
    memmem::find_iter(message, b"\"seq\":").map(|at| json_number(&message[at + 6..]))
}

/// The cursor of an event frame; of Durable Streams, the offset after its events.
pub(super) fn cursor(message: &[u8]) -> Option<String> {
    let text = |bytes: &[u8]| std::str::from_utf8(bytes).ok().map(str::to_owned);
    if message.starts_with(b"id:") {
        let line = &message[..memchr::memchr(b'\n', message).unwrap_or(message.len())];
        return text(line[3..].trim_ascii());
    }
    for field in [&b"\"cursor\":\""[..], b"\"streamNextOffset\":\""] {
        if let Some(value) = string_after(message, field) {
            return Some(value);
        }
    }
    match *message {
        [0x92, 0xd9, length, ref rest @ ..] => text(rest.get(..usize::from(length))?),
        [0x92, head @ 0xa0..=0xbf, ref rest @ ..] => text(rest.get(..usize::from(head & 0x1f))?),
        _ => None,
    }
}

/// The writer's clock of an event frame, in milliseconds since the Unix epoch.
pub(super) fn timestamp(message: &[u8]) -> Option<u64> {
    if let Some(at) = memmem::find(message, b"\"ts\":") {
        return Some(json_number(&message[at + 5..]));
    }
    msgpack_number(&message[memmem::find(message, b"\xa2ts")? + 3..])
}

/// Whether an event frame is the one that ends a job.
pub(super) fn is_final(message: &[u8]) -> bool {
    const FINAL: [&[u8]; 3] = [b"job:done:v1", b"job:failed:v1", b"job:cancelled:v1"];
    FINAL
        .iter()
        .any(|name| memmem::find(message, name).is_some())
}

/// The id with which a Socket.IO session can be recovered, from the answer to its connect packet.
pub(super) fn session(answer: &[u8]) -> Option<String> {
    string_after(answer, b"\"pid\":\"")
}

/// The offset that a recoverable Socket.IO server adds to each event, as its last argument.
pub(super) fn offset(packet: &[u8]) -> Option<&str> {
    let packet = packet.strip_suffix(b"\"]")?;
    let quote = memchr::memrchr(b'"', packet)?;
    let offset = std::str::from_utf8(&packet[quote + 1..]).ok()?;
    packet[..quote].ends_with(b"},").then_some(offset)
}

/// The text between the first `before` and the next quotation mark.
fn string_after(message: &[u8], before: &[u8]) -> Option<String> {
    let rest = &message[memmem::find(message, before)? + before.len()..];
    let value = std::str::from_utf8(&rest[..memchr::memchr(b'"', rest)?]);
    value.ok().map(str::to_owned)
}

fn json_number(text: &[u8]) -> u64 {
    let digits = text.iter().take_while(|byte| byte.is_ascii_digit());
    digits.fold(0, |number, digit| number * 10 + u64::from(digit - b'0'))
}

fn msgpack_number(bytes: &[u8]) -> Option<u64> {
    Some(match *bytes {
        [small @ 0..=0x7f, ..] => u64::from(small),
        [0xcc, a, ..] => u64::from(a),
        [0xcd, a, b, ..] => u64::from(u16::from_be_bytes([a, b])),
        [0xce, a, b, c, d, ..] => u64::from(u32::from_be_bytes([a, b, c, d])),
        [0xcf, ref rest @ ..] => u64::from_be_bytes(*rest.first_chunk()?),
        _ => return None,
    })
}

/// A client's WebSocket frame. The mask is 0, which masks nothing and is allowed.
pub(super) fn client_frame(opcode: u8, payload: &[u8]) -> Vec<u8> {
    let mut out = vec![0x80 | opcode];
    match u16::try_from(payload.len()) {
        Ok(length @ ..126) => out.push(0x80 | length.to_be_bytes()[1]),
        Ok(length) => {
            out.push(0x80 | 126);
            out.extend_from_slice(&length.to_be_bytes());
        }
        Err(_) => {
            out.push(0x80 | 127);
            out.extend_from_slice(&(payload.len() as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(payload);
    out
}

fn broken(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages(mut framing: Framing, bytes: &[u8], piece: usize) -> Vec<String> {
        let mut out = Vec::new();
        for piece in bytes.chunks(piece) {
            framing
                .feed(piece, |message| out.push(format!("{message:?}")))
                .unwrap();
        }
        out
    }

    #[test]
    fn websocket_frames_may_be_cut_anywhere() {
        let long = vec![b'x'; 300];
        let mut bytes = b"\x81\x02hi\x89\x01p\x82\x7e\x01\x2c".to_vec();
        bytes.extend_from_slice(&long);
        bytes.extend_from_slice(b"\x88\x02\x03\xe8");
        let expected = [
            Received::Data(b"hi"),
            Received::Ping(b"p"),
            Received::Data(&long),
            Received::Close(b"\x03\xe8"),
        ]
        .map(|message| format!("{message:?}"));
        for piece in 1..=bytes.len() {
            assert_eq!(
                messages(Framing::WebSocket(Vec::new()), &bytes, piece),
                expected
            );
        }
    }

    #[test]
    fn server_sent_events_may_be_cut_anywhere_and_span_chunks() {
        let bytes =
            b"4\r\nid: \r\nd\r\n7\ndata: a\n\nid\r\na\r\n:8\ndata:b\n\r\n1\r\n\n\r\n0\r\n\r\n";
        let expected = [
            Received::Data(b"id: 7\ndata: a"),
            Received::Data(b"id:8\ndata:b"),
            Received::Close(b""),
        ]
        .map(|message| format!("{message:?}"));
        for piece in 1..=bytes.len() {
            let framing = Framing::EventStream(Chunked::default());
            assert_eq!(messages(framing, bytes, piece), expected, "{piece}");
        }
    }

    #[test]
    fn the_fields_of_an_event_are_found_in_every_encoding() {
        let json = br#"{"type":"job:done:v1","job":"j1","seq":4,"ts":17,"cursor":"AeiR"}"#;
        let sse = br#"id: AeiR
event: job:done:v1
data: {"type":"job:done:v1","job":"j1","seq":4,"ts":17}"#;
        let msgpack = b"\x92\xa4AeiR\x84\xa4type\xabjob:done:v1\xa3job\xa2j1\xa3seq\x04\xa2ts\x11";
        for message in [&json[..], sse, msgpack] {
            assert_eq!(sequence(message), Some(4));
            assert_eq!(timestamp(message), Some(17));
            assert_eq!(cursor(message).as_deref(), Some("AeiR"));
            assert!(is_final(message));
        }
        assert_eq!(sequence(br#"{"op":"watching","job":"j1"}"#), None);
    }

    #[test]
    fn the_fields_of_other_servers_are_found() {
        let packet = br#"42["event",{"type":"model:chunk:v1","seq":7},"1764-3"]"#;
        assert_eq!(
            (sequence(packet), offset(packet)),
            (Some(7), Some("1764-3"))
        );
        assert_eq!(offset(br#"42["event",{"seq":7,"text":"x"}]"#), None);
        let answer = br#"{"sid":"a","pid":"b"}"#;
        assert_eq!(session(answer).as_deref(), Some("b"));
        let data = b"event: data\ndata:[{\"seq\":4},{\"seq\":5}]";
        assert_eq!(sequences(data).collect::<Vec<_>>(), [4, 5]);
        let control = b"event: control\ndata:{\"streamNextOffset\":\"0_9\",\"upToDate\":true}";
        assert_eq!(cursor(control).as_deref(), Some("0_9"));
        let other = b"id: 000217\ndata: {\"seq\":4,\"cursor\":\"4---\"}";
        assert_eq!(cursor(other).as_deref(), Some("000217"));
    }
}
