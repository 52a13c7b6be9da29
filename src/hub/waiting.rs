//! Watches of jobs that neither the log nor the queue knows: one table for an edge thread, with one subscription and one
//! task while it has entries, since anybody can make up ids. What becomes of a job that is known is the feed's.
//!
//! The subscription is to what is submitted, not to the live copies: those are all chunks of every job, this is one message
//! for each job, whoever submits it. It is at most once, and a log may be written without the queue, so each entry is also
//! looked up in the log from time to time.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tracing::debug;

use crate::config::{LOOK_AGAIN, LOOK_EVERY, PROBE_FIRST, WAITING_MAX};
use crate::share::FairSlots;
use crate::source::Unavailable;
use crate::wire::{JobId, Stored};

/// The table.
#[derive(Debug)]
pub(super) struct Waiting {
    table: Mutex<Table>,
    /// Each watch has one.
    pub(super) places: FairSlots,
    /// Whether the subscription stands.
    pub(super) standing: watch::Sender<bool>,
}

#[derive(Debug, Default)]
pub(super) struct Table {
    pub(super) jobs: HashMap<JobId, Entry>,
    /// The same jobs, in the order in which they are looked up.
    pub(super) due: BTreeSet<(Instant, JobId)>,
    /// Whether the task runs.
    pub(super) is_kept: bool,
}

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) due: Instant,
    pub(super) job: Arc<Unknown>,
}

/// What the watches of one job share.
#[derive(Debug, Default)]
pub(super) struct Unknown {
    pub(super) changed: Notify,
    pub(super) watches: AtomicU32,
    /// Whether the leader and the queue said that they do not know it.
    pub(super) is_asked: AtomicBool,
    pub(super) known: OnceLock<Known>,
}

/// How a job is known: by the last event of its log, or, without one, as submitted.
pub(super) type Known = Option<Arc<Stored>>;
/// What a look for a job brought: how it is known, if it is.
pub(super) type Looked = Result<Option<Known>, Unavailable>;

impl Waiting {
    pub(super) fn new() -> Self {
        Self {
            table: Mutex::default(),
            places: FairSlots::new(WAITING_MAX),
            standing: watch::Sender::new(false),
        }
    }

    /// How many jobs are waited for.
    pub(super) fn len(&self) -> usize {
        self.lock().jobs.len()
    }

    pub(super) async fn until_standing(&self) {
        // The sender lives as long as the table.
        let _ = self.standing.subscribe().wait_for(|stands| *stands).await;
    }

    /// The job is known: its watches go on to a feed.
    pub(super) fn known(&self, id: &JobId, known: Known) {
        let entry = self.lock().remove(id);
        if let Some(entry) = entry {
            let _ = entry.job.known.set(known);
            entry.job.changed.notify_waiters();
        }
    }

    /// Signals may have been lost: every job is looked up within a short time.
    pub(super) fn look_again(&self) {
        let mut table = self.lock();
        let due = Instant::now() + PROBE_FIRST;
        let Table {
            jobs, due: order, ..
        } = &mut *table;
        for entry in jobs.values_mut() {
            entry.due = due;
        }
        *order = jobs.keys().map(|id| (due, id.clone())).collect();
    }

    /// The jobs to look up now, no more than `max`, and whether the leader and the queue were asked before. Each is due again
    /// after that.
    pub(super) fn due(&self, max: usize) -> Vec<(JobId, bool)> {
        let now = Instant::now();
        let mut table = self.lock();
        let mut due = Vec::new();
        while due.len() < max
            && table.due.first().is_some_and(|(due, _)| *due <= now)
            && let Some((_, id)) = table.due.pop_first()
        {
            let Some(entry) = table.jobs.get_mut(&id) else {
                continue;
            };
            entry.due = now + LOOK_EVERY + id.spread(LOOK_EVERY / 2);
            let next = (entry.due, id.clone());
            let is_asked = entry.job.is_asked.load(Ordering::Relaxed);
            table.due.insert(next);
            due.push((id, is_asked));
        }
        due
    }

    /// Takes in what a look brought.
    pub(super) fn looked(&self, id: &JobId, looked: Looked) {
        match looked {
            Ok(Some(known)) => self.known(id, known),
            Ok(None) => {
                if let Some(entry) = self.lock().jobs.get(id) {
                    entry.job.is_asked.store(true, Ordering::Relaxed);
                }
            }
            Err(error) => {
                debug!(job = %id, %error, "cannot look a job up");
                self.lock().postpone(id, Instant::now() + LOOK_AGAIN);
            }
        }
    }

    /// Whether the task may end: nothing is waited for. Who comes after that starts another.
    pub(super) fn end_if_empty(&self) -> bool {
        let mut table = self.lock();
        let is_empty = table.jobs.is_empty();
        if is_empty {
            *table = Table::default();
            self.standing.send_replace(false);
        }
        is_empty
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn postpone(&mut self, id: &JobId, due: Instant) {
        let Some(entry) = self.jobs.get_mut(id) else {
            return;
        };
        self.due.remove(&(entry.due, id.clone()));
        entry.due = due;
        self.due.insert((due, id.clone()));
    }

    pub(super) fn remove(&mut self, id: &JobId) -> Option<Entry> {
        let (id, entry) = self.jobs.remove_entry(id)?;
        self.due.remove(&(entry.due, id));
        if self.jobs.capacity() > 4 * self.jobs.len() {
            let keep = self.jobs.len() * 2;
            self.jobs.shrink_to(keep);
        }
        Some(entry)
    }
}
