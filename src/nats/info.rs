//! The broker's reports about streams and consumers.

use std::collections::HashMap;
use std::time::SystemTime;

use async_nats::Client;
use async_nats::jetstream::ErrorCode;
use bytes::Bytes;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::api;
use super::error::NatsError;
use super::names::Names;
use crate::source::Unavailable;
use crate::wire::{Kind, StreamSeq};

/// A stream, as reported by a server that leads it, or believes that it does.
#[derive(Debug, Deserialize)]
pub(super) struct StreamInfo {
    pub(super) config: StreamConfig,
    pub(super) state: StreamState,
    /// Absent on a server without a cluster.
    #[serde(default)]
    pub(super) cluster: ClusterInfo,
    /// When the stream was created, as RFC 3339.
    pub(super) created: String,
    /// The leader's clock, as RFC 3339.
    ts: String,
}

#[derive(Debug, Deserialize)]
pub(super) struct StreamConfig {
    pub(super) max_bytes: i64,
    #[serde(default)]
    pub(super) metadata: HashMap<String, String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct StreamState {
    pub(super) bytes: u64,
    pub(super) first_seq: StreamSeq,
    pub(super) last_seq: StreamSeq,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct ClusterInfo {
    #[serde(default)]
    pub(super) replicas: Vec<Follower>,
}

/// A follower, as its leader sees it.
#[derive(Debug, Deserialize)]
pub(super) struct Follower {
    /// How many nanoseconds ago the leader heard from it; 0 if never.
    pub(super) active: u64,
}

/// A kind's consumer.
#[derive(Debug, Deserialize)]
pub(super) struct ConsumerInfo {
    pub(super) config: ConsumerConfig,
    /// How many messages wait for their first delivery.
    pub(super) num_pending: u64,
    /// How many were delivered and not acked.
    pub(super) num_ack_pending: u64,
}

#[derive(Debug, Deserialize)]
pub(super) struct ConsumerConfig {
    /// In nanoseconds.
    #[serde(default)]
    pub(super) ack_wait: u64,
    #[serde(default)]
    pub(super) metadata: HashMap<String, String>,
}

impl StreamInfo {
    /// The leader's clock when it answered.
    pub(super) fn time(&self) -> Option<SystemTime> {
        humantime::parse_rfc3339(&self.ts).ok()
    }
}

/// A stream's leader's report, decoded as `T`; `None` when the stream does not exist.
pub(super) async fn find_stream<T: DeserializeOwned>(
    client: &Client,
    stream: &str,
) -> Result<Option<T>, NatsError> {
    let request = format!("STREAM.INFO.{stream}");
    api::find(client, &request, Bytes::new(), ErrorCode::STREAM_NOT_FOUND).await
}

/// [`find_stream`] for a stream that `setup` made.
pub(super) async fn stream(client: &Client, stream: &str) -> Result<StreamInfo, Unavailable> {
    let info = find_stream(client, stream).await?;
    info.ok_or_else(|| Unavailable(format!("stream {stream} does not exist any more")))
}

/// The consumer of `kind`, decoded as `T`; `None` when no worker has ever served the kind.
pub(super) async fn find_kind<T: DeserializeOwned>(
    client: &Client,
    names: &Names,
    kind: &Kind,
) -> Result<Option<T>, NatsError> {
    let request = format!("CONSUMER.INFO.{}.{kind}", names.jobs_stream());
    api::find(
        client,
        &request,
        Bytes::new(),
        ErrorCode::CONSUMER_NOT_FOUND,
    )
    .await
}
