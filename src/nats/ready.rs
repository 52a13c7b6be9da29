//! Whether the connections to the broker answer, probed with a request.

use async_nats::{Client, RequestErrorKind, Subscriber};
use bytes::Bytes;
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};
use tracing::debug;

use super::api;
use super::live_reader::LiveReaders;
use crate::config::{READY_AGE, READY_WAIT};
use crate::source::Unavailable;

/// When the connections were last probed, and whether all of them answered. The lock is held during
/// a probe, so that only one runs at a time.
#[derive(Debug, Default)]
pub(super) struct Readiness(Mutex<Option<(Instant, bool)>>);

impl Readiness {
    /// Whether every connection answers a request within [`READY_WAIT`]. The result is reused for
    /// [`READY_AGE`]. The state of a connection is not enough: the client library closes a
    /// connection to a frozen server only after seconds.
    pub(super) async fn check(
        &self,
        [live, replay, work]: [&Client; 3],
        readers: &LiveReaders,
        subject: &str,
    ) -> bool {
        let mut last = self.0.lock().await;
        if let Some((at, all)) = *last
            && at.elapsed() < READY_AGE
        {
            return all;
        }
        let copies = async {
            for reader in readers.used() {
                if !reader.answers(READY_WAIT).await {
                    return false;
                }
            }
            true
        };
        let (live, replay, work, copies) = tokio::join!(
            answers(live, subject),
            answers(replay, subject),
            answers(work, subject),
            copies,
        );
        let all = live && replay && work && copies;
        if !all {
            debug!(
                live,
                replay, work, copies, "a connection to NATS does not answer"
            );
        }
        *last = Some((Instant::now(), all));
        all
    }
}

/// Whether the server answers a request to `subject`, which has no subscriber. The server itself
/// answers, without JetStream or the cluster.
pub(super) async fn answers(client: &Client, subject: &str) -> bool {
    match timeout(READY_WAIT, client.request(subject.to_owned(), Bytes::new())).await {
        Ok(Ok(_)) => true,
        Ok(Err(error)) => error.kind() == RequestErrorKind::NoResponders,
        Err(_) => false,
    }
}

/// Subscribes to a subject, and waits until the server has seen that. `probe` is a subject without
/// a subscriber.
pub(super) async fn subscribe_confirmed(
    client: &Client,
    subject: String,
    probe: &str,
) -> Result<Subscriber, Unavailable> {
    let subscriber = api::subscribe(client, subject).await?;
    // The server answers the requests of a connection in order.
    if answers(client, probe).await {
        Ok(subscriber)
    } else {
        Err(Unavailable(
            "the connection for live messages does not answer".into(),
        ))
    }
}
