//! Waiting for jobs that are not known yet: the watches, and the task that serves their table.

use std::net::IpAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, StreamExt as _};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use tracing::{debug, error};

use super::waiting::{Entry, Looked, Unknown};
use super::{Full, Hub, Watch};
use crate::backoff::Backoff;
use crate::budget::NoRoom;
use crate::config::{
    FEED_LINGER, LOOK_TICK, LOOKS_PER_TICK, PROBE_FIRST, REREAD_FIRST, REREAD_MAX,
};
use crate::share::FairSlot;
use crate::source::{EventSource, Replica, SubmitSignal, SubmitSignals};
use crate::wire::{JobId, Stored};

/// A watch of a job that is not known, until it is dropped.
#[derive(Debug)]
pub struct Waiter<S: EventSource> {
    hub: Arc<Hub<S>>,
    id: JobId,
    job: Arc<Unknown>,
    place: FairSlot,
}

impl<S: EventSource> Waiter<S> {
    pub(super) fn join(hub: &Arc<Hub<S>>, id: &JobId, from: IpAddr) -> Result<Self, Full> {
        let place = hub.waiting.places.take(from).map_err(|NoRoom| Full)?;
        let mut table = hub.waiting.lock();
        let there = table.jobs.get(id).map(|entry| Arc::clone(&entry.job));
        let job = match there {
            Some(job) => job,
            None => {
                let (due, job) = (Instant::now() + PROBE_FIRST, Arc::<Unknown>::default());
                table.jobs.insert(
                    id.clone(),
                    Entry {
                        due,
                        job: Arc::clone(&job),
                    },
                );
                table.due.insert((due, id.clone()));
                job
            }
        };
        job.watches.fetch_add(1, Ordering::Relaxed);
        if !table.is_kept {
            table.is_kept = true;
            hub.tasks.spawn_until_stop(keep(Arc::clone(hub)));
        }
        drop(table);
        Ok(Self {
            hub: Arc::clone(hub),
            id: id.clone(),
            job,
            place,
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
        self.job.known.get().is_some()
    }

    /// Returns once the job was submitted, or its log has events, with the last of these.
    pub async fn known(&self) -> Option<Arc<Stored>> {
        loop {
            let mut changed = std::pin::pin!(self.job.changed.notified());
            changed.as_mut().enable();
            if let Some(known) = self.job.known.get() {
                return known.clone();
            }
            changed.await;
        }
    }

    /// Watches the job, which is known, with `last` as its last event if there is one.
    ///
    /// # Errors
    /// [`Full`].
    pub fn watch(&self, last: Option<Arc<Stored>>) -> Result<Watch, Full> {
        self.hub.watch_known(&self.id, self.place.from(), last)
    }

    /// Waits anew, after a feed had no room for the job: it is looked up within a short time.
    ///
    /// # Errors
    /// [`Full`].
    pub fn again(&self) -> Result<Self, Full> {
        Self::join(&self.hub, &self.id, self.place.from())
    }
}

impl<S: EventSource> Drop for Waiter<S> {
    fn drop(&mut self) {
        let mut table = self.hub.waiting.lock();
        let was_last = self.job.watches.fetch_sub(1, Ordering::Relaxed) == 1;
        // Under the same id others may wait since.
        let there = table
            .jobs
            .get(&self.id)
            .is_some_and(|entry| Arc::ptr_eq(&entry.job, &self.job));
        if was_last && there {
            table.remove(&self.id);
        }
    }
}

impl<S: EventSource> Hub<S> {
    /// Waits for a job in the table when no replica asked has events of it; `None` when one has, or the job has a feed. What
    /// the leader and the queue know is asked beside that, so that many made-up ids do not fill the broker's API queue.
    ///
    /// # Errors
    /// [`Full`].
    pub async fn wait(
        self: &Arc<Self>,
        id: &JobId,
        from: IpAddr,
    ) -> Result<Option<Waiter<S>>, Full> {
        if self.feeds.lock().contains_key(id) {
            return Ok(None);
        }
        // What is known needs no subscription. When that stands already, one look is enough.
        let stands = *self.waiting.standing.borrow();
        if !stands && self.has_events_somewhere(id).await {
            return Ok(None);
        }
        let waiter = match Waiter::join(self, id, from) {
            // However full the table is, what is known can be watched.
            Err(Full) if stands && self.has_events_somewhere(id).await => return Ok(None),
            joined => joined?,
        };
        self.waiting.until_standing().await;
        let known = waiter.is_known() || self.has_events_somewhere(id).await;
        Ok((!known).then_some(waiter))
    }

    /// How many jobs are waited for that are not known.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Looks for a job: in any replica of the log after the leader and the queue have been asked once.
    async fn look(&self, id: &JobId, is_asked: bool) -> Looked {
        let from = if is_asked {
            Replica::Any
        } else {
            Replica::Leader
        };
        if let Some(last) = self.feeds.source.last(id, from).await? {
            return Ok(Some(Some(last)));
        }
        Ok((!is_asked && self.feeds.source.is_queued(id).await?).then_some(None))
    }

    /// Whether a replica has events of the job. Asks until there is an answer; who waits for it limits the time.
    async fn has_events_somewhere(&self, id: &JobId) -> bool {
        let mut backoff = Backoff::new(REREAD_FIRST, REREAD_MAX);
        loop {
            match self.feeds.source.last(id, Replica::Any).await {
                Ok(last) => return last.is_some(),
                Err(error) => debug!(job = %id, %error, "cannot look a job up yet"),
            }
            sleep(backoff.next_pause()).await;
        }
    }
}

/// Keeps the table until it is empty. A panic, which is a bug, does not end it.
async fn keep<S: EventSource>(hub: Arc<Hub<S>>) {
    while AssertUnwindSafe(keep_once(&hub))
        .catch_unwind()
        .await
        .is_err()
    {
        hub.feeds.note_panic();
        error!("the task of the watches that wait panicked; another one goes on");
        hub.waiting.standing.send_replace(false);
        sleep(REREAD_MAX).await;
    }
}

async fn keep_once<S: EventSource>(hub: &Arc<Hub<S>>) {
    let mut backoff = Backoff::new(REREAD_FIRST, REREAD_MAX);
    loop {
        match hub.feeds.source.submit_signals().await {
            Ok(signals) => {
                backoff.reset();
                hub.waiting.look_again();
                hub.waiting.standing.send_replace(true);
                let ended = serve(hub, signals).await;
                if ended {
                    return;
                }
                hub.waiting.standing.send_replace(false);
            }
            Err(error) => debug!(%error, "cannot follow what is submitted yet"),
        }
        if hub.waiting.end_if_empty() {
            return;
        }
        sleep(backoff.next_pause()).await;
    }
}

/// Serves the table until its subscription ends, or until it was empty for a while. Says whether it has ended for that.
async fn serve<S: EventSource>(hub: &Arc<Hub<S>>, mut signals: S::SubmitSignals) -> bool {
    let waiting = &hub.waiting;
    let mut looks: FuturesUnordered<BoxFuture<'_, (JobId, Looked)>> = FuturesUnordered::new();
    let mut tick = interval(LOOK_TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut used = Instant::now();
    loop {
        tokio::select! {
            signal = signals.next() => match signal {
                SubmitSignal::Job(id) => waiting.known(&id, None),
                SubmitSignal::Disturbed => waiting.look_again(),
                SubmitSignal::Closed => return false,
            },
            Some((id, looked)) = looks.next(), if !looks.is_empty() => waiting.looked(&id, looked),
            _ = tick.tick() => {
                let max = LOOKS_PER_TICK - looks.len();
                for (id, is_asked) in waiting.due(max) {
                    looks.push(Box::pin(async move {
                        let looked = hub.look(&id, is_asked).await;
                        (id, looked)
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
