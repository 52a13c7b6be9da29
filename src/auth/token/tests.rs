//! Tokens of every algorithm are verified with their keys, and forged ones are refused.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD as BASE64};
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _, RSA_PKCS1_SHA256,
    RSA_PSS_SHA256, RsaKeyPair,
};
use serde_json::{Value, json};

use super::*;

const NOW_S: u64 = 1_800_000_000;
const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";

/// The keys of an issuer.
struct Issuer {
    rsa: RsaKeyPair,
    ec: EcdsaKeyPair,
    ed: Ed25519KeyPair,
    set: KeySet,
    public_pem: String,
    modulus: String,
}

impl Issuer {
    fn new() -> Self {
        let random = SystemRandom::new();
        let stored: Value =
            serde_json::from_str(include_str!("../../../tests/cases/auth/rsa.json")).unwrap();
        let text = |field: &str| stored[field].as_str().unwrap().to_owned();
        let rsa = RsaKeyPair::from_der(&STANDARD.decode(text("pkcs1")).unwrap()).unwrap();
        let p256 = &ECDSA_P256_SHA256_FIXED_SIGNING;
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(p256, &random).unwrap();
        let ec = EcdsaKeyPair::from_pkcs8(p256, pkcs8.as_ref(), &random).unwrap();
        let pkcs8 = Ed25519KeyPair::generate_pkcs8(&random).unwrap();
        let ed = Ed25519KeyPair::from_pkcs8(pkcs8.as_ref()).unwrap();
        let (x, y) = ec.public_key().as_ref()[1..].split_at(32);
        let keys = json!({"keys": [
            {"kty": "RSA", "kid": "rsa", "use": "sig", "n": text("n"), "e": text("e")},
            {"kty": "EC", "kid": "ec", "crv": "P-256", "x": BASE64.encode(x), "y": BASE64.encode(y)},
            {"kty": "OKP", "kid": "ed", "crv": "Ed25519", "x": BASE64.encode(ed.public_key())},
        ]});
        Self {
            rsa,
            ec,
            ed,
            set: KeySet::from_json(keys.to_string().as_bytes()).unwrap(),
            public_pem: text("public_pem"),
            modulus: text("n"),
        }
    }

    /// A token with this header, signed as its `alg` says.
    fn token(&self, header: &Value, claims: &Value) -> String {
        let message = message(header, claims);
        let random = SystemRandom::new();
        let rsa = |padding| {
            let mut tag = vec![0; self.rsa.public().modulus_len()];
            self.rsa
                .sign(padding, &random, message.as_bytes(), &mut tag)
                .unwrap();
            tag
        };
        let tag = match header["alg"].as_str().unwrap() {
            "RS256" => rsa(&RSA_PKCS1_SHA256),
            "PS256" => rsa(&RSA_PSS_SHA256),
            "ES256" => self
                .ec
                .sign(&random, message.as_bytes())
                .unwrap()
                .as_ref()
                .to_vec(),
            "EdDSA" => self.ed.sign(message.as_bytes()).as_ref().to_vec(),
            other => panic!("{other}"),
        };
        format!("{message}.{}", BASE64.encode(tag))
    }
}

fn message(header: &Value, claims: &Value) -> String {
    let part = |value: &Value| BASE64.encode(value.to_string());
    format!("{}.{}", part(header), part(claims))
}

/// A token signed with HMAC-SHA-256, whatever its header says.
fn hmac_token(header: &Value, claims: &Value, secret: &[u8]) -> String {
    let message = message(header, claims);
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, secret);
    let tag = ring::hmac::sign(&key, message.as_bytes());
    format!("{message}.{}", BASE64.encode(tag))
}

fn claims() -> Value {
    json!({"sub": "a", "exp": NOW_S + 60})
}

fn keys_with(secret: Option<&[u8]>) -> TokenKeys {
    TokenKeys {
        secret: secret.map(|secret| SigningSecret::new(secret).unwrap()),
        ..TokenKeys::default()
    }
}

fn verify(keys: &TokenKeys, set: &KeySet, token: &str) -> Result<Subject, TokenError> {
    keys.verify(token, set, NOW_S * 1000)
}

#[test]
fn a_token_of_each_algorithm_is_verified_with_its_key() {
    let issuer = Issuer::new();
    let keys = keys_with(None);
    for (algorithm, key) in [
        ("RS256", "rsa"),
        ("PS256", "rsa"),
        ("ES256", "ec"),
        ("EdDSA", "ed"),
    ] {
        let header = json!({"alg": algorithm, "kid": key});
        let token = issuer.token(&header, &claims());
        let subject = verify(&keys, &issuer.set, &token);
        assert_eq!(
            subject.map(|subject| subject.name),
            Ok("a".into()),
            "{algorithm}"
        );
        // Without an id, the only key of the algorithm is used.
        let token = issuer.token(&json!({"alg": algorithm}), &claims());
        assert!(verify(&keys, &issuer.set, &token).is_ok(), "{algorithm}");
        // One bit of the signature is wrong.
        let mut other = token.clone().into_bytes();
        let at = other.len() - 10;
        other[at] = if other[at] == b'A' { b'B' } else { b'A' };
        let other = String::from_utf8(other).unwrap();
        assert!(verify(&keys, &issuer.set, &other).is_err(), "{algorithm}");
        let late = keys.verify(&token, &issuer.set, (NOW_S + 60) * 1000);
        assert_eq!(late, Err(TokenError::Expired), "{algorithm}");
    }
}

#[test]
fn a_signed_token_has_the_claims_that_it_was_given() {
    let keys = keys_with(Some(SECRET));
    let job = "j1".parse().unwrap();
    let token = NewToken {
        sub: "a".into(),
        iat: NOW_S,
        exp: NOW_S + 60,
        jti: "t1".into(),
        pjti: Some("t0".into()),
        iss: None,
        aud: None,
        tailwater: Grants::one_job(&job, true),
    };
    let signed = keys.secret.as_ref().unwrap().sign(&token);
    let subject = verify(&keys, &KeySet::default(), signed.expose()).unwrap();
    let expected = Subject {
        name: "a".into(),
        token_id: Some("t1".into()),
        parent_id: Some("t0".into()),
        issued_at: Some(NOW_S),
        expires_at_ms: Some((NOW_S + 60) * 1000),
        grants: Grants::one_job(&job, true),
    };
    assert_eq!(subject, expected);
    let other = keys_with(Some(b"another secret of thirty-two bytes"));
    assert!(verify(&other, &KeySet::default(), signed.expose()).is_err());
}

/// Tokens that no key verifies. `good` is a valid one.
fn forged(issuer: &Issuer, claims: &Value, good: &str) -> Vec<String> {
    let unsigned = |algorithm: &str| format!("{}.", message(&json!({"alg": algorithm}), claims));
    let hs = |header: Value, secret: &[u8]| hmac_token(&header, claims, secret);
    let modulus = BASE64.decode(&issuer.modulus).unwrap();
    let [header, payload, tag] = good.split('.').collect::<Vec<_>>().try_into().unwrap();
    let rs = issuer.token(&json!({"alg": "RS256", "kid": "rsa"}), claims);
    let rs_tag = rs.rsplit('.').next().unwrap();
    vec![
        // No signature.
        unsigned("none"),
        unsigned("None"),
        unsigned("NONE"),
        unsigned("HS256"),
        unsigned("RS256"),
        format!("{header}.{payload}"),
        format!("{header}.{payload}."),
        // The public key of RS256 as the secret of HS256.
        hs(
            json!({"alg": "HS256", "kid": "rsa"}),
            issuer.public_pem.as_bytes(),
        ),
        hs(
            json!({"alg": "HS256", "kid": "rsa"}),
            issuer.public_pem.trim().as_bytes(),
        ),
        hs(
            json!({"alg": "HS256", "kid": "rsa"}),
            issuer.modulus.as_bytes(),
        ),
        hs(json!({"alg": "HS256", "kid": "rsa"}), &modulus),
        hs(
            json!({"alg": "HS256", "kid": "ed"}),
            issuer.ed.public_key().as_ref(),
        ),
        // A signature of one algorithm under the name of another.
        hs(json!({"alg": "RS256", "kid": "rsa"}), SECRET),
        hs(json!({"alg": "HS384"}), SECRET),
        hs(json!({"alg": "HS512"}), SECRET),
        issuer.token(&json!({"alg": "ES256", "kid": "rsa"}), claims),
        issuer.token(&json!({"alg": "RS256", "kid": "ec"}), claims),
        issuer.token(&json!({"alg": "EdDSA", "kid": "ec"}), claims),
        // The token brings its own key, or says where it is.
        hs(
            json!({"alg": "HS256", "jwk": {"kty": "oct", "k": "AAAA"}}),
            &[0, 0, 0],
        ),
        hs(
            json!({"alg": "HS256", "jku": "http://127.0.0.1:1/keys"}),
            b"x",
        ),
        hs(json!({"alg": "HS256", "crit": ["exp"]}), SECRET),
        hs(
            json!({"alg": "HS256", "b64": false, "crit": ["b64"]}),
            SECRET,
        ),
        // Other claims under the same signature.
        format!(
            "{header}.{}.{tag}",
            BASE64.encode(json!({"sub": "b", "exp": NOW_S + 60}).to_string())
        ),
        format!("{header}.{payload}.{rs_tag}"),
        format!("{good}."),
        format!("{good}x"),
        format!("{good}="),
        format!(" {good}"),
        format!("{good}.{tag}"),
        String::new(),
        ".".into(),
        "..".into(),
        "a.b.c".into(),
        "x".repeat(TOKEN_MAX + 1),
    ]
}

#[test]
fn forged_tokens_are_refused() {
    let issuer = Issuer::new();
    let without_secret = keys_with(None);
    let with_secret = keys_with(Some(SECRET));
    let claims = claims();
    let good = hmac_token(&json!({"alg": "HS256"}), &claims, SECRET);
    assert!(verify(&with_secret, &issuer.set, &good).is_ok());
    for token in forged(&issuer, &claims, &good) {
        for keys in [&without_secret, &with_secret] {
            let verified = verify(keys, &issuer.set, &token);
            assert!(verified.is_err(), "{token}");
        }
    }
}

#[test]
fn a_key_id_is_never_a_path_an_address_or_a_query() {
    let issuer = Issuer::new();
    let keys = keys_with(Some(SECRET));
    for kid in [
        "../../../../dev/null",
        "/dev/null",
        "file:///dev/null",
        "http://127.0.0.1:1/keys",
        "rsa' UNION SELECT 'x",
        "rsa\0",
        "RSA",
        "",
    ] {
        let header = json!({"alg": "RS256", "kid": kid});
        let token = issuer.token(&header, &claims());
        assert_eq!(
            verify(&keys, &issuer.set, &token),
            Err(TokenError::UnknownKey),
            "{kid:?}"
        );
        // An empty secret is what reading such a file would give.
        let token = hmac_token(&json!({"alg": "HS256", "kid": kid}), &claims(), b"");
        assert!(verify(&keys, &issuer.set, &token).is_err(), "{kid:?}");
    }
}

#[test]
fn a_signing_secret_has_at_least_32_bytes_and_is_not_shown() {
    assert!(SigningSecret::new(&[b'x'; SECRET_MIN - 1]).is_err());
    assert!(SigningSecret::new(&[b' '; 64]).is_err());
    let secret = SigningSecret::new(b"0123456789abcdef0123456789abcdef\n").unwrap();
    let keys = keys_with(Some(SECRET));
    let token = NewToken {
        sub: "a".into(),
        iat: NOW_S,
        exp: NOW_S + 1,
        jti: "1".into(),
        pjti: None,
        iss: None,
        aud: None,
        tailwater: Grants::default(),
    };
    let signed = secret.sign(&token);
    assert!(verify(&keys, &KeySet::default(), signed.expose()).is_ok());
    let shown = format!("{secret:?} {keys:?} {signed:?}");
    assert!(!shown.contains("0123456789"), "{shown}");
}
