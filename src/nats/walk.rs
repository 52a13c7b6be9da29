//! The walk of a listing: goes down the shards from their newest events and finds each job at the place of its last one.
//! Pure: it says what to read and whom to look up, is given the answers, and makes the page of them.
//!
//! ```text
//!            ┌────────────── read: events of the windows ───────────────┐
//!            ▼                                                          │
//!   step ──▶ a shard might hold a newer job than those at hand? ── Read ┘   unless the page may read no more: Over
//!            │ no
//!            ├── the newest jobs at hand ── Judge ──▶ judge: which of them are rows ──▶ step
//!            └── none: Over
//! ```
//! A listing is of one moment: an event that was stored after its first page began is no part of it. So a job that
//! moves while somebody turns the pages stays where it was. The plainer rule, that a job which moved has gone to the
//! front and is left out here, would lose most of the running jobs between the first page and the second.
//!
//! A job is a row at an event if none of its events lies between that one and the shard's top. What was read of the
//! shard in this page tells it for most jobs; only of a job that runs on a later page it must be asked.

use std::collections::{HashSet, VecDeque};

use bytes::Bytes;

use crate::wire::{JobId, JobRow, Place, Seq, Status, Stored, StreamSeq};

/// What one page may cost, and what it holds at the most.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// How many rows.
    pub(super) rows: usize,
    /// How many places one read spans at the most.
    pub(super) window: u64,
    /// How many reads of one shard; more than it takes to halve `window` down to one.
    pub(super) windows: u32,
    /// How many jobs are looked up.
    pub(super) lookups: usize,
}

/// Neighbouring places of a shard, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Window {
    pub(super) shard: u32,
    pub(super) from: StreamSeq,
    pub(super) to: StreamSeq,
}

/// A message of a shard.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) job: JobId,
    pub(super) stream_seq: StreamSeq,
    /// When it was stored, in nanoseconds since the Unix epoch.
    pub(super) time: u64,
    pub(super) payload: Bytes,
}

/// A job at the newest of its events that was read.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub(super) shard: u32,
    pub(super) stream_seq: StreamSeq,
    time: u64,
    /// Whether this is known to be its last event before the listing began.
    pub(super) sure: bool,
    /// Whether this is its first event as well, so that the row is complete.
    pub(super) whole: bool,
    pub(super) row: JobRow,
}

/// What to do next.
#[derive(Debug)]
pub(super) enum Step {
    /// Read these windows, and give each to [`Walk::read`] or [`Walk::cut`].
    Read(Vec<Window>),
    /// Find out which of these are rows, and give that to [`Walk::judge`], in this order.
    Judge(Vec<Found>),
    /// Nothing: the page is made.
    Over,
}

/// The walk of one page.
#[derive(Debug)]
pub(super) struct Walk {
    bounds: Bounds,
    status: Option<Status>,
    sides: Vec<Side>,
    rows: Vec<JobRow>,
    /// How many more jobs may be looked up.
    lookups: usize,
    /// Who is being judged.
    judged: Vec<Found>,
    /// Whether the next row is known to exist.
    more: bool,
}

/// The walk in one shard.
#[derive(Debug)]
struct Side {
    shard: u32,
    top: StreamSeq,
    /// The first place that the shard still has.
    first: StreamSeq,
    /// The next place to read, going down.
    next: StreamSeq,
    /// Whether everything from the top on was read for this page.
    seen_all: bool,
    /// Jobs of which an event was read: their older ones tell nothing.
    known: HashSet<JobId>,
    /// What was read and is not decided, the newest first.
    found: VecDeque<Found>,
    /// Nothing that was not read is newer than this.
    until: u64,
    /// How many places the next read spans.
    window: u64,
    windows: u32,
}

impl Walk {
    /// A walk that goes on from `places`; `firsts` are the first places that the shards still have.
    pub(super) fn new(
        places: &[Place],
        firsts: &[StreamSeq],
        status: Option<Status>,
        bounds: Bounds,
    ) -> Self {
        let sides = places
            .iter()
            .zip(firsts)
            .zip(0..)
            .map(|((place, &first), shard)| Side {
                shard,
                top: place.top,
                first: first.max(1),
                next: place.next,
                seen_all: place.next == place.top,
                known: HashSet::new(),
                found: VecDeque::new(),
                until: u64::MAX,
                // Often each event is of another job; where not, the window doubles.
                window: bounds.window.min(2 * (bounds.rows as u64 + 1)),
                windows: bounds.windows,
            });
        let (sides, lookups) = (sides.collect(), bounds.lookups);
        Self {
            bounds,
            status,
            sides,
            rows: Vec::new(),
            lookups,
            judged: Vec::new(),
            more: false,
        }
    }

    /// What to do next.
    pub(super) fn step(&mut self) -> Step {
        // One row more than fits, to know whether there is a next page.
        let room = (self.bounds.rows + 1 - self.rows.len()).min(self.lookups);
        if self.more || room == 0 {
            return Step::Over;
        }
        let mut unread = Vec::new();
        while self.judged.len() < room {
            let newest = self.newest();
            let time = newest
                .and_then(|side| self.sides[side].found.front())
                .map(|found| found.time);
            unread = self.unread(time);
            match newest {
                Some(side) if unread.is_empty() => {
                    self.judged.extend(self.sides[side].found.pop_front())
                }
                _ => break,
            }
        }
        if !self.judged.is_empty() {
            self.lookups -= self.judged.len();
            return Step::Judge(self.judged.clone());
        }
        let may_read = unread.iter().all(|&side| self.sides[side].windows > 0);
        if unread.is_empty() || !may_read {
            return Step::Over;
        }
        Step::Read(
            unread
                .into_iter()
                .map(|side| self.sides[side].ahead())
                .collect(),
        )
    }

    /// The side with the newest job at hand.
    fn newest(&self) -> Option<usize> {
        let at_hand = self
            .sides
            .iter()
            .enumerate()
            .filter_map(|(i, side)| Some((i, side.found.front()?)));
        at_hand
            .max_by_key(|(i, found)| (found.time, std::cmp::Reverse(*i)))
            .map(|(i, _)| i)
    }

    /// The sides without a job at hand that may hold one as new as `time`.
    fn unread(&self, time: Option<u64>) -> Vec<usize> {
        let may_be_newer = |side: &Side| time.is_none_or(|time| side.until >= time);
        let unread = |side: &Side| side.found.is_empty() && !side.is_over() && may_be_newer(side);
        self.sides
            .iter()
            .enumerate()
            .filter(|(_, side)| unread(side))
            .map(|(i, _)| i)
            .collect()
    }

    /// Takes in everything that stands in a window, by rising places.
    pub(super) fn read(&mut self, window: Window, entries: &[Entry]) {
        let side = &mut self.sides[window.shard as usize];
        side.windows = side.windows.saturating_sub(1);
        side.window = self.bounds.window.min(side.window * 2);
        side.next = window.from - 1;
        if let Some(oldest) = entries.first() {
            side.until = oldest.time;
        }
        for entry in entries
            .iter()
            .rev()
            .filter(|entry| entry.stream_seq <= window.to)
        {
            side.take(entry, self.status);
        }
    }

    /// Takes note that a window held too many bytes: only `got` of its messages, the oldest, were given.
    pub(super) fn cut(&mut self, window: Window, got: usize) {
        let side = &mut self.sides[window.shard as usize];
        side.windows = side.windows.saturating_sub(1);
        side.window = side.window.min(got as u64).div_ceil(2).max(1);
    }

    /// Takes in what became of those who were to be judged: the row, or `None` for whoever is none.
    pub(super) fn judge(&mut self, verdicts: Vec<Option<JobRow>>) {
        for (found, row) in std::mem::take(&mut self.judged).into_iter().zip(verdicts) {
            let Some(row) = row else { continue };
            if self.rows.len() < self.bounds.rows {
                self.rows.push(row);
            } else {
                // The one row more, which can only be the last: the next page begins with it.
                self.more = true;
                self.sides[found.shard as usize].found.push_front(found);
            }
        }
    }

    /// The rows, and where the next page begins, if there is more.
    pub(super) fn end(self) -> (Vec<JobRow>, Option<Vec<Place>>) {
        let places: Vec<Place> = self.sides.iter().map(Side::place).collect();
        let over = places.iter().all(|place| *place == Place::default());
        (self.rows, (!over).then_some(places))
    }
}

impl Side {
    fn is_over(&self) -> bool {
        self.next < self.first
    }

    /// The next window.
    fn ahead(&self) -> Window {
        let from = (self.next + 1).saturating_sub(self.window).max(self.first);
        Window {
            shard: self.shard,
            from,
            to: self.next,
        }
    }

    /// Takes in the next entry, going down.
    fn take(&mut self, entry: &Entry, status: Option<Status>) {
        if self.known.contains(&entry.job) {
            return;
        }
        // Undecodable messages are skipped, as by every reader.
        let Ok(last) = Stored::decode(&entry.job, entry.stream_seq, entry.payload.clone()) else {
            return;
        };
        self.known.insert(entry.job.clone());
        if status.is_some_and(|status| status != last.status()) {
            return;
        }
        let mut row = JobRow::new(&last, entry.time / 1_000_000);
        let whole = last.seq == Seq::FIRST;
        if whole {
            row.begun(last.payload());
        }
        // Nothing follows the end of a job.
        let sure = self.seen_all || last.event_type.is_end();
        self.found.push_back(Found {
            shard: self.shard,
            stream_seq: entry.stream_seq,
            time: entry.time,
            sure,
            whole,
            row,
        });
    }

    /// Where the next page goes on.
    fn place(&self) -> Place {
        match self.found.front() {
            Some(found) => Place {
                top: self.top,
                next: found.stream_seq,
            },
            None if self.is_over() => Place::default(),
            None => Place {
                top: self.top,
                next: self.next,
            },
        }
    }
}

#[cfg(test)]
mod tests;
