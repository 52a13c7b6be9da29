//! Decodes a program's or an endpoint's output: lines, and three formats. It does no I/O; it holds a
//! limited number of bytes that are not decoded yet.

use bytes::BytesMut;
use serde_json::Value;

use crate::backend::surrogates::{Joiner, mark, settle};
use crate::backend::{Channel, Content, Failure, FailureCode};
use crate::config::{EXEC_EXCERPT_MAX, EXEC_JSON_LINE_MAX, EXEC_LINE_MAX};
use crate::wire::codec::nests_at_most;
use crate::wire::limits::VALUE_DEPTH_MAX;

/// The byte order mark that some programs write first. It is not part of the output.
const BOM: &[u8] = "\u{FEFF}".as_bytes();

/// The format of a program's standard output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Text, passed on as it arrives.
    #[default]
    Text,
    /// Text, passed on line by line; a line over 256 KiB in parts. A carriage return also ends a
    /// line, and the text after it is passed on as it arrives, for progress bars.
    Lines,
    /// A JSON value per line, of at most 512 KiB: `{"text": …, "channel": "output" | "reasoning"}`
    /// is text, and any other value is data. Without `channel` it is output. Blank lines are
    /// skipped.
    Ndjson,
}

/// Splits bytes into lines.
#[derive(Debug)]
pub(super) struct LineBuffer {
    /// Where bytes that were read go.
    pub(super) buffer: BytesMut,
    /// How many bytes of the buffer are known to contain no end of a line.
    searched: usize,
    limit: usize,
    /// Whether a carriage return alone also ends a line: programs redraw progress bars with it.
    returns: bool,
    /// Whether the last line ended like that. The text after it is passed on as it arrives, because
    /// its end may be minutes away.
    redraws: bool,
}

impl LineBuffer {
    /// Lines of at most `limit` bytes, the newline included.
    pub(super) fn new(limit: usize) -> Self {
        Self {
            buffer: BytesMut::new(),
            searched: 0,
            limit,
            returns: false,
            redraws: false,
        }
    }

    /// The same, but a carriage return also ends a line.
    pub(super) fn with_redraws(limit: usize) -> Self {
        Self {
            returns: true,
            ..Self::new(limit)
        }
    }

    /// The next line with its newline, or the first part of one that is longer than the limit; of a
    /// line that is redrawn, what has arrived; once there is nothing more to read (`ended`), the
    /// rest.
    pub(super) fn next(&mut self, ended: bool) -> Option<BytesMut> {
        let search = self
            .buffer
            .get(self.searched..self.limit.min(self.buffer.len()))
            .unwrap_or_default();
        let found = search
            .iter()
            .position(|byte| *byte == b'\n' || self.returns && *byte == b'\r');
        let end = match found {
            Some(at) => {
                let at = self.searched + at;
                let newline = self.buffer.get(at..at + 2) == Some(b"\r\n") && at + 2 <= self.limit;
                self.redraws = self.buffer.get(at) == Some(&b'\r') && !newline;
                at + 1 + usize::from(newline)
            }
            None if self.buffer.len() >= self.limit => self.limit,
            None if (ended || self.redraws) && !self.buffer.is_empty() => self.buffer.len(),
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
    Text {
        buffer: BytesMut,
        utf8: Utf8,
    },
    Lines {
        lines: LineBuffer,
        utf8: Utf8,
    },
    Ndjson {
        lines: LineBuffer,
        number: u64,
        halves: Halves,
    },
}

/// UTF-8 that arrives in pieces, without a byte order mark at its beginning. Anything else becomes
/// U+FFFD.
#[derive(Debug, Default)]
pub(super) struct Utf8 {
    /// The first bytes of a character whose other bytes have not arrived: three at most.
    incomplete: Vec<u8>,
    /// Whether anything was decoded: a byte order mark after that is a character.
    begun: bool,
}

impl Utf8 {
    /// The text of the next bytes, without an incomplete last character.
    fn decode(&mut self, bytes: &[u8]) -> String {
        let mut whole = std::mem::take(&mut self.incomplete);
        whole.extend_from_slice(bytes);
        self.incomplete = whole.split_off(whole.len() - incomplete_len(&whole));
        self.text(&whole)
    }

    /// The remaining text when no more bytes follow.
    fn finish(&mut self) -> String {
        let rest = std::mem::take(&mut self.incomplete);
        self.text(&rest)
    }

    fn text(&mut self, bytes: &[u8]) -> String {
        let mark: &[u8] = if self.begun { b"" } else { BOM };
        self.begun |= !bytes.is_empty();
        let bytes = bytes.strip_prefix(mark).unwrap_or(bytes);
        String::from_utf8_lossy(bytes).into_owned()
    }
}

/// How many bytes at the end begin a character whose other bytes are missing.
fn incomplete_len(bytes: &[u8]) -> usize {
    let tail = bytes.len().saturating_sub(3);
    let tail = bytes.get(tail..).unwrap_or_default();
    // The first byte of a character of several bytes; those after it are below.
    let first = tail.iter().rposition(|byte| *byte >= 0xC0);
    let last = first.and_then(|at| tail.get(at..)).unwrap_or_default();
    let is_incomplete = std::str::from_utf8(last)
        .is_err_and(|error| error.valid_up_to() == 0 && error.error_len().is_none());
    if is_incomplete { last.len() } else { 0 }
}

/// Half characters at the end of a line's text, by channel: the next line may have the other half.
#[derive(Debug, Default)]
pub(super) struct Halves {
    output: Joiner,
    reasoning: Joiner,
}

impl Halves {
    fn of(&mut self, channel: Channel) -> &mut Joiner {
        match channel {
            Channel::Output => &mut self.output,
            Channel::Reasoning => &mut self.reasoning,
        }
    }

    /// The text so far of a text of a channel; empty if it is only half a character.
    pub(super) fn push(&mut self, channel: Channel, text: &str) -> String {
        self.of(channel).push(text)
    }

    /// The remaining content when no more lines follow.
    pub(super) fn end(&mut self) -> Option<Content> {
        [Channel::Output, Channel::Reasoning]
            .into_iter()
            .find_map(|channel| {
                let text = self.of(channel).end()?.to_string();
                Some(Content::Text { channel, text })
            })
    }
}

impl Decoder {
    pub(super) fn new(format: Format) -> Self {
        match format {
            Format::Text => Self::Text {
                buffer: BytesMut::new(),
                utf8: Utf8::default(),
            },
            Format::Lines => Self::Lines {
                lines: LineBuffer::with_redraws(EXEC_LINE_MAX),
                utf8: Utf8::default(),
            },
            Format::Ndjson => Self::Ndjson {
                lines: LineBuffer::new(EXEC_JSON_LINE_MAX),
                number: 0,
                halves: Halves::default(),
            },
        }
    }

    /// Where bytes that were read go.
    pub(super) fn buffer(&mut self) -> &mut BytesMut {
        match self {
            Self::Text { buffer, .. } => buffer,
            Self::Lines { lines, .. } | Self::Ndjson { lines, .. } => &mut lines.buffer,
        }
    }

    /// The next output in the bytes so far; `ended` means that no more bytes follow. `None` if more
    /// bytes are needed or, after the end, if that was all.
    pub(super) fn next(&mut self, ended: bool) -> Result<Option<Content>, Failure> {
        match self {
            Self::Text { buffer, utf8 } => Ok(text(utf8, Some(buffer.split()), ended)),
            Self::Lines { lines, utf8 } => Ok(text(utf8, lines.next(ended), ended)),
            Self::Ndjson {
                lines,
                number,
                halves,
            } => {
                while let Some(line) = lines.next(ended) {
                    *number += 1;
                    let bom: &[u8] = if *number == 1 { BOM } else { b"" };
                    let line = line.strip_prefix(bom).unwrap_or(&line);
                    if let Some(content) = json_line(line, *number, halves)? {
                        return Ok(Some(content));
                    }
                }
                Ok(if ended { halves.end() } else { None })
            }
        }
    }
}

/// The text of the next bytes or, after the last ones, what the decoder still holds.
fn text(utf8: &mut Utf8, bytes: Option<BytesMut>, ended: bool) -> Option<Content> {
    let mut text = bytes.map_or_else(String::new, |bytes| utf8.decode(&bytes));
    if text.is_empty() && ended {
        text = utf8.finish();
    }
    (!text.is_empty()).then_some(Content::Text {
        channel: Channel::Output,
        text,
    })
}

/// The content of a line; `None` for a blank line, or if its text is only half a character.
fn json_line(line: &[u8], number: u64, halves: &mut Halves) -> Result<Option<Content>, Failure> {
    let too_long = line.len() == EXEC_JSON_LINE_MAX && !line.ends_with(b"\n");
    let line = line.trim_ascii_end();
    let bad = |why: String, column: usize| {
        let excerpt = excerpt(line, column);
        // On a line of its own: the worker logs only the first one.
        Failure::fatal(
            FailureCode::BadOutput,
            format!("line {number} of the output {why}\n{excerpt}"),
        )
    };
    if too_long {
        return Err(bad(format!("is longer than {EXEC_JSON_LINE_MAX} bytes"), 0));
    }
    if line.trim_ascii().is_empty() {
        return Ok(None);
    }
    let text = std::str::from_utf8(line).map_err(|error| {
        bad(
            format!("is not UTF-8 from byte {} on", error.valid_up_to()),
            error.valid_up_to(),
        )
    })?;
    let value = serde_json::from_str(&mark(text)).map_err(|error| {
        // The parser counts every line as the first one.
        let why = error
            .to_string()
            .replace(" at line 1 column ", " at column ");
        bad(format!("is not JSON: {why}"), error.column())
    })?;
    if !nests_at_most(&value, VALUE_DEPTH_MAX) {
        return Err(bad(
            format!("nests deeper than {VALUE_DEPTH_MAX} levels"),
            0,
        ));
    }
    Ok(content(value, halves))
}

/// A printable excerpt of a line, around a column.
fn excerpt(line: &[u8], column: usize) -> String {
    let from = column
        .saturating_sub(EXEC_EXCERPT_MAX / 2)
        .min(line.len().saturating_sub(EXEC_EXCERPT_MAX));
    let part = line.get(from..).unwrap_or_default();
    let part = part.get(..EXEC_EXCERPT_MAX).unwrap_or(part);
    let printable = |c: char| {
        if c.is_control() {
            char::REPLACEMENT_CHARACTER
        } else {
            c
        }
    };
    let text: String = String::from_utf8_lossy(part)
        .chars()
        .map(printable)
        .collect();
    let mark = |cut: bool| if cut { "…" } else { "" };
    format!(
        "{}{text}{}",
        mark(from > 0),
        mark(from + part.len() < line.len())
    )
}

/// The content of a marked value: an object with a string `text`, and with a valid `channel` or none,
/// is text; any other value is data. `None` if the text is only half a character.
pub(super) fn content(mut value: Value, halves: &mut Halves) -> Option<Content> {
    let channel = match value.get("channel") {
        None | Some(Value::Null) => Some(Channel::Output),
        Some(Value::String(name)) if name == "output" => Some(Channel::Output),
        Some(Value::String(name)) if name == "reasoning" => Some(Channel::Reasoning),
        Some(_) => None,
    };
    if let Some(channel) = channel
        && let Some(Value::String(text)) = value.get("text")
    {
        let text = halves.push(channel, text);
        return (!text.is_empty()).then_some(Content::Text { channel, text });
    }
    settle(&mut value);
    Some(Content::Data(value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Retry;
    use proptest::prelude::*;
    use serde_json::json;

    /// The content of bytes that arrive in `pieces`.
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
            Content::Text {
                channel: Channel::Output,
                text,
            } => text,
            other @ (Content::Text { .. } | Content::Data(_)) => {
                panic!("no text of the answer: {other:?}")
            }
        };
        contents.into_iter().map(text).collect()
    }

    fn text_of(text: &str) -> Content {
        Content::Text {
            channel: Channel::Output,
            text: text.into(),
        }
    }

    fn refused(line: &[u8]) -> String {
        let failure = decoded(Format::Ndjson, [b"1\n\n".as_slice(), line]).unwrap_err();
        assert_eq!(
            (failure.code.as_str(), failure.retry),
            ("bad_output", Retry::Never)
        );
        assert!(
            failure.message.starts_with("line 3 "),
            "{}",
            failure.message
        );
        failure.message
    }

    #[test]
    fn text_is_passed_on_as_it_arrives_in_whole_characters() {
        assert_eq!(
            texts(Format::Text, &[b"a\xF0\x9F", b"\x99\x82", b"b\n\nc\xE2"]),
            ["a", "🙂", "b\n\nc", "\u{FFFD}"]
        );
    }

    #[test]
    fn whole_lines_have_their_newline_and_the_last_one_may_not() {
        assert_eq!(
            texts(Format::Lines, &[b"a", b"b\n\nc\xC3", b"\xA9\nd"]),
            ["ab\n", "\n", "cé\n", "d"]
        );
        assert_eq!(texts(Format::Lines, &[]), [""; 0]);
    }

    #[test]
    fn a_line_over_the_limit_is_split_between_characters() {
        let mut line = "x".to_owned() + &"é".repeat(EXEC_LINE_MAX);
        line.push('\n');
        let parts = texts(Format::Lines, &[line.as_bytes(), b"next\n"]);
        assert_eq!(parts.concat(), line + "next\n");
        assert!(parts.iter().all(|part| part.len() <= EXEC_LINE_MAX + 3));
        assert_eq!(parts.last().unwrap(), "next\n");
        let exact = vec![b'y'; EXEC_LINE_MAX - 1];
        assert_eq!(texts(Format::Lines, &[&exact, b"\nz"]).len(), 2);
    }

    #[test]
    fn a_json_line_is_text_of_a_channel_or_data() {
        let lines = b"{\"text\":\"a\"}\n \r\n{\"text\":\"b\",\"channel\":\"reasoning\",\"more\":1}\n\
            {\"text\":\"c\",\"channel\":null}\n{\"text\":\"d\",\"channel\":\"shout\"}\n{\"text\":7}\n[1]\n\"e\"\nnull";
        let text = |channel, text: &str| Content::Text {
            channel,
            text: text.into(),
        };
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
        assert_eq!(
            decoded(Format::Ndjson, [lines.as_slice()]).unwrap(),
            expected
        );
        assert_eq!(decoded(Format::Ndjson, lines.chunks(1)).unwrap(), expected);
    }

    #[test]
    fn a_line_that_is_not_json_is_refused_with_its_number_and_content() {
        let begin = "line 3 of the output is not JSON: ";
        assert_eq!(
            refused(b"nope\n"),
            format!("{begin}expected ident at column 2\nnope")
        );
        assert_eq!(
            refused(b"1 2\r\n"),
            format!("{begin}trailing characters at column 3\n1 2")
        );
        assert_eq!(
            refused(b"{\"text\":"),
            format!("{begin}EOF while parsing a value at column 8\n{{\"text\":")
        );
        for not_json in [
            "{\"loss\": NaN}",
            "[1, Infinity]",
            "{\"a\": -Infinity}",
            "{'text': 'x'}",
            "\"\u{1b}[0m\"",
        ] {
            let message = refused(format!("{not_json}\n").as_bytes());
            let shown = not_json.replace('\u{1b}', "\u{FFFD}");
            assert!(
                message.starts_with(begin) && message.ends_with(&shown),
                "{message}"
            );
            let first = message.lines().next().unwrap();
            assert!(!first.contains(&shown), "{message}");
        }
        assert!(refused(b"\"\xFF\"\n").contains("is not UTF-8 from byte 1 on\n\""));
    }

    #[test]
    fn halves_of_characters_are_joined_over_the_lines_of_a_channel_or_replaced() {
        let lines = r#"{"text":"a\ud83d"}
            {"text":"r\ud83d","channel":"reasoning"}
            {"text":"\ude00b"}
            {"lone":"\udfff"}
            {"text":"\ud83d"}
            {"text":"c\ud800"}"#;
        let reasoning = |text: &str| Content::Text {
            channel: Channel::Reasoning,
            text: text.into(),
        };
        let expected = vec![
            text_of("a"),
            reasoning("r"),
            text_of("😀b"),
            Content::Data(json!({"lone": "\u{FFFD}"})),
            text_of("\u{FFFD}c"),
            text_of("\u{FFFD}"),
            reasoning("\u{FFFD}"),
        ];
        assert_eq!(
            decoded(Format::Ndjson, [lines.as_bytes()]).unwrap(),
            expected
        );
        assert_eq!(
            decoded(Format::Ndjson, lines.as_bytes().chunks(1)).unwrap(),
            expected
        );
    }

    #[test]
    fn the_part_around_the_error_of_a_long_line_is_quoted() {
        let line = format!("[{}NaN{}]", "1,".repeat(5_000), ",2".repeat(5_000));
        let message = refused(line.as_bytes());
        assert!(
            message.contains("…,1,1,")
                && message.contains(",1,NaN,2,")
                && message.ends_with(",2,2…"),
            "{message}"
        );
        assert!(message.len() < 2 * EXEC_EXCERPT_MAX, "{message}");
        let long = refused(&vec![b'x'; EXEC_JSON_LINE_MAX]);
        assert!(
            long.contains("is longer than 524288 bytes\nxxx") && long.len() < 2 * EXEC_EXCERPT_MAX,
            "{long}"
        );
    }

    #[test]
    fn a_byte_order_mark_is_not_part_of_the_output() {
        for format in [Format::Text, Format::Lines] {
            for pieces in [
                &["\u{FEFF}é\n".as_bytes()][..],
                &[b"\xEF", b"\xBB", b"\xBF\xC3", b"\xA9\n"],
            ] {
                assert_eq!(texts(format, pieces).concat(), "é\n");
            }
            assert_eq!(texts(format, &["\u{FEFF}".as_bytes()]), [""; 0]);
            // Elsewhere it is a character, and so are bytes that only begin like one.
            assert_eq!(
                texts(format, &["a\u{FEFF}".as_bytes()]).concat(),
                "a\u{FEFF}"
            );
            assert_eq!(texts(format, &[b"\xEF\xBB"]).concat(), "\u{FFFD}");
            assert_eq!(
                texts(format, &["\u{FEFE}\n".as_bytes()]).concat(),
                "\u{FEFE}\n"
            );
        }
        let lines = "\u{FEFF}\r\n{\"text\":\"a\"}\n".as_bytes();
        assert_eq!(
            decoded(Format::Ndjson, lines.chunks(1)).unwrap(),
            [text_of("a")]
        );
        assert_eq!(
            decoded(Format::Ndjson, ["\u{FEFF}{\"text\":\"a\"}".as_bytes()]).unwrap(),
            [text_of("a")]
        );
    }

    #[test]
    fn a_redrawn_line_is_passed_on_as_it_is_written() {
        let mut decoder = Decoder::new(Format::Lines);
        let mut after = |bytes: &[u8]| {
            decoder.buffer().extend_from_slice(bytes);
            let next = || decoder.next(false).unwrap();
            std::iter::from_fn(next)
                .map(|content| match content {
                    Content::Text { text, .. } => text,
                    Content::Data(data) => panic!("data: {data}"),
                })
                .collect::<Vec<_>>()
        };
        // A return before each redraw, or after it.
        assert_eq!(after(b"loading"), [""; 0]);
        assert_eq!(after(b"\r 10%"), ["loading\r", " 10%"]);
        assert_eq!(after(b"\r 20%"), ["\r", " 20%"]);
        assert_eq!(after(b" still"), [" still"]);
        assert_eq!(after(b"\r100%\nne"), ["\r", "100%\n"]);
        assert_eq!(after(b"xt\r\n10%\r"), ["next\r\n", "10%\r"]);
        assert_eq!(after(b"20%\r"), ["20%\r"]);
        assert_eq!(after(b"\ndone"), ["\n"]);
        assert_eq!(after(b"\n"), ["done\n"]);
    }

    #[test]
    fn a_json_line_over_the_limit_is_refused() {
        let text = |length: usize| format!("\"{}\"", "x".repeat(length - 2));
        let fits = text(EXEC_JSON_LINE_MAX - 1) + "\n";
        assert_eq!(decoded(Format::Ndjson, [fits.as_bytes()]).unwrap().len(), 1);
        assert!(refused((text(EXEC_JSON_LINE_MAX) + "\n").as_bytes()).contains("longer than"));
        assert!(refused(&vec![b' '; EXEC_JSON_LINE_MAX + 1]).contains("longer than"));
    }

    #[test]
    fn data_that_nests_as_deep_as_allowed_can_be_stored_and_read_again() {
        let nested = |levels: usize| "[".repeat(levels) + &"]".repeat(levels);
        let contents = decoded(Format::Ndjson, [nested(VALUE_DEPTH_MAX).as_bytes()]).unwrap();
        let [Content::Data(data)] = contents.as_slice() else {
            panic!("{contents:?}")
        };
        let event = crate::wire::Event {
            body: crate::wire::Body::Data { data: data.clone() },
            job: "j".parse().unwrap(),
            seq: crate::wire::Seq(1),
            attempt: 1,
            ts: 0,
        };
        assert_eq!(
            crate::wire::Event::decode(&event.encode().unwrap()).unwrap(),
            event
        );
        assert!(refused(nested(VALUE_DEPTH_MAX + 1).as_bytes()).contains("nests deeper"));
        assert!(refused(nested(100_000).as_bytes()).contains("is not JSON"));
    }

    proptest! {
        #[test]
        fn bytes_cut_anywhere_give_the_text_of_the_whole(
            bytes in prop::collection::vec(
                prop::sample::select(b"a\x80\x99\xBF\xC3\xA9\xE2\x82\xAC\xED\xF0\x9F\xF4\xFF".to_vec()),
                0..30,
            ),
            size in 1..9usize,
        ) {
            let pieces: Vec<&[u8]> = bytes.chunks(size).collect();
            prop_assert_eq!(texts(Format::Text, &pieces).concat(), String::from_utf8_lossy(&bytes));
        }

        #[test]
        fn no_byte_of_lines_and_redraws_cut_anywhere_is_lost_or_held(
            bytes in prop::collection::vec(prop::sample::select(b"ab\r\n".to_vec()), 0..60),
            size in 1..9usize,
            limit in 2..9usize,
        ) {
            let mut lines = LineBuffer::with_redraws(limit);
            let mut seen = Vec::new();
            for piece in bytes.chunks(size) {
                lines.buffer.extend_from_slice(piece);
                while let Some(line) = lines.next(false) {
                    prop_assert!(!line.is_empty() && line.len() <= limit);
                    seen.extend_from_slice(&line);
                }
                prop_assert!(lines.buffer.len() < limit);
                prop_assert!(!lines.buffer.contains(&b'\r') && !lines.buffer.contains(&b'\n'));
            }
            while let Some(line) = lines.next(true) {
                seen.extend_from_slice(&line);
            }
            prop_assert_eq!(seen, bytes);
        }

        #[test]
        fn lines_cut_anywhere_are_the_lines_of_the_whole(
            bytes in prop::collection::vec(prop::sample::select(b"ab\n\n".to_vec()), 0..60),
            size in 1..9usize,
            limit in 2..9usize,
        ) {
            let mut lines = LineBuffer::new(limit);
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
