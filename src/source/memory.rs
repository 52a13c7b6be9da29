//! A source in memory: for tests, and for a program that wants the reading side without a broker. It behaves as one
//! shard does, and goes wrong in all the ways in which a broker does when it is told to. It keeps everything until it
//! is told to [`expire`](MemoryLog::expire) it.

mod log;
mod replay;
mod submitted;
mod tail;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use log::Log;
use tokio::sync::{mpsc, watch};
use tokio::time::sleep;

use replay::{Answer, Way};
use submitted::Submitted;

pub(crate) use replay::MemoryReplay;
pub(crate) use submitted::MemorySubmitSignals;
pub(crate) use tail::MemoryTail;

use super::{At, Chain, EventSource, Replica, Span, Unavailable};
use crate::config::{LIVE_CAPACITY, PAGE};
use crate::wire::{Body, Event, JobId, Seq, Stored, StreamSeq, Unreadable};

/// A log of many jobs, and live copies of it. Clones share the same log.
#[derive(Clone, Debug, Default)]
pub(crate) struct MemoryLog {
    state: Arc<Mutex<State>>,
    disturbed: watch::Sender<u64>,
}

/// How often the log was asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Calls {
    /// Live subscriptions that were begun.
    pub(crate) follow: usize,
    /// Questions for the last event, without those that belong to a subscription.
    pub(crate) last: usize,
    /// Questions for what stands at a place.
    pub(crate) at: usize,
    /// Replays that were begun.
    pub(crate) replay: usize,
    /// Live copies that turned out not to be events.
    pub(crate) undecodable: usize,
}

#[derive(Debug, Default)]
struct State {
    jobs: HashMap<JobId, Log>,
    /// The place of the newest event of all jobs.
    last_stream_seq: StreamSeq,
    tails: Vec<(JobId, mpsc::Sender<Arc<Stored>>)>,
    submitted: Submitted,
    calls: Calls,
    faults: Faults,
}

/// What goes wrong, and for how long.
#[derive(Debug, Default)]
struct Faults {
    lose: usize,
    double: usize,
    hold: usize,
    held: Vec<Arc<Stored>>,
    cut: usize,
    /// By how many events of the shard a replica is behind.
    stale: u64,
    out_of_reach: bool,
    no_quorum: bool,
    latency: Duration,
    page: Option<usize>,
}

/// Writing.
impl MemoryLog {
    /// Stores the next event of a job and gives live copies of it. A `Started` begins the next attempt.
    ///
    /// # Panics
    /// When a JSON value in the body nests deeper than [`DEPTH_MAX`](crate::wire::codec::DEPTH_MAX).
    #[expect(
        clippy::expect_used,
        reason = "a caller's fault that is told in the documentation"
    )]
    pub(crate) fn append(&self, job: &JobId, body: Body) -> Arc<Stored> {
        let mut state = self.lock();
        let ts = 1_700_000_000_000 + state.last_stream_seq;
        let log = state.jobs.entry(job.clone()).or_default();
        log.attempt += u32::from(matches!(body, Body::Started { .. }));
        let event = Event {
            body,
            job: job.clone(),
            seq: Seq(log.count + 1),
            attempt: log.attempt,
            ts,
        };
        let payload = event
            .encode()
            .expect("a body that nests deeper than an event may");
        state
            .store(job, payload, true)
            .expect("an event of this job")
    }

    /// Stores a payload as it is, with the number that it gives itself, as another publisher may. With another number than
    /// the next it is undecodable for every reader.
    ///
    /// # Errors
    /// [`Unreadable`] when it is not an event of this job.
    pub(crate) fn append_raw(
        &self,
        job: &JobId,
        payload: Bytes,
    ) -> Result<Arc<Stored>, Unreadable> {
        self.lock().store(job, payload, false)
    }

    /// Removes a job's events up to this one.
    pub(crate) fn expire(&self, job: &JobId, up_to: Seq) {
        if let Some(log) = self.lock().jobs.get_mut(job) {
            log.expire(up_to);
        }
    }

    /// Removes all events of a job; what is appended now begins anew with the first number.
    pub(crate) fn expire_whole(&self, job: &JobId) {
        if let Some(log) = self.lock().jobs.get_mut(job) {
            log.start_again();
        }
    }

    /// Loses everything; places and numbers begin again. Live subscriptions stand.
    pub(crate) fn rebuild(&self) {
        let mut state = self.lock();
        state.jobs.clear();
        state.last_stream_seq = 0;
    }
}

impl MemoryLog {
    /// Loses every event behind this place of the shard, as a store does that is restored. Live subscriptions stand.
    pub(crate) fn go_back(&self, stream_seq: StreamSeq) {
        let mut state = self.lock();
        state.last_stream_seq = stream_seq;
        for log in state.jobs.values_mut() {
            log.events.retain(|event| event.stream_seq <= stream_seq);
            log.count = log.events.back().map_or(0, |last| last.seq.0);
            log.attempt = log.events.back().map_or(0, |last| last.attempt);
        }
    }
}

/// Going wrong. Of live copies, only those count that somebody would get.
impl MemoryLog {
    /// The live copies of the next `n` events are lost in silence.
    pub(crate) fn lose(&self, n: usize) {
        self.lock().faults.lose = n;
    }

    /// The live copies of the next `n` events come twice.
    pub(crate) fn double(&self, n: usize) {
        self.lock().faults.double = n;
    }

    /// The live copies of the next `n` events are held back until they are [released](Self::release).
    pub(crate) fn hold(&self, n: usize) {
        self.lock().faults.hold = n;
    }

    /// Gives the live copies that were held back, the newest first.
    pub(crate) fn release(&self) {
        let mut state = self.lock();
        let held = std::mem::take(&mut state.faults.held);
        held.iter().rev().for_each(|event| state.copy(event));
    }

    /// Replicas lack the newest `n` events of the shard, until this is called with 0.
    pub(crate) fn stale(&self, n: u64) {
        self.lock().faults.stale = n;
    }

    /// The next `n` replays from a replica end after their first page, as if their reader had been too slow.
    pub(crate) fn cut(&self, n: usize) {
        self.lock().faults.cut = n;
    }

    /// Whether requests are answered at all. Live copies do not depend on it.
    pub(crate) fn reachable(&self, yes: bool) {
        self.lock().faults.out_of_reach = !yes;
    }

    /// Whether the leader has a quorum. Without one it is not asked for what is final.
    pub(crate) fn quorum(&self, yes: bool) {
        self.lock().faults.no_quorum = !yes;
    }

    /// How long every request takes.
    pub(crate) fn latency(&self, latency: Duration) {
        self.lock().faults.latency = latency;
    }

    /// How many events a replay gives at once; [`PAGE`] unless this was called.
    pub(crate) fn page(&self, n: usize) {
        self.lock().faults.page = Some(n.max(1));
    }

    /// Tells all subscriptions that copies may have been lost.
    pub(crate) fn disturb(&self) {
        self.disturbed.send_modify(|count| *count += 1);
    }

    /// Ends all live subscriptions.
    pub(crate) fn close(&self) {
        let mut state = self.lock();
        state.tails.clear();
        state.submitted.close();
    }
}

/// Looking on.
impl MemoryLog {
    /// How often the log was asked so far.
    pub(crate) fn calls(&self) -> Calls {
        self.lock().calls
    }

    /// How many live subscriptions stand.
    pub(crate) fn followers(&self) -> usize {
        let mut state = self.lock();
        state.tails.retain(|(_, tail)| !tail.is_closed());
        state.tails.len()
    }

    /// How many bytes of stored events readers hold, about, wherever they hold them.
    pub(crate) fn held(&self) -> usize {
        let state = self.lock();
        let held = |event: &&Arc<Stored>| Arc::strong_count(event) > 1;
        state
            .jobs
            .values()
            .flat_map(|log| &log.events)
            .filter(held)
            .map(|event| event.size())
            .sum()
    }

    /// A job's events that have not expired.
    pub(crate) fn events(&self, job: &JobId) -> Vec<Arc<Stored>> {
        self.lock()
            .jobs
            .get(job)
            .map(Log::events)
            .unwrap_or_default()
    }

    /// Asks; the question is under way for half of the time that a request takes, and the answer for the other half.
    async fn ask<T: Send>(
        &self,
        from: Replica,
        answer: impl FnOnce(&mut State) -> T + Send,
    ) -> Result<T, Unavailable> {
        let half = self.lock().faults.latency / 2;
        under_way(half).await;
        let answer = {
            let mut state = self.lock();
            if state.faults.out_of_reach || state.faults.no_quorum && from == Replica::Leader {
                return Err(Unavailable("the memory was told to be".into()));
            }
            answer(&mut state)
        };
        under_way(half).await;
        Ok(answer)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Stores a message. Of one that is not fenced, the broker was not asked what it follows; of a live copy it says so.
    fn store(
        &mut self,
        job: &JobId,
        payload: Bytes,
        fenced: bool,
    ) -> Result<Arc<Stored>, Unreadable> {
        let stream_seq = self.last_stream_seq + 1;
        let event = Stored::decode(job, stream_seq, payload.clone())?;
        let copy = Stored::decode(job, stream_seq, payload)?;
        self.last_stream_seq += 1;
        let log = self.jobs.entry(job.clone()).or_default();
        let prev = Some(log.events.back().map_or(0, |last| last.stream_seq));
        let event = Arc::new(event.after(prev.filter(|_| fenced)));
        let copy = if fenced {
            Arc::clone(&event)
        } else {
            Arc::new(copy.after(prev))
        };
        if event.seq.0 == log.count + 1 {
            log.count += 1;
        }
        if log.events.is_empty() {
            self.submitted.signal(job);
        }
        log.events.push_back(Arc::clone(&event));
        if !self.tails.iter().any(|(followed, _)| followed == job) {
            return Ok(event);
        }
        let faults = &mut self.faults;
        if take_one(&mut faults.lose) {
            return Ok(event);
        }
        if take_one(&mut faults.hold) {
            faults.held.push(copy);
            return Ok(event);
        }
        if take_one(&mut faults.double) {
            self.copy(&copy);
        }
        self.copy(&copy);
        Ok(event)
    }

    /// Gives a live copy to all who follow the job. As with the broker's client, a full queue drops it in silence.
    fn copy(&mut self, event: &Arc<Stored>) {
        self.tails.retain(|(job, tail)| {
            *job != event.job
                || !matches!(
                    tail.try_send(Arc::clone(event)),
                    Err(mpsc::error::TrySendError::Closed(_))
                )
        });
    }

    /// The last place that such a replica sees.
    fn seen(&self, replica: Replica) -> StreamSeq {
        match replica {
            Replica::Any => self.last_stream_seq.saturating_sub(self.faults.stale),
            Replica::Leader => self.last_stream_seq,
        }
    }

    fn last(&self, job: &JobId, replica: Replica) -> Option<Arc<Stored>> {
        let seen = self.seen(replica);
        let log = self.jobs.get(job)?;
        let within = log
            .events
            .iter()
            .take_while(|event| event.stream_seq <= seen);
        log.next_events(&mut Chain::new(Seq::FIRST, 0), within)
            .pop()
    }

    fn at(&self, job: &JobId, stream_seq: StreamSeq, from: Replica) -> At {
        if stream_seq > self.seen(from) {
            return At::NotYet;
        }
        let found = |log: &Log| {
            let index = log
                .events
                .binary_search_by_key(&stream_seq, |event| event.stream_seq)
                .ok()?;
            log.events.get(index).cloned()
        };
        match self.jobs.get(job).and_then(found) {
            Some(event) => At::Event(event),
            None if self.jobs.values().any(|log| found(log).is_some()) => At::Other,
            None => At::Removed,
        }
    }

    /// One page of a replay, and how it goes on.
    fn read(&mut self, job: &JobId, span: Span, way: Way) -> Answer {
        let (from, end, mut chain, cut) = match way {
            Way::Pages { from, end, chain } => (from, end, chain, false),
            Way::Over => return (Vec::new(), Way::Over),
            Way::Unbegun => {
                self.calls.replay += 1;
                let cut = span.replica == Replica::Any && take_one(&mut self.faults.cut);
                let from = span.stream_seq.unwrap_or(1);
                let next = span.stream_seq.map_or(Seq::FIRST, |_| span.from);
                (
                    from,
                    self.seen(span.replica),
                    Chain::new(next, from - 1),
                    cut,
                )
            }
        };
        let Some(log) = self.jobs.get(job) else {
            return (Vec::new(), Way::Over);
        };
        let first = log.events.partition_point(|event| event.stream_seq < from);
        let within = log
            .events
            .range(first..)
            .take_while(|event| event.stream_seq <= end);
        let raw: Vec<_> = within
            .take(self.faults.page.unwrap_or(PAGE))
            .cloned()
            .collect();
        let mut page = log.next_events(&mut chain, &raw);
        let done = page
            .last()
            .is_some_and(|last| span.until.is_some_and(|until| last.seq >= until));
        let way = match raw.last() {
            Some(last) if !cut && !done => Way::Pages {
                from: last.stream_seq + 1,
                end,
                chain,
            },
            _ => Way::Over,
        };
        page.retain(|event| event.seq >= span.from);
        (page, way)
    }
}

async fn under_way(time: Duration) {
    // Even the shortest sleep takes until the clock's next tick.
    if !time.is_zero() {
        sleep(time).await;
    }
}

/// Takes one from a count. Says whether there was one.
fn take_one(count: &mut usize) -> bool {
    let some = *count > 0;
    *count = count.saturating_sub(1);
    some
}

impl EventSource for MemoryLog {
    type Tail = MemoryTail;
    type Replay = MemoryReplay;
    type SubmitSignals = MemorySubmitSignals;

    async fn follow(&self, job: &JobId) -> Result<(MemoryTail, Option<Arc<Stored>>), Unavailable> {
        let (copies, live) = mpsc::channel(LIVE_CAPACITY);
        let disturbed = self.disturbed.subscribe();
        {
            let mut state = self.lock();
            state.calls.follow += 1;
            state.tails.push((job.clone(), copies));
        }
        let last = self
            .ask(Replica::Any, |state| state.last(job, Replica::Any))
            .await?;
        Ok((
            MemoryTail {
                live: Some(live),
                disturbed,
            },
            last,
        ))
    }

    async fn last(&self, job: &JobId, from: Replica) -> Result<Option<Arc<Stored>>, Unavailable> {
        self.lock().calls.last += 1;
        self.ask(from, |state| state.last(job, from)).await
    }

    async fn at(
        &self,
        job: &JobId,
        stream_seq: StreamSeq,
        from: Replica,
    ) -> Result<At, Unavailable> {
        self.lock().calls.at += 1;
        self.ask(from, |state| state.at(job, stream_seq, from))
            .await
    }

    fn replay(&self, job: &JobId, span: Span) -> MemoryReplay {
        MemoryReplay {
            memory: self.clone(),
            job: job.clone(),
            span,
            way: Way::Unbegun,
            asked: None,
        }
    }

    async fn submit_signals(&self) -> Result<MemorySubmitSignals, Unavailable> {
        let signals = self.lock().submitted.subscribe();
        let disturbed = self.disturbed.subscribe();
        self.ask(Replica::Any, |_| ()).await?;
        Ok(MemorySubmitSignals { signals, disturbed })
    }

    async fn is_queued(&self, job: &JobId) -> Result<bool, Unavailable> {
        self.ask(Replica::Any, |state| state.submitted.is_queued(job))
            .await
    }

    fn undecodable(&self, _job: &JobId, _stream_seq: StreamSeq, _why: &Unreadable) {
        self.lock().calls.undecodable += 1;
    }
}
