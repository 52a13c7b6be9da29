//! Opens one connection to the broker: retries until a deadline, logs its events, and refuses a
//! server that is too old.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_nats::{Client, ConnectError, ConnectErrorKind, Event, ServerError, rustls as tls};
use secrecy::ExposeSecret as _;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tracing::{debug, warn};

use super::credentials::{BrokerAccess, redacted};
use super::error::NatsError;
use super::names::Names;
use super::options::Options;
use crate::backoff::Backoff;
use crate::config::{
    BROKER_CONNECT_WAIT, BROKER_CONNECT_WAIT_MAX, BROKER_PING, REREAD_FIRST, REREAD_MAX,
    START_PAUSE,
};

/// The oldest supported nats-server: batched direct gets stall writers forever before 2.12.2, and a
/// removed peer could lose stored messages before 2.12.3.
pub const MIN_VERSION: &str = "2.12.3";

/// How the server begins the error about a subscription or a message that the user may not make.
const REFUSAL: &str = "Permissions Violation";

/// Opens a connection. `connected` is called each time it is established, with `true` if the broker
/// was down before. `refused` gets what the server says when it refuses a subscription or a message.
pub(super) async fn open(
    options: &Options,
    access: &BrokerAccess,
    purpose: &str,
    capacity: usize,
    connected: impl Fn(bool) + Send + Sync + 'static,
    refused: &watch::Sender<Option<String>>,
    deadline: Instant,
) -> Result<Client, NatsError> {
    let url = options.url.expose_secret();
    let unreachable = |reason: String| NatsError::Unreachable {
        url: redacted(url),
        reason,
    };
    let mut secured = access.options.clone();
    if let Some(inbox) = options.role.inbox(&Names::new(options.prefix.clone())) {
        secured = secured.custom_inbox_prefix(inbox);
    }
    let connected = Arc::new(connected);
    let was_away = Arc::new(AtomicBool::new(false));
    let mut waits = Backoff::new(BROKER_CONNECT_WAIT, BROKER_CONNECT_WAIT_MAX);
    let mut wait = waits.next_pause();
    loop {
        let started = Instant::now();
        let connected = Arc::clone(&connected);
        let was_down = Arc::clone(&was_away);
        let refused = refused.clone();
        let settings = secured
            .clone()
            .name(format!("{} {purpose}", options.name))
            .subscription_capacity(capacity)
            .connection_timeout(wait)
            .ping_interval(BROKER_PING)
            .reconnect_delay_callback(|attempt| {
                let attempts = u32::try_from(attempt).unwrap_or(u32::MAX);
                Backoff::new(REREAD_FIRST, REREAD_MAX).pause_after(attempts)
            })
            .event_callback(move |event| {
                log_event(&event);
                if let Event::ServerError(ServerError::Other(error)) = &event
                    && error.starts_with(REFUSAL)
                {
                    refused.send_replace(Some(error.clone()));
                }
                if matches!(event, Event::Connected) {
                    // After the first time, this event follows an interruption.
                    connected(was_down.swap(true, Ordering::Relaxed));
                }
                std::future::ready(())
            });
        // Boxed: the future is as large as everything else here together.
        match Box::pin(settings.connect(&access.servers[..])).await {
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
                if started.elapsed() >= wait {
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

pub(super) fn check_version(client: &Client, url: &str) -> Result<(), NatsError> {
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
