//! Whether the broker answers: requests at the start, which are repeated for a limited time, and
//! probes of a running process.

use std::future::Future;

use async_nats::{Client, RequestErrorKind};
use bytes::Bytes;
use tokio::time::{Instant, sleep, timeout};
use tracing::debug;

use super::connect::Nats;
use super::error::NatsError;
use crate::config::{READY_AGE, READY_WAIT, START_PAUSE};

impl Nats {
    /// Whether every connection answers a request within [`READY_WAIT`]. The result is reused for
    /// [`READY_AGE`]. The state of a connection is not enough: the client library closes a
    /// connection to a frozen server only after seconds.
    pub async fn is_answering(&self) -> bool {
        let mut last = self.readiness.lock().await;
        if let Some((asked, answers)) = *last
            && asked.elapsed() < READY_AGE
        {
            return answers;
        }
        let ask = |client| answers(client, self.names.ready());
        let (live, replay, work) =
            tokio::join!(ask(&self.live), ask(&self.replay), ask(&self.work));
        let all = live && replay && work;
        if !all {
            debug!(live, replay, work, "a connection to NATS does not answer");
        }
        *last = Some((Instant::now(), all));
        all
    }

    /// Repeats a request at the start until it succeeds, fails permanently, or the time that
    /// [`Options`](super::Options) allow has passed. It is made at least once.
    pub(super) async fn patiently<T, W>(&self, ask: impl Fn() -> W) -> Result<T, NatsError>
    where
        W: Future<Output = Result<T, NatsError>>,
    {
        loop {
            match ask().await {
                Err(error) if error.is_passing() && Instant::now() < self.patient_until => {
                    debug!(%error, "NATS does not answer yet");
                    sleep(START_PAUSE).await;
                }
                done => return done,
            }
        }
    }
}

/// Whether the server answers a request to `subject`, which has no subscriber. The server itself
/// answers, without JetStream or the cluster.
pub(super) async fn answers(client: &Client, subject: String) -> bool {
    match timeout(READY_WAIT, client.request(subject, Bytes::new())).await {
        Ok(Ok(_)) => true,
        Ok(Err(error)) => error.kind() == RequestErrorKind::NoResponders,
        Err(_) => false,
    }
}
