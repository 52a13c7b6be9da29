//! Makes untrusted text safe for a terminal.

use std::borrow::Cow;

/// The text without control characters, which could change a terminal's title, clipboard, colours
/// or input. Line breaks and tabs stay; every other control character becomes a visible one.
pub(super) fn neutralized(text: &str) -> Cow<'_, str> {
    if text.chars().all(|c| shown(c) == c) {
        return Cow::Borrowed(text);
    }
    Cow::Owned(text.chars().map(shown).collect())
}

fn shown(c: char) -> char {
    match c {
        '\n' | '\r' | '\t' => c,
        // Unicode has pictures of the control characters in the same order.
        '\0'..='\u{1f}' => {
            char::from_u32(0x2400 + u32::from(c)).unwrap_or(char::REPLACEMENT_CHARACTER)
        }
        '\u{7f}' => '\u{2421}',
        '\u{80}'..='\u{9f}' => char::REPLACEMENT_CHARACTER,
        _ => c,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_shown_and_not_executed() {
        let text = "a\x1b]0;title\x07\x1b[2Jb\u{9b}31m\x7f\x08\0";
        assert_eq!(neutralized(text), "a␛]0;title␇␛[2Jb\u{fffd}31m␡␈␀");
    }

    #[test]
    fn other_text_is_unchanged() {
        let text = "häppy 😀\tone\r\ntwo\n";
        assert!(matches!(neutralized(text), Cow::Borrowed(same) if same == text));
    }
}
