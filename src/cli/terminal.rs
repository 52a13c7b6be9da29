//! What a terminal is sent of texts that others wrote: nothing that it would take for a command. It prints nothing.

use std::borrow::Cow;

/// The text without control characters, which a terminal obeys: title, clipboard, colours, the keyboard's answers. Line
/// breaks and tabs stay. Each other one becomes a character that shows that it was there.
pub(super) fn neutralized(text: &str) -> Cow<'_, str> {
    if text.chars().all(|c| shown(c) == c) {
        return Cow::Borrowed(text);
    }
    Cow::Owned(text.chars().map(shown).collect())
}

fn shown(c: char) -> char {
    match c {
        '\n' | '\r' | '\t' => c,
        // Unicode's pictures of control characters stand in their order.
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
    fn control_characters_are_shown_and_not_obeyed() {
        let text = "a\x1b]0;title\x07\x1b[2Jb\u{9b}31m\x7f\x08\0";
        assert_eq!(neutralized(text), "a␛]0;title␇␛[2Jb\u{fffd}31m␡␈␀");
    }

    #[test]
    fn other_text_stays_as_it_is() {
        let text = "häppy 😀\tone\r\ntwo\n";
        assert!(matches!(neutralized(text), Cow::Borrowed(same) if same == text));
    }
}
