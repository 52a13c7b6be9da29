//! The claims of a token (RFC 7519, section 4.1), and the subject that they describe.

use serde::{Deserialize, Serialize};

use super::grants::Grants;
use crate::config::CLOCK_SKEW_S;
use crate::wire::limits::LABEL_MAX;

/// The claims as a token has them.
#[derive(Debug, Deserialize)]
pub(super) struct TokenClaims {
    sub: String,
    exp: NumericDate,
    #[serde(default)]
    nbf: Option<NumericDate>,
    #[serde(default)]
    iat: Option<NumericDate>,
    #[serde(default)]
    iss: Option<String>,
    #[serde(default)]
    aud: Option<OneOrMany>,
    #[serde(default)]
    jti: Option<String>,
    #[serde(default)]
    pjti: Option<String>,
    #[serde(default)]
    tailwater: Grants,
}

/// Seconds since the Unix epoch. JSON may write them with a fraction.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(transparent)]
struct NumericDate(f64);

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

/// What a valid token must say about its issuer and audience.
#[derive(Clone, Debug, Default)]
pub struct Expected {
    /// The `iss`, if it is checked.
    pub issuer: Option<String>,
    /// The `aud`, if it is checked.
    pub audience: Option<String>,
}

/// Who a client is, and what it may do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subject {
    /// The `sub`.
    pub name: String,
    /// The `jti`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_id: Option<String>,
    /// The `pjti`: the `jti` of the token with which this one was requested.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent_id: Option<String>,
    /// The `iat`, in seconds since the Unix epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issued_at: Option<u64>,
    /// The `exp`, in milliseconds since the Unix epoch; `None` for a static token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at_ms: Option<u64>,
    /// What it may do.
    pub grants: Grants,
}

/// Why claims are not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ClaimsError {
    Expired,
    Invalid(&'static str),
}

impl Subject {
    /// Whoever connects to an edge that checks no tokens.
    pub fn anyone() -> Self {
        Self {
            name: String::new(),
            token_id: None,
            parent_id: None,
            issued_at: None,
            expires_at_ms: None,
            grants: Grants::admin(),
        }
    }
}

impl NumericDate {
    /// `None` unless it is a number that a date can be.
    fn millis(self) -> Option<u64> {
        let ms = self.0 * 1000.0;
        // Beyond this, numbers are not exact.
        (0.0..9.0e15).contains(&ms).then_some(ms as u64)
    }
}

impl TokenClaims {
    /// Checks the claims at `now_ms`.
    pub(super) fn check(self, expected: &Expected, now_ms: u64) -> Result<Subject, ClaimsError> {
        let invalid = |why| Err(ClaimsError::Invalid(why));
        let Some(exp) = self.exp.millis() else {
            return invalid("`exp` is not a date");
        };
        if exp <= now_ms {
            return Err(ClaimsError::Expired);
        }
        let latest = now_ms.saturating_add(CLOCK_SKEW_S * 1000);
        for (date, why) in [
            (self.nbf, "the token is not valid yet"),
            (self.iat, "the token was issued in the future"),
        ] {
            let Some(date) = date else { continue };
            if date.millis().is_none_or(|date| date > latest) {
                return invalid(why);
            }
        }
        if expected.issuer.is_some() && self.iss != expected.issuer {
            return invalid("the token is from another issuer");
        }
        if let Some(audience) = &expected.audience {
            let is_for_us = match &self.aud {
                None => false,
                Some(OneOrMany::One(one)) => one == audience,
                Some(OneOrMany::Many(many)) => many.contains(audience),
            };
            if !is_for_us {
                return invalid("the token is for another audience");
            }
        }
        let ids = [Some(&self.sub), self.jti.as_ref(), self.pjti.as_ref()];
        if ids.into_iter().flatten().any(|id| !is_label(id)) {
            return invalid("`sub`, `jti` or `pjti` is empty, too long, or has control characters");
        }
        Ok(Subject {
            name: self.sub,
            token_id: self.jti,
            parent_id: self.pjti,
            issued_at: self.iat.and_then(NumericDate::millis).map(|ms| ms / 1000),
            expires_at_ms: Some(exp),
            grants: self.tailwater,
        })
    }
}

/// Whether a text can be logged and be the name of a revocation.
pub(super) fn is_label(text: &str) -> bool {
    (1..=LABEL_MAX).contains(&text.len()) && !text.chars().any(char::is_control)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const NOW_S: u64 = 1_800_000_000;

    fn check(claims: Value, expected: &Expected) -> Result<Subject, ClaimsError> {
        let claims: TokenClaims =
            serde_json::from_value(claims).map_err(|_| ClaimsError::Invalid("not claims"))?;
        claims.check(expected, NOW_S * 1000)
    }

    fn is_accepted(change: &Value, expected: &Expected) -> bool {
        let mut claims = json!({"sub": "a", "exp": NOW_S + 60});
        for (name, value) in change.as_object().unwrap() {
            claims[name] = value.clone();
        }
        check(claims, expected).is_ok()
    }

    #[test]
    fn a_token_is_valid_from_nbf_until_exp() {
        let any = Expected::default();
        for (change, accepted) in [
            (json!({}), true),
            (json!({"exp": NOW_S}), false),
            (json!({"exp": NOW_S + 1}), true),
            (json!({"exp": NOW_S as f64 + 0.5}), true),
            (json!({"exp": "2100-01-01"}), false),
            (json!({"exp": null}), false),
            (json!({"exp": -1}), false),
            (json!({"exp": 1e300}), false),
            (json!({"nbf": NOW_S}), true),
            (json!({"nbf": NOW_S + CLOCK_SKEW_S}), true),
            (json!({"nbf": NOW_S + CLOCK_SKEW_S + 1}), false),
            (json!({"nbf": "soon"}), false),
            (json!({"iat": NOW_S + CLOCK_SKEW_S + 1}), false),
            (json!({"iat": 0}), true),
        ] {
            assert_eq!(is_accepted(&change, &any), accepted, "{change}");
        }
        let expired = json!({"sub": "a", "exp": NOW_S});
        assert_eq!(check(expired, &any), Err(ClaimsError::Expired));
        let endless = json!({"sub": "a"});
        assert!(check(endless, &any).is_err());
    }

    #[test]
    fn issuer_and_audience_are_checked_when_they_are_set() {
        let any = Expected::default();
        let ours = Expected {
            issuer: Some("https://id".into()),
            audience: Some("tailwater".into()),
        };
        let right = json!({"iss": "https://id", "aud": "tailwater"});
        for (change, accepted) in [
            (right, true),
            (
                json!({"iss": "https://id", "aud": ["a", "tailwater"]}),
                true,
            ),
            (json!({"iss": "https://id", "aud": ["a"]}), false),
            (json!({"iss": "https://id", "aud": []}), false),
            (json!({"iss": "https://id", "aud": 7}), false),
            (json!({"iss": "https://id"}), false),
            (json!({"iss": "https://id/", "aud": "tailwater"}), false),
            (json!({"aud": "tailwater"}), false),
            (json!({}), false),
        ] {
            assert_eq!(is_accepted(&change, &ours), accepted, "{change}");
        }
        assert!(is_accepted(&json!({"iss": "x", "aud": "y"}), &any));
    }

    #[test]
    fn a_subject_needs_a_name_that_can_be_logged() {
        let any = Expected::default();
        for bad in [
            json!(""),
            json!("a\nb"),
            json!("x".repeat(LABEL_MAX + 1)),
            json!(7),
        ] {
            assert!(!is_accepted(&json!({"sub": bad}), &any), "{bad}");
            assert!(!is_accepted(&json!({"jti": bad}), &any), "{bad}");
            assert!(!is_accepted(&json!({"pjti": bad}), &any), "{bad}");
        }
        assert!(is_accepted(&json!({"sub": "auth0|5f7", "jti": "ä"}), &any));
    }

    #[test]
    fn an_unknown_grant_or_a_bad_pattern_makes_the_token_invalid() {
        let any = Expected::default();
        for bad in [
            json!({"wacth": ["*"]}),
            json!({"watch": ["a.*"]}),
            json!({"watch": "a"}),
            json!({"submit": [7]}),
            json!({"list": "yes"}),
            json!({"admin": 1}),
        ] {
            assert!(!is_accepted(&json!({"tailwater": bad}), &any), "{bad}");
        }
        let good = json!({"watch": ["a*", "b"], "submit": ["*"], "cancel": [], "list": true, "admin": false});
        assert!(is_accepted(&json!({"tailwater": good}), &any));
    }
}
