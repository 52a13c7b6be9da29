//! One page of a job listing: walks down the shards from their newest events and finds each job at
//! its last one. Pure: it says what to read and what to resolve, is given the answers, and makes
//! the page.
//!
//! ```text
//!            ┌───────────── read: messages of the windows ──────────────┐
//!            ▼                                                          │
//!   step ──▶ may a shard hold a newer job than those at hand? ─── Read ─┘   unless the page has used up its reads: Done
//!            │ no
//!            ├── the newest jobs at hand ── Resolve ──▶ resolve: which of them are rows ──▶ step
//!            └── none: Done
//! ```
//! A listing shows one moment: an event stored after its first page was started is not part of it.
//! A job that moves while a client pages therefore stays where it was. The simpler rule, that a job
//! which moved has gone to the front and is left out here, would lose most of the running jobs
//! between the first page and the second.
//!
//! A job is a row at an event if none of its events lies between that one and the shard's top. For
//! most jobs that follows from what this page has read of the shard; the leader is asked only about
//! jobs that run, on later pages.

use std::collections::{HashSet, VecDeque};

use bytes::Bytes;

use crate::wire::{JobId, JobRow, Seq, ShardPosition, Status, Stored, StreamSeq};

/// What one page may cost and hold at most.
#[derive(Clone, Copy, Debug)]
pub(super) struct ListingLimits {
    /// Rows.
    pub(super) rows: usize,
    /// Messages that one read spans.
    pub(super) window: u64,
    /// Reads of one shard; more than it takes to halve `window` down to one.
    pub(super) windows: u32,
    /// Jobs that are resolved.
    pub(super) lookups: usize,
}

/// Neighbouring stream sequences of a shard, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Window {
    pub(super) shard: u32,
    pub(super) from: StreamSeq,
    pub(super) to: StreamSeq,
}

/// A message of a shard.
#[derive(Clone, Debug)]
pub(super) struct ShardMessage {
    pub(super) job: JobId,
    pub(super) stream_seq: StreamSeq,
    /// When it was stored, in nanoseconds since the Unix epoch.
    pub(super) time: u64,
    pub(super) payload: Bytes,
}

/// A job at the newest of its events that was read.
#[derive(Clone, Debug)]
pub(super) struct Candidate {
    pub(super) shard: u32,
    pub(super) stream_seq: StreamSeq,
    time: u64,
    /// Whether this is known to be the job's last event before the listing was started.
    pub(super) is_last: bool,
    /// Whether this is its first event as well, so that the row is complete.
    pub(super) is_complete: bool,
    pub(super) row: JobRow,
}

/// What to do next.
#[derive(Debug)]
pub(super) enum ListingStep {
    /// Read these windows, and pass each to [`Listing::read`] or [`Listing::read_partly`].
    Read(Vec<Window>),
    /// Find out which of these are rows, and pass them to [`Listing::resolve`], in this order.
    Resolve(Vec<Candidate>),
    /// Nothing: the page is complete.
    Done,
}

/// One page in the making.
#[derive(Debug)]
pub(super) struct Listing {
    limits: ListingLimits,
    status: Option<Status>,
    cursors: Vec<ShardCursor>,
    rows: Vec<JobRow>,
    /// How many more jobs may be resolved.
    lookups: usize,
    /// The candidates that are being resolved.
    resolving: Vec<Candidate>,
    /// Whether the next row is known to exist.
    more: bool,
}

/// How far the page has read one shard, going down.
#[derive(Debug)]
struct ShardCursor {
    shard: u32,
    top: StreamSeq,
    /// The first message that the shard still has.
    first: StreamSeq,
    /// The next message to read.
    next: StreamSeq,
    /// Whether everything from the top on was read for this page.
    read_all: bool,
    /// Jobs of which an event was read: their older ones are ignored.
    seen_jobs: HashSet<JobId>,
    /// What was read and is not resolved, the newest first.
    candidates: VecDeque<Candidate>,
    /// No unread message is newer than this.
    until: u64,
    /// How many messages the next read spans.
    window: u64,
    /// How many more reads the page may make.
    windows: u32,
}

impl Listing {
    /// A page that continues from `positions`; `firsts` are the first messages that the shards
    /// still have.
    pub(super) fn new(
        positions: &[ShardPosition],
        firsts: &[StreamSeq],
        status: Option<Status>,
        limits: ListingLimits,
    ) -> Self {
        let cursors = positions.iter().zip(firsts).zip(0..);
        Self {
            limits,
            status,
            cursors: cursors
                .map(|((position, &first), shard)| ShardCursor::new(shard, position, first, limits))
                .collect(),
            rows: Vec::new(),
            lookups: limits.lookups,
            resolving: Vec::new(),
            more: false,
        }
    }

    /// What to do next.
    pub(super) fn step(&mut self) -> ListingStep {
        // One row more than fits, to know whether there is a next page.
        let room = (self.limits.rows + 1 - self.rows.len()).min(self.lookups);
        if self.more || room == 0 {
            return ListingStep::Done;
        }
        let mut unread = Vec::new();
        while self.resolving.len() < room {
            let newest = self.newest();
            let time = newest
                .and_then(|cursor| self.cursors[cursor].candidates.front())
                .map(|candidate| candidate.time);
            unread = self.unread(time);
            match newest {
                Some(cursor) if unread.is_empty() => self
                    .resolving
                    .extend(self.cursors[cursor].candidates.pop_front()),
                _ => break,
            }
        }
        if !self.resolving.is_empty() {
            self.lookups -= self.resolving.len();
            return ListingStep::Resolve(self.resolving.clone());
        }
        let may_read = unread
            .iter()
            .all(|&cursor| self.cursors[cursor].windows > 0);
        if unread.is_empty() || !may_read {
            return ListingStep::Done;
        }
        let windows = unread
            .into_iter()
            .map(|cursor| self.cursors[cursor].next_window());
        ListingStep::Read(windows.collect())
    }

    /// The cursor with the newest candidate at hand.
    fn newest(&self) -> Option<usize> {
        let at_hand = self
            .cursors
            .iter()
            .enumerate()
            .filter_map(|(i, cursor)| Some((i, cursor.candidates.front()?)));
        at_hand
            .max_by_key(|(i, candidate)| (candidate.time, std::cmp::Reverse(*i)))
            .map(|(i, _)| i)
    }

    /// The cursors without a candidate at hand whose shard may hold one as new as `time`.
    fn unread(&self, time: Option<u64>) -> Vec<usize> {
        let may_be_newer = |cursor: &ShardCursor| time.is_none_or(|time| cursor.until >= time);
        let unread = |cursor: &ShardCursor| {
            cursor.candidates.is_empty() && !cursor.is_done() && may_be_newer(cursor)
        };
        self.cursors
            .iter()
            .enumerate()
            .filter(|(_, cursor)| unread(cursor))
            .map(|(i, _)| i)
            .collect()
    }

    /// Applies all messages of a window, in rising order.
    pub(super) fn read(&mut self, window: Window, messages: &[ShardMessage]) {
        let cursor = &mut self.cursors[window.shard as usize];
        cursor.windows = cursor.windows.saturating_sub(1);
        cursor.window = self.limits.window.min(cursor.window * 2);
        cursor.next = window.from - 1;
        if let Some(oldest) = messages.first() {
            cursor.until = oldest.time;
        }
        let inside = |message: &&ShardMessage| message.stream_seq <= window.to;
        for message in messages.iter().rev().filter(inside) {
            cursor.apply(message, self.status);
        }
    }

    /// Notes that a window held too many bytes: only its `count` oldest messages were read.
    pub(super) fn read_partly(&mut self, window: Window, count: usize) {
        let cursor = &mut self.cursors[window.shard as usize];
        cursor.windows = cursor.windows.saturating_sub(1);
        cursor.window = cursor.window.min(count as u64).div_ceil(2).max(1);
    }

    /// Takes the row of each candidate that was to be resolved; `None` for one that is not a row.
    pub(super) fn resolve(&mut self, rows: Vec<Option<JobRow>>) {
        for (candidate, row) in std::mem::take(&mut self.resolving).into_iter().zip(rows) {
            let Some(row) = row else { continue };
            if self.rows.len() < self.limits.rows {
                self.rows.push(row);
            } else {
                // The one row more, which can only be the last: the next page starts with it.
                self.more = true;
                self.cursors[candidate.shard as usize]
                    .candidates
                    .push_front(candidate);
            }
        }
    }

    /// The rows, and where the next page starts, if there is more.
    pub(super) fn finish(self) -> (Vec<JobRow>, Option<Vec<ShardPosition>>) {
        let positions: Vec<ShardPosition> =
            self.cursors.iter().map(ShardCursor::position).collect();
        let done = positions
            .iter()
            .all(|position| *position == ShardPosition::default());
        (self.rows, (!done).then_some(positions))
    }
}

impl ShardCursor {
    fn new(shard: u32, position: &ShardPosition, first: StreamSeq, limits: ListingLimits) -> Self {
        Self {
            shard,
            top: position.top,
            first: first.max(1),
            next: position.next,
            read_all: position.next == position.top,
            seen_jobs: HashSet::new(),
            candidates: VecDeque::new(),
            until: u64::MAX,
            // Often each event is of another job; where not, the window doubles.
            window: limits.window.min(2 * (limits.rows as u64 + 1)),
            windows: limits.windows,
        }
    }

    fn is_done(&self) -> bool {
        self.next < self.first
    }

    fn next_window(&self) -> Window {
        let from = (self.next + 1).saturating_sub(self.window).max(self.first);
        Window {
            shard: self.shard,
            from,
            to: self.next,
        }
    }

    /// Applies the next message, going down.
    fn apply(&mut self, message: &ShardMessage, status: Option<Status>) {
        if self.seen_jobs.contains(&message.job) {
            return;
        }
        // Undecodable messages are skipped, as by every reader.
        let payload = message.payload.clone();
        let Ok(last) = Stored::decode(&message.job, message.stream_seq, payload) else {
            return;
        };
        self.seen_jobs.insert(message.job.clone());
        if status.is_some_and(|status| status != last.status()) {
            return;
        }
        let mut row = JobRow::new(&last, message.time / 1_000_000);
        let is_complete = last.seq == Seq::FIRST;
        if is_complete {
            row.begun(last.payload());
        }
        self.candidates.push_back(Candidate {
            shard: self.shard,
            stream_seq: message.stream_seq,
            time: message.time,
            // Nothing follows the end of a job.
            is_last: self.read_all || last.event_type.is_end(),
            is_complete,
            row,
        });
    }

    /// Where the next page continues.
    fn position(&self) -> ShardPosition {
        match self.candidates.front() {
            Some(candidate) => ShardPosition {
                top: self.top,
                next: candidate.stream_seq,
            },
            None if self.is_done() => ShardPosition::default(),
            None => ShardPosition {
                top: self.top,
                next: self.next,
            },
        }
    }
}

#[cfg(test)]
mod tests;
