//! Reads a client's WebSocket frames (RFC 6455, section 5) out of the bytes that arrive, and joins
//! them to messages. It has no I/O, and holds nothing between two messages.

use std::mem::take;

use crate::wire::limits::BODY_MAX;

/// The largest payload of a close, a ping or a pong.
const CONTROL_MAX: u64 = 125;

/// What a client sent.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ClientInput {
    /// A text message: valid UTF-8.
    Text(Vec<u8>),
    Binary(Vec<u8>),
    /// A ping with this payload, which the pong repeats.
    Ping(Vec<u8>),
    Pong,
    /// A close with this code.
    Close(Option<u16>),
}

/// Why the bytes of a client are refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FrameError {
    /// They violate the protocol.
    Violation,
    /// A text is not UTF-8.
    BadUtf8,
    /// A message has more than [`BODY_MAX`] bytes.
    TooLarge,
}

/// Reads the frames of one client.
#[derive(Debug)]
pub(super) struct FrameReader {
    state: ReaderState,
    /// The message that has begun. Control frames may arrive between its frames.
    message: Option<OpenMessage>,
    /// The payload of a control frame.
    control: Vec<u8>,
}

/// ```text
///   Head ── the head is complete ──▶ Payload
///    ▲                                  │
///    └──── the payload is complete ─────┘
/// ```
#[derive(Debug)]
enum ReaderState {
    /// Reads the head of the next frame, of which this much has arrived.
    Head(PartialHead),
    /// Reads the payload of this frame.
    Payload(Frame),
}

#[derive(Debug, Default)]
struct PartialHead {
    bytes: [u8; 14],
    len: usize,
}

/// A frame whose head is complete.
#[derive(Debug)]
struct Frame {
    opcode: Opcode,
    is_last: bool,
    mask: [u8; 4],
    /// How many bytes of its payload have not arrived.
    missing: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Opcode {
    Continuation,
    Text,
    Binary,
    Close,
    Ping,
    Pong,
}

/// A message of one or more frames.
#[derive(Debug)]
struct OpenMessage {
    is_text: bool,
    bytes: Vec<u8>,
    /// How many bytes of a text were found to be UTF-8.
    checked: usize,
}

impl FrameReader {
    pub(super) fn new() -> Self {
        Self {
            state: ReaderState::Head(PartialHead::default()),
            message: None,
            control: Vec::new(),
        }
    }

    /// Whether everything that was read is complete: the next bytes begin a message, or a control
    /// frame.
    pub(super) fn is_between_messages(&self) -> bool {
        let is_between_frames = match &self.state {
            ReaderState::Head(head) => head.len == 0,
            ReaderState::Payload(_) => false,
        };
        is_between_frames && self.message.is_none()
    }

    /// How many bytes it holds of a message that is not complete.
    pub(super) fn held(&self) -> usize {
        self.message
            .as_ref()
            .map_or(0, |message| message.bytes.len())
    }

    /// Reads `input` up to the end of the first message or control frame, and leaves the rest.
    /// `None` if all of it was read.
    ///
    /// # Errors
    /// [`FrameError`]; nothing can be read after that.
    pub(super) fn read(&mut self, input: &mut &[u8]) -> Result<Option<ClientInput>, FrameError> {
        loop {
            match &mut self.state {
                ReaderState::Head(head) => {
                    let Some(frame) = head.read(input)? else {
                        return Ok(None);
                    };
                    self.begin(frame.opcode, frame.missing)?;
                    self.state = ReaderState::Payload(frame);
                }
                ReaderState::Payload(frame) => {
                    if frame.opcode.is_control() {
                        frame.read(input, &mut self.control);
                    } else if let Some(message) = &mut self.message {
                        frame.read(input, &mut message.bytes);
                        message.check()?;
                    }
                    if frame.missing > 0 {
                        return Ok(None);
                    }
                    let opcode = frame.opcode;
                    let is_last = frame.is_last;
                    self.state = ReaderState::Head(PartialHead::default());
                    if let Some(received) = self.end(opcode, is_last)? {
                        return Ok(Some(received));
                    }
                }
            }
        }
    }

    fn begin(&mut self, opcode: Opcode, size: usize) -> Result<(), FrameError> {
        match (opcode, &self.message) {
            (Opcode::Text | Opcode::Binary, None) => {
                self.message = Some(OpenMessage {
                    is_text: opcode == Opcode::Text,
                    bytes: Vec::new(),
                    checked: 0,
                });
            }
            (Opcode::Text | Opcode::Binary, Some(_)) | (Opcode::Continuation, None) => {
                return Err(FrameError::Violation);
            }
            (Opcode::Continuation, Some(message)) => {
                if size > BODY_MAX - message.bytes.len() {
                    return Err(FrameError::TooLarge);
                }
            }
            (Opcode::Close | Opcode::Ping | Opcode::Pong, _) => {}
        }
        Ok(())
    }

    fn end(&mut self, opcode: Opcode, is_last: bool) -> Result<Option<ClientInput>, FrameError> {
        Ok(match opcode {
            Opcode::Continuation | Opcode::Text | Opcode::Binary if !is_last => None,
            Opcode::Continuation | Opcode::Text | Opcode::Binary => match self.message.take() {
                Some(message) => Some(message.end()?),
                None => None,
            },
            Opcode::Close => Some(ClientInput::Close(close_code(&take(&mut self.control))?)),
            Opcode::Ping => Some(ClientInput::Ping(take(&mut self.control))),
            Opcode::Pong => {
                self.control = Vec::new();
                Some(ClientInput::Pong)
            }
        })
    }
}

impl PartialHead {
    /// Reads up to the end of the head.
    fn read(&mut self, input: &mut &[u8]) -> Result<Option<Frame>, FrameError> {
        while self.len < self.size() {
            let Some((byte, rest)) = input.split_first() else {
                return Ok(None);
            };
            *input = rest;
            self.bytes[self.len] = *byte;
            self.len += 1;
            if self.len == 2 {
                self.check()?;
            }
        }
        self.frame().map(Some)
    }

    /// How many bytes the head has, as far as that is known.
    fn size(&self) -> usize {
        match self.bytes[1] & 0x7F {
            _ if self.len < 2 => 2,
            126 => 8,
            127 => 14,
            _ => 6,
        }
    }

    fn check(&self) -> Result<(), FrameError> {
        let [first, second, ..] = self.bytes;
        let opcode = Opcode::of(first & 0xF)?;
        let is_reserved = first & 0x70 != 0;
        let is_masked = second & 0x80 != 0;
        let is_whole = first & 0x80 != 0 && u64::from(second & 0x7F) <= CONTROL_MAX;
        if is_reserved || !is_masked || opcode.is_control() && !is_whole {
            return Err(FrameError::Violation);
        }
        Ok(())
    }

    /// The frame of a complete head.
    fn frame(&self) -> Result<Frame, FrameError> {
        let (len, mask) = self.bytes[1..self.len].split_at(self.len - 5);
        let size = match len {
            [len] => u64::from(len & 0x7F),
            [_, len @ ..] => len
                .iter()
                .fold(0, |size, byte| size << 8 | u64::from(*byte)),
            [] => 0,
        };
        let missing = usize::try_from(size).unwrap_or(usize::MAX);
        if missing > BODY_MAX {
            return Err(FrameError::TooLarge);
        }
        Ok(Frame {
            opcode: Opcode::of(self.bytes[0] & 0xF)?,
            is_last: self.bytes[0] & 0x80 != 0,
            mask: mask.try_into().unwrap_or_default(),
            missing,
        })
    }
}

impl Frame {
    /// Reads as much of its payload as has arrived.
    fn read(&mut self, input: &mut &[u8], payload: &mut Vec<u8>) {
        let (part, rest) = input.split_at(self.missing.min(input.len()));
        *input = rest;
        self.missing -= part.len();
        let begin = payload.len();
        if payload.capacity() - begin < part.len() {
            // Not for what has not arrived, nor for more than that.
            payload.reserve_exact(part.len() + begin.min(self.missing));
        }
        payload.extend_from_slice(part);
        for four in payload[begin..].chunks_mut(4) {
            four.iter_mut()
                .zip(self.mask)
                .for_each(|(byte, mask)| *byte ^= mask);
        }
        self.mask.rotate_left(part.len() % 4);
    }
}

impl Opcode {
    fn of(number: u8) -> Result<Self, FrameError> {
        Ok(match number {
            0x0 => Self::Continuation,
            0x1 => Self::Text,
            0x2 => Self::Binary,
            0x8 => Self::Close,
            0x9 => Self::Ping,
            0xA => Self::Pong,
            _ => return Err(FrameError::Violation),
        })
    }

    const fn is_control(self) -> bool {
        matches!(self, Self::Close | Self::Ping | Self::Pong)
    }
}

impl OpenMessage {
    /// Checks the bytes of a text that have arrived.
    fn check(&mut self) -> Result<(), FrameError> {
        if !self.is_text {
            return Ok(());
        }
        match std::str::from_utf8(&self.bytes[self.checked..]) {
            Ok(_) => self.checked = self.bytes.len(),
            // The rest of a character may follow.
            Err(error) if error.error_len().is_none() => self.checked += error.valid_up_to(),
            Err(_) => return Err(FrameError::BadUtf8),
        }
        Ok(())
    }

    fn end(self) -> Result<ClientInput, FrameError> {
        match self.is_text {
            false => Ok(ClientInput::Binary(self.bytes)),
            true if self.checked == self.bytes.len() => Ok(ClientInput::Text(self.bytes)),
            true => Err(FrameError::BadUtf8),
        }
    }
}

/// The code of a close with this payload (RFC 6455, section 7.4).
fn close_code(payload: &[u8]) -> Result<Option<u16>, FrameError> {
    let (code, reason) = match payload {
        [] => return Ok(None),
        [_] => return Err(FrameError::Violation),
        [high, low, reason @ ..] => (u16::from_be_bytes([*high, *low]), reason),
    };
    if !matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999) {
        return Err(FrameError::Violation);
    }
    std::str::from_utf8(reason).map_err(|_| FrameError::BadUtf8)?;
    Ok(Some(code))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MASK: [u8; 4] = [0x5A, 0, 0xFF, 0x21];

    /// A frame of a client.
    fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![first];
        match payload.len() {
            len @ 0..126 => frame.push(0x80 | len as u8),
            len @ 126..0x1_0000 => {
                frame.push(0xFE);
                frame.extend((len as u16).to_be_bytes());
            }
            len => {
                frame.push(0xFF);
                frame.extend((len as u64).to_be_bytes());
            }
        }
        frame.extend(MASK);
        frame.extend(
            payload
                .iter()
                .zip(MASK.iter().cycle())
                .map(|(byte, mask)| byte ^ mask),
        );
        frame
    }

    /// Everything in these bytes, which arrive in parts of this size.
    fn read(bytes: &[u8], part: usize) -> Result<Vec<ClientInput>, FrameError> {
        let mut reader = FrameReader::new();
        let mut all = Vec::new();
        for mut part in bytes.chunks(part) {
            while let Some(received) = reader.read(&mut part)? {
                all.push(received);
            }
            assert!(part.is_empty(), "everything is read");
        }
        assert!(reader.is_between_messages());
        Ok(all)
    }

    /// [`read`] in one part, which parts of any size must equal.
    fn read_all(bytes: &[u8]) -> Result<Vec<ClientInput>, FrameError> {
        let whole = read(bytes, usize::MAX);
        for part in [1, 2, 3, 5, 7, 100] {
            assert_eq!(read(bytes, part), whole, "in parts of {part}");
        }
        whole
    }

    #[test]
    fn messages_and_control_frames_are_read_in_order() {
        let long = "ä".repeat(200).into_bytes();
        let bytes = [
            frame(0x81, b"{}"),
            frame(0x82, b"\xFF"),
            frame(0x89, b"p"),
            frame(0x01, &long),
            frame(0x8A, b"between"),
            frame(0x00, b""),
            frame(0x80, b"!"),
            frame(0x82, b""),
            frame(0x88, b"\x03\xE8bye"),
        ]
        .concat();
        let expected = vec![
            ClientInput::Text(b"{}".to_vec()),
            ClientInput::Binary(b"\xFF".to_vec()),
            ClientInput::Ping(b"p".to_vec()),
            ClientInput::Pong,
            ClientInput::Text([&long[..], b"!"].concat()),
            ClientInput::Binary(Vec::new()),
            ClientInput::Close(Some(1000)),
        ];
        assert_eq!(read_all(&bytes), Ok(expected));
        assert_eq!(
            read_all(&frame(0x88, b"")),
            Ok(vec![ClientInput::Close(None)])
        );
    }

    #[test]
    fn invalid_frames_are_refused() {
        let two = |first: &[u8], second: &[u8]| [first, second].concat();
        use FrameError::{BadUtf8, TooLarge, Violation};
        for (what, bytes, error) in [
            ("no mask", vec![0x81, 1, b'x'], Violation),
            ("a reserved bit", frame(0xC1, b"x"), Violation),
            ("a reserved opcode", frame(0x83, b"x"), Violation),
            ("a reserved control opcode", frame(0x8B, b""), Violation),
            ("a ping in pieces", frame(0x09, b""), Violation),
            ("a ping of 126 bytes", frame(0x89, &[0; 126]), Violation),
            ("a continuation of nothing", frame(0x80, b"x"), Violation),
            (
                "a message in a message",
                two(&frame(0x01, b"x"), &frame(0x81, b"x")),
                Violation,
            ),
            ("a close of one byte", frame(0x88, b"x"), Violation),
            (
                "a close with the code 999",
                frame(0x88, b"\x03\xE7"),
                Violation,
            ),
            (
                "a close with the code 1005",
                frame(0x88, b"\x03\xED"),
                Violation,
            ),
            (
                "a close with the code 5000",
                frame(0x88, b"\x13\x88"),
                Violation,
            ),
            (
                "a reason that is not UTF-8",
                frame(0x88, b"\x03\xE8\xFF"),
                BadUtf8,
            ),
            ("a text that is not UTF-8", frame(0x81, b"\xFF"), BadUtf8),
            ("half a character", frame(0x81, b"\xC3"), BadUtf8),
            (
                "a bad second half",
                two(&frame(0x01, b"\xC3"), &frame(0x80, b"\x28")),
                BadUtf8,
            ),
            (
                "a length of 2^62",
                two(&[0x81, 0xFF, 0x40], &[0; 11]),
                TooLarge,
            ),
        ] {
            assert_eq!(read_all(&bytes), Err(error), "{what}");
        }
        let most = vec![b'x'; BODY_MAX];
        assert!(read(&frame(0x82, &most), 4096).is_ok_and(|read| read.len() == 1));
        let pieces = two(&frame(0x02, &most), &frame(0x80, b"x"));
        assert_eq!(read(&pieces, 4096), Err(TooLarge));
    }

    #[test]
    fn a_text_is_refused_at_its_first_wrong_byte() {
        let whole = frame(0x81, b"ok\xFFand more");
        let mut reader = FrameReader::new();
        assert_eq!(reader.read(&mut &whole[..8]), Ok(None));
        assert_eq!(reader.read(&mut &whole[8..9]), Err(FrameError::BadUtf8));
    }

    #[test]
    fn a_message_takes_no_more_memory_than_has_arrived() {
        let whole = frame(0x82, &vec![0; BODY_MAX]);
        let mut reader = FrameReader::new();
        for (n, mut part) in whole.chunks(1000).enumerate() {
            let _ = reader.read(&mut part);
            let is_complete = 1000 * (n + 1) >= whole.len();
            assert_eq!(reader.is_between_messages(), is_complete, "after {n}");
            let held = reader
                .message
                .as_ref()
                .map_or(0, |message| message.bytes.capacity());
            assert!(
                held <= (2 * 1000 * (n + 1)).min(BODY_MAX),
                "{held} after {n}"
            );
        }
        assert_eq!((reader.held(), reader.control.capacity()), (0, 0));
    }
}
