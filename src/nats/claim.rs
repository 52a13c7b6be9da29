//! Claims jobs of one kind from the queue. It does not decide what happens to a delivered job.

use std::fmt;
use std::time::Duration;

use async_nats::jetstream;
use async_nats::jetstream::consumer::{PullConsumer, pull::Batch};
use futures_util::{FutureExt as _, StreamExt as _};
use tokio::time::{Instant, sleep_until, timeout};

use super::connect::Nats;
use super::delivery::Delivery;
use super::error::{NatsError, unavailable};
use super::setup;
use crate::config::{CLAIM_LATE, CLAIM_WAIT, REQUEST_WAIT};
use crate::source::Unavailable;
use crate::wire::Kind;

/// Claims jobs of one kind.
pub struct Claim {
    nats: Nats,
    consumer: PullConsumer,
    fetch: Option<Fetch>,
}

/// A request for jobs. Jobs that arrive after this was dropped are delivered again only after the
/// ack wait.
struct Fetch {
    batch: Batch,
    /// The number of the connection it was sent over. The broker forgets the request when that
    /// connection closes.
    connection: u64,
    /// After this time the broker does not answer any more.
    until: Instant,
}

impl fmt::Debug for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Claim")
            .field("fetching", &self.fetch.is_some())
            .finish_non_exhaustive()
    }
}

impl Claim {
    /// Opens the kind's consumer. Creates it with this ack wait if no worker has served the kind
    /// before.
    ///
    /// # Errors
    /// [`NatsError`].
    pub async fn open(nats: &Nats, kind: &Kind, ack_wait: Duration) -> Result<Self, NatsError> {
        nats.retry_during_startup(|| setup::ensure_kind(&nats.work, &nats.names, kind, ack_wait))
            .await?;
        let context = jetstream::new(nats.work.clone());
        let stream = context
            .get_stream_no_info(nats.names.jobs_stream())
            .await
            .map_err(unavailable)?;
        let consumer: PullConsumer = nats
            .retry_during_startup(|| async {
                stream
                    .get_consumer(kind.as_str())
                    .await
                    .map_err(|error| unavailable(error).into())
            })
            .await?;
        Ok(Self {
            nats: nats.clone(),
            consumer,
            fetch: None,
        })
    }

    /// How long a worker may be silent before the queue delivers its jobs to another one. The
    /// kind's first worker sets it.
    pub fn ack_wait(&self) -> Duration {
        self.consumer.cached_info().config.ack_wait
    }

    /// Returns the next job. Requests `free` jobs from the broker if no request is open.
    /// Cancel-safe.
    ///
    /// # Errors
    /// [`Unavailable`]: try again after a pause.
    pub async fn next(&mut self, free: usize) -> Result<Delivery, Unavailable> {
        loop {
            let Some(fetch) = &mut self.fetch else {
                self.fetch = Some(self.fetch(free).await?);
                continue;
            };
            let answer = tokio::select! {
                // Jobs that have arrived come before the end of the request.
                biased;
                answer = fetch.batch.next() => answer,
                () = sleep_until(fetch.until) => None,
                Ok(()) = self.nats.work_reconnected.changed() => {
                    if fetch.connection == self.nats.work_connections() {
                        continue;
                    }
                    None
                }
            };
            match answer {
                Some(Ok(message)) => {
                    if let Some(delivery) =
                        Delivery::decode(self.nats.clone(), message, self.ack_wait()).await
                    {
                        return Ok(delivery);
                    }
                }
                Some(Err(error)) => {
                    self.fetch = None;
                    return Err(unavailable(error));
                }
                None => self.fetch = None,
            }
        }
    }

    /// Requests `free` jobs from the broker.
    async fn fetch(&self, free: usize) -> Result<Fetch, Unavailable> {
        // Waits while the connection is down: a request made meanwhile would be sent over the next
        // connection, and counted as lost with this one.
        self.flush().await?;
        let fetch = self
            .consumer
            .fetch()
            .max_messages(free)
            .expires(CLAIM_WAIT)
            .messages();
        let batch = timeout(REQUEST_WAIT, fetch)
            .await
            .map_err(|_| Unavailable("no answer in time".into()))?;
        let batch = batch.map_err(unavailable)?;
        // Now the request was sent over the current connection, or is lost.
        self.flush().await?;
        Ok(Fetch {
            batch,
            connection: self.nats.work_connections(),
            until: Instant::now() + CLAIM_WAIT + CLAIM_LATE,
        })
    }

    /// Waits until all requests are sent.
    async fn flush(&self) -> Result<(), Unavailable> {
        self.nats.work.flush().await.map_err(unavailable)
    }

    /// Stops claiming, and hands back jobs that arrived and were not used.
    pub async fn close(self) {
        let ack_wait = self.ack_wait();
        let Some(Fetch { mut batch, .. }) = self.fetch else {
            return;
        };
        while let Some(Some(Ok(message))) = batch.next().now_or_never() {
            if let Some(delivery) = Delivery::decode(self.nats.clone(), message, ack_wait).await {
                delivery.hand_back(None).await;
            }
        }
    }
}
