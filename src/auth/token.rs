//! Verifies and signs tokens: JSON Web Tokens (RFC 7519) and static ones.

use std::fmt;

use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{
    Algorithm, DecodingKey, EncodingKey, Header, Validation, decode, decode_header, encode,
};
use serde::Serialize;
use serde_json::value::RawValue;

use super::claims::{ClaimsError, Expected, Subject, TokenClaims};
use super::grants::Grants;
use super::key_set::KeySet;
use super::ring_provider;
use super::static_tokens::StaticTokens;
use crate::config::SECRET_MIN;
use crate::wire::BearerToken;
use crate::wire::limits::TOKEN_MAX;

/// What tokens are verified with.
#[derive(Clone, Debug, Default)]
pub struct TokenKeys {
    /// Static tokens.
    pub tokens: StaticTokens,
    /// The secret that signs HS256 tokens.
    pub secret: Option<SigningSecret>,
    /// What a JWT must say about its issuer and audience.
    pub expected: Expected,
}

/// The secret that signs and verifies HS256 tokens.
#[derive(Clone)]
pub struct SigningSecret {
    signing: EncodingKey,
    verification: DecodingKey,
}

/// The secret cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a signing secret must have at least {SECRET_MIN} bytes; try `openssl rand -base64 32`")]
pub struct BadSigningSecret;

/// A token to be signed.
#[derive(Clone, Debug, Serialize)]
pub struct NewToken {
    /// The subject.
    pub sub: String,
    /// When it was issued, in seconds since the Unix epoch.
    pub iat: u64,
    /// When it expires.
    pub exp: u64,
    /// Its own id, for its revocation.
    pub jti: String,
    /// The `jti` of the token with which it was requested: revoking that one revokes this one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pjti: Option<String>,
    /// The issuer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iss: Option<String>,
    /// The audience.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub aud: Option<String>,
    /// What it allows.
    pub tailwater: Grants,
}

/// Why a token is not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// It is not valid.
    #[error("{0}")]
    Invalid(&'static str),
    /// No known key verifies it. A newer key set may have one.
    #[error("no key verifies this token")]
    UnknownKey,
    /// It has expired.
    #[error("the token has expired")]
    Expired,
}

impl TokenKeys {
    /// The subject of a valid token, at `now_ms` in milliseconds since the Unix epoch.
    ///
    /// # Errors
    /// [`TokenError`].
    pub fn verify(&self, token: &str, keys: &KeySet, now_ms: u64) -> Result<Subject, TokenError> {
        if token.len() > TOKEN_MAX {
            return Err(TokenError::Invalid("the token is too long"));
        }
        if let Some(subject) = self.tokens.find(token) {
            return Ok(subject.clone());
        }
        ring_provider::install();
        let header =
            decode_header(token).map_err(|_| TokenError::Invalid("not a token that was issued"))?;
        // The algorithm decides between the secret and the public keys before any key is used.
        let key = match header.alg {
            Algorithm::HS256 => {
                let secret = self.secret.as_ref();
                let refused = TokenError::Invalid("this edge has no secret for HS256");
                &secret.ok_or(refused)?.verification
            }
            Algorithm::RS256
            | Algorithm::RS384
            | Algorithm::RS512
            | Algorithm::PS256
            | Algorithm::PS384
            | Algorithm::PS512
            | Algorithm::ES256
            | Algorithm::ES384
            | Algorithm::EdDSA => keys
                .find(header.kid.as_deref(), header.alg)
                .ok_or(TokenError::UnknownKey)?,
            Algorithm::HS384 | Algorithm::HS512 | _ => {
                return Err(TokenError::Invalid("the algorithm is not accepted"));
            }
        };
        // Times, issuer and audience are checked below, at the given time.
        let mut signature_only = Validation::new(header.alg);
        signature_only.required_spec_claims.clear();
        signature_only.validate_exp = false;
        signature_only.validate_aud = false;
        let malformed = TokenError::Invalid("a claim is missing or has the wrong form");
        // First as a whole: a claim that is not read may be no text at all.
        let signed = match decode::<Box<RawValue>>(token, key, &signature_only) {
            Ok(signed) => signed,
            Err(error) if matches!(error.kind(), ErrorKind::Json(_)) => return Err(malformed),
            Err(_) => return Err(TokenError::Invalid("the signature is not valid")),
        };
        let claims: TokenClaims =
            serde_json::from_str(signed.claims.get()).map_err(|_| malformed)?;
        claims
            .check(&self.expected, now_ms)
            .map_err(|error| match error {
                ClaimsError::Expired => TokenError::Expired,
                ClaimsError::Invalid(why) => TokenError::Invalid(why),
            })
    }
}

impl SigningSecret {
    /// The secret of a file. A line break at its end is not part of it.
    ///
    /// # Errors
    /// [`BadSigningSecret`] when it is too short.
    pub fn new(bytes: &[u8]) -> Result<Self, BadSigningSecret> {
        let bytes = bytes.trim_ascii();
        if bytes.len() < SECRET_MIN {
            return Err(BadSigningSecret);
        }
        Ok(Self {
            signing: EncodingKey::from_secret(bytes).map_err(|_| BadSigningSecret)?,
            verification: DecodingKey::from_secret(bytes).map_err(|_| BadSigningSecret)?,
        })
    }

    /// Signs a token, as HS256.
    pub fn sign(&self, token: &NewToken) -> BearerToken {
        ring_provider::install();
        let signed = encode(&Header::new(Algorithm::HS256), token, &self.signing);
        BearerToken::new(signed.unwrap_or_else(|_| unreachable!("texts and numbers are JSON")))
    }
}

impl fmt::Debug for SigningSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SigningSecret(..)")
    }
}

#[cfg(test)]
mod tests;
