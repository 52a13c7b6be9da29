//! Remembers what a client was sent, so that a later attempt that writes the same is not sent again.
//! Pure. It keeps digests, not the text.

use sha2::{Digest as _, Sha256};

/// Output of one channel that was sent.
#[derive(Clone, Debug, Default)]
pub(super) struct SentText {
    digest: Sha256,
    length: usize,
    /// The output of a later attempt, while it is shorter.
    again: Option<(Sha256, usize)>,
}

/// A later attempt writes something else than was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct OtherOutput;

impl SentText {
    /// A later attempt begins.
    pub(super) fn repeat(&mut self) {
        self.again = (self.length > 0).then(|| (Sha256::new(), self.length));
    }

    /// The part of the next text that was not sent before.
    pub(super) fn push<'a>(&mut self, text: &'a str) -> Result<&'a str, OtherOutput> {
        let mut text = text;
        if let Some((digest, left)) = &mut self.again {
            let (known, new) = text
                .split_at_checked(text.len().min(*left))
                .ok_or(OtherOutput)?;
            digest.update(known);
            *left -= known.len();
            text = new;
            if *left == 0 {
                let same = digest.clone().finalize() == self.digest.clone().finalize();
                self.again = None;
                if !same {
                    return Err(OtherOutput);
                }
            }
        }
        self.digest.update(text);
        self.length += text.len();
        Ok(text)
    }

    /// Whether a later attempt has not yet written all that was sent.
    pub(super) const fn is_short(&self) -> bool {
        self.again.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_attempt_is_sent_only_from_where_the_first_one_stopped() {
        let mut sent = SentText::default();
        assert_eq!(sent.push("one "), Ok("one "));
        assert_eq!(sent.push("two"), Ok("two"));
        for rest in [" three", " four"] {
            sent.repeat();
            assert!(sent.is_short());
            assert_eq!(sent.push("on"), Ok(""));
            let other = format!("e two{}", if rest == " three" { "" } else { " three" });
            assert_eq!(sent.push(&(other + rest)), Ok(rest));
            assert!(!sent.is_short());
        }
    }

    #[test]
    fn other_output_is_noticed_once_it_is_as_long() {
        for (first, later) in [("abc", "abd"), ("é", "ab"), ("a", "é")] {
            let mut sent = SentText::default();
            sent.push(first).unwrap();
            sent.repeat();
            assert_eq!(sent.push(later), Err(OtherOutput), "{first} {later}");
        }
    }

    #[test]
    fn an_attempt_that_repeats_nothing_is_sent_as_it_is() {
        let mut sent = SentText::default();
        sent.repeat();
        assert!(!sent.is_short());
        assert_eq!(sent.push("new"), Ok("new"));
    }
}
