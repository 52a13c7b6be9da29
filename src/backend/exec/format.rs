//! What a program's bytes mean: lines, and the three formats of standard output. It reads nothing and puts out
//! nothing; it holds the bytes that are not used up yet, and limits them.

use bytes::BytesMut;
use serde_json::Value;

use super::utf8::Utf8;
use super::{Failure, Format};
use crate::backend::{Channel, Content};
use crate::wire::codec::{VALUE_DEPTH_MAX, nests_at_most};

/// The longest line of the format `lines` in bytes; a longer one is passed in parts. It is one chunk.
pub(super) const LINE_MAX: usize = crate::config::CHUNK_MAX;
/// The longest line of the format `ndjson` in bytes: what it says must fit into one event.
pub(super) const JSON_LINE_MAX: usize = 512 * 1024;

/// Bytes that are taken line by line.
#[derive(Debug)]
pub(super) struct Lines {
    /// Where bytes that were read go.
    pub(super) buffer: BytesMut,
    /// So many bytes of the buffer are known to hold no newline.
    searched: usize,
    limit: usize,
}

impl Lines {
    /// Lines of at most `limit` bytes, the newline included.
    pub(super) fn new(limit: usize) -> Self {
        Self { buffer: BytesMut::new(), searched: 0, limit }
    }

    /// The next line with its newline; the first part of one that is longer than the limit; once there is nothing more
    /// to read (`ended`), what is left.
    pub(super) fn next(&mut self, ended: bool) -> Option<BytesMut> {
        let search = self.buffer.get(self.searched..self.limit.min(self.buffer.len())).unwrap_or_default();
        let end = match search.iter().position(|byte| *byte == b'\n') {
            Some(at) => self.searched + at + 1,
            None if self.buffer.len() >= self.limit => self.limit,
            None if ended && !self.buffer.is_empty() => self.buffer.len(),
            None => {
                self.searched = self.buffer.len();
                return None;
            }
        };
        self.searched = 0;
        Some(self.buffer.split_to(end))
    }
}

/// Standard output in one of the formats.
#[derive(Debug)]
pub(super) enum Decoder {
    Text { buffer: BytesMut, utf8: Utf8 },
    Lines { lines: Lines, utf8: Utf8 },
    Ndjson { lines: Lines, number: u64 },
}

impl Decoder {
    pub(super) fn new(format: Format) -> Self {
        match format {
            Format::Text => Self::Text { buffer: BytesMut::new(), utf8: Utf8::default() },
            Format::Lines => Self::Lines { lines: Lines::new(LINE_MAX), utf8: Utf8::default() },
            Format::Ndjson => Self::Ndjson { lines: Lines::new(JSON_LINE_MAX), number: 0 },
        }
    }

    /// Where bytes that were read go.
    pub(super) fn buffer(&mut self) -> &mut BytesMut {
        match self {
            Self::Text { buffer, .. } => buffer,
            Self::Lines { lines, .. } | Self::Ndjson { lines, .. } => &mut lines.buffer,
        }
    }

    /// What the bytes so far put out next; `ended` says that no more come. `None`: more bytes are needed, or, after the
    /// end, that was all.
    pub(super) fn next(&mut self, ended: bool) -> Result<Option<Content>, Failure> {
        match self {
            Self::Text { buffer, utf8 } => Ok(text(utf8, Some(buffer.split()), ended)),
            Self::Lines { lines, utf8 } => Ok(text(utf8, lines.next(ended), ended)),
            Self::Ndjson { lines, number } => {
                while let Some(line) = lines.next(ended) {
                    *number += 1;
                    if let Some(content) = json_line(&line, *number)? {
                        return Ok(Some(content));
                    }
                }
                Ok(None)
            }
        }
    }
}

/// The text of the next bytes or, when none are left, of what the decoder still holds at the end.
fn text(utf8: &mut Utf8, bytes: Option<BytesMut>, ended: bool) -> Option<Content> {
    let text = match bytes {
        Some(bytes) if !bytes.is_empty() => utf8.decode(&bytes),
        Some(_) | None if ended => utf8.finish(),
        Some(_) | None => return None,
    };
    (!text.is_empty()).then_some(Content::Text { channel: Channel::Output, text })
}

/// What a line says; `None` for a blank one.
fn json_line(line: &[u8], number: u64) -> Result<Option<Content>, Failure> {
    let bad =
        |why: String| Failure::fatal("bad_output", format!("line {number} of the program's output {why}"));
    if line.len() == JSON_LINE_MAX && !line.ends_with(b"\n") {
        return Err(bad(format!("is longer than {JSON_LINE_MAX} bytes")));
    }
    if line.trim_ascii().is_empty() {
        return Ok(None);
    }
    // The parser's words say what and where, and quote nothing of the line.
    let value = serde_json::from_slice(line).map_err(|error| bad(format!("is no JSON: {error}")))?;
    if !nests_at_most(&value, VALUE_DEPTH_MAX) {
        return Err(bad(format!("nests deeper than {VALUE_DEPTH_MAX} levels")));
    }
    Ok(Some(content(value)))
}

/// An object with a string `text`, and a `channel` that is one if it is there, is text; anything else is data.
fn content(mut value: Value) -> Content {
    let channel = match value.get("channel") {
        None | Some(Value::Null) => Some(Channel::Output),
        Some(Value::String(name)) if name == "output" => Some(Channel::Output),
        Some(Value::String(name)) if name == "reasoning" => Some(Channel::Reasoning),
        Some(_) => None,
    };
    if let Some(channel) = channel
        && let Some(Value::String(text)) = value.get_mut("text")
    {
        return Content::Text { channel, text: std::mem::take(text) };
    }
    Content::Data(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Retry;
    use proptest::prelude::*;
    use serde_json::json;

    /// What a format makes of bytes that arrive in `pieces`.
    fn decoded<'a>(
        format: Format,
        pieces: impl IntoIterator<Item = &'a [u8]>,
    ) -> Result<Vec<Content>, Failure> {
        let mut decoder = Decoder::new(format);
        let mut contents = Vec::new();
        for piece in pieces {
            decoder.buffer().extend_from_slice(piece);
            while let Some(content) = decoder.next(false)? {
                contents.push(content);
            }
        }
        while let Some(content) = decoder.next(true)? {
            contents.push(content);
        }
        Ok(contents)
    }

    fn texts(format: Format, pieces: &[&[u8]]) -> Vec<String> {
        let contents = decoded(format, pieces.iter().copied()).unwrap();
        let text = |content| match content {
            Content::Text { channel: Channel::Output, text } => text,
            other @ (Content::Text { .. } | Content::Data(_)) => panic!("no text of the answer: {other:?}"),
        };
        contents.into_iter().map(text).collect()
    }

    fn refused(line: &[u8]) -> String {
        let failure = decoded(Format::Ndjson, [b"1\n\n".as_slice(), line]).unwrap_err();
        assert_eq!((failure.code.as_str(), failure.retry), ("bad_output", Retry::Never));
        assert!(failure.message.starts_with("line 3 "), "{}", failure.message);
        failure.message
    }

    #[test]
    fn text_comes_as_it_arrives_in_whole_characters() {
        assert_eq!(
            texts(Format::Text, &[b"a\xF0\x9F", b"\x99\x82", b"b\n\nc\xE2"]),
            ["a", "🙂", "b\n\nc", "\u{FFFD}"]
        );
    }

    #[test]
    fn lines_come_whole_with_their_newline_and_the_last_one_without() {
        assert_eq!(texts(Format::Lines, &[b"a", b"b\n\nc\xC3", b"\xA9\nd"]), ["ab\n", "\n", "cé\n", "d"]);
        assert_eq!(texts(Format::Lines, &[]), [""; 0]);
    }

    #[test]
    fn a_line_past_the_limit_comes_in_parts_of_whole_characters() {
        let mut line = "x".to_owned() + &"é".repeat(LINE_MAX);
        line.push('\n');
        let parts = texts(Format::Lines, &[line.as_bytes(), b"next\n"]);
        assert_eq!(parts.concat(), line + "next\n");
        assert!(parts.iter().all(|part| part.len() <= LINE_MAX + 3));
        assert_eq!(parts.last().unwrap(), "next\n");
        let exact = vec![b'y'; LINE_MAX - 1];
        assert_eq!(texts(Format::Lines, &[&exact, b"\nz"]).len(), 2);
    }

    #[test]
    fn a_json_line_is_text_of_a_channel_or_data() {
        let lines = b"{\"text\":\"a\"}\n \r\n{\"text\":\"b\",\"channel\":\"reasoning\",\"more\":1}\n\
            {\"text\":\"c\",\"channel\":null}\n{\"text\":\"d\",\"channel\":\"shout\"}\n{\"text\":7}\n[1]\n\"e\"\nnull";
        let text = |channel, text: &str| Content::Text { channel, text: text.into() };
        let expected = vec![
            text(Channel::Output, "a"),
            text(Channel::Reasoning, "b"),
            text(Channel::Output, "c"),
            Content::Data(json!({"text": "d", "channel": "shout"})),
            Content::Data(json!({"text": 7})),
            Content::Data(json!([1])),
            Content::Data(json!("e")),
            Content::Data(Value::Null),
        ];
        assert_eq!(decoded(Format::Ndjson, [lines.as_slice()]).unwrap(), expected);
        assert_eq!(decoded(Format::Ndjson, lines.chunks(1)).unwrap(), expected);
    }

    #[test]
    fn a_line_that_is_no_json_is_refused_with_its_number() {
        assert!(refused(b"nope\n").contains("is no JSON"));
        assert!(refused(b"1 2\n").contains("is no JSON"));
        assert!(refused(b"\"\xFF\"\n").contains("is no JSON"));
        assert!(refused(b"{\"text\":").contains("is no JSON"));
    }

    #[test]
    fn a_json_line_past_the_limit_is_refused() {
        let text = |length: usize| format!("\"{}\"", "x".repeat(length - 2));
        let fits = text(JSON_LINE_MAX - 1) + "\n";
        assert_eq!(decoded(Format::Ndjson, [fits.as_bytes()]).unwrap().len(), 1);
        assert!(refused((text(JSON_LINE_MAX) + "\n").as_bytes()).contains("longer than"));
        assert!(refused(&vec![b' '; JSON_LINE_MAX + 1]).contains("longer than"));
    }

    #[test]
    fn data_that_nests_as_deep_as_allowed_can_be_stored_and_read_again() {
        let nested = |levels: usize| "[".repeat(levels) + &"]".repeat(levels);
        let contents = decoded(Format::Ndjson, [nested(VALUE_DEPTH_MAX).as_bytes()]).unwrap();
        let [Content::Data(data)] = contents.as_slice() else { panic!("{contents:?}") };
        let event = crate::wire::Event {
            body: crate::wire::Body::Data { data: data.clone() },
            job: "j".parse().unwrap(),
            seq: crate::wire::Seq(1),
            attempt: 1,
            ts: 0,
        };
        assert_eq!(crate::wire::Event::decode(&event.encode().unwrap()).unwrap(), event);
        assert!(refused(nested(VALUE_DEPTH_MAX + 1).as_bytes()).contains("nests deeper"));
        assert!(refused(nested(100_000).as_bytes()).contains("is no JSON"));
    }

    proptest! {
        #[test]
        fn lines_cut_anywhere_are_the_lines_of_the_whole(
            bytes in prop::collection::vec(prop::sample::select(b"ab\n\n".to_vec()), 0..60),
            size in 1..9usize,
            limit in 2..9usize,
        ) {
            let mut lines = Lines::new(limit);
            let mut seen = Vec::new();
            for piece in bytes.chunks(size) {
                lines.buffer.extend_from_slice(piece);
                seen.extend(std::iter::from_fn(|| lines.next(false)));
            }
            seen.extend(std::iter::from_fn(|| lines.next(true)));
            let expected: Vec<&[u8]> =
                bytes.split_inclusive(|byte| *byte == b'\n').flat_map(|line| line.chunks(limit)).collect();
            prop_assert_eq!(seen, expected);
        }
    }
}
