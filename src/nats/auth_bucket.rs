//! The key-value bucket of revoked tokens: an operator writes to it, and all edges watch it. It does
//! not know what a token says.

use async_nats::jetstream::kv::{Operation, Store};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use futures_util::StreamExt as _;
use serde::{Deserialize, Serialize};

use super::bucket::open_bucket;
use super::connect::Nats;
use super::error::{NatsError, unavailable};
use crate::auth::Revocation;
use crate::source::Unavailable;

/// The bucket.
#[derive(Clone, Debug)]
pub struct AuthBucket {
    /// On the connection for live messages.
    watched: Store,
    /// On the connection for work.
    written: Store,
}

/// What happened to a revocation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RevocationChange {
    /// It was made, at this time in seconds since the Unix epoch.
    Made(Revocation, u64),
    /// It was withdrawn.
    Withdrawn(Revocation),
    /// Everything that was stored when the watch began has been reported.
    Complete,
}

/// The value of a revocation.
#[derive(Serialize, Deserialize)]
struct RevokedAt {
    at: u64,
}

/// The first part of the keys of revocations.
const REVOKED: &str = "revoked";

impl AuthBucket {
    /// Opens the bucket.
    ///
    /// # Errors
    /// [`NatsError::NotSetUp`] when `setup` of this version has not run yet.
    pub async fn open(nats: &Nats) -> Result<Self, NatsError> {
        let names = &nats.names;
        let open = async |client: &async_nats::Client| {
            open_bucket(client, names.auth_bucket(), names.auth_stream()).await
        };
        Ok(Self {
            watched: open(&nats.live).await?,
            written: open(&nats.work).await?,
        })
    }

    /// Reports all revocations and then each change, until the connection is lost for so long that
    /// the watch ends.
    ///
    /// # Errors
    /// [`Unavailable`].
    pub async fn watch_revocations(
        &self,
        mut report: impl FnMut(RevocationChange),
    ) -> Result<(), Unavailable> {
        let all = format!("{REVOKED}.>");
        let watch = self.watched.watch_with_history(all).await;
        let mut watch = watch.map_err(unavailable)?;
        // Asked once the watch has begun: it reports what is there now. What was there before may be
        // gone, and would be waited for.
        let mut is_complete = self.is_empty().await?;
        if is_complete {
            report(RevocationChange::Complete);
        }
        while let Some(entry) = watch.next().await {
            let entry = entry.map_err(unavailable)?;
            if let Some(revocation) = revocation_of(&entry.key) {
                report(match entry.operation {
                    Operation::Put => {
                        // What cannot be read is a revocation of every token.
                        let at = serde_json::from_slice(&entry.value)
                            .map_or(u64::MAX, |RevokedAt { at }| at);
                        RevocationChange::Made(revocation, at)
                    }
                    Operation::Delete | Operation::Purge => RevocationChange::Withdrawn(revocation),
                });
            }
            if entry.delta == 0 && !is_complete {
                is_complete = true;
                report(RevocationChange::Complete);
            }
        }
        Ok(())
    }

    /// Whether there is no revocation at all.
    async fn is_empty(&self) -> Result<bool, Unavailable> {
        let filter = format!("{}{REVOKED}.>", self.watched.prefix);
        let subjects = self.watched.stream.info_with_subjects(filter).await;
        let mut subjects = subjects.map_err(unavailable)?;
        Ok(subjects.next().await.is_none())
    }

    /// Stores a revocation, made at `at_s` in seconds since the Unix epoch.
    ///
    /// # Errors
    /// [`Unavailable`].
    pub async fn revoke(&self, revocation: &Revocation, at_s: u64) -> Result<(), Unavailable> {
        let value = serde_json::to_vec(&RevokedAt { at: at_s })
            .unwrap_or_else(|_| unreachable!("a number is always JSON"));
        let stored = self.written.put(key_of(revocation), value.into()).await;
        stored.map(drop).map_err(unavailable)
    }

    /// Withdraws a revocation.
    ///
    /// # Errors
    /// [`Unavailable`].
    pub async fn withdraw(&self, revocation: &Revocation) -> Result<(), Unavailable> {
        let removed = self.written.purge(key_of(revocation)).await;
        removed.map_err(unavailable)
    }
}

/// Text of any kind as a key.
fn key_of(revocation: &Revocation) -> String {
    let (kind, text) = match revocation {
        Revocation::Jti(id) => ("jti", id),
        Revocation::Sub(name) => ("sub", name),
    };
    format!("{REVOKED}.{kind}.{}", BASE64.encode(text))
}

fn revocation_of(key: &str) -> Option<Revocation> {
    let mut parts = key.split('.').skip(1);
    let kind = parts.next()?;
    let text = parts.next()?;
    let text = String::from_utf8(BASE64.decode(text).ok()?).ok()?;
    match kind {
        "jti" => Some(Revocation::Jti(text)),
        "sub" => Some(Revocation::Sub(text)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_revocation_of_any_text_has_a_key_of_its_own() {
        let texts = ["a", "auth0|5f.>*", "ä b", "a\n"];
        for text in texts {
            for revocation in [Revocation::Jti(text.into()), Revocation::Sub(text.into())] {
                let key = key_of(&revocation);
                let is_plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
                assert!(key.chars().all(is_plain), "{key}");
                assert_eq!(revocation_of(&key), Some(revocation));
            }
        }
        for other in ["revoked", "revoked.x.YQ", "revoked.jti", "revoked.jti.!"] {
            assert_eq!(revocation_of(other), None, "{other}");
        }
    }
}
