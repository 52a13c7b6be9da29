//! Signs requests as in [Standard Webhooks](https://www.standardwebhooks.com). Pure.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use hmac::{Hmac, Mac as _};
use secrecy::{ExposeSecret as _, SecretString};
use sha2::Sha256;

/// The header with the id of a message.
pub(super) const ID: &str = "webhook-id";
/// The header with the time of the signature, in seconds since the Unix epoch.
pub(super) const TIMESTAMP: &str = "webhook-timestamp";
/// The header with the signature.
pub(super) const SIGNATURE: &str = "webhook-signature";

/// The prefix of a secret.
const PREFIX: &str = "whsec_";
/// How many bytes a secret has, as Standard Webhooks requires.
const SECRET_BYTES: std::ops::RangeInclusive<usize> = 24..=64;

/// The secret is not in the form of Standard Webhooks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the webhook secret must be {PREFIX} and the base64 of 24 to 64 random bytes")]
pub struct BadSecret;

/// Signs messages with one secret.
#[derive(Clone)]
pub(super) struct Signer {
    /// Initialized with the key.
    mac: Hmac<Sha256>,
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signer").finish_non_exhaustive()
    }
}

impl Signer {
    pub(super) fn new(secret: &SecretString) -> Result<Self, BadSecret> {
        let secret = secret.expose_secret().strip_prefix(PREFIX);
        let key = BASE64
            .decode(secret.ok_or(BadSecret)?)
            .map_err(|_| BadSecret)?;
        if !SECRET_BYTES.contains(&key.len()) {
            return Err(BadSecret);
        }
        let mac = Hmac::new_from_slice(&key).map_err(|_| BadSecret)?;
        Ok(Self { mac })
    }

    /// The value of the header [`SIGNATURE`] for this message.
    pub(super) fn sign(&self, id: &str, timestamp: u64, body: &str) -> String {
        let mut mac = self.mac.clone();
        mac.update(format!("{id}.{timestamp}.{body}").as_bytes());
        format!("v1,{}", BASE64.encode(mac.finalize().into_bytes()))
    }
}
