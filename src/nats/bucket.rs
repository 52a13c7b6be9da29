//! Opens the key-value buckets that `setup` made. It does not know their keys.

use async_nats::Client;
use async_nats::jetstream;
use async_nats::jetstream::kv::Store;
use serde::de::IgnoredAny;

use super::error::{NatsError, unavailable};
use super::info;

/// Opens a bucket, whose stream has this name.
///
/// # Errors
/// [`NatsError::NotSetUp`] when `setup` of this version has not run yet.
pub(super) async fn open_bucket(
    client: &Client,
    bucket: String,
    stream: String,
) -> Result<Store, NatsError> {
    let found: Option<IgnoredAny> = info::find_stream(client, &stream).await?;
    if found.is_none() {
        return Err(NatsError::NotSetUp { stream });
    }
    let context = jetstream::new(client.clone());
    let opened = context.get_key_value(bucket).await;
    opened.map_err(|error| unavailable(error).into())
}
