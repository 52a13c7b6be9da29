//! Connections to the broker: one for live copies, one for reading, one for work, so that none waits behind another. It
//! stores and reads nothing.

use std::sync::Arc;
use std::time::Duration;

use async_nats::{Client, ConnectOptions, Event};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tracing::{debug, info, warn};

use super::error::Error;
use super::names::Names;
use super::ready::Readiness;
use super::setup::{self, Settings};
use crate::config::{
    BROKER_CONNECT_WAIT, BROKER_CONNECT_WAIT_MAX, BROKER_PING, LIVE_CAPACITY, REPLAY_CAPACITY, REREAD_MAX,
};
use crate::wire::Kind;

/// The oldest nats-server that will do: batched direct gets stall writers for ever before 2.12.2, and a removed peer
/// could lose stored messages before 2.12.3.
pub const MIN_VERSION: &str = "2.12.3";

/// Where the broker is, and what is ours there.
#[derive(Clone, Debug)]
pub struct Options {
    /// `nats://[user:password@]host:port`, several separated by commas.
    pub url: String,
    /// The first token of every subject, and in capitals the beginning of every stream's name.
    pub prefix: Kind,
    /// How long to go on trying while nobody listens there, or while what is asked for at the start has no answer.
    pub patience: Duration,
    /// What this process is called in the broker's monitoring.
    pub name: String,
}

/// The connections of one process, or of one thread of an edge.
#[derive(Clone, Debug)]
pub struct Nats {
    pub(super) live: Client,
    pub(super) replay: Client,
    pub(super) work: Client,
    pub(super) names: Arc<Names>,
    /// Counts up when a connection was away over which events come: live copies may have been lost, and the broker may
    /// have another log than before.
    pub(super) reconnected: watch::Receiver<u64>,
    /// Counts up when what was asked for over the work connection may be forgotten because it was away.
    pub(super) work_reconnected: watch::Receiver<u64>,
    /// Until when requests of the start are made again.
    pub(super) patient_until: Instant,
    pub(super) readiness: Readiness,
}

impl Nats {
    /// Connects.
    ///
    /// # Errors
    /// [`Error::Unreachable`] or [`Error::TooOld`].
    pub async fn connect(options: &Options) -> Result<Self, Error> {
        let deadline = Instant::now() + options.patience;
        let (count, reconnected) = watch::channel(0_u64);
        let (work_count, work_reconnected) = watch::channel(0_u64);
        let (live, replay, work) = tokio::try_join!(
            open(options, "live", LIVE_CAPACITY, count.clone(), deadline),
            open(options, "replay", REPLAY_CAPACITY, count, deadline),
            open(options, "work", LIVE_CAPACITY, work_count, deadline),
        )?;
        check_version(&live, &options.url)?;
        info!(url = %redacted(&options.url), version = %live.server_info().version, "connected to NATS");
        let names = Arc::new(Names::new(&options.prefix));
        Ok(Self {
            live,
            replay,
            work,
            names,
            reconnected,
            work_reconnected,
            patient_until: deadline,
            readiness: Readiness::default(),
        })
    }

    /// Makes the streams that `nats/` declares.
    ///
    /// # Errors
    /// [`Error`]; nothing is changed when a stream exists and differs.
    pub async fn set_up(&self, settings: &Settings) -> Result<(), Error> {
        self.patiently(|| setup::apply(&self.work, &self.names, settings)).await
    }

    /// How many shards there are.
    ///
    /// # Errors
    /// [`Error::NotSetUp`].
    pub async fn shards(&self) -> Result<u32, Error> {
        self.patiently(|| setup::shards(&self.work, &self.names)).await
    }

    /// Whether all connections stand.
    pub fn is_connected(&self) -> bool {
        [&self.live, &self.replay, &self.work]
            .into_iter()
            .all(|client| client.connection_state() == async_nats::connection::State::Connected)
    }

    /// Sends what waits to be sent and closes the connections.
    pub async fn close(&self) {
        for client in [&self.live, &self.replay, &self.work] {
            if let Err(error) = client.drain().await {
                debug!(%error, "a connection was closed before it was drained");
            }
        }
    }
}

async fn open(
    options: &Options,
    role: &str,
    capacity: usize,
    count: watch::Sender<u64>,
    deadline: Instant,
) -> Result<Client, Error> {
    let unreachable = |reason: String| Error::Unreachable { url: redacted(&options.url), reason };
    let servers: Vec<async_nats::ServerAddr> = options
        .url
        .split(',')
        .map(|url| url.trim().parse())
        .collect::<Result<_, _>>()
        .map_err(|error: std::io::Error| unreachable(error.to_string()))?;
    let mut wait = BROKER_CONNECT_WAIT;
    loop {
        let count = count.clone();
        let begun = Instant::now();
        let settings = ConnectOptions::new()
            .name(format!("{} {role}", options.name))
            .subscription_capacity(capacity)
            .connection_timeout(wait)
            .ping_interval(BROKER_PING)
            .reconnect_delay_callback(|attempt| {
                REREAD_MAX
                    .min(Duration::from_millis(20) * 2_u32.pow(u32::try_from(attempt.min(8)).unwrap_or(8)))
            })
            .event_callback(move |event| {
                note(&event, &count);
                std::future::ready(())
            });
        // On the heap: it is as large as everything else here together.
        match Box::pin(settings.connect(&servers[..])).await {
            Ok(client) => return Ok(client),
            Err(error) if Instant::now() < deadline => {
                debug!(%error, "NATS is not there yet");
                if begun.elapsed() >= wait {
                    wait = BROKER_CONNECT_WAIT_MAX.min(wait * 2);
                }
                sleep(Duration::from_millis(100)).await;
            }
            Err(error) => return Err(unreachable(error.to_string())),
        }
    }
}

/// Takes note of what happens to a connection. A full subscription is no news here: its reader sees the hole.
fn note(event: &Event, count: &watch::Sender<u64>) {
    match event {
        Event::Connected => {
            debug!("NATS connection stands");
            count.send_modify(|count| *count += 1);
        }
        Event::Disconnected => warn!("NATS connection lost"),
        Event::SlowConsumer(_) => debug!("a subscription is full"),
        Event::ServerError(error) => warn!(%error, "NATS reports an error"),
        Event::ClientError(error) => warn!(%error, "NATS client error"),
        Event::LameDuckMode | Event::Draining | Event::Closed => debug!(%event, "NATS connection"),
    }
}

fn check_version(client: &Client, url: &str) -> Result<(), Error> {
    let found = client.server_info().version;
    if version(&found) >= version(MIN_VERSION) {
        Ok(())
    } else {
        Err(Error::TooOld { url: redacted(url), found, needed: MIN_VERSION })
    }
}

fn version(text: &str) -> [u64; 3] {
    let mut parts = text.split(['.', '-']).map(|part| part.parse().unwrap_or(0));
    std::array::from_fn(|_| parts.next().unwrap_or(0))
}

/// The address without what may be a password.
pub fn redacted(url: &str) -> String {
    url.split(',')
        .map(|url| match url.rsplit_once('@') {
            Some((_, host)) => format!("nats://…@{host}"),
            None => url.to_owned(),
        })
        .collect::<Vec<_>>()
        .join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_as_numbers() {
        assert!(version("2.12.10") > version(MIN_VERSION));
        assert!(version("2.9.10") < version(MIN_VERSION));
        assert!(version("2.15.0-dev") > version(MIN_VERSION));
    }

    #[test]
    fn a_password_in_the_address_is_never_shown() {
        assert_eq!(redacted("nats://a:secret@h:1,nats://i:2"), "nats://…@h:1,nats://i:2");
    }
}
