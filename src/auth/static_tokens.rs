//! Static tokens: a file that lists each with its subject and what it may do. It does not read the
//! file.

use std::fmt;

use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use super::claims::{Subject, is_label};
use super::grants::Grants;
use crate::config::{KEYS_BYTES_MAX, STATIC_TOKEN_MIN};
use crate::wire::BearerToken;

/// The tokens of a file. Only their digests are kept.
#[derive(Clone, Default)]
pub struct StaticTokens {
    entries: Vec<([u8; 32], Subject)>,
}

/// The file is not a usable list of tokens. No error shows a token.
#[derive(Debug, thiserror::Error)]
pub enum BadTokenFile {
    /// It is too large.
    #[error("it has more than {KEYS_BYTES_MAX} bytes")]
    TooLarge,
    /// It is not the JSON that is expected.
    #[error(
        "it is not {{\"tokens\": [{{\"token\", \"sub\", \"role\" or \"tailwater\"}}]}}: error in line {line}, column {column}"
    )]
    NotTokens {
        /// The line of the error.
        line: usize,
        /// The column of the error.
        column: usize,
    },
    /// An entry cannot be used.
    #[error("token {number}: {why}")]
    Entry {
        /// Which entry, from 1.
        number: usize,
        /// What is wrong with it.
        why: &'static str,
    },
    /// It lists no token.
    #[error("it lists no token")]
    Empty,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TokenList {
    tokens: Vec<TokenEntry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TokenEntry {
    token: BearerToken,
    sub: String,
    role: Option<GrantPreset>,
    tailwater: Option<Grants>,
}

/// A name for common grants.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum GrantPreset {
    Admin,
    Application,
    Viewer,
}

impl StaticTokens {
    /// Reads `{"tokens": [{"token": …, "sub": …, "role": …}, …]}`.
    ///
    /// # Errors
    /// [`BadTokenFile`].
    pub fn from_json(json: &[u8]) -> Result<Self, BadTokenFile> {
        if json.len() > KEYS_BYTES_MAX {
            return Err(BadTokenFile::TooLarge);
        }
        // The parser's text might quote a token.
        let list: TokenList =
            serde_json::from_slice(json).map_err(|error| BadTokenFile::NotTokens {
                line: error.line(),
                column: error.column(),
            })?;
        let mut entries = Vec::new();
        for (entry, number) in list.tokens.into_iter().zip(1..) {
            let subject = entry.subject();
            let subject = subject.map_err(|why| BadTokenFile::Entry { number, why })?;
            entries.push((digest(entry.token.expose()), subject));
        }
        if entries.is_empty() {
            return Err(BadTokenFile::Empty);
        }
        Ok(Self { entries })
    }

    /// The subject of a token. Takes the same time whichever it is.
    pub(super) fn find(&self, token: &str) -> Option<&Subject> {
        let digest = digest(token);
        let mut found = None;
        for (known, subject) in &self.entries {
            if bool::from(known.ct_eq(&digest)) {
                found = Some(subject);
            }
        }
        found
    }
}

impl TokenEntry {
    fn subject(&self) -> Result<Subject, &'static str> {
        let token = self.token.expose();
        let is_sendable = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
        if token.len() < STATIC_TOKEN_MIN || !token.bytes().all(is_sendable) {
            return Err(
                "a token must have at least 24 characters of A-Z a-z 0-9 - . _ ~; try `openssl rand -hex 32`",
            );
        }
        if !is_label(&self.sub) {
            return Err("`sub` is empty, too long, or has control characters");
        }
        let grants = match (self.role, &self.tailwater) {
            (Some(GrantPreset::Admin), None) => Grants::admin(),
            (Some(GrantPreset::Application), None) => Grants::application(),
            (Some(GrantPreset::Viewer), None) => Grants::viewer(),
            (None, Some(grants)) => grants.clone(),
            (Some(_), Some(_)) | (None, None) => return Err("give `role` or `tailwater`"),
        };
        Ok(Subject {
            name: self.sub.clone(),
            token_id: None,
            parent_id: None,
            issued_at: None,
            expires_at_ms: None,
            grants,
        })
    }
}

impl fmt::Debug for StaticTokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.entries.iter().map(|(_, subject)| &subject.name);
        f.debug_list().entries(names).finish()
    }
}

fn digest(token: &str) -> [u8; 32] {
    Sha256::digest(token).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const TOKEN: &str = "0123456789abcdef01234567";

    fn read(tokens: &Value) -> Result<StaticTokens, BadTokenFile> {
        StaticTokens::from_json(json!({"tokens": tokens}).to_string().as_bytes())
    }

    #[test]
    fn a_token_of_the_file_has_its_subject_and_no_other_text_has() {
        let tokens = read(&json!([
            {"token": TOKEN, "sub": "a", "role": "viewer"},
            {"token": format!("{TOKEN}x"), "sub": "b", "tailwater": {"submit": ["demo"]}},
        ]))
        .unwrap();
        let name = |token: &str| tokens.find(token).map(|subject| subject.name.to_string());
        assert_eq!(name(TOKEN).as_deref(), Some("a"));
        assert_eq!(name(&format!("{TOKEN}x")).as_deref(), Some("b"));
        for other in [
            "",
            "0",
            &TOKEN[1..],
            &TOKEN.to_uppercase(),
            &format!("{TOKEN} "),
        ] {
            assert_eq!(name(other), None, "{other}");
        }
        let shown = format!("{tokens:?}");
        assert!(!shown.contains(TOKEN), "{shown}");
    }

    #[test]
    fn a_bad_file_is_refused_without_showing_a_token() {
        for bad in [
            json!([]),
            json!([{"token": "short", "sub": "a", "role": "viewer"}]),
            json!([{"token": format!("{TOKEN} "), "sub": "a", "role": "viewer"}]),
            json!([{"token": TOKEN, "sub": "", "role": "viewer"}]),
            json!([{"token": TOKEN, "sub": "a"}]),
            json!([{"token": TOKEN, "sub": "a", "role": "viewer", "tailwater": {}}]),
            json!([{"token": TOKEN, "sub": "a", "role": "root"}]),
            json!([{"token": TOKEN, "sub": "a", "tailwater": {"watch": ["a.b"]}}]),
            json!([{"token": TOKEN, "sub": "a", "role": "viewer", "more": 1}]),
            json!({"token": TOKEN}),
        ] {
            let error = read(&bad).unwrap_err();
            let shown = format!("{error} {error:?}");
            assert!(!shown.contains(TOKEN), "{bad}: {shown}");
        }
    }
}
