//! Bytes to text when they arrive in pieces: whole characters only. Nothing is refused: what is no UTF-8 becomes
//! U+FFFD, so that the whole is what `String::from_utf8_lossy` makes of all the bytes together.

/// Decodes one stream of bytes. It keeps at most the three bytes of a character that has not arrived whole.
#[derive(Debug, Default)]
pub(super) struct Utf8 {
    incomplete: Vec<u8>,
}

impl Utf8 {
    /// The text of `bytes`, with what was left of the bytes before and without a last character that is not whole.
    pub(super) fn decode(&mut self, bytes: &[u8]) -> String {
        if self.incomplete.is_empty() {
            let (text, rest) = decode(bytes);
            self.incomplete.extend_from_slice(rest);
            return text;
        }
        self.incomplete.extend_from_slice(bytes);
        let (text, rest) = decode(&self.incomplete);
        self.incomplete = rest.to_vec();
        text
    }

    /// The text of what is left, when no more bytes come.
    pub(super) fn finish(&mut self) -> String {
        let rest = std::mem::take(&mut self.incomplete);
        String::from_utf8_lossy(&rest).into_owned()
    }
}

/// The text of `bytes`, and those at the end that more bytes may make a character of.
fn decode(bytes: &[u8]) -> (String, &[u8]) {
    let mut text = String::with_capacity(bytes.len());
    let mut chunks = bytes.utf8_chunks().peekable();
    while let Some(chunk) = chunks.next() {
        text.push_str(chunk.valid());
        let invalid = chunk.invalid();
        if chunks.peek().is_none() && is_incomplete(invalid) {
            return (text, invalid);
        }
        if !invalid.is_empty() {
            text.push(char::REPLACEMENT_CHARACTER);
        }
    }
    (text, &[])
}

fn is_incomplete(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|error| error.error_len().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn in_pieces<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> String {
        let mut utf8 = Utf8::default();
        let mut text: String = pieces.into_iter().map(|piece| utf8.decode(piece)).collect();
        text.push_str(&utf8.finish());
        text
    }

    /// Bytes in which characters, halves of characters and bytes that are never in UTF-8 are likely.
    fn bytes() -> impl Strategy<Value = Vec<u8>> {
        let part = prop_oneof![
            any::<char>().prop_map(|c| c.to_string().into_bytes()),
            (any::<char>(), 1..4usize).prop_map(|(c, most)| {
                let bytes = c.to_string().into_bytes();
                bytes[..most.min(bytes.len())].to_vec()
            }),
            prop::collection::vec(any::<u8>(), 0..4),
            prop::sample::select(vec![
                b"\xE0\x80\x80".to_vec(),
                b"\xED\xA0\x80".to_vec(),
                b"\xF4\x90\x80\x80".to_vec(),
                b"\xF0\x9F".to_vec(),
                b"\xC0\xAF".to_vec(),
                b"\xFF".to_vec(),
            ]),
        ];
        prop::collection::vec(part, 0..12).prop_map(|parts| parts.concat())
    }

    proptest! {
        #[test]
        fn bytes_cut_anywhere_give_the_text_of_the_whole(bytes in bytes(), cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6)) {
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let text = in_pieces(cuts.windows(2).map(|cut| &bytes[cut[0]..cut[1]]));
            prop_assert_eq!(text, String::from_utf8_lossy(&bytes));
        }

        #[test]
        fn bytes_one_by_one_give_the_text_of_the_whole(bytes in bytes()) {
            prop_assert_eq!(in_pieces(bytes.chunks(1)), String::from_utf8_lossy(&bytes));
        }
    }

    #[test]
    fn a_character_waits_for_its_last_byte_and_no_longer() {
        let mut utf8 = Utf8::default();
        assert_eq!(utf8.decode(b"a\xF0\x9F"), "a");
        assert_eq!(utf8.decode(b"\x99"), "");
        assert_eq!(utf8.decode(b"\x82b"), "🙂b");
        assert_eq!(utf8.decode(b"\xE2\x82"), "");
        assert_eq!(utf8.decode(b"\n"), "\u{FFFD}\n");
        assert_eq!(utf8.decode(b"\xC3"), "");
        assert_eq!(utf8.finish(), "\u{FFFD}");
        assert_eq!(utf8.finish(), "");
    }
}
