//! What a broker sends on the connection for live copies, read out of the bytes that arrived. It has
//! no I/O, and copies nothing.

use memchr::memchr;

use crate::config::{BROKER_LINE_MAX, BROKER_MESSAGE_MAX};

/// What the server sent.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ServerOp<'a> {
    /// About itself, as JSON.
    Info(&'a [u8]),
    Message(RawMessage<'a>),
    Ping,
    Pong,
    Ok,
    Error(&'a [u8]),
}

/// A message of a subscription.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct RawMessage<'a> {
    /// The number of the subscription.
    pub(super) subscription: usize,
    pub(super) subject: &'a [u8],
    /// The version line, and a line for each header.
    pub(super) headers: &'a [u8],
    pub(super) payload: &'a [u8],
}

/// The bytes do not follow the protocol.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the server does not speak the protocol of NATS")]
pub(super) struct ProtocolError;

impl<'a> ServerOp<'a> {
    /// The first operation in `bytes`, and how many bytes it has; `None` if it is not complete.
    pub(super) fn parse(bytes: &'a [u8]) -> Result<Option<(Self, usize)>, ProtocolError> {
        let Some(end) = memchr(b'\n', bytes) else {
            return if bytes.len() > BROKER_LINE_MAX {
                Err(ProtocolError)
            } else {
                Ok(None)
            };
        };
        let next = end + 1;
        let line = bytes[..end].strip_suffix(b"\r").ok_or(ProtocolError)?;
        let (name, rest) = match memchr(b' ', line) {
            Some(at) => (&line[..at], &line[at + 1..]),
            None => (line, &line[line.len()..]),
        };
        let op = match name {
            b"HMSG" | b"MSG" => {
                let message = Self::message(name == b"HMSG", rest, &bytes[next..])?;
                return Ok(message.map(|(op, length)| (op, next + length)));
            }
            b"PING" => Self::Ping,
            b"PONG" => Self::Pong,
            b"+OK" => Self::Ok,
            b"-ERR" => Self::Error(rest),
            b"INFO" => Self::Info(rest),
            _ => return Err(ProtocolError),
        };
        Ok(Some((op, next)))
    }

    /// `<subject> <subscription> [reply] [bytes of headers] <bytes>`, and what follows that line.
    fn message(
        has_headers: bool,
        line: &'a [u8],
        rest: &'a [u8],
    ) -> Result<Option<(Self, usize)>, ProtocolError> {
        let mut words = line
            .split(|byte| *byte == b' ')
            .filter(|word| !word.is_empty());
        let subject = words.next().ok_or(ProtocolError)?;
        let subscription = number(words.next())?;
        let total = number(words.next_back())?;
        let head = if has_headers {
            number(words.next_back())?
        } else {
            0
        };
        if head > total || total > BROKER_MESSAGE_MAX {
            return Err(ProtocolError);
        }
        if rest.len() < total + 2 {
            return Ok(None);
        }
        if &rest[total..total + 2] != b"\r\n" {
            return Err(ProtocolError);
        }
        let message = RawMessage {
            subscription,
            subject,
            headers: &rest[..head],
            payload: &rest[head..total],
        };
        Ok(Some((Self::Message(message), total + 2)))
    }
}

impl<'a> RawMessage<'a> {
    /// The last values of these headers, in one pass: the broker's come after the publisher's.
    pub(super) fn last_of<const N: usize>(&self, names: [&str; N]) -> [Option<&'a [u8]>; N] {
        let mut values = [None; N];
        let mut rest = self.headers;
        while let Some(end) = memchr(b'\n', rest) {
            let line = &rest[..end];
            rest = &rest[end + 1..];
            let Some(colon) = memchr(b':', line) else {
                continue;
            };
            let name = &line[..colon];
            if let Some(index) = names.iter().position(|known| known.as_bytes() == name) {
                values[index] = Some(line[colon + 1..].trim_ascii());
            }
        }
        values
    }
}

fn number(word: Option<&[u8]>) -> Result<usize, ProtocolError> {
    let number = word.and_then(decimal);
    let number = number.and_then(|number| usize::try_from(number).ok());
    number.ok_or(ProtocolError)
}

/// A number in digits; `None` for anything else, or if it is too large.
pub(super) fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0_u64, |number, byte| {
        let digit = byte.checked_sub(b'0').filter(|digit| *digit < 10)?;
        number.checked_mul(10)?.checked_add(digit.into())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_are_read_one_after_another_once_they_are_complete() {
        let headers = "NATS/1.0\r\nA: 1\r\nB:2\r\nA:  3 \r\n\r\n";
        let hmsg = format!(
            "HMSG tw.live.0.j 7 {} {}\r\n{headers}pay",
            headers.len(),
            headers.len() + 3
        );
        let bytes = format!(
            "INFO {{}}\r\n+OK\r\nPING\r\nPONG\r\n-ERR 'no'\r\nMSG s 1 reply 2\r\nab\r\n{hmsg}\r\nPING\r\n"
        );
        let raw = |subscription, subject, headers, payload| {
            ServerOp::Message(RawMessage {
                subscription,
                subject,
                headers,
                payload,
            })
        };
        let expected = [
            ServerOp::Info(b"{}"),
            ServerOp::Ok,
            ServerOp::Ping,
            ServerOp::Pong,
            ServerOp::Error(b"'no'"),
            raw(1, b"s", b"", b"ab"),
            raw(7, b"tw.live.0.j", headers.as_bytes(), b"pay"),
            ServerOp::Ping,
        ];
        let mut rest = bytes.as_bytes();
        for op in expected {
            let length = (0..=rest.len())
                .find(|length| ServerOp::parse(&rest[..*length]).unwrap().is_some())
                .unwrap();
            assert_eq!(ServerOp::parse(rest), Ok(Some((op, length))));
            rest = &rest[length..];
        }
        assert_eq!(ServerOp::parse(rest), Ok(None));
    }

    #[test]
    fn the_last_of_several_headers_counts() {
        let message = RawMessage {
            subscription: 1,
            subject: b"s",
            headers: b"NATS/1.0 100 Idle\r\nA: 1\r\nAB: 2\r\nA: x: y\r\nC: \xFF\r\n\r\n",
            payload: b"",
        };
        let expected = ["x: y".as_bytes(), b"2", b"\xFF"].map(Some);
        let [a, ab, b, c] = message.last_of(["A", "AB", "B", "C"]);
        assert_eq!(([a, ab, c], b), (expected, None));
    }

    #[test]
    fn a_number_has_only_digits_and_fits() {
        for number in [0, 7, 10, 1_234_567_890, u64::MAX] {
            assert_eq!(decimal(number.to_string().as_bytes()), Some(number));
        }
        assert_eq!(decimal(b"007"), Some(7));
        for bad in [
            "",
            "+1",
            "-1",
            " 1",
            "1.",
            "x",
            "1\u{b2}",
            "18446744073709551616",
        ] {
            assert_eq!(decimal(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn other_bytes_are_refused() {
        for bytes in [
            "HTTP/1.1 400 Bad Request\r\n",
            "PING\n",
            "MSG s 1\r\n",
            "MSG s x 1\r\na\r\n",
            "MSG s 1 1\r\nabc",
            "HMSG s 1 3 2\r\nab\r\n",
            "MSG s 1 99999999999\r\n",
        ] {
            assert_eq!(
                ServerOp::parse(bytes.as_bytes()),
                Err(ProtocolError),
                "{bytes}"
            );
        }
        assert!(ServerOp::parse(&vec![b'I'; BROKER_LINE_MAX]).is_ok());
        assert!(ServerOp::parse(&vec![b'I'; BROKER_LINE_MAX + 1]).is_err());
    }
}
