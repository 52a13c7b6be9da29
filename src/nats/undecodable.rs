//! Counts the undecodable messages that readers skip, and logs the first one of each job. It does
//! not decide which messages are undecodable.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use tracing::{debug, warn};

use crate::config::UNDECODABLE_JOBS;
use crate::wire::{DecodeError, JobId, StreamSeq};

/// The undecodable messages skipped by the readers of one process, or of one thread of an edge.
#[derive(Debug, Default)]
pub(super) struct Undecodable {
    skipped: AtomicU64,
    reported: Mutex<HashSet<JobId>>,
}

impl Undecodable {
    /// Counts a message that a reader skips.
    pub(super) fn note(&self, job: &JobId, stream_seq: StreamSeq, why: &DecodeError) {
        self.skipped.fetch_add(1, Ordering::Relaxed);
        if self.is_first_of(job) {
            warn!(%job, stream_seq, %why, "the job's log holds undecodable messages; they are skipped and counted");
        } else {
            debug!(%job, stream_seq, %why, "skipped an undecodable message");
        }
    }

    /// How many were skipped. A message that two readers skip counts twice.
    pub(super) fn skipped(&self) -> u64 {
        self.skipped.load(Ordering::Relaxed)
    }

    fn is_first_of(&self, job: &JobId) -> bool {
        let mut reported = self.reported.lock().unwrap_or_else(PoisonError::into_inner);
        if reported.contains(job) {
            return false;
        }
        if reported.len() >= UNDECODABLE_JOBS {
            reported.clear();
        }
        reported.insert(job.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_job_is_reported_once_and_every_message_is_counted() {
        let undecodable = Undecodable::default();
        let job = |n: usize| -> JobId { format!("j{n}").parse().unwrap() };
        assert!(
            undecodable.is_first_of(&job(0))
                && !undecodable.is_first_of(&job(0))
                && undecodable.is_first_of(&job(1))
        );
        for n in 0..3 * UNDECODABLE_JOBS {
            undecodable.note(&job(n), 1, &DecodeError::Zero);
        }
        assert_eq!(undecodable.skipped(), 3 * UNDECODABLE_JOBS as u64);
        assert!(
            undecodable.reported.lock().unwrap().len() <= UNDECODABLE_JOBS,
            "the set of reported jobs is limited"
        );
    }
}
