//! The key-value bucket that all edges share: revoked tokens, which they watch, and tickets, each
//! of which one edge redeems once. It does not know what a token says.

use std::time::Duration;

use async_nats::jetstream;
use async_nats::jetstream::kv::{CreateErrorKind, Operation, Store, UpdateErrorKind};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use bytes::Bytes;
use futures_util::StreamExt as _;
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::connect::Nats;
use super::error::{NatsError, unavailable};
use super::info;
use crate::auth::Revocation;
use crate::source::Unavailable;
use crate::wire::limits::TICKET_TTL_MS;

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
/// The first part of the keys of tickets.
const TICKET: &str = "ticket";

impl AuthBucket {
    /// Opens the bucket.
    ///
    /// # Errors
    /// [`NatsError::NotSetUp`] when `setup` of this version has not run yet.
    pub async fn open(nats: &Nats) -> Result<Self, NatsError> {
        let stream = nats.names.auth_stream();
        let found: Option<IgnoredAny> = info::find_stream(&nats.work, &stream).await?;
        if found.is_none() {
            return Err(NatsError::NotSetUp { stream });
        }
        let bucket = nats.names.auth_bucket();
        let open = async |client: &async_nats::Client| {
            let context = jetstream::new(client.clone());
            let opened = context.get_key_value(bucket.clone()).await;
            opened.map_err(unavailable)
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

    /// Stores a ticket under the digest of its text, for `ttl`.
    ///
    /// # Errors
    /// [`Unavailable`].
    pub async fn store_ticket(
        &self,
        ticket: &str,
        value: Vec<u8>,
        ttl: Duration,
    ) -> Result<(), Unavailable> {
        let stored = self
            .written
            .create_with_ttl(ticket_key(ticket), value.into(), ttl)
            .await;
        match stored {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == CreateErrorKind::AlreadyExists => {
                Err(Unavailable("the ticket exists already".into()))
            }
            Err(error) => Err(unavailable(error)),
        }
    }

    /// Redeems a ticket: of several calls on any edges, one gets its value.
    ///
    /// # Errors
    /// [`Unavailable`].
    pub async fn redeem_ticket(&self, ticket: &str) -> Result<Option<Bytes>, Unavailable> {
        let key = ticket_key(ticket);
        let entry = self.written.entry(key.clone()).await.map_err(unavailable)?;
        let Some(entry) = entry.filter(|entry| entry.operation == Operation::Put) else {
            return Ok(None);
        };
        let removed = self
            .written
            .purge_expect_revision_with_ttl(
                key,
                entry.revision,
                Duration::from_millis(TICKET_TTL_MS),
            )
            .await;
        match removed {
            Ok(()) => Ok(Some(entry.value)),
            Err(error) if error.kind() == UpdateErrorKind::WrongLastRevision => Ok(None),
            Err(error) => Err(unavailable(error)),
        }
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

/// The key of a ticket does not reveal it.
fn ticket_key(ticket: &str) -> String {
    format!("{TICKET}.{}", BASE64.encode(Sha256::digest(ticket)))
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
