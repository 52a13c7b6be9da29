//! A model of the broker: a log that forgets, replays whose end is fixed when they begin, live copies that get lost.
//! It knows no stitcher.

use std::collections::VecDeque;

use super::Rng;
use crate::wire::Seq;

/// A log. Its first event has the number 1; some, also in its middle, may have expired.
#[derive(Debug, Default)]
pub(super) struct Log {
    /// Whether each event that was ever stored is still there.
    held: Vec<bool>,
    ended: bool,
}

impl Log {
    /// The number of the event that was stored last, 0 when there was none.
    pub(super) fn last(&self) -> Seq {
        Seq(self.held.len() as u64)
    }

    /// Stores one more event; nothing is stored after the end.
    pub(super) fn append(&mut self, end: bool) -> Option<Seq> {
        if self.ended {
            return None;
        }
        self.held.push(true);
        self.ended = end;
        Some(self.last())
    }

    /// Whether this event is the job's end.
    pub(super) fn is_end(&self, seq: Seq) -> bool {
        self.ended && seq == self.last()
    }

    /// Lets events expire: mostly a prefix, as an age limit does it, sometimes some in the middle.
    pub(super) fn expire(&mut self, rng: &mut Rng) {
        let len = self.held.len();
        let from = if rng.percent(70) {
            0
        } else {
            rng.index(len + 1)
        };
        let to = (from + rng.index(len + 1)).min(len);
        self.held[from..to].fill(false);
    }

    /// Whether this event can be read.
    pub(super) fn holds(&self, seq: Seq) -> bool {
        seq.0
            .checked_sub(1)
            .is_some_and(|index| self.held.get(index as usize) == Some(&true))
    }

    /// The first event that can be read from `from` on.
    pub(super) fn first_held(&self, from: Seq) -> Option<Seq> {
        (from.0..=self.last().0)
            .map(Seq)
            .find(|seq| self.holds(*seq))
    }

    /// The last event that can be read.
    pub(super) fn last_held(&self) -> Option<Seq> {
        (1..=self.last().0)
            .rev()
            .map(Seq)
            .find(|seq| self.holds(*seq))
    }
}

/// A replay under way. A broker fixes its end when it begins: what is stored later is not part of it.
#[derive(Debug)]
pub(super) struct Replay {
    at: Seq,
    end: Seq,
    page: VecDeque<Seq>,
    brought: bool,
    /// Whether the leader answers, which sees all that is stored.
    leader: bool,
    until: Option<Seq>,
}

impl Replay {
    /// Begins at `from` on a replica that lags by `lag` events. `until` is the last one that is wanted.
    pub(super) fn begin(log: &Log, from: Seq, lag: u64, until: Option<Seq>) -> Self {
        let seen = Seq(log.last().0.saturating_sub(lag));
        let end = until.map_or(seen, |until| until.min(seen));
        Self {
            at: from,
            end,
            page: VecDeque::new(),
            brought: false,
            leader: lag == 0,
            until,
        }
    }

    /// The next event, out of pages of at most `page_max`; `None` when the replay is done.
    pub(super) fn next(&mut self, log: &Log, page_max: usize) -> Option<Seq> {
        if self.page.is_empty() && self.at <= self.end {
            let held = (self.at.0..=self.end.0)
                .map(Seq)
                .filter(|seq| log.holds(*seq));
            self.page = held.take(page_max).collect();
            self.at = self.page.back().map_or(self.end, |last| *last).successor();
        }
        let next = self.page.pop_front();
        self.brought |= next.is_some();
        next
    }

    /// Whether a replay that is done has proven that the log had nothing for it when it began.
    pub(super) fn found_nothing(&self) -> bool {
        self.leader && !self.brought
    }

    /// The last event that was wanted.
    pub(super) fn until(&self) -> Option<Seq> {
        self.until
    }
}

/// What the live side gives.
#[derive(Clone, Copy, Debug)]
pub(super) enum Signal {
    Copy(Seq),
    Lagged,
}

/// The live side: copies of stored events that wait to be handed over, late, lost, doubled, out of order.
#[derive(Debug)]
pub(super) struct Channel {
    waiting: VecDeque<Signal>,
    /// How many copies in a hundred are lost without a word.
    pub(super) silent: u64,
    /// How many copies in a hundred are lost, which is told.
    pub(super) told: u64,
    /// How often in a hundred times some earlier event is given once more.
    pub(super) doubled: u64,
    /// Among how many waiting ones the next is chosen.
    pub(super) reach: usize,
}

impl Channel {
    /// Loses nothing and keeps the order; only gives some events again.
    pub(super) fn faithful() -> Self {
        Self {
            waiting: VecDeque::new(),
            silent: 0,
            told: 0,
            doubled: 25,
            reach: 1,
        }
    }

    /// Any combination of faults.
    pub(super) fn faulty(rng: &mut Rng) -> Self {
        Self {
            silent: rng.pick(&[0, 0, 10, 60]),
            told: rng.pick(&[0, 0, 10, 40]),
            doubled: rng.pick(&[0, 25]),
            reach: rng.pick(&[1, 2, 4, 100]),
            ..Self::faithful()
        }
    }

    /// Takes in a copy of what was stored.
    pub(super) fn publish(&mut self, rng: &mut Rng, seq: Seq) {
        if rng.percent(self.told) {
            self.waiting.push_back(Signal::Lagged);
        } else if !rng.percent(self.silent) {
            self.waiting.push_back(Signal::Copy(seq));
        }
        if rng.percent(self.doubled) {
            self.waiting
                .push_back(Signal::Copy(Seq(1 + rng.below(seq.0))));
        }
    }

    /// What is handed over next.
    pub(super) fn next(&mut self, rng: &mut Rng) -> Option<Signal> {
        let among = self.waiting.len().min(self.reach);
        if among == 0 {
            None
        } else {
            self.waiting.remove(rng.index(among))
        }
    }
}
