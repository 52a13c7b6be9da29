//! The connections to the broker: one each for signals, for reading and for work, so that none waits
//! for another; those for live copies are in `live_reader`. It neither publishes nor reads messages.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use async_nats::Client;
use async_nats::connection::State;
use futures_util::future::join_all;
use secrecy::ExposeSecret as _;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, info, warn};

use super::credentials::{BrokerAccess, redacted};
use super::error::NatsError;
use super::live_reader::LiveReaders;
use super::names::Names;
use super::open::{check_version, open};
use super::options::Options;
use super::ready::Readiness;
use crate::config::{BROKER_REFUSAL_WAIT, LIVE_CAPACITY, REPLAY_CAPACITY, REQUEST_WAIT, RETRY_MAX};
use crate::metrics::{Exposition, catalog};
use crate::wire::limits::{MESSAGE_HEADERS_MAX, STREAM_MESSAGE_MAX};

/// The connections of one process, or of one thread of an edge.
#[derive(Clone, Debug)]
pub struct Nats {
    pub(super) live: Client,
    pub(super) replay: Client,
    pub(super) work: Client,
    pub(super) live_readers: LiveReaders,
    pub(super) names: Arc<Names>,
    /// Incremented when the live or the replay connection was down: live copies may be lost, and
    /// the broker may have a different log than before.
    pub(super) reconnected: watch::Receiver<u64>,
    /// When the work connection was last re-established. The broker may have forgotten requests
    /// that were sent before.
    pub(super) work_reconnected: watch::Receiver<Option<Instant>>,
    /// Requests during startup are retried until then.
    pub(super) startup_deadline: Instant,
    readiness: Arc<Readiness>,
    /// The last refusal of a subscription or a message.
    refused: watch::Receiver<Option<String>>,
}

/// How the connections of a process, or of one of its threads, are doing.
#[derive(Clone, Copy, Debug, Default)]
pub struct ConnectionCounts {
    /// How many are up.
    pub up: usize,
    /// How many are down.
    pub down: usize,
    /// How often one was made again.
    pub reconnects: u64,
}

impl ConnectionCounts {
    /// Adds them to the metrics of the process.
    pub(crate) fn add_to(self, all: &mut Exposition) {
        all.gauge(&catalog::NATS_CONNECTIONS, &["up"], self.up as f64);
        all.gauge(&catalog::NATS_CONNECTIONS, &["down"], self.down as f64);
        all.counter(&catalog::NATS_RECONNECTS, &[], self.reconnects);
    }
}

impl Nats {
    /// Connects.
    ///
    /// # Errors
    /// [`NatsError::Unreachable`] or [`NatsError::TooOld`].
    pub async fn connect(options: &Options) -> Result<Self, NatsError> {
        let deadline = Instant::now() + options.startup_timeout;
        let url = options.url.expose_secret();
        let access = Box::pin(options.credentials.access(url)).await?;
        let (count, reconnected) = watch::channel(0_u64);
        let (back, work_reconnected) = watch::channel(None);
        let (refusals, refused) = watch::channel(None);
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
        // Boxed: together they are as large as everything else of a caller.
        let (live, replay, work) = tokio::try_join!(
            Box::pin(open(
                options,
                &access,
                "live",
                LIVE_CAPACITY,
                counted(),
                &refusals,
                deadline
            )),
            Box::pin(open(
                options,
                &access,
                "replay",
                REPLAY_CAPACITY,
                counted(),
                &refusals,
                deadline
            )),
            Box::pin(open(
                options,
                &access,
                "work",
                LIVE_CAPACITY,
                note_time,
                &refusals,
                deadline
            )),
        )?;
        check_version(&live, url)?;
        info!(url = %redacted(url), version = %live.server_info().version, "connected to NATS");
        warn_of_small_messages(work.max_payload());
        let names = Arc::new(Names::new(options.prefix.clone()));
        let name = format!("{} copies", options.name);
        let credentials = options.credentials.clone();
        let BrokerAccess {
            secrets, servers, ..
        } = access;
        Ok(Self {
            live_readers: LiveReaders::new(name, credentials, (secrets, servers), count),
            live,
            replay,
            work,
            names,
            reconnected,
            work_reconnected,
            startup_deadline: deadline,
            readiness: Arc::default(),
            refused,
        })
    }

    /// Whether all connections are up.
    pub fn is_connected(&self) -> bool {
        self.connections().down == 0
    }

    /// Whether every connection answers a request.
    pub async fn is_answering(&self) -> bool {
        let subject = self.names.ready();
        self.readiness
            .check(self.clients(), &self.live_readers, &subject)
            .await
    }

    /// What the server says about a subscription or a message that it refused because of the user's
    /// permissions, if there was one. The server reports a refusal before it answers later requests:
    /// ask once [`Self::is_answering`] has returned, or a request was not answered in time.
    pub async fn refusal(&self) -> Option<String> {
        let mut refused = self.refused.clone();
        // The client library has received it, but passes it on from a task of its own.
        let waited = timeout(BROKER_REFUSAL_WAIT, refused.wait_for(Option::is_some)).await;
        waited.ok()?.ok()?.clone()
    }

    /// How many connections are up and down, and how often one was made again.
    pub fn connections(&self) -> ConnectionCounts {
        let mut counts = ConnectionCounts::default();
        for client in self.clients() {
            if client.connection_state() == State::Connected {
                counts.up += 1;
            } else {
                counts.down += 1;
            }
            let connects = client.statistics().connects.load(Ordering::Relaxed);
            counts.reconnects += connects.saturating_sub(1);
        }
        for reader in self.live_readers.used() {
            let is_up = reader.is_up();
            counts.up += usize::from(is_up);
            counts.down += usize::from(!is_up);
            counts.reconnects += reader.reconnects();
        }
        counts
    }

    fn clients(&self) -> [&Client; 3] {
        [&self.live, &self.replay, &self.work]
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
        join_all(self.clients().map(close)).await;
    }
}

async fn close(client: &Client) {
    // Draining is only requested: this process may end before the library has written anything.
    // While the connection is down, nothing can be written.
    if client.connection_state() == State::Connected {
        match timeout(REQUEST_WAIT, client.flush()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => debug!(%error, "pending messages were not sent"),
            Err(_) => debug!("pending messages were not sent in time"),
        }
    }
    // The library may wait without a limit.
    match timeout(REQUEST_WAIT, client.drain()).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => debug!(%error, "a connection was closed before it was drained"),
        Err(_) => debug!("a connection was not closed in time"),
    }
}

fn warn_of_small_messages(max_payload: usize) {
    if max_payload < STREAM_MESSAGE_MAX {
        let limit = max_payload.saturating_sub(MESSAGE_HEADERS_MAX);
        warn!(
            max_payload,
            limit,
            "this NATS server accepts only small messages: a job's input and an event may have at most `limit` bytes as stored"
        );
    }
}
