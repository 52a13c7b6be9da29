//! The jobs that this worker holds. When the queue delivers one of them again, after an outage or
//! because progress reports were late, the running attempt continues and replies to the newer
//! delivery.

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
    report: Notify,
}

/// A job that the worker holds until this is dropped.
#[derive(Debug)]
pub(super) struct HeldJob {
    jobs: HeldJobs,
    job: Arc<HeldEntry>,
}

impl HeldJobs {
    /// Holds a job. `None` when it is held already: the running attempt then adopts the delivery.
    pub(super) fn hold(&self, delivery: Delivery) -> Option<HeldJob> {
        let job = match self.lock().entry(delivery.job.clone()) {
            Entry::Occupied(held) => {
                held.get().delivery.adopt(delivery);
                held.get().report.notify_one();
                return None;
            }
            Entry::Vacant(free) => Arc::clone(free.insert(Arc::new(HeldEntry {
                delivery,
                report: Notify::new(),
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

    /// Requests a progress report to the queue at once.
    pub(super) fn report_now(&self) {
        self.job.report.notify_one();
    }

    /// Waits until [`Self::report_now`] is called.
    pub(super) async fn report_requested(&self) {
        self.job.report.notified().await;
    }

    /// Stops holding the job: the next delivery of the job starts a new claim. Call it before
    /// replying to the queue.
    pub(super) fn release(&self) {
        let mut jobs = self.jobs.lock();
        // Another `HeldJob` may hold it by now.
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
