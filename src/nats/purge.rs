//! Removes an ended job's log, for good. It does not touch jobs that go on.

use serde::Deserialize;
use serde_json::json;

use super::api;
use super::queue::Queue;
use super::tip::Tip;
use crate::source::Unavailable;
use crate::wire::JobId;

/// The result of a purge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PurgeOutcome {
    /// The log is gone; it had this many events.
    Purged(u64),
    /// The job has not ended.
    NotEnded,
    /// No job has this id.
    Unknown,
    /// The log ends with too many undecodable messages to find its last event.
    Undecodable,
}

#[derive(Deserialize)]
struct PurgeAnswer {
    purged: u64,
}

impl Queue {
    /// Removes all events of a job that has ended. Nothing can follow a job's final event, so
    /// nothing else is removed. A disk keeps removed messages until NATS compacts its files.
    ///
    /// # Errors
    /// [`Unavailable`]: it is not known whether the log was removed. Repeating it is harmless.
    pub async fn purge(&self, job: &JobId) -> Result<PurgeOutcome, Unavailable> {
        let last = match self.log.proven_tip(job).await? {
            Tip::At { last, .. } => last,
            Tip::Undecodable => return Ok(PurgeOutcome::Undecodable),
        };
        let Some(last) = last else {
            let is_queued = self.is_queued(job).await?;
            return Ok(if is_queued {
                PurgeOutcome::NotEnded
            } else {
                PurgeOutcome::Unknown
            });
        };
        if !last.event_type.is_end() {
            return Ok(PurgeOutcome::NotEnded);
        }
        let request = format!("STREAM.PURGE.{}", self.log.stream(job));
        let body = json!({"filter": self.log.subject(job)}).to_string();
        let PurgeAnswer { purged } = api::call(&self.log.nats.work, &request, body).await?;
        Ok(PurgeOutcome::Purged(purged))
    }
}
