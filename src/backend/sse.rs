//! Splits a body's bytes into server-sent events. Pure. It does not interpret events, and skips
//! `id` and `retry`, because a generation cannot be resumed.
//!
//! The format is section 9.2.6 of the HTML standard. [`SseParser::lenient`] has extensions, because
//! model servers send other formats under any Content-Type: JSON without a field (a whole answer, an error, or one object
//! per line) is an event; so is a field `error`; two objects in consecutive `data` lines are two
//! events; a byte order mark and spaces before a field are skipped; bytes that are not UTF-8 become
//! U+FFFD. It holds at most [`SSE_EVENT_MAX`] bytes.

use std::mem;

use crate::config::{MODEL_MESSAGE_MAX, SSE_EVENT_MAX};

/// One event.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct SseEvent {
    /// Its type; empty if it has none.
    pub(super) name: String,
    /// Its `data` lines, joined by newlines.
    pub(super) data: String,
}

/// Why the bytes are not events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Malformed {
    #[error("an event is longer than {SSE_EVENT_MAX} bytes")]
    TooLong,
    #[error("it has {SSE_EVENT_MAX} bytes that belong to no event")]
    Foreign,
}

/// What remains of a body at its end.
#[derive(Debug)]
pub(super) struct Remainder {
    /// Events that lack only their line ends.
    pub(super) events: Vec<SseEvent>,
    /// The body ends within a line or a value.
    pub(super) is_cut: bool,
    /// The beginning of text that belongs to no event, for example a web page.
    pub(super) other_text: String,
}

/// Bytes that are not a whole event yet.
#[derive(Debug, Default)]
pub(super) struct SseParser {
    /// The line so far.
    line: Vec<u8>,
    name: Vec<u8>,
    data: Vec<u8>,
    /// The first and the last byte of `data` that is not white space.
    ends: Option<(u8, u8)>,
    json: JsonLines,
    /// The last line ended with CR, so that an LF after it still belongs to that line's end.
    after_cr: bool,
    /// The first lines that belong to no event.
    other_text: Vec<u8>,
    /// How many bytes such lines have.
    other_bytes: usize,
    /// Whether the extensions apply.
    is_lenient: bool,
}

/// JSON without a field before it, up to the line in which it is complete.
#[derive(Debug, Default)]
struct JsonLines {
    text: Vec<u8>,
    depth: usize,
    in_string: bool,
    escaped: bool,
}

impl SseParser {
    /// A parser with the extensions for model servers.
    pub(super) fn lenient() -> Self {
        Self {
            is_lenient: true,
            ..Self::default()
        }
    }

    /// Consumes `bytes` up to the end of the next event. `None` if all of them were consumed and
    /// more are needed.
    pub(super) fn next(&mut self, bytes: &mut &[u8]) -> Result<Option<SseEvent>, Malformed> {
        loop {
            // While nothing was read, the LF may still come.
            if self.after_cr && !bytes.is_empty() {
                self.after_cr = false;
                *bytes = bytes.strip_prefix(b"\n").unwrap_or(bytes);
            }
            let end = bytes.iter().position(|byte| matches!(byte, b'\r' | b'\n'));
            let (part, rest) = bytes.split_at(end.unwrap_or(bytes.len()));
            let held = self.line.len() + self.data.len() + self.name.len() + self.json.text.len();
            if held + part.len() > SSE_EVENT_MAX {
                return Err(Malformed::TooLong);
            }
            if self.other_bytes > SSE_EVENT_MAX {
                return Err(Malformed::Foreign);
            }
            self.line.extend_from_slice(part);
            let Some((end, rest)) = rest.split_first() else {
                *bytes = rest;
                return Ok(None);
            };
            self.after_cr = *end == b'\r';
            *bytes = rest;
            if let Some(event) = self.line_ends() {
                return Ok(Some(event));
            }
        }
    }

    /// What remains at the end of the body.
    pub(super) fn end(mut self) -> Remainder {
        let within_field = !self.line.is_empty() && b"data:".starts_with(field(&self.line));
        let mut bytes: &[u8] = b"\n\n\n";
        let mut events = Vec::new();
        while let Ok(Some(event)) = self.next(&mut bytes) {
            events.push(event);
        }
        let is_cut = within_field || !self.json.text.is_empty();
        Remainder {
            events,
            is_cut,
            other_text: String::from_utf8_lossy(&self.other_text).into_owned(),
        }
    }

    /// Reads the line that has ended.
    fn line_ends(&mut self) -> Option<SseEvent> {
        let line = mem::take(&mut self.line);
        let line = field(&line);
        if !self.json.text.is_empty() {
            return self.json.push(line).map(|text| event(&[], &text));
        }
        if line.is_empty() {
            return self.event_ends();
        }
        if self.is_lenient && begins_json(line) {
            return if self.data.is_empty() {
                self.json
                    .push(line)
                    .map(|text| event(&mem::take(&mut self.name), &text))
            } else {
                self.push_data(line)
            };
        }
        let colon = line.iter().position(|byte| *byte == b':');
        let (name, value) = line.split_at(colon.unwrap_or(line.len()));
        let value = value.strip_prefix(b":").unwrap_or(value);
        let value = value.strip_prefix(b" ").unwrap_or(value);
        match name {
            b"data" => return self.push_data(value),
            b"event" => self.name = value.to_vec(),
            // llama.cpp reports errors this way.
            b"error" if self.is_lenient => return Some(event(b"error", value)),
            // A comment has an empty name.
            b"" | b"id" | b"retry" => {}
            _ => {
                self.other_bytes += line.len();
                if self.other_text.len() < MODEL_MESSAGE_MAX {
                    self.other_text
                        .extend_from_slice(&line[..line.len().min(MODEL_MESSAGE_MAX)]);
                    self.other_text.push(b' ');
                }
            }
        }
        None
    }

    /// Adds a line of data. Some servers omit the empty lines between events: a line that begins an
    /// object after the end of another begins an event, since it cannot belong to the same JSON
    /// value.
    fn push_data(&mut self, value: &[u8]) -> Option<SseEvent> {
        let trimmed = value.trim_ascii();
        let begins = trimmed.starts_with(b"{") || trimmed.starts_with(b"[DONE]");
        let is_whole = |(first, last)| matches!(last, b'}' | b']') || !matches!(first, b'{' | b'[');
        let event = if self.is_lenient && begins && self.ends.is_some_and(is_whole) {
            self.event_ends()
        } else {
            None
        };
        if let (Some(first), Some(last)) = (trimmed.first(), trimmed.last()) {
            self.ends = Some((self.ends.map_or(*first, |(first, _)| first), *last));
        }
        self.data.extend_from_slice(value);
        self.data.push(b'\n');
        event
    }

    /// Ends an event at an empty line; without data there is none.
    fn event_ends(&mut self) -> Option<SseEvent> {
        let name = mem::take(&mut self.name);
        let mut data = mem::take(&mut self.data);
        self.ends = None;
        data.pop().map(|_| event(&name, &data))
    }
}

impl JsonLines {
    /// Adds a line, and returns the text once it is complete.
    fn push(&mut self, line: &[u8]) -> Option<Vec<u8>> {
        for byte in line {
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' if self.in_string => self.escaped = true,
                b'"' => self.in_string = !self.in_string,
                b'{' | b'[' if !self.in_string => self.depth += 1,
                b'}' | b']' if !self.in_string => self.depth = self.depth.saturating_sub(1),
                _ => {}
            }
        }
        self.text.extend_from_slice(line);
        self.text.push(b'\n');
        (self.depth == 0).then(|| mem::take(self).text)
    }
}

/// The line without spaces and byte order marks at its start: some servers write one with each
/// piece.
fn field(line: &[u8]) -> &[u8] {
    let mut line = line.trim_ascii_start();
    while let Some(rest) = line.strip_prefix(b"\xEF\xBB\xBF") {
        line = rest.trim_ascii_start();
    }
    line
}

/// Whether a line begins JSON and not, for example, `[INFO] ready`.
fn begins_json(line: &[u8]) -> bool {
    let after_bracket = line.strip_prefix(b"[").map(<[u8]>::trim_ascii_start);
    let is_list =
        after_bracket.is_some_and(|rest| matches!(rest.first(), None | Some(b'{' | b'[' | b']')));
    line.starts_with(b"{") || is_list || line.trim_ascii_end() == b"[DONE]"
}

fn event(name: &[u8], data: &[u8]) -> SseEvent {
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    SseEvent {
        name: text(name.trim_ascii()),
        data: text(data),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn events<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Result<Vec<SseEvent>, Malformed> {
        let mut parser = SseParser::lenient();
        let mut events = Vec::new();
        for mut piece in pieces {
            while let Some(event) = parser.next(&mut piece)? {
                events.push(event);
            }
            assert!(piece.is_empty());
        }
        Ok(events)
    }

    fn data(text: &str) -> Vec<String> {
        events([text.as_bytes()])
            .unwrap()
            .into_iter()
            .map(|event| event.data)
            .collect()
    }

    #[test]
    fn without_the_extensions_only_the_standard_applies() {
        let mut parser = SseParser::default();
        let mut bytes: &[u8] = b"data: a\ndata: {b\n\nerror: c\n{\"d\": 1}\nevent: e\ndata: f\n\n";
        let mut events = Vec::new();
        while let Some(event) = parser.next(&mut bytes).unwrap() {
            events.push((event.name, event.data));
        }
        let expected = [("", "a\n{b"), ("e", "f")];
        assert_eq!(
            events,
            expected.map(|(name, data)| (name.to_owned(), data.to_owned()))
        );
    }

    #[test]
    fn every_kind_of_line_end_ends_a_line() {
        for end in ["\n", "\r\n", "\r"] {
            let text = ["data: a", "", "data: b", "data: c", "", ""].join(end);
            assert_eq!(data(&text), ["a", "b\nc"], "{end:?}");
        }
        // Two line ends of different kinds are two.
        assert_eq!(
            data("data: a\r\n\ndata: b\n\r\ndata: c\n\rdata: d\r\r"),
            ["a", "b", "c", "d"]
        );
    }

    #[test]
    fn an_event_that_ends_with_cr_does_not_wait_for_an_lf() {
        let mut parser = SseParser::lenient();
        let mut bytes = b"data: a\r\r".as_slice();
        assert_eq!(parser.next(&mut bytes).unwrap().unwrap().data, "a");
        let mut bytes = b"".as_slice();
        assert_eq!(parser.next(&mut bytes), Ok(None));
        let mut bytes = b"\ndata: b\n\n".as_slice();
        assert_eq!(parser.next(&mut bytes).unwrap().unwrap().data, "b");
    }

    #[test]
    fn comments_unknown_fields_and_empty_events_are_skipped() {
        assert_eq!(
            data(": ping\n\n:\n\nid: 7\nretry: 5\nmood: blue\n\nevent: x\n\ndata: a\n: b\nid\n\n"),
            ["a"]
        );
    }

    #[test]
    fn one_space_after_the_colon_is_optional_and_not_part_of_the_data() {
        assert_eq!(
            data("data:a\n\ndata:  b \n\ndata\n\ndata:\n\n"),
            ["a", " b ", "", ""]
        );
        assert_eq!(
            data("data: {\"a\":1}\n\ndata:[DONE]\n\n"),
            ["{\"a\":1}", "[DONE]"]
        );
    }

    #[test]
    fn several_data_lines_are_one_text_and_the_type_is_kept_for_one_event() {
        let event = |name: &str, data: &str| SseEvent {
            name: name.into(),
            data: data.into(),
        };
        assert_eq!(
            events([b"event: error\ndata: a\ndata:\ndata: b\n\ndata: c\n\n".as_slice()]).unwrap(),
            [event("error", "a\n\nb"), event("", "c")]
        );
    }

    #[test]
    fn byte_order_marks_and_spaces_before_a_field_are_skipped() {
        let bom = "\u{FEFF}";
        assert_eq!(data(&format!("{bom}data: a\n\n")), ["a"]);
        assert_eq!(
            data(&format!("data: a\n\n{bom}data: b\n\ndata: {bom}\n\n")),
            ["a", "b", bom]
        );
        assert_eq!(
            data(&format!("\n \r\n{bom} {{\"a\":\n{bom}1}}\n  data: b\n\n")),
            ["{\"a\":\n1}\n", "b"]
        );
    }

    #[test]
    fn json_without_a_field_is_an_event_once_it_is_complete() {
        assert_eq!(
            data("{\"a\":1}\n{\"b\":2}\n[DONE]\n"),
            ["{\"a\":1}\n", "{\"b\":2}\n", "[DONE]\n"]
        );
        let pretty = "{\n  \"a\": \"}\\\"]\",\n  \"b\": [\n\n    1\n  ]\n}\n";
        let expected = "{\n\"a\": \"}\\\"]\",\n\"b\": [\n\n1\n]\n}\n";
        assert_eq!(data(pretty), [expected]);
        assert_eq!(
            data("[\n{\"a\":1},\n{\"b\":2}\n]\n"),
            ["[\n{\"a\":1},\n{\"b\":2}\n]\n"]
        );
        assert_eq!(
            data("data: a\n\n{\"error\":1}\n\ndata: b\n\n"),
            ["a", "{\"error\":1}\n", "b"]
        );
        assert_eq!(data("[INFO] ready [now\n[heartbeat]\ndata: a\n\n"), ["a"]);
    }

    #[test]
    fn events_need_no_empty_lines_between_them() {
        assert_eq!(
            data("data: {\"a\":1}\ndata: {\"b\":2}\ndata: [DONE]\n\n"),
            ["{\"a\":1}", "{\"b\":2}", "[DONE]"]
        );
        assert_eq!(
            data("data: ping\ndata: {\"a\":1}\n{\"b\":2}\n\n"),
            ["ping", "{\"a\":1}", "{\"b\":2}"]
        );
        // One value on many lines is one event.
        assert_eq!(
            data("data: {\"a\":{}\ndata: ,\"b\":\ndata: {}}\n\n"),
            ["{\"a\":{}\n,\"b\":\n{}}"]
        );
    }

    #[test]
    fn a_field_named_error_is_an_event_of_that_type() {
        let error = SseEvent {
            name: "error".into(),
            data: "{\"code\":500}".into(),
        };
        assert_eq!(
            events([b"data: a\n\nerror: {\"code\":500}\n\n".as_slice()]).unwrap()[1],
            error
        );
    }

    #[test]
    fn the_end_of_the_body_ends_the_last_event() {
        let ended = |text: &str| {
            let mut parser = SseParser::lenient();
            let mut bytes = text.as_bytes();
            while parser.next(&mut bytes).unwrap().is_some() {}
            let rest = parser.end();
            (
                rest.events
                    .into_iter()
                    .map(|event| event.data)
                    .collect::<Vec<_>>(),
                rest.is_cut,
            )
        };
        let whole = |data: &str| (vec![data.to_owned()], false);
        for text in ["data: b", "data: b\n", "data: b\r", "data: a\n\ndata: b"] {
            assert_eq!(ended(text), whole("b"), "{text:?}");
        }
        assert_eq!(ended("{\"a\":1}"), whole("{\"a\":1}\n"));
        for text in [
            "",
            "data: a\n\n",
            "data: a\n\n: ping",
            "data: a\n\nid: 7",
            "oops",
        ] {
            assert_eq!(ended(text), (vec![], false), "{text:?}");
        }
        for text in ["{\"a\":", "data: a\n\nda", "data: a\n\ndata", "{\"a\":{}\n"] {
            assert!(ended(text).1, "{text:?}");
        }
    }

    #[test]
    fn text_that_belongs_to_no_event_is_kept_within_a_limit() {
        let mut parser = SseParser::lenient();
        let mut bytes = b"<html>\r\n<h1>hi</h1>\n".as_slice();
        assert_eq!(parser.next(&mut bytes), Ok(None));
        let page = "<p>0123456789</p>\n".repeat(SSE_EVENT_MAX / 10);
        assert_eq!(parser.next(&mut page.as_bytes()), Err(Malformed::Foreign));
        let other_text = parser.end().other_text;
        assert!(
            other_text.starts_with("<html> <h1>hi</h1> <p>")
                && other_text.len() <= 2 * MODEL_MESSAGE_MAX,
            "{other_text}"
        );
    }

    #[test]
    fn a_line_or_an_event_without_end_is_refused_before_it_is_too_large() {
        let piece = vec![b'x'; 64 * 1024];
        let mut parser = SseParser::lenient();
        let mut taken = 0;
        let refused = loop {
            match parser.next(&mut piece.as_slice()) {
                Ok(None) => taken += piece.len(),
                other => break other,
            }
        };
        assert_eq!(
            (refused, taken <= SSE_EVENT_MAX),
            (Err(Malformed::TooLong), true)
        );
        let lines = "data: 0123456789\n".repeat(SSE_EVENT_MAX / 11 + 1);
        assert_eq!(events([lines.as_bytes()]), Err(Malformed::TooLong));
        // Any number of small events is allowed.
        assert_eq!(
            data(&"data: 0123456789\n\n".repeat(SSE_EVENT_MAX / 10)).len(),
            SSE_EVENT_MAX / 10
        );
    }

    #[test]
    fn bytes_that_are_not_utf_8_are_replaced() {
        let bytes = b"data: a\xFFb\n\n: \xFF\ndata: \xF0\x9F\n\n".as_slice();
        let data: Vec<_> = events([bytes])
            .unwrap()
            .into_iter()
            .map(|event| event.data)
            .collect();
        assert_eq!(data, ["a\u{FFFD}b", "\u{FFFD}"]);
    }

    /// Lines of every sort, with every sort of end, and the bytes of characters that can be cut.
    fn bytes() -> impl Strategy<Value = Vec<u8>> {
        let lines = [
            "data: a",
            "data:b",
            "data: é🙂",
            "event: e",
            ": c",
            "",
            "",
            "data",
            "x: y",
            "\u{FEFF}data: z",
            "{\"a\":",
            "\"}\\\"\"}",
            "data: {}",
        ];
        let line = (
            prop::sample::select(lines.to_vec()),
            prop::sample::select(vec!["\n", "\r\n", "\r"]),
        );
        let text = |(line, end)| [line, end].concat();
        prop::collection::vec(line.prop_map(text), 0..20)
            .prop_map(|lines| lines.concat().into_bytes())
    }

    proptest! {
        #[test]
        fn bytes_cut_anywhere_are_the_events_of_the_whole(
            bytes in bytes(),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
        ) {
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let whole = events([bytes.as_slice()]);
            let cut = events(cuts.windows(2).map(|cut| &bytes[cut[0]..cut[1]]));
            prop_assert_eq!(&cut, &whole);
            prop_assert_eq!(events(bytes.chunks(1)), whole);
        }
    }
}
