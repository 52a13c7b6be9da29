//! What a process does with the broker when it starts: setup, the consumer of a kind, the number of
//! shards. Requests are retried until the deadline of [`Options`](super::Options).

use std::future::Future;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use tracing::debug;

use super::connect::Nats;
use super::drift::Change;
use super::error::NatsError;
use super::setup::{self, StreamSettings};
use crate::config::START_PAUSE;
use crate::wire::Kind;

impl Nats {
    /// Creates the streams that `nats/` declares, and applies the retention in `settings` to
    /// existing ones. Returns what was changed.
    ///
    /// # Errors
    /// [`NatsError`]; a stream that differs in anything else is not changed.
    pub async fn set_up(&self, settings: &StreamSettings) -> Result<Vec<Change>, NatsError> {
        self.retry_during_startup(|| setup::apply(&self.work, &self.names, settings))
            .await
    }

    /// Creates the consumer of a kind before its first worker does, so that its jobs are accepted.
    ///
    /// # Errors
    /// [`NatsError`].
    pub async fn declare_kind(&self, kind: &Kind, ack_wait: Duration) -> Result<(), NatsError> {
        self.retry_during_startup(|| setup::ensure_kind(&self.work, &self.names, kind, ack_wait))
            .await
    }

    /// How many shards there are.
    ///
    /// # Errors
    /// [`NatsError::NotSetUp`].
    pub async fn shards(&self) -> Result<u32, NatsError> {
        self.retry_during_startup(|| setup::shards(&self.work, &self.names))
            .await
    }

    /// Retries a request until it succeeds, fails with an error that is not temporary, or the
    /// startup deadline has passed. It is made at least once.
    pub(super) async fn retry_during_startup<T, W>(
        &self,
        request: impl Fn() -> W,
    ) -> Result<T, NatsError>
    where
        W: Future<Output = Result<T, NatsError>>,
    {
        loop {
            match request().await {
                Err(error) if error.is_temporary() && Instant::now() < self.startup_deadline => {
                    debug!(%error, "NATS does not answer yet");
                    sleep(START_PAUSE).await;
                }
                result => return result,
            }
        }
    }
}
