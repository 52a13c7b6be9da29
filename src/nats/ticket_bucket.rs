//! The key-value bucket of tickets, each of which one edge redeems once. It does not know what a
//! ticket allows. It is a bucket of its own, so that the key of an edge does not write to the
//! revocations. The broker removes what is older than a ticket is valid, so no message needs a
//! lifetime of its own.

use async_nats::jetstream::kv::{CreateErrorKind, Operation, Store, UpdateErrorKind};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use bytes::Bytes;
use sha2::{Digest as _, Sha256};

use super::bucket::open_bucket;
use super::connect::Nats;
use super::error::{NatsError, unavailable};
use crate::source::Unavailable;

/// The bucket.
#[derive(Clone, Debug)]
pub struct TicketBucket(Store);

impl TicketBucket {
    /// Opens the bucket.
    ///
    /// # Errors
    /// [`NatsError::NotSetUp`] when `setup` of this version has not run yet.
    pub async fn open(nats: &Nats) -> Result<Self, NatsError> {
        let names = &nats.names;
        let opened = open_bucket(&nats.work, names.tickets_bucket(), names.tickets_stream());
        opened.await.map(Self)
    }

    /// Stores a ticket under the digest of its text.
    ///
    /// # Errors
    /// [`Unavailable`].
    pub async fn store(&self, ticket: &str, value: Vec<u8>) -> Result<(), Unavailable> {
        match self.0.create(key_of(ticket), value.into()).await {
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
    pub async fn redeem(&self, ticket: &str) -> Result<Option<Bytes>, Unavailable> {
        let key = key_of(ticket);
        let entry = self.0.entry(key.clone()).await.map_err(unavailable)?;
        let Some(entry) = entry.filter(|entry| entry.operation == Operation::Put) else {
            return Ok(None);
        };
        // A marker that replaces the ticket. Purging it would be a rollup, which the bucket refuses:
        // a rollup can be of the whole bucket.
        let marked = self
            .0
            .delete_expect_revision(key, Some(entry.revision))
            .await;
        match marked {
            Ok(()) => Ok(Some(entry.value)),
            Err(error) if error.kind() == UpdateErrorKind::WrongLastRevision => Ok(None),
            Err(error) => Err(unavailable(error)),
        }
    }
}

/// The key of a ticket does not reveal it.
fn key_of(ticket: &str) -> String {
    BASE64.encode(Sha256::digest(ticket))
}
