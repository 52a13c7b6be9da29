//! Whether a job exists. A job is in the queue before its log has an event, and the queue removes it
//! after the log has its final event. So a job can leave the queue after its log was read: only the
//! order of the reads in [`find_job`] finds every job.

use std::future::Future;

/// Where a job was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KnownJob<L, Q> {
    /// In the log. The queue may hold it, too.
    Logged(L),
    /// In the queue, after the log had no event.
    Queued(Q),
}

/// Reads a job's log, then the queue if the log has no event, then the log again if the queue does
/// not hold the job: meanwhile the job may have started, ended and left the queue. `None` if the job
/// does not exist.
///
/// # Errors
/// Those of the reads.
pub async fn find_job<L, Q, E, R, W>(
    read_log: impl Fn() -> R,
    read_queue: impl FnOnce() -> W,
) -> Result<Option<KnownJob<L, Q>>, E>
where
    R: Future<Output = Result<Option<L>, E>>,
    W: Future<Output = Result<Option<Q>, E>>,
{
    if let Some(logged) = read_log().await? {
        return Ok(Some(KnownJob::Logged(logged)));
    }
    if let Some(queued) = read_queue().await? {
        return Ok(Some(KnownJob::Queued(queued)));
    }
    Ok(read_log().await?.map(KnownJob::Logged))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::memory::{MemoryLog, chunk, job};
    use crate::source::{EventSource as _, Replica, Unavailable};
    use crate::wire::{Body, Seq};

    /// Where the job is found if `meanwhile` happens between the first read of the log and that of
    /// the queue: the sequence number of its last event, or nothing if only the queue holds it.
    async fn found(
        memory: &MemoryLog,
        meanwhile: impl FnOnce(),
    ) -> Result<Option<KnownJob<Seq, ()>>, Unavailable> {
        find_job(
            || async {
                let last = memory.last(&job(), Replica::Leader).await?;
                Ok(last.map(|last| last.seq))
            },
            || async {
                meanwhile();
                Ok(memory.is_queued(&job()).await?.then_some(()))
            },
        )
        .await
    }

    #[tokio::test]
    async fn a_job_that_ends_between_the_reads_of_the_log_and_the_queue_is_found() {
        let memory = MemoryLog::default();
        let run_to_the_end = || {
            memory.append(&job(), chunk("x"));
            memory.append(&job(), Body::Cancelled {});
        };
        let found = found(&memory, run_to_the_end).await.unwrap();
        assert_eq!(found, Some(KnownJob::Logged(Seq(2))));
    }

    #[tokio::test]
    async fn a_job_is_found_in_the_queue_only_while_its_log_is_empty() {
        let memory = MemoryLog::default();
        assert_eq!(found(&memory, || {}).await.unwrap(), None);
        let submit = || memory.enqueue(&job());
        let queued = found(&memory, submit).await.unwrap();
        assert_eq!(queued, Some(KnownJob::Queued(())));
        memory.append(&job(), chunk("x"));
        let logged = found(&memory, || panic!("the queue need not be asked")).await;
        assert_eq!(logged.unwrap(), Some(KnownJob::Logged(Seq(1))));
    }

    #[tokio::test]
    async fn a_job_is_not_unknown_because_a_read_failed() {
        let memory = MemoryLog::default();
        memory.reachable(false);
        assert!(found(&memory, || {}).await.is_err());
        memory.reachable(true);
        let lose_the_broker = || memory.reachable(false);
        assert!(found(&memory, lose_the_broker).await.is_err());
    }
}
