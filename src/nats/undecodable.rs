//! What readers skip because it is not an event: counted, and reported once for each job. It judges nothing.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use tracing::{debug, warn};

use crate::config::UNDECODABLE_JOBS;
use crate::wire::{JobId, StreamSeq, Unreadable};

/// The undecodable messages that the readers of one process, or of one thread of an edge, have met.
#[derive(Debug, Default)]
pub(super) struct Undecodable {
    met: AtomicU64,
    reported: Mutex<HashSet<JobId>>,
}

impl Undecodable {
    /// Takes note that a reader skips a message.
    pub(super) fn note(&self, job: &JobId, stream_seq: StreamSeq, why: &Unreadable) {
        self.met.fetch_add(1, Ordering::Relaxed);
        if self.is_first_of(job) {
            warn!(%job, stream_seq, %why, "the job's log holds messages that are not events; they are skipped and counted");
        } else {
            debug!(%job, stream_seq, %why, "skipped an undecodable message");
        }
    }

    /// How many were skipped; one that two readers skip counts twice.
    pub(super) fn met(&self) -> u64 {
        self.met.load(Ordering::Relaxed)
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
    fn each_job_is_reported_once_and_every_message_counted() {
        let met = Undecodable::default();
        let job = |n: usize| -> JobId { format!("j{n}").parse().unwrap() };
        assert!(met.is_first_of(&job(0)) && !met.is_first_of(&job(0)) && met.is_first_of(&job(1)));
        for n in 0..3 * UNDECODABLE_JOBS {
            met.note(&job(n), 1, &Unreadable::Zero);
        }
        assert_eq!(met.met(), 3 * UNDECODABLE_JOBS as u64);
        assert!(
            met.reported.lock().unwrap().len() <= UNDECODABLE_JOBS,
            "what is remembered is bounded"
        );
    }
}
