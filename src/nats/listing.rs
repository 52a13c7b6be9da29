//! One page of a job listing: reads the shards backwards from their newest events, and finds each
//! job's last event. Pure: it returns what to read and what to resolve, and applies the results.
//!
//! ```text
//!            ┌───────────── read: messages of the windows ──────────────┐
//!            ▼                                                          │
//!   step ──▶ may a shard have a newer job than the candidates? ── Read ─┘   unless the page has used up its reads: Done
//!            │ no
//!            ├── the newest candidates ── Resolve ──▶ resolve: which of them are rows ──▶ step
//!            └── none: Done
//! ```
//! A listing shows the log at one time: events that are stored after its first page was started are
//! not part of it. A job that gets events while a client pages therefore keeps its position. If
//! such jobs moved to the front instead, most of the running jobs would be missing from the second
//! page. A candidate is a row if the job has no later event up to the shard's top. For most jobs,
//! the messages that this page has read show that. Only for running jobs, on later pages, the
//! leader is asked.

use std::collections::{HashSet, VecDeque};

use bytes::Bytes;

use crate::wire::{JobId, JobRow, Seq, ShardPosition, Status, Stored, StreamSeq};

/// The limits of one page.
#[derive(Clone, Copy, Debug)]
pub(super) struct ListingLimits {
    /// Rows.
    pub(super) rows: usize,
    /// Messages in one read.
    pub(super) window: u64,
    /// Reads of one shard. More than it takes to halve `window` down to one.
    pub(super) windows: u32,
    /// Jobs that are resolved.
    pub(super) lookups: usize,
}

/// A range of stream sequences of a shard, both ends included.
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

/// A job, with the newest of its events that was read.
#[derive(Clone, Debug)]
pub(super) struct Candidate {
    pub(super) shard: u32,
    pub(super) stream_seq: StreamSeq,
    time: u64,
    /// Whether this is known to be the job's last event in the listing.
    pub(super) is_last: bool,
    /// Whether this is also its first event, which completes the row.
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
    /// The page is complete.
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

/// How far the page has read one shard, backwards.
#[derive(Debug)]
struct ShardCursor {
    shard: u32,
    top: StreamSeq,
    /// The first message in the shard.
    first: StreamSeq,
    /// The next message to read.
    next: StreamSeq,
    /// Whether this page has read everything from the top on.
    read_all: bool,
    /// Jobs with an event that was read. Their older events are ignored.
    seen_jobs: HashSet<JobId>,
    /// The candidates that are not resolved, newest first.
    candidates: VecDeque<Candidate>,
    /// No unread message is newer than this.
    until: u64,
    /// How many messages the next read has.
    window: u64,
    /// How many more reads the page may make.
    windows: u32,
}

impl Listing {
    /// A page that continues from `positions`; `firsts` are the first messages in the shards.
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
        // One more row than fits, to find out whether there is a next page.
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

    /// The cursor with the newest candidate.
    fn newest(&self) -> Option<usize> {
        let candidates = self
            .cursors
            .iter()
            .enumerate()
            .filter_map(|(i, cursor)| Some((i, cursor.candidates.front()?)));
        candidates
            .max_by_key(|(i, candidate)| (candidate.time, std::cmp::Reverse(*i)))
            .map(|(i, _)| i)
    }

    /// The cursors without a candidate whose shard may have one as new as `time`.
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

    /// Applies all messages of a window, given in ascending order.
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

    /// Makes the next window smaller: this one had too many bytes, and only its `count` oldest
    /// messages were read.
    pub(super) fn read_partly(&mut self, window: Window, count: usize) {
        let cursor = &mut self.cursors[window.shard as usize];
        cursor.windows = cursor.windows.saturating_sub(1);
        cursor.window = cursor.window.min(count as u64).div_ceil(2).max(1);
    }

    /// Applies the row of each candidate of [`ListingStep::Resolve`]; `None` for one that is not a
    /// row.
    pub(super) fn resolve(&mut self, rows: Vec<Option<JobRow>>) {
        for (candidate, row) in std::mem::take(&mut self.resolving).into_iter().zip(rows) {
            let Some(row) = row else { continue };
            if self.rows.len() < self.limits.rows {
                self.rows.push(row);
            } else {
                // The one more row, always the last: the next page starts with it.
                self.more = true;
                self.cursors[candidate.shard as usize]
                    .candidates
                    .push_front(candidate);
            }
        }
    }

    /// The rows, and where the next page starts, if there is one.
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
            // Often each event is of another job. Otherwise, the window doubles.
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

    /// Applies the next older message.
    fn apply(&mut self, message: &ShardMessage, status: Option<Status>) {
        if self.seen_jobs.contains(&message.job) {
            return;
        }
        // Every reader skips undecodable messages.
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
            row.apply_first(last.payload());
        }
        self.candidates.push_back(Candidate {
            shard: self.shard,
            stream_seq: message.stream_seq,
            time: message.time,
            // No event follows the final event.
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
