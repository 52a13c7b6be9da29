//! Whether the broker answers: requests of the start, which are repeated until the caller's
//! patience ends, and probes of a running process. What is requested is the caller's.

use std::future::Future;

use async_nats::{Client, RequestErrorKind};
use bytes::Bytes;
use tokio::time::{Instant, sleep, timeout};
use tracing::debug;

use super::connect::Nats;
use super::error::NatsError;
use crate::config::{READY_AGE, READY_WAIT, START_PAUSE};

impl Nats {
    /// Whether every connection answers a request, within [`READY_WAIT`]. An answer is relied on
    /// for [`READY_AGE`].
    ///
    /// A connection to a server that hangs stands for seconds before the client library closes it,
    /// so the state of the connection proves nothing.
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

    /// Makes a request of the start until it succeeds, fails for good, or the patience of
    /// [`Options`](super::Options) ends. It is made once in any case.
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

/// Whether the server answers that `subject` has no subscriber. It does so itself, without
/// JetStream and without its cluster.
pub(super) async fn answers(client: &Client, subject: String) -> bool {
    match timeout(READY_WAIT, client.request(subject, Bytes::new())).await {
        Ok(Ok(_)) => true,
        Ok(Err(error)) => error.kind() == RequestErrorKind::NoResponders,
        Err(_) => false,
    }
}
