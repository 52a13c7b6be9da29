//! Applies the declarations in `nats/`: creates missing streams and consumers, refuses different
//! ones, and changes only the retention of streams.

use std::time::Duration;

use async_nats::Client;
use async_nats::jetstream::ErrorCode;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tracing::{info, warn};

use super::api;
use super::drift::{Change, Drift};
use super::error::NatsError;
use super::features::Features;
use super::info::{self, StreamInfo};
use super::names::{FEATURES, Names, SHARDS};
use crate::config::{EVENTS_MAX_AGE, SHARD_MAX_BYTES};
use crate::source::Unavailable;
use crate::wire::Kind;

/// The settings of streams that differ between deployments.
#[derive(Clone, Debug)]
pub struct StreamSettings {
    /// How many chunk streams there are, from 1.
    pub shards: u32,
    /// On how many servers each message is kept: 1, 3 or 5.
    pub replicas: u32,
    /// How long events are kept. `None` keeps the value of existing streams, and means
    /// [`EVENTS_MAX_AGE`] for new ones.
    pub max_age: Option<Duration>,
    /// How many bytes of events one shard keeps. `None` keeps the value of existing streams, and
    /// means [`SHARD_MAX_BYTES`] for new ones.
    pub max_bytes: Option<u64>,
}

/// The configuration of a stream or a consumer, as JSON, with any fields that the broker adds.
type Config = Map<String, Value>;

/// The broker's report about a stream or a consumer. Only the configuration is decoded.
#[derive(Deserialize)]
struct Configured {
    config: Config,
}

/// A stream as declared. A retention of `null` means the default for a new stream, and keeps the
/// value of an existing one.
pub(super) struct StreamDeclaration {
    pub(super) name: String,
    config: Config,
}

/// The settings of a stream that can be changed while it has events.
const RETENTION: [&str; 2] = ["max_age", "max_bytes"];

/// Creates the streams, and changes the retention of existing ones if the settings have one.
/// Returns what was changed.
///
/// # Errors
/// [`NatsError::Drifted`] when a stream exists and differs in anything else; [`NatsError::NoSpace`]
/// for lack of disk space; [`NatsError::Api`] for any other refusal of the broker.
pub(super) async fn apply(
    client: &Client,
    names: &Names,
    settings: &StreamSettings,
) -> Result<Vec<Change>, NatsError> {
    // Checked first, so that a wrong number of shards changes nothing.
    let jobs = jobs(names, settings);
    if let Some(existing) = info::find_stream::<Configured>(client, &jobs.name).await? {
        jobs.refuse_drift(existing.config, &[])?;
    }
    let mut changes = Vec::new();
    for shard in 0..settings.shards {
        changes.extend(chunks(names, shard, settings).apply(client).await?);
        match segments(names, shard, settings).apply(client).await {
            // Their retention follows that of the events.
            Ok(_) => {}
            Err(NatsError::NoSpace { stream, mib }) => {
                warn!(%stream, mib, "no disk space for segments: late readers will be slower");
            }
            Err(error) => return Err(error),
        }
    }
    changes.extend(auth(names, settings).apply(client).await?);
    changes.extend(tickets(names, settings).apply(client).await?);
    // Created last: its metadata shows all other processes that the shards exist.
    changes.extend(jobs.apply(client).await?);
    Ok(changes)
}

/// Every stream as declared, the queue first.
pub(super) fn declarations(names: &Names, settings: &StreamSettings) -> Vec<StreamDeclaration> {
    let chunks = (0..settings.shards).map(|shard| chunks(names, shard, settings));
    std::iter::once(jobs(names, settings))
        .chain(chunks)
        .collect()
}

/// How many shards `setup` created.
pub(super) async fn shards(client: &Client, names: &Names) -> Result<u32, NatsError> {
    let stream = names.jobs_stream();
    let Some(info) = info::find_stream::<StreamInfo>(client, &stream).await? else {
        return Err(NatsError::NotSetUp { stream });
    };
    let shards = info.config.metadata.get(SHARDS);
    shards
        .and_then(|text| text.parse().ok())
        .filter(|&shards| shards > 0)
        .ok_or_else(|| Unavailable(format!("stream {stream} has no number of shards")).into())
}

/// Creates the consumer that delivers jobs of `kind`, unless it exists. An existing one is not
/// changed, except that it gets the features of this crate's workers if it lists none.
pub(super) async fn ensure_kind(
    client: &Client,
    names: &Names,
    kind: &Kind,
    ack_wait: Duration,
) -> Result<(), NatsError> {
    let features = Features::ALL.text();
    if let Some(existing) = info::find_kind::<Configured>(client, names, kind).await? {
        let mut config = existing.config;
        let metadata = config.entry("metadata").or_insert_with(|| json!({}));
        if let Value::Object(metadata) = metadata
            && !metadata.contains_key(FEATURES)
        {
            metadata.insert(FEATURES.into(), features.into());
            send_consumer(client, names, kind, config, "update").await?;
            info!(%kind, "added the features of the workers to the consumer of a kind");
        }
        return Ok(());
    }
    let text = include_str!("../../nats/consumers/kind.json").replace("{kind}", kind.as_str());
    let mut config = declaration(&text, names);
    config.insert("ack_wait".into(), nanos(ack_wait).into());
    config.insert("metadata".into(), json!({FEATURES: features}));
    match send_consumer(client, names, kind, config, "create").await {
        Ok(()) => info!(%kind, "created the consumer of a kind"),
        // Another first worker was faster. Its ack wait applies.
        Err(NatsError::Api {
            code: ErrorCode::CONSUMER_ALREADY_EXISTS,
            ..
        }) => {}
        Err(error) => return Err(error),
    }
    Ok(())
}

/// Creates or updates the consumer of a kind; the `action` is `create` or `update`.
async fn send_consumer(
    client: &Client,
    names: &Names,
    kind: &Kind,
    config: Config,
    action: &str,
) -> Result<(), NatsError> {
    let stream = names.jobs_stream();
    let filter = names.queued_jobs(kind);
    let request = format!("CONSUMER.CREATE.{stream}.{kind}.{filter}");
    let body = json!({"stream_name": stream, "config": config, "action": action}).to_string();
    let _: Configured = api::call(client, &request, body).await?;
    Ok(())
}

fn jobs(names: &Names, settings: &StreamSettings) -> StreamDeclaration {
    let mut config = declaration(include_str!("../../nats/streams/jobs.json"), names);
    config.insert("num_replicas".into(), settings.replicas.into());
    config.insert(
        "metadata".into(),
        json!({SHARDS: settings.shards.to_string()}),
    );
    StreamDeclaration {
        name: names.jobs_stream(),
        config,
    }
}

fn chunks(names: &Names, shard: u32, settings: &StreamSettings) -> StreamDeclaration {
    let text = include_str!("../../nats/streams/chunks.json");
    of_shard(text, names.chunks_stream(shard), names, shard, settings)
}

fn segments(names: &Names, shard: u32, settings: &StreamSettings) -> StreamDeclaration {
    let text = include_str!("../../nats/streams/segments.json");
    of_shard(text, names.segments_stream(shard), names, shard, settings)
}

/// The declaration of a stream that each shard has.
fn of_shard(
    text: &str,
    name: String,
    names: &Names,
    shard: u32,
    settings: &StreamSettings,
) -> StreamDeclaration {
    let mut config = declaration(&text.replace("{shard}", &shard.to_string()), names);
    config.insert("num_replicas".into(), settings.replicas.into());
    config.insert("max_age".into(), settings.max_age.map(nanos).into());
    config.insert("max_bytes".into(), settings.max_bytes.into());
    StreamDeclaration { name, config }
}

fn auth(names: &Names, settings: &StreamSettings) -> StreamDeclaration {
    let text = include_str!("../../nats/streams/auth.json");
    bucket(text, names.auth_stream(), names, settings)
}

fn tickets(names: &Names, settings: &StreamSettings) -> StreamDeclaration {
    let text = include_str!("../../nats/streams/tickets.json");
    bucket(text, names.tickets_stream(), names, settings)
}

/// The declaration of a key-value bucket.
fn bucket(text: &str, name: String, names: &Names, settings: &StreamSettings) -> StreamDeclaration {
    let mut config = declaration(text, names);
    config.insert("num_replicas".into(), settings.replicas.into());
    StreamDeclaration { name, config }
}

fn declaration(text: &str, names: &Names) -> Config {
    let text = text
        .replace("{PREFIX}", &names.stream_prefix())
        .replace("{prefix}", names.prefix().as_str());
    serde_json::from_str(&text)
        .unwrap_or_else(|_| unreachable!("the declarations are parsed by a test"))
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

impl StreamDeclaration {
    /// Creates the stream, or changes the retention of an existing one.
    async fn apply(self, client: &Client) -> Result<Vec<Change>, NatsError> {
        let Some(existing) = info::find_stream::<Configured>(client, &self.name).await? else {
            self.create(client).await?;
            return Ok(Vec::new());
        };
        let mut config = self.refuse_drift(existing.config, &RETENTION)?;
        let mut changes = Vec::new();
        for field in RETENTION {
            let after = self.config.get(field).cloned().unwrap_or_default();
            let before = config.get(field).cloned().unwrap_or_default();
            if after.is_null() || before == after {
                continue;
            }
            config.insert(field.into(), after.clone());
            changes.push(Change {
                stream: self.name.clone(),
                field: field.to_owned(),
                before,
                after,
            });
        }
        if !changes.is_empty() {
            self.send(client, "STREAM.UPDATE", config).await?;
            info!(stream = %self.name, "changed the retention of a stream");
        }
        Ok(changes)
    }

    async fn create(&self, client: &Client) -> Result<(), NatsError> {
        let mut config = self.config.clone();
        let defaults = [
            ("max_age", nanos(EVENTS_MAX_AGE)),
            ("max_bytes", SHARD_MAX_BYTES),
        ];
        for (field, default) in defaults {
            if config.get(field).is_none_or(Value::is_null) {
                config.insert(field.into(), default.into());
            }
        }
        self.send(client, "STREAM.CREATE", config).await?;
        info!(stream = %self.name, "created a stream");
        Ok(())
    }

    /// Sends the configuration. An error for lack of space contains the stream and its reserved
    /// size.
    async fn send(&self, client: &Client, request: &str, config: Config) -> Result<(), NatsError> {
        let reserved = config.get("max_bytes").and_then(Value::as_u64);
        let request = format!("{request}.{}", self.name);
        let body = Value::Object(config).to_string();
        match api::call::<Configured>(client, &request, body).await {
            Ok(_) => Ok(()),
            Err(NatsError::Api {
                code: ErrorCode::STORAGE_RESOURCES_EXCEEDED,
                ..
            }) => Err(NatsError::NoSpace {
                stream: self.name.clone(),
                mib: reserved.unwrap_or_default() >> 20,
            }),
            Err(error) => Err(error),
        }
    }

    /// How an existing stream differs from the declaration, apart from its retention.
    pub(super) fn drift(&self, existing: Config) -> Option<Drift> {
        let declared = Value::Object(self.config.clone());
        let existing = Value::Object(existing);
        Drift::between(&self.name, &existing, &declared, &RETENTION)
    }

    /// Returns the existing configuration, or an error if it differs from the declaration in fields
    /// other than `except`.
    fn refuse_drift(&self, existing: Config, except: &[&str]) -> Result<Config, NatsError> {
        let existing = Value::Object(existing);
        let declared = Value::Object(self.config.clone());
        match (
            Drift::between(&self.name, &existing, &declared, except),
            existing,
        ) {
            (Some(drift), _) => Err(NatsError::Drifted(drift)),
            (None, Value::Object(existing)) => Ok(existing),
            (None, _) => unreachable!("it is an object"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::limits::{RESUBMIT_AFTER_S, TICKET_TTL_MS};

    #[test]
    fn the_declarations_have_the_names_that_the_code_uses() {
        let names = Names::new("tw".parse().unwrap());
        let settings = StreamSettings {
            shards: 3,
            replicas: 1,
            max_age: None,
            max_bytes: Some(1 << 20),
        };
        let jobs = jobs(&names, &settings);
        let chunks = chunks(&names, 2, &settings);
        let segments = segments(&names, 2, &settings);
        assert_eq!(segments.config["name"], segments.name);
        // For plain and for qualified ids.
        assert_eq!(
            segments.config["subjects"],
            json!(["tw.segments.2.*.*", "tw.segments.2.*.*.*"])
        );
        assert_eq!(
            chunks.config["subjects"],
            json!(["tw.chunks.2.*", "tw.chunks.2.*.*"])
        );
        assert_eq!(jobs.config["name"], jobs.name);
        assert_eq!(jobs.config["subjects"], json!([names.submitted()]));
        assert_eq!(jobs.config["metadata"][SHARDS], "3");
        assert_eq!(chunks.config["name"], chunks.name);
        assert_eq!(
            chunks.config["republish"],
            json!({"src": "tw.chunks.2.>", "dest": "tw.live.2.>"})
        );
        let kind = "k".parse().unwrap();
        let text = include_str!("../../nats/consumers/kind.json").replace("{kind}", "k");
        let consumer = declaration(&text, &names);
        assert_eq!(consumer["filter_subject"], names.queued_jobs(&kind));
        let auth = auth(&names, &settings);
        let tickets = tickets(&names, &settings);
        for (bucket, name) in [
            (auth, names.auth_bucket()),
            (tickets, names.tickets_bucket()),
        ] {
            assert_eq!(bucket.config["name"], bucket.name);
            let subjects = json!([format!("$KV.{name}.>")]);
            assert_eq!(bucket.config["subjects"], subjects);
        }
    }

    #[test]
    fn the_broker_keeps_a_ticket_for_as_long_as_it_is_valid() {
        let settings = StreamSettings {
            shards: 1,
            replicas: 1,
            max_age: None,
            max_bytes: None,
        };
        let declared = tickets(&Names::new("tw".parse().unwrap()), &settings);
        let ttl = nanos(Duration::from_millis(TICKET_TTL_MS));
        assert_eq!(declared.config["max_age"], ttl);
    }

    #[test]
    fn the_queue_refuses_the_id_of_a_removed_job_for_as_long_as_clients_are_told() {
        let text = include_str!("../../nats/streams/jobs.json");
        let declared: Value = serde_json::from_str(text).unwrap();
        let window = declared["duplicate_window"]
            .as_u64()
            .map(Duration::from_nanos);
        assert_eq!(window, Some(Duration::from_secs(RESUBMIT_AFTER_S)));
    }
}
