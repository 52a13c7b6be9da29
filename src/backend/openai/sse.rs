//! Server-sent events out of bytes that were cut anywhere: pure. It knows nothing of what the events say, and it passes
//! over `id` and `retry`, since a generation cannot be taken up again.
//!
//! The format is section 9.2.6 of the HTML standard. The crates that read it hold a line however long it becomes, or wait
//! for ever on a byte that is no UTF-8; this one holds at most [`SSE_EVENT_MAX`] bytes and refuses both.

use crate::config::SSE_EVENT_MAX;

/// One event.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Event {
    /// Its type; empty when the server gave none.
    pub(super) name: String,
    /// Its `data` lines, joined by newlines.
    pub(super) data: String,
}

/// Why the bytes are no events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Malformed {
    #[error("an event is longer than {SSE_EVENT_MAX} bytes")]
    TooLong,
    #[error("an event is not UTF-8")]
    NotUtf8,
}

/// The bytes that make no whole event yet.
#[derive(Debug, Default)]
pub(super) struct Parser {
    /// The line so far.
    line: Vec<u8>,
    name: Vec<u8>,
    data: Vec<u8>,
    /// The last line ended with CR, so that an LF right behind it is still that line's end.
    after_cr: bool,
    /// A line has ended, so that no byte order mark may follow.
    begun: bool,
}

impl Parser {
    /// Takes bytes off the front of `bytes` up to the end of the next event. `None`: all of them are used up, and more
    /// are needed.
    pub(super) fn next(&mut self, bytes: &mut &[u8]) -> Result<Option<Event>, Malformed> {
        loop {
            // With nothing read yet, the LF may still come.
            if self.after_cr && !bytes.is_empty() {
                self.after_cr = false;
                *bytes = bytes.strip_prefix(b"\n").unwrap_or(bytes);
            }
            let end = bytes.iter().position(|byte| matches!(byte, b'\r' | b'\n'));
            let (part, rest) = bytes.split_at(end.unwrap_or(bytes.len()));
            if self.line.len() + part.len() + self.data.len() + self.name.len() > SSE_EVENT_MAX {
                return Err(Malformed::TooLong);
            }
            self.line.extend_from_slice(part);
            let Some((end, rest)) = rest.split_first() else {
                *bytes = rest;
                return Ok(None);
            };
            self.after_cr = *end == b'\r';
            *bytes = rest;
            if let Some(event) = self.line_ends()? {
                return Ok(Some(event));
            }
        }
    }

    /// Takes in the line that has ended.
    fn line_ends(&mut self) -> Result<Option<Event>, Malformed> {
        let line = std::mem::take(&mut self.line);
        let mut line = line.as_slice();
        if !std::mem::replace(&mut self.begun, true) {
            line = line.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(line);
        }
        if line.is_empty() {
            return self.event_ends();
        }
        let colon = line.iter().position(|byte| *byte == b':');
        let (field, value) = line.split_at(colon.unwrap_or(line.len()));
        let value = value.strip_prefix(b":").unwrap_or(value);
        let value = value.strip_prefix(b" ").unwrap_or(value);
        match field {
            b"data" => {
                self.data.extend_from_slice(value);
                self.data.push(b'\n');
            }
            b"event" => self.name = value.to_vec(),
            // A comment has no field, and what is not known is passed over.
            _ => {}
        }
        Ok(None)
    }

    /// An empty line ends an event; without data there is none.
    fn event_ends(&mut self) -> Result<Option<Event>, Malformed> {
        let (name, mut data) = (std::mem::take(&mut self.name), std::mem::take(&mut self.data));
        if data.pop().is_none() {
            return Ok(None);
        }
        let text = |bytes| String::from_utf8(bytes).map_err(|_| Malformed::NotUtf8);
        Ok(Some(Event { name: text(name)?, data: text(data)? }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn events<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Result<Vec<Event>, Malformed> {
        let (mut parser, mut events) = (Parser::default(), Vec::new());
        for mut piece in pieces {
            while let Some(event) = parser.next(&mut piece)? {
                events.push(event);
            }
            assert!(piece.is_empty());
        }
        Ok(events)
    }

    fn data(text: &str) -> Vec<String> {
        events([text.as_bytes()]).unwrap().into_iter().map(|event| event.data).collect()
    }

    #[test]
    fn every_kind_of_line_end_ends_a_line() {
        for end in ["\n", "\r\n", "\r"] {
            let text = ["data: a", "", "data: b", "data: c", "", ""].join(end);
            assert_eq!(data(&text), ["a", "b\nc"], "{end:?}");
        }
        // Two line ends of different kinds are two.
        assert_eq!(data("data: a\r\n\ndata: b\n\r\ndata: c\n\rdata: d\r\r"), ["a", "b", "c", "d"]);
    }

    #[test]
    fn an_event_that_ends_with_cr_is_given_without_the_lf_that_may_follow() {
        let (mut parser, mut bytes) = (Parser::default(), b"data: a\r\r".as_slice());
        assert_eq!(parser.next(&mut bytes).unwrap().unwrap().data, "a");
        let mut bytes = b"".as_slice();
        assert_eq!(parser.next(&mut bytes), Ok(None));
        let mut bytes = b"\ndata: b\n\n".as_slice();
        assert_eq!(parser.next(&mut bytes).unwrap().unwrap().data, "b");
    }

    #[test]
    fn comments_unknown_fields_and_empty_events_are_passed_over() {
        assert_eq!(
            data(": ping\n\n:\n\nid: 7\nretry: 5\nmood: blue\n\nevent: x\n\ndata: a\n: b\nid\n\n"),
            ["a"]
        );
    }

    #[test]
    fn one_space_after_the_colon_is_no_data_and_none_is_needed() {
        assert_eq!(data("data:a\n\ndata:  b \n\ndata\n\ndata:\n\n"), ["a", " b ", "", ""]);
        assert_eq!(data("data: {\"a\":1}\n\ndata:[DONE]\n\n"), ["{\"a\":1}", "[DONE]"]);
    }

    #[test]
    fn several_data_lines_are_one_text_and_the_type_is_kept_for_one_event() {
        let event = |name: &str, data: &str| Event { name: name.into(), data: data.into() };
        assert_eq!(
            events([b"event: error\ndata: a\ndata:\ndata: b\n\ndata: c\n\n".as_slice()]).unwrap(),
            [event("error", "a\n\nb"), event("", "c")]
        );
    }

    #[test]
    fn a_byte_order_mark_is_passed_over_at_the_beginning_only() {
        let bom = "\u{FEFF}";
        assert_eq!(data(&format!("{bom}data: a\n\n")), ["a"]);
        assert_eq!(data(&format!("data: a\n\n{bom}data: b\n\ndata: {bom}\n\n")), ["a", bom]);
    }

    #[test]
    fn what_the_stream_ends_within_is_no_event() {
        assert_eq!(data("data: a\n\ndata: b"), ["a"]);
        assert_eq!(data("data: a\n\ndata: b\n"), ["a"]);
    }

    #[test]
    fn a_line_or_an_event_without_end_is_refused_before_it_grows_too_large() {
        let piece = vec![b'x'; 64 * 1024];
        let mut parser = Parser::default();
        let mut taken = 0;
        let refused = loop {
            match parser.next(&mut piece.as_slice()) {
                Ok(None) => taken += piece.len(),
                other => break other,
            }
        };
        assert_eq!((refused, taken <= SSE_EVENT_MAX), (Err(Malformed::TooLong), true));
        let lines = "data: 0123456789\n".repeat(SSE_EVENT_MAX / 11 + 1);
        assert_eq!(events([lines.as_bytes()]), Err(Malformed::TooLong));
        // Any number of small ones is none of that.
        assert_eq!(data(&"data: 0123456789\n\n".repeat(SSE_EVENT_MAX / 10)).len(), SSE_EVENT_MAX / 10);
    }

    #[test]
    fn bytes_that_are_no_text_are_refused() {
        assert_eq!(events([b"data: a\xFF\n\n".as_slice()]), Err(Malformed::NotUtf8));
        // In a comment they hurt nobody.
        assert_eq!(events([b": \xFF\ndata: a\n\n".as_slice()]).unwrap().len(), 1);
    }

    /// Lines of every sort, with every sort of end, and the bytes of characters that can be cut.
    fn bytes() -> impl Strategy<Value = Vec<u8>> {
        let lines =
            ["data: a", "data:b", "data: é🙂", "event: e", ": c", "", "", "data", "x: y", "\u{FEFF}data: z"];
        let line = (prop::sample::select(lines.to_vec()), prop::sample::select(vec!["\n", "\r\n", "\r"]));
        let text = |(line, end)| [line, end].concat();
        prop::collection::vec(line.prop_map(text), 0..20).prop_map(|lines| lines.concat().into_bytes())
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
