//! The jobs that this worker has in hand: when the queue hands it one of them once more, after an outage or because it was
//! not heard in time, what runs goes on and answers the newer delivery. It runs nothing.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::nats::Delivery;
use crate::wire::JobId;

/// The jobs in hand, by their ids.
#[derive(Clone, Debug, Default)]
pub(super) struct HeldJobs(Arc<Mutex<HashMap<JobId, Arc<HeldEntry>>>>);

#[derive(Debug)]
struct HeldEntry {
    delivery: Delivery,
    keep: Notify,
}

/// A job in hand, until it is dropped.
#[derive(Debug)]
pub(super) struct HeldJob {
    jobs: HeldJobs,
    job: Arc<HeldEntry>,
}

impl HeldJobs {
    /// Takes a job in hand. `None` when it is in hand already: then the delivery is one of what runs.
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

    /// Has the queue told at once that the job is being worked on.
    pub(super) fn keep_now(&self) {
        self.job.keep.notify_one();
    }

    /// Waits until the queue is to be told at once.
    pub(super) async fn keep_asked(&self) {
        self.job.keep.notified().await;
    }

    /// Lets go of the job: what the queue hands over from now on is a new delivery. Do it before the queue is told that the
    /// job is over, or is to be handed to another worker.
    pub(super) fn release(&self) {
        let mut jobs = self.jobs.lock();
        // By now it may be in hand again, by another one.
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
