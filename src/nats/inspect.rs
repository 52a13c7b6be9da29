//! Looks at the broker as `doctor` reports it: its version, its streams against their declarations,
//! their replicas, its clock and its limits. It changes nothing and decides nothing.

use std::time::{Duration, SystemTime};

use async_nats::Client;
use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Map, Value};
use tokio::time::Instant;

use super::connect::Nats;
use super::drift::Drift;
use super::error::NatsError;
use super::setup::{self, StreamSettings};
use super::{api, info};

/// What the broker reports about itself.
#[derive(Debug)]
pub struct BrokerReport {
    /// The version of the server that this process is connected to.
    pub version: String,
    /// The name of its cluster, if it has one.
    pub cluster: Option<String>,
    /// The largest message that it accepts, in bytes.
    pub max_payload: usize,
    /// How much of the account's disk space is used.
    pub storage: StorageReport,
    /// The queue first, then the shards.
    pub streams: Vec<StreamReport>,
    /// How far the broker's clock is ahead of this machine's, and how exactly that is known.
    pub clock: Option<ClockReport>,
}

/// The disk space of an account, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct StorageReport {
    /// How much is used.
    pub used: u64,
    /// How much may be used; `None` without a limit.
    pub limit: Option<u64>,
}

/// A comparison of clocks.
#[derive(Clone, Copy, Debug)]
pub struct ClockReport {
    /// By how much they differ.
    pub difference: Duration,
    /// Whether the broker's is ahead.
    pub is_ahead: bool,
    /// How long the answer took, which is how exact the difference is.
    pub within: Duration,
}

/// A stream.
#[derive(Debug)]
pub struct StreamReport {
    /// Its name.
    pub name: String,
    /// What it is like; `None` if it does not exist.
    pub found: Option<FoundStream>,
}

/// A stream that exists.
#[derive(Debug)]
pub struct FoundStream {
    /// How it differs from its declaration, apart from retention.
    pub drift: Option<Drift>,
    /// On how many servers each message is kept.
    pub replicas: u32,
    /// The followers that are offline or not current, by name.
    pub behind: Vec<String>,
    /// Whether a server leads it.
    pub has_leader: bool,
    /// How many bytes it holds.
    pub bytes: u64,
    /// How many bytes it may hold; `None` without a limit.
    pub bytes_max: Option<u64>,
}

#[derive(Deserialize)]
struct ReportedStream {
    config: Map<String, Value>,
    state: ReportedState,
    #[serde(default)]
    cluster: Option<ReportedCluster>,
    /// The leader's clock, as RFC 3339.
    ts: String,
}

#[derive(Deserialize)]
struct ReportedState {
    bytes: u64,
}

#[derive(Default, Deserialize)]
struct ReportedCluster {
    #[serde(default)]
    leader: String,
    #[serde(default)]
    replicas: Vec<ReportedReplica>,
}

#[derive(Deserialize)]
struct ReportedReplica {
    name: String,
    #[serde(default)]
    current: bool,
    #[serde(default)]
    offline: bool,
}

#[derive(Deserialize)]
struct ReportedAccount {
    #[serde(default)]
    storage: u64,
    limits: ReportedLimits,
}

#[derive(Deserialize)]
struct ReportedLimits {
    #[serde(default)]
    max_storage: i64,
}

impl Nats {
    /// Looks at the broker.
    ///
    /// # Errors
    /// [`NatsError`] when it does not answer, or refuses to.
    pub async fn inspect(&self) -> Result<BrokerReport, NatsError> {
        let client = &self.work;
        let account: ReportedAccount = api::call(client, "INFO", Bytes::new()).await?;
        let server = client.server_info();
        let names = &self.names;
        let queue = names.jobs_stream();
        let (found, clock) = reported(client, &queue).await?;
        let replicas = found.as_ref().map_or(1, replicas);
        let shards = match &found {
            Some(_) => setup::shards(client, names).await?,
            None => 0,
        };
        let settings = StreamSettings {
            shards,
            replicas,
            max_age: None,
            max_bytes: None,
        };
        let mut streams = Vec::new();
        for declared in setup::declarations(names, &settings) {
            let found = if declared.name == queue {
                None
            } else {
                reported(client, &declared.name).await?.0
            };
            streams.push((declared, found));
        }
        // The queue is declared first.
        if let Some((_, of_queue)) = streams.first_mut() {
            *of_queue = found;
        }
        let streams = streams.into_iter().map(|(declared, found)| StreamReport {
            found: found.map(|found| found_stream(&declared, found)),
            name: declared.name,
        });
        Ok(BrokerReport {
            version: server.version.clone(),
            cluster: server.cluster.filter(|name| !name.is_empty()),
            max_payload: server.max_payload,
            storage: StorageReport {
                used: account.storage,
                limit: u64::try_from(account.limits.max_storage).ok(),
            },
            streams: streams.collect(),
            clock,
        })
    }
}

/// What the broker reports about a stream, and its clock.
async fn reported(
    client: &Client,
    stream: &str,
) -> Result<(Option<ReportedStream>, Option<ClockReport>), NatsError> {
    let asked = Instant::now();
    let found: Option<ReportedStream> = info::find_stream(client, stream).await?;
    let within = asked.elapsed();
    let here = SystemTime::now() - within / 2;
    let there = found
        .as_ref()
        .and_then(|found| humantime::parse_rfc3339(&found.ts).ok());
    let clock = there.map(|there| {
        let ahead = there.duration_since(here);
        ClockReport {
            is_ahead: ahead.is_ok(),
            difference: ahead.unwrap_or_else(|error| error.duration()),
            within,
        }
    });
    Ok((found, clock))
}

fn replicas(stream: &ReportedStream) -> u32 {
    let replicas = stream.config.get("num_replicas").and_then(Value::as_u64);
    replicas
        .and_then(|replicas| u32::try_from(replicas).ok())
        .unwrap_or(1)
}

fn found_stream(declared: &setup::StreamDeclaration, found: ReportedStream) -> FoundStream {
    let replicas = replicas(&found);
    let ReportedStream {
        config,
        state,
        cluster,
        ..
    } = found;
    let bytes_max = config.get("max_bytes").and_then(Value::as_u64);
    let behind = cluster.iter().flat_map(|cluster| &cluster.replicas);
    FoundStream {
        replicas,
        behind: behind
            .filter(|replica| replica.offline || !replica.current)
            .map(|replica| replica.name.clone())
            .collect(),
        // A server without a cluster leads every stream.
        has_leader: cluster.is_none_or(|cluster| !cluster.leader.is_empty()),
        bytes: state.bytes,
        bytes_max,
        drift: declared.drift(config),
    }
}
