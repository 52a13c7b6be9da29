//! The jobs that this worker holds. When the queue delivers one of them to it again, after an
//! outage or because it did not hear from it in time, the running attempt goes on and answers the
//! newer delivery. It runs nothing.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::nats::Delivery;
use crate::wire::JobId;

/// The jobs that a worker holds, by their ids.
#[derive(Clone, Debug, Default)]
pub(super) struct HeldJobs(Arc<Mutex<HashMap<JobId, Arc<HeldEntry>>>>);

#[derive(Debug)]
struct HeldEntry {
    delivery: Delivery,
    keep: Notify,
}

/// A job that the worker holds until this is dropped.
#[derive(Debug)]
pub(super) struct HeldJob {
    jobs: HeldJobs,
    job: Arc<HeldEntry>,
}

impl HeldJobs {
    /// Holds a job. `None` when it is held already: then the running attempt adopts the delivery.
    pub(super) fn hold(&self, delivery: Delivery) -> Option<HeldJob> {
        let job = match self.lock().entry(delivery.job.clone()) {
            Entry::Occupied(held) => {
                held.get().delivery.adopt(delivery);
                held.get().keep.notify_one();
                return None;
            }
            Entry::Vacant(free) => Arc::clone(free.insert(Arc::new(HeldEntry {
                delivery,
                keep: Notify::new(),
            }))),
        };
        Some(HeldJob {
            jobs: self.clone(),
            job,
        })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<JobId, Arc<HeldEntry>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl HeldJob {
    pub(super) fn delivery(&self) -> &Delivery {
        &self.job.delivery
    }

    /// Makes the worker report to the queue at once that the job is being worked on.
    pub(super) fn keep_now(&self) {
        self.job.keep.notify_one();
    }

    /// Waits until [`Self::keep_now`] is called.
    pub(super) async fn keep_asked(&self) {
        self.job.keep.notified().await;
    }

    /// Stops holding the job: what the queue delivers from now on is a new delivery. Call it before
    /// the queue learns that the job is over, or must go to another worker.
    pub(super) fn release(&self) {
        let mut jobs = self.jobs.lock();
        // By now it may be held again, by another one.
        if jobs
            .get(&self.job.delivery.job)
            .is_some_and(|job| Arc::ptr_eq(job, &self.job))
        {
            jobs.remove(&self.job.delivery.job);
        }
    }
}

impl Drop for HeldJob {
    fn drop(&mut self) {
        self.release();
    }
}
