//! A token as text, in frames and answers. It is never shown in `Debug` output. It does not know
//! what a token says.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::limits::{TOKEN_MAX, WATCH_TOKEN_TTL_MAX_MS};
use super::number::whole_number;

/// A token that proves what its bearer may do.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
#[schemars(extend("maxLength" = TOKEN_MAX))]
pub struct BearerToken(String);

impl BearerToken {
    /// A token with this text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text. Neither log nor store it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for BearerToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BearerToken(..)")
    }
}

/// What the `watch_token` of a submitted job should allow, and for how long.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WatchTokenTerms {
    /// Whether its bearer may also cancel the job.
    #[serde(default)]
    pub cancel: bool,
    /// How long it is valid, in milliseconds; one hour if absent.
    #[serde(default, deserialize_with = "whole_number")]
    #[schemars(range(min = 1, max = WATCH_TOKEN_TTL_MAX_MS))]
    pub ttl_ms: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_not_shown_in_debug_output() {
        let token = BearerToken::new("the-secret-text");
        assert!(!format!("{token:?} {:?}", Some(&token)).contains("secret"));
        assert_eq!(token.expose(), "the-secret-text");
    }
}
