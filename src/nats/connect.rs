//! Connections to the broker: one each for live copies, for reading and for work, so that none
//! waits for another. It neither publishes nor reads messages.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_nats::connection::State;
use async_nats::{Client, ConnectError, ConnectErrorKind, Event, rustls as tls};
use secrecy::{ExposeSecret as _, SecretString};
use tokio::sync::{Mutex, watch};
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, info, warn};

use super::credentials::{Credentials, redacted};
use super::drift::Change;
use super::error::NatsError;
use super::names::Names;
use super::setup::{self, StreamSettings};
use crate::backoff::Backoff;
use crate::config::{
    BROKER_CONNECT_WAIT, BROKER_CONNECT_WAIT_MAX, BROKER_PING, LIVE_CAPACITY, NATS_WAIT,
    REPLAY_CAPACITY, REQUEST_WAIT, REREAD_FIRST, REREAD_MAX, RETRY_MAX, START_PAUSE,
};
use crate::wire::Kind;
use crate::wire::limits::{MESSAGE_HEADERS_MAX, STREAM_MESSAGE_MAX};

/// The oldest supported nats-server: batched direct gets stall writers forever before 2.12.2, and a
/// removed peer could lose stored messages before 2.12.3.
pub const MIN_VERSION: &str = "2.12.3";

/// Where the broker is, and how to connect.
#[derive(Clone, Debug)]
pub struct Options {
    /// `nats://[user:password@|token@]host:port`, several separated by commas; `tls://` for TLS.
    pub url: SecretString,
    /// The files that connections are secured with.
    pub credentials: Credentials,
    /// The first token of every subject, and in capitals the beginning of every stream's name.
    pub prefix: Kind,
    /// How long to keep trying at the start while no server is reachable, or requests are not
    /// answered.
    pub patience: Duration,
    /// The name of this process in the broker's monitoring.
    pub name: String,
}

impl Default for Options {
    /// A server on this machine without authentication.
    #[expect(clippy::expect_used, reason = "the name is valid")]
    fn default() -> Self {
        Self {
            url: "nats://127.0.0.1:4222".into(),
            credentials: Credentials::default(),
            prefix: "tw".parse().expect("a valid name"),
            patience: NATS_WAIT,
            name: "tailwater".into(),
        }
    }
}

/// When the connections were last probed, and whether all of them answered. The lock is held during
/// a probe, so that only one runs at a time.
pub(super) type Readiness = Arc<Mutex<Option<(Instant, bool)>>>;

/// The connections of one process, or of one thread of an edge.
#[derive(Clone, Debug)]
pub struct Nats {
    pub(super) live: Client,
    pub(super) replay: Client,
    pub(super) work: Client,
    pub(super) names: Arc<Names>,
    /// Incremented when the live or the replay connection was down: live copies may be lost, and
    /// the broker may have a different log than before.
    pub(super) reconnected: watch::Receiver<u64>,
    /// When the work connection was last re-established. The broker may have forgotten requests
    /// that were sent before.
    pub(super) work_reconnected: watch::Receiver<Option<Instant>>,
    /// Until when requests at the start are repeated.
    pub(super) patient_until: Instant,
    pub(super) readiness: Readiness,
}

impl Nats {
    /// Connects.
    ///
    /// # Errors
    /// [`NatsError::Unreachable`] or [`NatsError::TooOld`].
    pub async fn connect(options: &Options) -> Result<Self, NatsError> {
        let deadline = Instant::now() + options.patience;
        let (count, reconnected) = watch::channel(0_u64);
        let (back, work_reconnected) = watch::channel(None);
        let counted = || {
            let count = count.clone();
            move |_| count.send_modify(|count| *count += 1)
        };
        let note_time = move |again: bool| {
            back.send_if_modified(|at| {
                *at = again.then(Instant::now);
                again
            });
        };
        let (live, replay, work) = tokio::try_join!(
            open(options, "live", LIVE_CAPACITY, counted(), deadline),
            open(options, "replay", REPLAY_CAPACITY, counted(), deadline),
            open(options, "work", LIVE_CAPACITY, note_time, deadline),
        )?;
        let url = options.url.expose_secret();
        check_version(&live, url)?;
        info!(url = %redacted(url), version = %live.server_info().version, "connected to NATS");
        let max_payload = work.max_payload();
        if max_payload < STREAM_MESSAGE_MAX {
            let limit = max_payload.saturating_sub(MESSAGE_HEADERS_MAX);
            warn!(
                max_payload,
                limit,
                "this NATS server accepts only small messages: a job's input and an event may have at most `limit` bytes as stored"
            );
        }
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

    /// Creates the streams that `nats/` declares, and applies the retention in `settings` to
    /// existing ones. Returns what was changed.
    ///
    /// # Errors
    /// [`NatsError`]; a stream that differs in anything else is not changed.
    pub async fn set_up(&self, settings: &StreamSettings) -> Result<Vec<Change>, NatsError> {
        self.patiently(|| setup::apply(&self.work, &self.names, settings))
            .await
    }

    /// Creates the consumer of a kind before its first worker does, so that its jobs are accepted.
    ///
    /// # Errors
    /// [`NatsError`].
    pub async fn declare_kind(&self, kind: &Kind, ack_wait: Duration) -> Result<(), NatsError> {
        self.patiently(|| setup::ensure_kind(&self.work, &self.names, kind, ack_wait))
            .await
    }

    /// How many shards there are.
    ///
    /// # Errors
    /// [`NatsError::NotSetUp`].
    pub async fn shards(&self) -> Result<u32, NatsError> {
        self.patiently(|| setup::shards(&self.work, &self.names))
            .await
    }

    /// Whether all connections are up.
    pub fn is_connected(&self) -> bool {
        [&self.live, &self.replay, &self.work]
            .into_iter()
            .all(|client| client.connection_state() == State::Connected)
    }

    /// Whether the work connection is up. While it is down, the library buffers requests and sends
    /// them later.
    pub(super) fn is_work_connected(&self) -> bool {
        self.work.connection_state() == State::Connected
    }

    /// The number of the current work connection, counted from the first.
    pub(super) fn work_connections(&self) -> u64 {
        self.work.statistics().connects.load(Ordering::Relaxed)
    }

    /// Waits until the work connection is up.
    pub(super) async fn until_work_connected(&self) {
        let mut back = self.work_reconnected.clone();
        while !self.is_work_connected() {
            tokio::select! {
                Ok(()) = back.changed() => {}
                // It may have been re-established between these lines, or closed permanently.
                () = sleep(RETRY_MAX) => {}
            }
        }
    }

    /// Sends all pending messages and closes the connections.
    pub async fn close(&self) {
        for client in [&self.live, &self.replay, &self.work] {
            // While the connection is down the library may wait without a limit.
            match timeout(REQUEST_WAIT, client.drain()).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => debug!(%error, "a connection was closed before it was drained"),
                Err(_) => debug!("a connection was not closed in time"),
            }
        }
    }
}

/// Opens a connection. `connected` is called each time it is established, with `true` if the broker
/// was down before.
async fn open(
    options: &Options,
    role: &str,
    capacity: usize,
    connected: impl Fn(bool) + Send + Sync + 'static,
    deadline: Instant,
) -> Result<Client, NatsError> {
    let url = options.url.expose_secret();
    let unreachable = |reason: String| NatsError::Unreachable {
        url: redacted(url),
        reason,
    };
    let (secured, servers) = options.credentials.options(url).await?;
    let connected = Arc::new(connected);
    let was_away = Arc::new(AtomicBool::new(false));
    let mut waits = Backoff::new(BROKER_CONNECT_WAIT, BROKER_CONNECT_WAIT_MAX);
    let mut wait = waits.next_pause();
    loop {
        let begun = Instant::now();
        let connected = Arc::clone(&connected);
        let was_down = Arc::clone(&was_away);
        let settings = secured
            .clone()
            .name(format!("{} {role}", options.name))
            .subscription_capacity(capacity)
            .connection_timeout(wait)
            .ping_interval(BROKER_PING)
            .reconnect_delay_callback(|attempt| {
                let attempts = u32::try_from(attempt).unwrap_or(u32::MAX);
                Backoff::new(REREAD_FIRST, REREAD_MAX).pause_after(attempts)
            })
            .event_callback(move |event| {
                log_event(&event);
                if matches!(event, Event::Connected) {
                    // After the first time, this event follows an interruption.
                    connected(was_down.swap(true, Ordering::Relaxed));
                }
                std::future::ready(())
            });
        // Boxed: the future is as large as everything else here together.
        match Box::pin(settings.connect(&servers[..])).await {
            Ok(client) => return Ok(client),
            Err(error) => {
                if let Some(error) = final_error(&error, url) {
                    return Err(error);
                }
                if Instant::now() >= deadline {
                    return Err(unreachable(error.to_string()));
                }
                debug!(%error, "cannot reach NATS yet");
                was_away.store(true, Ordering::Relaxed);
                if begun.elapsed() >= wait {
                    wait = waits.next_pause();
                }
                sleep(START_PAUSE).await;
            }
        }
    }
}

/// The error of a connection that would fail every time: wrong credentials, certificates or server
/// settings. `None` when another attempt may succeed.
fn final_error(error: &ConnectError, url: &str) -> Option<NatsError> {
    let url = redacted(url);
    let reason = error.to_string();
    match error.kind() {
        ConnectErrorKind::AuthorizationViolation | ConnectErrorKind::Authentication => {
            Some(NatsError::Unauthorized { url, reason })
        }
        ConnectErrorKind::Tls => Some(NatsError::Tls { url, reason }),
        ConnectErrorKind::Io if is_tls_error(error) => Some(NatsError::Tls { url, reason }),
        ConnectErrorKind::ServerParse
        | ConnectErrorKind::Dns
        | ConnectErrorKind::TimedOut
        | ConnectErrorKind::Io
        | ConnectErrorKind::MaxReconnects => None,
    }
}

/// Whether the TLS handshake failed, rather than the connection below it.
fn is_tls_error(error: &ConnectError) -> bool {
    let source =
        std::error::Error::source(error).and_then(|source| source.downcast_ref::<std::io::Error>());
    source
        .and_then(std::io::Error::get_ref)
        .is_some_and(|inner| inner.is::<tls::Error>())
}

/// Logs an event of a connection. A full subscription is logged at DEBUG only: its reader detects
/// the gap.
fn log_event(event: &Event) {
    match event {
        Event::Connected => debug!("NATS connection established"),
        Event::Disconnected => warn!("NATS connection lost"),
        Event::SlowConsumer(_) => debug!("a subscription is full"),
        Event::ServerError(error) => warn!(%error, "NATS reports an error"),
        Event::ClientError(error) => warn!(%error, "NATS client error"),
        Event::LameDuckMode | Event::Draining | Event::Closed => debug!(%event, "NATS connection"),
    }
}

fn check_version(client: &Client, url: &str) -> Result<(), NatsError> {
    let found = client.server_info().version;
    if version(&found) >= version(MIN_VERSION) {
        Ok(())
    } else {
        Err(NatsError::TooOld {
            url: redacted(url),
            found,
            needed: MIN_VERSION,
        })
    }
}

fn version(text: &str) -> [u64; 3] {
    let mut parts = text.split(['.', '-']).map(|part| part.parse().unwrap_or(0));
    std::array::from_fn(|_| parts.next().unwrap_or(0))
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
}
