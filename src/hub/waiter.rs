//! Waits for jobs that neither the log nor the queue knows. Any client can invent ids, so all of
//! them share one table, one subscription and one task per edge thread. A job that becomes known
//! gets a feed.
//!
//! The subscription is to submissions: one message per job. It delivers at most once, and a log may
//! be written without the queue, so each entry is also looked up from time to time.

use std::net::IpAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, StreamExt as _};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use tracing::{debug, error};

use super::feed::FeedWatch;
use super::feeds::{Full, Hub};
use super::waiting::{FoundJob, Lookup, UnknownJob};
use crate::backoff::Backoff;
use crate::budget::LimitReached;
use crate::config::{FEED_LINGER, LOOK_TICK, LOOKS_PER_TICK, REREAD_FIRST, REREAD_MAX};
use crate::fair_slots::FairSlot;
use crate::source::{EventSource, KnownJob, Replica, SubmitSignal, SubmitSignals, find_job};
use crate::wire::JobId;

/// Waits for a job that is not known.
#[derive(Debug)]
pub struct Waiter<S: EventSource> {
    hub: Arc<Hub<S>>,
    id: JobId,
    job: Arc<UnknownJob>,
    slot: FairSlot,
}

impl<S: EventSource> Waiter<S> {
    pub(super) fn join(hub: &Arc<Hub<S>>, id: &JobId, from: IpAddr) -> Result<Self, Full> {
        let slot = hub
            .waiting
            .slots
            .acquire(from)
            .map_err(|LimitReached| Full)?;
        let mut entries = hub.waiting.lock();
        let job = entries.join(id);
        job.waiters.fetch_add(1, Ordering::Relaxed);
        if !entries.is_served {
            entries.is_served = true;
            hub.tasks
                .spawn_until_stop(serve_until_empty(Arc::clone(hub)));
        }
        drop(entries);
        Ok(Self {
            hub: Arc::clone(hub),
            id: id.clone(),
            job,
            slot,
        })
    }

    /// The job.
    pub fn job(&self) -> &JobId {
        &self.id
    }

    /// The hub.
    pub fn hub(&self) -> &Arc<Hub<S>> {
        &self.hub
    }

    fn is_known(&self) -> bool {
        self.job.found.get().is_some()
    }

    /// Returns once the job is known.
    pub async fn until_known(&self) -> FoundJob {
        loop {
            let mut changed = std::pin::pin!(self.job.changed.notified());
            changed.as_mut().enable();
            if let Some(found) = self.job.found.get() {
                return found.clone();
            }
            changed.await;
        }
    }

    /// Watches the job once it is known.
    ///
    /// # Errors
    /// [`Full`].
    pub fn watch(&self, found: FoundJob) -> Result<FeedWatch, Full> {
        let last = match found {
            FoundJob::Submitted => None,
            FoundJob::Logged(last) => Some(last),
        };
        self.hub.watch_known(&self.id, self.slot.from(), last)
    }

    /// Waits again, after there was no room for a feed. The job is soon looked up.
    ///
    /// # Errors
    /// [`Full`].
    pub fn rejoin(&self) -> Result<Self, Full> {
        Self::join(&self.hub, &self.id, self.slot.from())
    }
}

impl<S: EventSource> Drop for Waiter<S> {
    fn drop(&mut self) {
        let mut entries = self.hub.waiting.lock();
        let was_last = self.job.waiters.fetch_sub(1, Ordering::Relaxed) == 1;
        if was_last && entries.holds(&self.id, &self.job) {
            entries.remove(&self.id);
        }
    }
}

impl<S: EventSource> Hub<S> {
    /// A waiter for a job of which a replica has no events; `None` if it has events or the job has
    /// a feed. The leader and the queue are asked later, so that many invented ids do not fill the
    /// broker's API queue.
    ///
    /// # Errors
    /// [`Full`].
    pub async fn wait(
        self: &Arc<Self>,
        id: &JobId,
        from: IpAddr,
    ) -> Result<Option<Waiter<S>>, Full> {
        if self.lock().contains_key(id) {
            return Ok(None);
        }
        // A known job needs no subscription. If there is one already, one lookup is enough.
        let subscribed = *self.waiting.subscribed.borrow();
        if !subscribed && self.has_events_somewhere(id).await {
            return Ok(None);
        }
        let waiter = match Waiter::join(self, id, from) {
            // A known job can be watched even if the table is full.
            Err(Full) if subscribed && self.has_events_somewhere(id).await => return Ok(None),
            joined => joined?,
        };
        self.waiting.until_subscribed().await;
        let is_known = waiter.is_known() || self.has_events_somewhere(id).await;
        Ok((!is_known).then_some(waiter))
    }

    /// How many unknown jobs have waiters.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Looks a job up in the leader's log and the queue, or, once these have answered, in any
    /// replica.
    async fn look_up(&self, id: &JobId, leader_answered: bool) -> Lookup {
        if leader_answered {
            let last = self.source().last(id, Replica::Any).await?;
            return Ok(last.map(FoundJob::Logged));
        }
        let found = find_job(
            || self.source().last(id, Replica::Leader),
            || async { Ok(self.source().is_queued(id).await?.then_some(())) },
        );
        Ok(found.await?.map(|found| match found {
            KnownJob::Logged(last) => FoundJob::Logged(last),
            KnownJob::Queued(()) => FoundJob::Submitted,
        }))
    }

    /// Whether a replica has events of the job. Repeats failed requests; the caller limits the
    /// time.
    async fn has_events_somewhere(&self, id: &JobId) -> bool {
        let mut backoff = Backoff::new(REREAD_FIRST, REREAD_MAX);
        loop {
            match self.source().last(id, Replica::Any).await {
                Ok(last) => return last.is_some(),
                Err(error) => debug!(job = %id, %error, "cannot look a job up yet"),
            }
            sleep(backoff.next_pause()).await;
        }
    }
}

/// Runs the table's task until the table is empty, also after a panic, which is a bug.
async fn serve_until_empty<S: EventSource>(hub: Arc<Hub<S>>) {
    while AssertUnwindSafe(serve_once(&hub))
        .catch_unwind()
        .await
        .is_err()
    {
        hub.note_panic();
        error!("the task that looks up watched jobs panicked and is started again");
        hub.waiting.subscribed.send_replace(false);
        sleep(REREAD_MAX).await;
    }
}

async fn serve_once<S: EventSource>(hub: &Arc<Hub<S>>) {
    let mut backoff = Backoff::new(REREAD_FIRST, REREAD_MAX);
    loop {
        match hub.source().submit_signals().await {
            Ok(signals) => {
                backoff.reset();
                hub.waiting.look_again();
                hub.waiting.subscribed.send_replace(true);
                let ended = serve_signals(hub, signals).await;
                if ended {
                    return;
                }
                hub.waiting.subscribed.send_replace(false);
            }
            Err(error) => debug!(%error, "cannot subscribe to submissions yet"),
        }
        if hub.waiting.end_if_empty() {
            return;
        }
        sleep(backoff.next_pause()).await;
    }
}

/// Serves the table until the subscription ends (returns `false`) or the table has been empty for
/// [`FEED_LINGER`] (returns `true`).
async fn serve_signals<S: EventSource>(hub: &Arc<Hub<S>>, mut signals: S::SubmitSignals) -> bool {
    let waiting = &hub.waiting;
    let mut lookups: FuturesUnordered<BoxFuture<'_, (JobId, Lookup)>> = FuturesUnordered::new();
    let mut tick = interval(LOOK_TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut used = Instant::now();
    loop {
        tokio::select! {
            signal = signals.next() => match signal {
                SubmitSignal::Job(id) => waiting.resolve(&id, FoundJob::Submitted),
                SubmitSignal::Disturbed => waiting.look_again(),
                SubmitSignal::Closed => return false,
            },
            Some((id, lookup)) = lookups.next(), if !lookups.is_empty() => waiting.apply(&id, lookup),
            _ = tick.tick() => {
                let max = LOOKS_PER_TICK - lookups.len();
                for (id, leader_answered) in waiting.due(max) {
                    lookups.push(Box::pin(async move {
                        let lookup = hub.look_up(&id, leader_answered).await;
                        (id, lookup)
                    }));
                }
                let now = Instant::now();
                if waiting.len() > 0 {
                    used = now;
                } else if now - used >= FEED_LINGER && waiting.end_if_empty() {
                    return true;
                }
            }
        }
    }
}
