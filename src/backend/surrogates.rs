//! Halves of surrogate pairs in JSON, which RFC 8259 allows in `\u` escapes but a Rust string
//! cannot hold. Pure. Programs that split text by UTF-16 units write them. This file keeps the text
//! around them, and joins two consecutive halves; it parses no JSON.
//!
//! [`mark`] makes text that a JSON parser accepts; then [`Joiner`] restores the text of one
//! channel, or [`settle`] that of a whole value. Marked text must pass through one of the two
//! before it is output.

use std::borrow::Cow;
use std::mem;

use serde_json::Value;

/// Precedes the mark of a half, and itself where a text contains it. As a noncharacter, it is rare.
const SIGN: char = '\u{FDD0}';
/// Marks the half U+D800; the characters after it mark the other halves.
const FIRST_MARK: u32 = 0xE000;
const HALVES: std::ops::RangeInclusive<u32> = 0xD800..=0xDFFF;
/// Replaces a half without its other half.
const REPLACEMENT: char = char::REPLACEMENT_CHARACTER;

/// The JSON text with a mark in place of each `\u` escape that is half of a surrogate pair alone.
pub(super) fn mark(json: &str) -> Cow<'_, str> {
    // The common case.
    if !json.contains("\\u") && !json.contains(SIGN) {
        return Cow::Borrowed(json);
    }
    let mut marked = String::new();
    // How much of the text was copied to `marked`.
    let mut copied = 0;
    let mut at = 0;
    while let Some(found) = json.get(at..).and_then(|rest| rest.find(['\\', SIGN])) {
        let start = at + found;
        let rest = json.get(start..).unwrap_or_default();
        let (length, replacement) = match escaped(rest) {
            _ if rest.starts_with(SIGN) => (SIGN.len_utf8(), Some((SIGN, SIGN))),
            // Any other escape. An escaped backslash does not begin one.
            None => (1 + rest.chars().nth(1).map_or(0, char::len_utf8), None),
            Some(unit) if char::from_u32(unit) == Some(SIGN) => (6, Some((SIGN, SIGN))),
            Some(high) if is_high(high) && rest.get(6..).and_then(escaped).is_some_and(is_low) => {
                (12, None)
            }
            Some(unit) => (6, marked_half(unit).map(|half| (SIGN, half))),
        };
        at = start + length;
        if let Some((sign, half)) = replacement {
            marked.push_str(json.get(copied..start).unwrap_or_default());
            marked.extend([sign, half]);
            copied = at;
        }
    }
    if copied == 0 {
        return Cow::Borrowed(json);
    }
    marked.push_str(json.get(copied..).unwrap_or_default());
    Cow::Owned(marked)
}

/// The number of a `\uXXXX` escape at the beginning of a text.
fn escaped(text: &str) -> Option<u32> {
    let digits = text.strip_prefix("\\u")?.get(..4)?;
    // `from_str_radix` would accept a sign, too.
    digits
        .bytes()
        .all(|byte| byte.is_ascii_hexdigit())
        .then(|| u32::from_str_radix(digits, 16).ok())
        .flatten()
}

fn is_high(unit: u32) -> bool {
    (0xD800..0xDC00).contains(&unit)
}

fn is_low(unit: u32) -> bool {
    (0xDC00..0xE000).contains(&unit)
}

/// The mark of a half.
fn marked_half(unit: u32) -> Option<char> {
    HALVES
        .contains(&unit)
        .then(|| char::from_u32(unit - HALVES.start() + FIRST_MARK))
        .flatten()
}

/// The half that a mark stands for.
fn half(mark: char) -> Option<u32> {
    let unit = u32::from(mark).checked_sub(FIRST_MARK)? + HALVES.start();
    HALVES.contains(&unit).then_some(unit)
}

/// Restores marked text that arrives in pieces. A high half at the end of a piece waits for the
/// next one.
#[derive(Debug, Default)]
pub(super) struct Joiner {
    high: Option<u32>,
}

impl Joiner {
    /// The text of the next piece.
    pub(super) fn push(&mut self, piece: &str) -> String {
        let mut text = String::with_capacity(piece.len());
        let mut chars = piece.chars();
        while let Some(char) = chars.next() {
            if char != SIGN {
                text.extend(self.end());
                text.push(char);
                continue;
            }
            match chars.next().map(|marked| (marked, half(marked))) {
                Some((_, Some(high))) if is_high(high) => {
                    text.extend(self.end());
                    self.high = Some(high);
                }
                Some((_, Some(low))) => {
                    text.push(self.high.take().map_or(REPLACEMENT, |high| pair(high, low)));
                }
                Some((char, None)) => {
                    text.extend(self.end());
                    text.push(char);
                }
                None => text.extend(self.end()),
            }
        }
        text
    }

    /// The replacement of a half that still waits when no more pieces follow.
    pub(super) fn end(&mut self) -> Option<char> {
        mem::take(&mut self.high).map(|_| REPLACEMENT)
    }
}

fn pair(high: u32, low: u32) -> char {
    char::from_u32(0x1_0000 + ((high - 0xD800) << 10) + (low - 0xDC00)).unwrap_or(REPLACEMENT)
}

/// Restores every marked text in a value, including names of fields.
pub(super) fn settle(value: &mut Value) {
    match value {
        Value::String(text) => settle_text(text),
        Value::Array(values) => values.iter_mut().for_each(settle),
        Value::Object(fields) => {
            fields.values_mut().for_each(settle);
            if fields.keys().any(|name| name.contains(SIGN)) {
                let named = |(mut name, value)| {
                    settle_text(&mut name);
                    (name, value)
                };
                *fields = mem::take(fields).into_iter().map(named).collect();
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// Restores one marked text.
pub(super) fn settle_text(text: &mut String) {
    if text.contains(SIGN) {
        let mut joiner = Joiner::default();
        *text = joiner.push(text);
        text.extend(joiner.end());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn settled(json: &str) -> Value {
        let mut value = serde_json::from_str(&mark(json)).unwrap();
        settle(&mut value);
        value
    }

    /// The text of consecutive JSON strings.
    fn joined(strings: &[&str]) -> String {
        let mut joiner = Joiner::default();
        let mut text: String = strings
            .iter()
            .map(|json| joiner.push(&serde_json::from_str::<String>(&mark(json)).unwrap()))
            .collect();
        text.extend(joiner.end());
        text
    }

    #[test]
    fn json_without_halves_is_left_as_it_is() {
        for json in [
            r#"{"a": "é😀\n\"\\ \u00e9 \ud83d\ude00"}"#,
            r#""\\ud83d \\\\ude00""#,
            r#""\\\u0041""#,
            "",
            "\\",
            "\\u",
            r"\ud8",
            r"\u+123",
            r"\é\u",
        ] {
            assert!(
                matches!(mark(json), Cow::Borrowed(same) if same == json),
                "{json}"
            );
        }
    }

    #[test]
    fn a_half_without_the_other_becomes_the_replacement_character() {
        let other = '\u{FFFD}';
        for (json, expected) in [
            (r#""a\ud83d""#, format!("a{other}")),
            (r#""\uD83Db""#, format!("{other}b")),
            (r#""\ude00""#, other.to_string()),
            (r#""\ude00\ud83d""#, format!("{other}{other}")),
            (r#""\ud83d\ud83d\ude00""#, format!("{other}😀")),
            (r#""\ud83d\n\ude00""#, format!("{other}\n{other}")),
            (r#""\ud83d\\ude00""#, format!("{other}\\ude00")),
            (r#""\\\ud83d""#, format!("\\{other}")),
            (r#""\ud83d\u0041""#, format!("{other}A")),
        ] {
            assert_eq!(settled(json), json!(expected), "{json}");
        }
    }

    #[test]
    fn every_text_of_a_value_is_settled() {
        let value =
            settled(r#"{"\ud800": [{"k\udfff": "v\ud83d"}, 1, null], "plain": "\ud83d\ude00"}"#);
        assert_eq!(
            value,
            json!({"\u{FFFD}": [{"k\u{FFFD}": "v\u{FFFD}"}, 1, null], "plain": "😀"})
        );
    }

    #[test]
    fn halves_of_consecutive_pieces_are_joined() {
        assert_eq!(joined(&[r#""Hi \ud83d""#, r#""\ude00!""#]), "Hi 😀!");
        assert_eq!(joined(&[r#""\ud83d""#, r#""""#, r#""\ude00""#]), "😀");
        assert_eq!(
            joined(&[r#""\ud83d""#, r#"" ""#, r#""\ude00""#]),
            "\u{FFFD} \u{FFFD}"
        );
        assert_eq!(joined(&[r#""a\ud83d""#]), "a\u{FFFD}");
        assert_eq!(joined(&[r#""\udbff""#, r#""\udfff""#]), "\u{10FFFF}");
        // Characters next to the halves and far from them.
        let text = "A가힣\u{D7FF}\u{E000}\u{E7FF}\u{E800}😀\u{10FFFF}";
        assert_eq!(
            joined(&[&format!("\"\\ud83d{text}\"")]),
            format!("\u{FFFD}{text}")
        );
    }

    #[test]
    fn the_sign_itself_is_text_like_any_other() {
        for json in [
            "\"\u{FDD0}\u{E03D}\"",
            r#""\ufdd0\ue03d""#,
            "\"\\ufdd0\u{E03D}\"",
        ] {
            assert_eq!(joined(&[json]), "\u{FDD0}\u{E03D}");
            assert_eq!(settled(json), json!("\u{FDD0}\u{E03D}"));
        }
        assert_eq!(
            joined(&["\"\u{FDD0}\"", "\"\u{E000}\""]),
            "\u{FDD0}\u{E000}"
        );
    }

    /// UTF-16 as JSON, each unit as an escape.
    fn json_of(units: &[u16]) -> String {
        let text: String = units.iter().map(|unit| format!("\\u{unit:04x}")).collect();
        format!("\"{text}\"")
    }

    proptest! {
        #[test]
        fn utf_16_cut_anywhere_equals_the_lossy_decoding_of_the_whole(
            units in prop::collection::vec(prop::sample::select(vec![0x41u16, 0xD83D, 0xDE00, 0xD800, 0xDFFF, 0xD7FF, 0xAC00, 0xFDD0, 0xE000, 0xE03D]), 0..12),
            cut in any::<prop::sample::Index>(),
        ) {
            let (first, second) = units.split_at(cut.index(units.len() + 1));
            prop_assert_eq!(joined(&[&json_of(first), &json_of(second)]), String::from_utf16_lossy(&units));
            prop_assert_eq!(settled(&json_of(&units)), json!(String::from_utf16_lossy(&units)));
        }
    }
}
