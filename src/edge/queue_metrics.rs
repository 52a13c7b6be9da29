//! What the queue reports about its kinds, remembered for a moment: many scrapers must not cost the
//! broker more than one.

use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};
use tracing::debug;

use crate::config::{QUEUE_METRICS_AGE, QUEUE_METRICS_WAIT};
use crate::nats::{KindStatus, Queue, QueueSize};

/// What the queue reported last.
#[derive(Debug, Default)]
pub(super) struct QueueMetrics(Mutex<Option<(Instant, QueueReport)>>);

/// The kinds, and the size of the queue.
pub(super) type QueueReport = (Vec<KindStatus>, QueueSize);

impl QueueMetrics {
    /// A recent report; `None` when the broker does not answer.
    pub(super) async fn recent(&self, queue: &Queue) -> Option<QueueReport> {
        let mut last = self.0.lock().await;
        if let Some((at, report)) = &*last
            && at.elapsed() < QUEUE_METRICS_AGE
        {
            return Some(report.clone());
        }
        let report = match timeout(QUEUE_METRICS_WAIT, queue.kind_statuses()).await {
            Ok(Ok(report)) => report,
            Ok(Err(error)) => {
                debug!(%error, "metrics without the queue");
                return None;
            }
            Err(_) => return None,
        };
        *last = Some((Instant::now(), report.clone()));
        Some(report)
    }
}
