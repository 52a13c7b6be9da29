//! A source in memory, for tests. It behaves like one shard, and has the faults of a broker on
//! request. Events expire only by [`expire`](MemoryLog::expire).

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

use replay::{MemoryPage, ReplayState};
use submitted::Submitted;

pub(crate) use replay::MemoryReplay;
pub(crate) use submitted::MemorySubmitSignals;
pub(crate) use tail::MemoryTail;

use super::{At, Chain, EventSource, Replica, Span, Unavailable};
use crate::config::{LIVE_CAPACITY, PAGE};
use crate::wire::{Body, Channel, DecodeError, Event, JobId, Seq, Stored, StreamSeq};

/// The logs of many jobs, and live copies. Clones share the same logs.
#[derive(Clone, Debug, Default)]
pub(crate) struct MemoryLog {
    state: Arc<Mutex<State>>,
    disturbed: watch::Sender<u64>,
}

/// The job that most tests watch.
pub(crate) fn job() -> JobId {
    "j".parse().unwrap()
}

/// An event with this output.
pub(crate) fn chunk(text: impl Into<String>) -> Body {
    Body::Chunk {
        text: text.into(),
        channel: Channel::Output,
    }
}

/// How often the log was called.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Calls {
    /// Live subscriptions that were started.
    pub(crate) follow: usize,
    /// Reads of the last event, without those of a subscription.
    pub(crate) last: usize,
    /// Reads of one stream sequence.
    pub(crate) at: usize,
    /// Replays that were started.
    pub(crate) replay: usize,
    /// Live copies that were reported as undecodable.
    pub(crate) undecodable: usize,
}

#[derive(Debug, Default)]
struct State {
    jobs: HashMap<JobId, Log>,
    /// The stream sequence of the last message of all jobs.
    last_stream_seq: StreamSeq,
    tails: Vec<(JobId, mpsc::Sender<Arc<Stored>>)>,
    submitted: Submitted,
    calls: Calls,
    faults: Faults,
}

/// The current faults.
#[derive(Debug, Default)]
struct Faults {
    lose: usize,
    double: usize,
    hold: usize,
    held: Vec<Arc<Stored>>,
    cut: usize,
    /// By how many messages of the shard a replica lags.
    stale: u64,
    out_of_reach: bool,
    no_quorum: bool,
    latency: Duration,
    page: Option<usize>,
}

/// Writing.
impl MemoryLog {
    /// Stores the next event of a job and sends live copies. A `Started` begins the next attempt.
    ///
    /// # Panics
    /// If a JSON value in the body nests deeper than [`DEPTH_MAX`](crate::wire::limits::DEPTH_MAX).
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

    /// Stores a payload with its own sequence number, as another publisher could. With any number
    /// but the next, it is undecodable for every reader.
    ///
    /// # Errors
    /// [`DecodeError`] if it is not an event of this job.
    pub(crate) fn append_raw(
        &self,
        job: &JobId,
        payload: Bytes,
    ) -> Result<Arc<Stored>, DecodeError> {
        self.lock().store(job, payload, false)
    }

    /// Removes a job's events up to this one.
    pub(crate) fn expire(&self, job: &JobId, up_to: Seq) {
        if let Some(log) = self.lock().jobs.get_mut(job) {
            log.expire(up_to);
        }
    }

    /// Removes all events of a job; the next one is the first event again.
    pub(crate) fn expire_whole(&self, job: &JobId) {
        if let Some(log) = self.lock().jobs.get_mut(job) {
            log.start_again();
        }
    }

    /// Removes everything; all sequences start again. Live subscriptions stay.
    pub(crate) fn rebuild(&self) {
        let mut state = self.lock();
        state.jobs.clear();
        state.last_stream_seq = 0;
    }

    /// Removes every message after this one of the shard, like a restored backup. Live
    /// subscriptions stay.
    pub(crate) fn truncate(&self, stream_seq: StreamSeq) {
        let mut state = self.lock();
        state.last_stream_seq = stream_seq;
        for log in state.jobs.values_mut() {
            log.events.retain(|event| event.stream_seq <= stream_seq);
            log.count = log.events.back().map_or(0, |last| last.seq.0);
            log.attempt = log.events.back().map_or(0, |last| last.attempt);
        }
    }
}

/// Faults. Faults of copies count only copies that have a subscription.
impl MemoryLog {
    /// Loses the live copies of the next `n` events.
    pub(crate) fn lose(&self, n: usize) {
        self.lock().faults.lose = n;
    }

    /// Sends the live copies of the next `n` events twice.
    pub(crate) fn double(&self, n: usize) {
        self.lock().faults.double = n;
    }

    /// Holds the live copies of the next `n` events until they are [released](Self::release).
    pub(crate) fn hold(&self, n: usize) {
        self.lock().faults.hold = n;
    }

    /// Sends the live copies that were held, the newest first.
    pub(crate) fn release(&self) {
        let mut state = self.lock();
        let held = std::mem::take(&mut state.faults.held);
        held.iter().rev().for_each(|event| state.copy(event));
    }

    /// Replicas lag by `n` messages of the shard.
    pub(crate) fn stale(&self, n: u64) {
        self.lock().faults.stale = n;
    }

    /// Ends the next `n` replays from a replica after their first page, as for a slow reader.
    pub(crate) fn cut(&self, n: usize) {
        self.lock().faults.cut = n;
    }

    /// Whether requests are answered. Live copies do not depend on it.
    pub(crate) fn reachable(&self, yes: bool) {
        self.lock().faults.out_of_reach = !yes;
    }

    /// Whether the leader has a quorum. Without one it does not answer.
    pub(crate) fn quorum(&self, yes: bool) {
        self.lock().faults.no_quorum = !yes;
    }

    /// How long every request takes.
    pub(crate) fn latency(&self, latency: Duration) {
        self.lock().faults.latency = latency;
    }

    /// How many events a replay returns at once; [`PAGE`] by default.
    pub(crate) fn page(&self, n: usize) {
        self.lock().faults.page = Some(n.max(1));
    }

    /// Sends a disturbance to all subscriptions.
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

/// Observing.
impl MemoryLog {
    /// How often the log was called so far.
    pub(crate) fn calls(&self) -> Calls {
        self.lock().calls
    }

    /// How many live subscriptions are open.
    pub(crate) fn followers(&self) -> usize {
        let mut state = self.lock();
        state.tails.retain(|(_, tail)| !tail.is_closed());
        state.tails.len()
    }

    /// The approximate size of the stored events that readers hold, in bytes.
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

    /// Answers a request. Half of the latency comes before the answer is computed, half after it.
    async fn ask<T: Send>(
        &self,
        from: Replica,
        answer: impl FnOnce(&mut State) -> T + Send,
    ) -> Result<T, Unavailable> {
        let half = self.lock().faults.latency / 2;
        delay(half).await;
        let answer = {
            let mut state = self.lock();
            if state.faults.out_of_reach || state.faults.no_quorum && from == Replica::Leader {
                return Err(Unavailable("a fault of the test".into()));
            }
            answer(&mut state)
        };
        delay(half).await;
        Ok(answer)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Stores a message. A live copy always has `prev`; a stored message has it only if `fenced`.
    fn store(
        &mut self,
        job: &JobId,
        payload: Bytes,
        fenced: bool,
    ) -> Result<Arc<Stored>, DecodeError> {
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
        if decrement(&mut faults.lose) {
            return Ok(event);
        }
        if decrement(&mut faults.hold) {
            faults.held.push(copy);
            return Ok(event);
        }
        if decrement(&mut faults.double) {
            self.copy(&copy);
        }
        self.copy(&copy);
        Ok(event)
    }

    /// Sends a live copy to all subscriptions of the job. Like the broker's client, a full queue
    /// drops it silently.
    fn copy(&mut self, event: &Arc<Stored>) {
        self.tails.retain(|(job, tail)| {
            *job != event.job
                || !matches!(
                    tail.try_send(Arc::clone(event)),
                    Err(mpsc::error::TrySendError::Closed(_))
                )
        });
    }

    /// The last stream sequence that this replica has.
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

    /// One page of a replay, and its next state.
    fn read(&mut self, job: &JobId, span: Span, state: ReplayState) -> MemoryPage {
        let (from, end, mut chain, cut) = match state {
            ReplayState::Pages { from, end, chain } => (from, end, chain, false),
            ReplayState::Done => return (Vec::new(), ReplayState::Done),
            ReplayState::NotStarted => {
                self.calls.replay += 1;
                let cut = span.replica == Replica::Any && decrement(&mut self.faults.cut);
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
            return (Vec::new(), ReplayState::Done);
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
        let state = match raw.last() {
            Some(last) if !cut && !done => ReplayState::Pages {
                from: last.stream_seq + 1,
                end,
                chain,
            },
            _ => ReplayState::Done,
        };
        page.retain(|event| event.seq >= span.from);
        (page, state)
    }
}

async fn delay(time: Duration) {
    // Even a sleep of zero takes until the clock's next tick.
    if !time.is_zero() {
        sleep(time).await;
    }
}

/// Decrements a count unless it is zero. Returns whether it was not zero.
fn decrement(count: &mut usize) -> bool {
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
        Ok((MemoryTail::new(live, disturbed), last))
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
            state: ReplayState::NotStarted,
            reading: None,
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

    fn undecodable(&self, _job: &JobId, _stream_seq: StreamSeq, _why: &DecodeError) {
        self.lock().calls.undecodable += 1;
    }
}
