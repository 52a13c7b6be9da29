//! Patterns of job ids and kinds in a token: an id or name, or the beginning of some.

use std::fmt;
use std::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::wire::limits::NAME_MAX;

/// An id or name, or with `*` at the end all with this beginning. A beginning without a colon, other
/// than the empty one, stands for no qualified id: a prefix that is chosen for plain ids must not
/// cover all jobs of a kind whose name happens to begin with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamePattern {
    beginning: String,
    is_prefix: bool,
}

/// The text is not a pattern of names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a pattern must be a name of 1 to {NAME_MAX} characters of A-Z a-z 0-9 _ -, a kind, a colon and such a name, or the beginning of one and `*`"
)]
pub struct BadPattern;

impl NamePattern {
    /// Every name.
    pub fn any() -> Self {
        Self {
            beginning: String::new(),
            is_prefix: true,
        }
    }

    /// The only name that the pattern stands for, if it is no beginning of names.
    pub fn only_name(&self) -> Option<&str> {
        (!self.is_prefix).then_some(self.beginning.as_str())
    }

    /// Whether the pattern stands for this name.
    pub fn matches(&self, name: &str) -> bool {
        if self.is_prefix {
            let beginning = &self.beginning;
            let is_of_form = beginning.is_empty() || beginning.contains(':') || !name.contains(':');
            is_of_form && name.starts_with(beginning)
        } else {
            name == self.beginning
        }
    }
}

impl FromStr for NamePattern {
    type Err = BadPattern;

    fn from_str(text: &str) -> Result<Self, BadPattern> {
        let (beginning, is_prefix) = match text.strip_suffix('*') {
            Some(beginning) => (beginning, true),
            None => (text, false),
        };
        let starts_name = |text: &str| {
            text.len() <= NAME_MAX
                && text
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'))
        };
        let (has_valid_kind, name) = match beginning.split_once(':') {
            Some((kind, name)) => (!kind.is_empty() && starts_name(kind), name),
            None => (true, beginning),
        };
        let is_long_enough = is_prefix || !name.is_empty();
        if has_valid_kind && starts_name(name) && is_long_enough {
            Ok(Self {
                beginning: beginning.to_owned(),
                is_prefix,
            })
        } else {
            Err(BadPattern)
        }
    }
}

impl fmt::Display for NamePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.beginning)?;
        f.write_str(if self.is_prefix { "*" } else { "" })
    }
}

impl Serialize for NamePattern {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for NamePattern {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_is_a_name_or_the_beginning_of_names() {
        for (pattern, name, matches) in [
            ("j1", "j1", true),
            ("j1", "j12", false),
            ("j1*", "j12", true),
            ("j1*", "j1", true),
            ("j1*", "j2", false),
            ("*", "anything", true),
            ("j1", "J1", false),
            ("demo:j1", "demo:j1", true),
            ("demo:j1", "demo:j12", false),
            ("demo:j1", "j1", false),
            ("j1", "demo:j1", false),
            ("demo:j1*", "demo:j12", true),
            ("demo:*", "demo:anything", true),
            ("demo:*", "demo-1:anything", false),
            ("demo:*", "demo", false),
            ("*", "demo:anything", true),
            ("demo*", "demo-1", true),
            ("demo*", "demo:anything", false),
            ("d*", "demo:anything", false),
        ] {
            let parsed: NamePattern = pattern.parse().unwrap();
            assert_eq!(parsed.matches(name), matches, "{pattern} {name}");
            assert_eq!(parsed.to_string(), pattern);
        }
    }

    #[test]
    fn a_wildcard_elsewhere_and_other_characters_are_refused() {
        let long = "x".repeat(NAME_MAX + 1);
        for bad in [
            "",
            "**",
            "*a",
            "a*b",
            "a.b",
            "a.*",
            ">",
            "a>",
            "../a",
            "a/b",
            "a%2e",
            "a b",
            "ä",
            "a\0",
            &long,
            ":",
            "a:",
            ":a",
            ":*",
            "a:b:c",
            "a:b:*",
            "a*:b",
            "*:b",
            "a:*b",
            "a:b.c",
            &format!("{long}:a"),
            &format!("a:{long}"),
            &format!("{long}:*"),
        ] {
            assert_eq!(bad.parse::<NamePattern>(), Err(BadPattern), "{bad:?}");
        }
    }
}
