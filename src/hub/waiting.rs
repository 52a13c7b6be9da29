//! The table of watched jobs that neither the log nor the queue knows, and when each is looked up
//! next. Its task is in `waiter`.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tracing::debug;

use crate::config::{LOOK_AGAIN, LOOK_EVERY, PROBE_FIRST, WAITING_MAX};
use crate::fair_slots::FairSlots;
use crate::source::Unavailable;
use crate::wire::{JobId, Stored};

#[derive(Debug)]
pub(super) struct WaitingTable {
    entries: Mutex<WaitingEntries>,
    /// Each waiter holds one.
    pub(super) slots: FairSlots,
    /// Whether the subscription is established.
    pub(super) subscribed: watch::Sender<bool>,
}

#[derive(Debug, Default)]
pub(super) struct WaitingEntries {
    jobs: HashMap<JobId, WaitingEntry>,
    /// The same jobs, in the order in which they are looked up.
    due: BTreeSet<(Instant, JobId)>,
    /// Whether the table's task runs.
    pub(super) is_served: bool,
}

#[derive(Debug)]
pub(super) struct WaitingEntry {
    due: Instant,
    job: Arc<UnknownJob>,
}

/// What the waiters for one job share.
#[derive(Debug, Default)]
pub(super) struct UnknownJob {
    pub(super) changed: Notify,
    pub(super) waiters: AtomicU32,
    /// Whether the leader and the queue have answered that they do not know the job.
    leader_answered: AtomicBool,
    /// Set once the job is known.
    pub(super) found: OnceLock<FoundJob>,
}

/// What is known of a job.
#[derive(Clone, Debug)]
pub enum FoundJob {
    /// It was submitted; its log may have no event yet.
    Submitted,
    /// Its log has events. This is the last one.
    Logged(Arc<Stored>),
}

/// The result of a lookup; `None` if the job is not known.
pub(super) type Lookup = Result<Option<FoundJob>, Unavailable>;

impl WaitingTable {
    pub(super) fn new() -> Self {
        Self {
            entries: Mutex::default(),
            slots: FairSlots::new(WAITING_MAX),
            subscribed: watch::Sender::new(false),
        }
    }

    /// How many jobs have waiters.
    pub(super) fn len(&self) -> usize {
        self.lock().jobs.len()
    }

    pub(super) async fn until_subscribed(&self) {
        // The sender lives as long as the table.
        let _ = self.subscribed.subscribe().wait_for(|is| *is).await;
    }

    /// The job is known: wakes its waiters, which continue with a feed.
    pub(super) fn resolve(&self, id: &JobId, found: FoundJob) {
        let entry = self.lock().remove(id);
        if let Some(entry) = entry {
            let _ = entry.job.found.set(found);
            entry.job.changed.notify_waiters();
        }
    }

    /// Signals may have been lost: schedules an early lookup of every job.
    pub(super) fn look_again(&self) {
        let mut entries = self.lock();
        let due = Instant::now() + PROBE_FIRST;
        let WaitingEntries {
            jobs, due: order, ..
        } = &mut *entries;
        for entry in jobs.values_mut() {
            entry.due = due;
        }
        *order = jobs.keys().map(|id| (due, id.clone())).collect();
    }

    /// The jobs to look up now, at most `max`, each with whether the leader and the queue have
    /// answered before. Schedules the next lookup of each.
    pub(super) fn due(&self, max: usize) -> Vec<(JobId, bool)> {
        let now = Instant::now();
        let mut entries = self.lock();
        let mut due = Vec::new();
        while due.len() < max
            && entries.due.first().is_some_and(|(due, _)| *due <= now)
            && let Some((_, id)) = entries.due.pop_first()
        {
            let Some(entry) = entries.jobs.get_mut(&id) else {
                continue;
            };
            entry.due = now + LOOK_EVERY + id.spread(LOOK_EVERY / 2);
            let next = (entry.due, id.clone());
            let leader_answered = entry.job.leader_answered.load(Ordering::Relaxed);
            entries.due.insert(next);
            due.push((id, leader_answered));
        }
        due
    }

    /// Applies the result of a lookup.
    pub(super) fn apply(&self, id: &JobId, lookup: Lookup) {
        match lookup {
            Ok(Some(found)) => self.resolve(id, found),
            Ok(None) => {
                if let Some(entry) = self.lock().jobs.get(id) {
                    entry.job.leader_answered.store(true, Ordering::Relaxed);
                }
            }
            Err(error) => {
                debug!(job = %id, %error, "cannot look a job up");
                self.lock().postpone(id, Instant::now() + LOOK_AGAIN);
            }
        }
    }

    /// Whether the table is empty, so that its task may end. The next waiter starts another.
    pub(super) fn end_if_empty(&self) -> bool {
        let mut entries = self.lock();
        let is_empty = entries.jobs.is_empty();
        if is_empty {
            *entries = WaitingEntries::default();
            self.subscribed.send_replace(false);
        }
        is_empty
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, WaitingEntries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl WaitingEntries {
    /// The job's entry, which is added if it is not there.
    pub(super) fn join(&mut self, id: &JobId) -> Arc<UnknownJob> {
        if let Some(entry) = self.jobs.get(id) {
            return Arc::clone(&entry.job);
        }
        let due = Instant::now() + PROBE_FIRST;
        let job = Arc::<UnknownJob>::default();
        let entry = WaitingEntry {
            due,
            job: Arc::clone(&job),
        };
        self.jobs.insert(id.clone(), entry);
        self.due.insert((due, id.clone()));
        job
    }

    /// Whether this is still the entry of the job: another one may have been added with the same
    /// id.
    pub(super) fn holds(&self, id: &JobId, job: &Arc<UnknownJob>) -> bool {
        self.jobs
            .get(id)
            .is_some_and(|entry| Arc::ptr_eq(&entry.job, job))
    }

    fn postpone(&mut self, id: &JobId, due: Instant) {
        let Some(entry) = self.jobs.get_mut(id) else {
            return;
        };
        self.due.remove(&(entry.due, id.clone()));
        entry.due = due;
        self.due.insert((due, id.clone()));
    }

    pub(super) fn remove(&mut self, id: &JobId) -> Option<WaitingEntry> {
        let (id, entry) = self.jobs.remove_entry(id)?;
        self.due.remove(&(entry.due, id));
        if self.jobs.capacity() > 4 * self.jobs.len() {
            let keep = self.jobs.len() * 2;
            self.jobs.shrink_to(keep);
        }
        Some(entry)
    }
}
