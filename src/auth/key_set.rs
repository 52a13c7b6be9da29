//! The public keys of an issuer: a JWK set (RFC 7517). It does not fetch it.

use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey};
use serde::Deserialize;
use serde_json::Value;

use crate::config::{KEYS_BYTES_MAX, KEYS_MAX};

/// The keys that verify tokens.
#[derive(Clone, Debug, Default)]
pub struct KeySet {
    keys: Vec<VerificationKey>,
}

#[derive(Clone, Debug)]
struct VerificationKey {
    id: Option<String>,
    /// The algorithms of tokens that this key may verify. A symmetric one is never among them, so
    /// that a public key cannot be used as a secret.
    algorithms: &'static [Algorithm],
    key: DecodingKey,
}

/// The bytes are not a usable key set.
#[derive(Debug, thiserror::Error)]
pub enum BadKeySet {
    /// It is too large.
    #[error("the key set has more than {KEYS_BYTES_MAX} bytes")]
    TooLarge,
    /// It is not a JWK set.
    #[error("not a JWK set: {0}")]
    NotKeys(#[from] serde_json::Error),
    /// It has no key for a supported algorithm.
    #[error("the key set has no RSA, P-256, P-384 or Ed25519 key for signatures")]
    NoKey,
}

const RSA: &[Algorithm] = &[
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::PS256,
    Algorithm::PS384,
    Algorithm::PS512,
];

impl KeySet {
    /// Reads a JWK set. Keys that are not for signatures, or of other types, are skipped.
    ///
    /// # Errors
    /// [`BadKeySet`].
    pub fn from_json(json: &[u8]) -> Result<Self, BadKeySet> {
        #[derive(Deserialize)]
        struct KeyList {
            keys: Vec<Value>,
        }
        if json.len() > KEYS_BYTES_MAX {
            return Err(BadKeySet::TooLarge);
        }
        let list: KeyList = serde_json::from_slice(json)?;
        let keys = list
            .keys
            .into_iter()
            .filter_map(|key| serde_json::from_value::<Jwk>(key).ok())
            .filter_map(|key| VerificationKey::of(&key))
            .take(KEYS_MAX);
        let keys: Vec<_> = keys.collect();
        if keys.is_empty() {
            return Err(BadKeySet::NoKey);
        }
        Ok(Self { keys })
    }

    /// Whether there is no key yet.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// The key with this id. A token without an id is verified only if one single key has its
    /// algorithm. The id is only compared: it is never a path, an address or a query.
    pub(super) fn find(&self, id: Option<&str>, algorithm: Algorithm) -> Option<&DecodingKey> {
        let mut found = self
            .keys
            .iter()
            .filter(|key| key.algorithms.contains(&algorithm))
            .filter(|key| id.is_none() || key.id.as_deref() == id);
        let key = found.next()?;
        found.next().is_none().then_some(&key.key)
    }
}

impl VerificationKey {
    fn of(jwk: &Jwk) -> Option<Self> {
        let is_for_signatures = match &jwk.common.public_key_use {
            None | Some(PublicKeyUse::Signature) => true,
            Some(PublicKeyUse::Encryption | PublicKeyUse::Other(_)) => false,
        };
        let of_type: &'static [Algorithm] = match &jwk.algorithm {
            AlgorithmParameters::RSA(_) => RSA,
            AlgorithmParameters::EllipticCurve(key) if key.curve == EllipticCurve::P256 => {
                &[Algorithm::ES256]
            }
            AlgorithmParameters::EllipticCurve(key) if key.curve == EllipticCurve::P384 => {
                &[Algorithm::ES384]
            }
            AlgorithmParameters::OctetKeyPair(key) if key.curve == EllipticCurve::Ed25519 => {
                &[Algorithm::EdDSA]
            }
            AlgorithmParameters::EllipticCurve(_)
            | AlgorithmParameters::OctetKey(_)
            | AlgorithmParameters::OctetKeyPair(_)
            | AlgorithmParameters::Other(_)
            | _ => return None,
        };
        let algorithms = match jwk.common.key_algorithm {
            None => of_type,
            Some(only) => {
                let only = Algorithm::try_from(only).ok()?;
                let at = of_type.iter().position(|algorithm| *algorithm == only)?;
                &of_type[at..=at]
            }
        };
        is_for_signatures
            .then(|| DecodingKey::from_jwk(jwk).ok())?
            .map(|key| Self {
                id: jwk.common.key_id.clone(),
                algorithms,
                key,
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn set(keys: &Value) -> Result<KeySet, BadKeySet> {
        KeySet::from_json(json!({"keys": keys}).to_string().as_bytes())
    }

    #[test]
    fn only_public_keys_for_signatures_are_used() {
        let okp = json!({"kty": "OKP", "crv": "Ed25519", "kid": "a", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"});
        let with = |field: &str, value: &str| {
            let mut key = okp.clone();
            key[field] = value.into();
            key
        };
        let secret = json!({"kty": "oct", "kid": "s", "alg": "HS256", "k": "c2VjcmV0"});
        assert!(set(&json!([okp])).is_ok());
        assert!(set(&json!([with("use", "sig"), secret, {"kty": "new"}, 7])).is_ok());
        for useless in [
            json!([secret]),
            json!([with("use", "enc")]),
            json!([with("alg", "HS256")]),
            json!([with("alg", "ES256")]),
            json!([with("crv", "Ed448")]),
            json!([]),
        ] {
            let refused = set(&useless);
            assert!(matches!(refused, Err(BadKeySet::NoKey)), "{useless}");
        }
        assert!(matches!(
            KeySet::from_json(b"<html>"),
            Err(BadKeySet::NotKeys(_))
        ));
        let large = vec![b' '; KEYS_BYTES_MAX + 1];
        assert!(matches!(
            KeySet::from_json(&large),
            Err(BadKeySet::TooLarge)
        ));
    }

    #[test]
    fn a_key_is_found_by_its_id_or_if_it_is_the_only_one() {
        let okp = |id: &str| json!({"kty": "OKP", "crv": "Ed25519", "kid": id, "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"});
        let one = set(&json!([okp("a")])).unwrap();
        let two = set(&json!([okp("a"), okp("b")])).unwrap();
        let finds = |set: &KeySet, id, algorithm| set.find(id, algorithm).is_some();
        assert!(finds(&one, None, Algorithm::EdDSA));
        assert!(finds(&one, Some("a"), Algorithm::EdDSA));
        assert!(finds(&two, Some("b"), Algorithm::EdDSA));
        assert!(!finds(&two, None, Algorithm::EdDSA));
        for id in ["", "A", "../a", "http://h/a", "a' OR '1'='1", "a\0"] {
            assert!(!finds(&one, Some(id), Algorithm::EdDSA), "{id:?}");
        }
        for algorithm in [Algorithm::HS256, Algorithm::RS256, Algorithm::ES256] {
            assert!(!finds(&one, Some("a"), algorithm), "{algorithm:?}");
        }
    }
}
