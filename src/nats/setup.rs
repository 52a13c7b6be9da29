//! Applies the declarations of `nats/`: makes what is missing, refuses what differs, changes nothing.

use std::fmt;
use std::time::Duration;

use async_nats::Client;
use serde_json::{Value, json};
use tracing::info;

use super::api;
use super::error::{Error, code};
use super::features::Features;
use super::names::{FEATURES, Names, SHARDS};
use crate::source::Unavailable;
use crate::wire::Kind;

/// What differs between deployments.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How many chunk streams there are, from 1.
    pub shards: u32,
    /// On how many servers each message is kept: 1, 3 or 5.
    pub replicas: u32,
    /// How long events are kept. `None`: as the streams have it, and [`MAX_AGE`](Self::MAX_AGE) for new ones.
    pub max_age: Option<Duration>,
    /// How many bytes of events one shard keeps. `None`: as the streams have it, and [`MAX_BYTES`](Self::MAX_BYTES) for
    /// new ones.
    pub max_bytes: Option<u64>,
}

impl Settings {
    /// Shards of a system that was set up without saying how many.
    pub const SHARDS: u32 = 4;
    /// How long a new system keeps events when nothing else is said.
    pub const MAX_AGE: Duration = Duration::from_secs(24 * 3600);
    /// How many bytes of events a shard of a new system keeps when nothing else is said.
    pub const MAX_BYTES: u64 = 1 << 30;
}

/// A setting of a stream that was changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    stream: String,
    field: String,
    before: Value,
    after: Value,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            stream,
            field,
            before,
            after,
        } = self;
        write!(
            f,
            "stream {stream}: {field} changed from {before} to {after}"
        )
    }
}

/// A stream that exists and is not as declared.
#[derive(Debug)]
pub struct Drift {
    stream: String,
    fields: Vec<(String, Value, Value)>,
}

impl fmt::Display for Drift {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "stream {} exists and differs from its declaration; it was not changed:",
            self.stream
        )?;
        for (field, there, declared) in &self.fields {
            write!(f, "\n  {field}: there {there}, declared {declared}")?;
        }
        Ok(())
    }
}

/// Makes the streams, and changes how long and how much existing ones keep when the settings say so. Returns what was
/// changed.
///
/// # Errors
/// [`Error::Drifted`] when one exists and differs in anything else; [`Error::Api`] when the broker refuses, for example
/// for lack of disk space.
pub(super) async fn apply(
    client: &Client,
    names: &Names,
    settings: &Settings,
) -> Result<Vec<Change>, Error> {
    // First, so that a wrong number of shards changes nothing.
    let jobs = jobs(names, settings);
    if let Some(info) = stream_info(client, &names.jobs_stream()).await? {
        refuse_drift(&jobs, &info["config"], &[])?;
    }
    let mut changes = Vec::new();
    for shard in 0..settings.shards {
        changes.extend(apply_stream(client, &chunks(names, shard, settings)).await?);
    }
    // Last, because its metadata tells everybody else that the shards are there.
    changes.extend(apply_stream(client, &jobs).await?);
    Ok(changes)
}

/// How many shards `setup` made.
pub(super) async fn shards(client: &Client, names: &Names) -> Result<u32, Error> {
    let stream = names.jobs_stream();
    let info = stream_info(client, &stream)
        .await?
        .ok_or(Error::NotSetUp { stream })?;
    let shards = info["config"]["metadata"][SHARDS]
        .as_str()
        .and_then(|text| text.parse().ok());
    shards.filter(|&shards| shards > 0).ok_or_else(|| {
        let stream = names.jobs_stream();
        Unavailable(format!(
            "stream {stream} does not say how many shards there are"
        ))
        .into()
    })
}

/// Makes the consumer that hands out jobs of `kind`, unless it is there. One that exists is left as it is, except that it
/// says from then on what this crate's workers do, unless some worker has said so before.
pub(super) async fn ensure_kind(
    client: &Client,
    names: &Names,
    kind: &Kind,
    ack_wait: Duration,
) -> Result<(), Error> {
    if let Some(info) = kind_info(client, names, kind).await? {
        let mut config = info["config"].clone();
        if config["metadata"][FEATURES].is_null() {
            config["metadata"][FEATURES] = Features::ALL.text().into();
            create_consumer(client, names, kind, &config).await?;
            info!(%kind, "said what the workers of a kind do");
        }
        return Ok(());
    }
    let text = include_str!("../../nats/consumers/kind.json").replace("{kind}", kind.as_str());
    let mut config = declaration(&text, names);
    config["ack_wait"] = u64::try_from(ack_wait.as_nanos())
        .unwrap_or(u64::MAX)
        .into();
    config["metadata"] = json!({FEATURES: Features::ALL.text()});
    create_consumer(client, names, kind, &config).await?;
    info!(%kind, "made the consumer of a kind");
    Ok(())
}

/// Makes the consumer of a kind, or changes it.
async fn create_consumer(
    client: &Client,
    names: &Names,
    kind: &Kind,
    config: &Value,
) -> Result<(), Error> {
    let stream = names.jobs_stream();
    let filter = config["filter_subject"].as_str().unwrap_or_default();
    let subject = format!("CONSUMER.CREATE.{stream}.{kind}.{filter}");
    api::call(
        client,
        &subject,
        &json!({"stream_name": stream, "config": config}),
    )
    .await
    .map(|_| ())
}

/// The consumer that hands out jobs of `kind`, when some worker has ever served it.
pub(super) async fn kind_info(
    client: &Client,
    names: &Names,
    kind: &Kind,
) -> Result<Option<Value>, Error> {
    let subject = format!("CONSUMER.INFO.{}.{kind}", names.jobs_stream());
    api::find(client, &subject, &Value::Null, &[code::CONSUMER_NOT_FOUND]).await
}

pub(super) async fn stream_info(client: &Client, stream: &str) -> Result<Option<Value>, Error> {
    api::find(
        client,
        &format!("STREAM.INFO.{stream}"),
        &Value::Null,
        &[code::STREAM_NOT_FOUND],
    )
    .await
}

fn jobs(names: &Names, settings: &Settings) -> Value {
    let mut config = declaration(include_str!("../../nats/streams/jobs.json"), names);
    config["num_replicas"] = settings.replicas.into();
    config["metadata"] = json!({SHARDS: settings.shards.to_string()});
    config
}

fn chunks(names: &Names, shard: u32, settings: &Settings) -> Value {
    let text =
        include_str!("../../nats/streams/chunks.json").replace("{shard}", &shard.to_string());
    let mut config = declaration(&text, names);
    config["num_replicas"] = settings.replicas.into();
    let max_age = settings
        .max_age
        .map(|age| u64::try_from(age.as_nanos()).unwrap_or(u64::MAX));
    config["max_age"] = max_age.into();
    config["max_bytes"] = settings.max_bytes.into();
    config
}

fn declaration(text: &str, names: &Names) -> Value {
    let text = text
        .replace("{PREFIX}", &names.stream_prefix())
        .replace("{prefix}", names.prefix());
    serde_json::from_str(&text)
        .unwrap_or_else(|_| unreachable!("the declarations are parsed by a test"))
}

/// The settings of a stream that may be changed while it holds events.
const RETENTION: [&str; 2] = ["max_age", "max_bytes"];

/// Makes a stream as `declared`. A retention that is `null` is the default's for a new stream, and whatever an existing one
/// has.
async fn apply_stream(client: &Client, declared: &Value) -> Result<Vec<Change>, Error> {
    let stream = declared["name"].as_str().unwrap_or_default().to_owned();
    let Some(info) = stream_info(client, &stream).await? else {
        make_stream(client, &stream, declared).await?;
        return Ok(Vec::new());
    };
    let there = &info["config"];
    refuse_drift(declared, there, &RETENTION)?;
    let mut config = there.clone();
    let mut changes = Vec::new();
    for field in RETENTION {
        let (before, after) = (there[field].clone(), declared[field].clone());
        if !after.is_null() && before != after {
            config[field] = after.clone();
            changes.push(Change {
                stream: stream.clone(),
                field: field.to_owned(),
                before,
                after,
            });
        }
    }
    if !changes.is_empty() {
        api::call(client, &format!("STREAM.UPDATE.{stream}"), &config)
            .await
            .map_err(no_space(&config))?;
        info!(%stream, "changed what a stream keeps");
    }
    Ok(changes)
}

async fn make_stream(client: &Client, stream: &str, declared: &Value) -> Result<(), Error> {
    let mut config = declared.clone();
    if config["max_age"].is_null() {
        config["max_age"] = u64::try_from(Settings::MAX_AGE.as_nanos())
            .unwrap_or(u64::MAX)
            .into();
    }
    if config["max_bytes"].is_null() {
        config["max_bytes"] = Settings::MAX_BYTES.into();
    }
    api::call(client, &format!("STREAM.CREATE.{stream}"), &config)
        .await
        .map_err(no_space(&config))?;
    info!(%stream, "made a stream");
    Ok(())
}

/// Names the stream and what it reserves in an error for want of space.
fn no_space(config: &Value) -> impl FnOnce(Error) -> Error {
    let stream = config["name"].as_str().unwrap_or_default().to_owned();
    let mib = config["max_bytes"].as_u64().unwrap_or(0) >> 20;
    move |error| {
        if matches!(
            error,
            Error::Api {
                code: code::NO_SPACE,
                ..
            }
        ) {
            Error::NoSpace { stream, mib }
        } else {
            error
        }
    }
}

/// Refuses a stream that differs from its declaration in more than the fields `but`.
fn refuse_drift(declared: &Value, there: &Value, but: &[&str]) -> Result<(), Error> {
    let mut fields = Vec::new();
    compare("", there, declared, &mut fields);
    fields.retain(|(field, ..)| !but.contains(&field.as_str()));
    if fields.is_empty() {
        return Ok(());
    }
    let stream = declared["name"].as_str().unwrap_or_default().to_owned();
    Err(Error::Drifted(Drift { stream, fields }))
}

/// Gathers the declared fields that are there with another value. What is not declared is the broker's.
fn compare(path: &str, there: &Value, declared: &Value, fields: &mut Vec<(String, Value, Value)>) {
    if let Value::Object(map) = declared {
        for (key, declared) in map {
            let path = if path.is_empty() {
                key.clone()
            } else {
                format!("{path}.{key}")
            };
            compare(&path, &there[key], declared, fields);
        }
    } else if there != declared {
        fields.push((path.to_owned(), there.clone(), declared.clone()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Settings {
        Settings {
            shards: 3,
            replicas: 1,
            max_age: None,
            max_bytes: Some(1 << 20),
        }
    }

    #[test]
    fn the_declarations_name_what_the_design_names() {
        let names = Names::new(&"tw".parse().unwrap());
        let (jobs, chunks) = (jobs(&names, &settings()), chunks(&names, 2, &settings()));
        assert_eq!(
            (jobs["name"].as_str(), jobs["subjects"][0].as_str()),
            (Some("TW_JOBS"), Some("tw.jobs.*.*"))
        );
        assert_eq!(chunks["name"], "TW_CHUNKS_2");
        assert_eq!(chunks["republish"]["dest"], "tw.live.2.{{wildcard(1)}}");
        assert_eq!(jobs["metadata"][SHARDS], "3");
    }

    #[test]
    fn drift_is_told_field_by_field() {
        let (there, declared) = (
            json!({"a": {"b": 1, "x": 9}, "c": [1]}),
            json!({"a": {"b": 2}, "c": [1]}),
        );
        let mut fields = Vec::new();
        compare("", &there, &declared, &mut fields);
        let text = Drift {
            stream: "S".into(),
            fields,
        }
        .to_string();
        assert!(text.ends_with("\n  a.b: there 1, declared 2"), "{text}");
    }
}
