//! Which tokens were revoked: single ones by their `jti`, with those that were requested with them,
//! and all of a subject that were issued up to a time. Storing them is the broker's part.

use std::collections::{HashMap, HashSet};

use serde::{Deserialize, Serialize};

use super::claims::Subject;

/// One revocation, as it is stored.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Revocation {
    /// The token with this `jti`, and those that were requested with it.
    Jti(String),
    /// All tokens of this `sub`.
    Sub(String),
}

/// All revocations.
#[derive(Debug, Default)]
pub struct Revocations {
    tokens: HashSet<String>,
    /// Until when the revoked tokens of a subject were issued, in seconds since the Unix epoch.
    subjects: HashMap<String, u64>,
}

impl Revocations {
    /// Adds a revocation that was made at `at_s`, in seconds since the Unix epoch.
    pub fn add(&mut self, revocation: Revocation, at_s: u64) {
        match revocation {
            Revocation::Jti(id) => {
                self.tokens.insert(id);
            }
            Revocation::Sub(name) => {
                self.subjects.insert(name, at_s);
            }
        }
    }

    /// Removes a revocation.
    pub fn remove(&mut self, revocation: &Revocation) {
        match revocation {
            Revocation::Jti(id) => {
                self.tokens.remove(id);
            }
            Revocation::Sub(name) => {
                self.subjects.remove(name);
            }
        }
    }

    /// Whether the subject's token was revoked. A token without `iat` may have been issued at any
    /// time.
    pub fn cover(&self, subject: &Subject) -> bool {
        let ids = [&subject.token_id, &subject.parent_id];
        let until = self.subjects.get(&subject.name);
        ids.into_iter().flatten().any(|id| self.tokens.contains(id))
            || until.is_some_and(|until| subject.issued_at.is_none_or(|at| at <= *until))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_revocation_covers_one_token_or_the_earlier_ones_of_a_subject() {
        let token = |name: &str, id: Option<&str>, issued_at| Subject {
            name: name.into(),
            token_id: id.map(str::to_owned),
            issued_at,
            ..Subject::anyone()
        };
        let mut revocations = Revocations::default();
        assert!(!revocations.cover(&token("a", Some("1"), None)));
        revocations.add(Revocation::Jti("1".into()), 100);
        revocations.add(Revocation::Sub("b".into()), 100);
        for (subject, is_covered) in [
            (token("a", Some("1"), Some(200)), true),
            (token("a", Some("2"), Some(1)), false),
            (token("b", Some("2"), Some(100)), true),
            (token("b", None, Some(101)), false),
            (token("b", None, None), true),
            (token("1", None, None), false),
        ] {
            assert_eq!(revocations.cover(&subject), is_covered, "{subject:?}");
        }
        let requested_with = |id: &str| Subject {
            parent_id: Some(id.into()),
            ..token("a", Some("3"), Some(200))
        };
        assert!(revocations.cover(&requested_with("1")));
        assert!(!revocations.cover(&requested_with("2")));
        revocations.remove(&Revocation::Sub("b".into()));
        assert!(!revocations.cover(&token("b", None, None)));
        assert!(revocations.cover(&token("b", Some("1"), None)));
    }
}
