//! A model of the broker: a log whose events expire, replays whose end is fixed when they start,
//! and live copies that get lost.

use std::collections::VecDeque;

use super::Rng;
use crate::wire::Seq;

/// A log. Its first event has the number 1; any of its events may have expired.
#[derive(Debug, Default)]
pub(super) struct Log {
    /// For each event that was stored, whether the log still has it.
    held: Vec<bool>,
    ended: bool,
}

impl Log {
    /// The number of the event that was stored last; 0 if there was none.
    pub(super) fn last(&self) -> Seq {
        Seq(self.held.len() as u64)
    }

    /// Stores one more event, unless the job has ended.
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

    /// Removes events: mostly a prefix, as an age limit does, sometimes some in the middle.
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

    /// Whether the log has this event.
    pub(super) fn holds(&self, seq: Seq) -> bool {
        seq.0
            .checked_sub(1)
            .is_some_and(|index| self.held.get(index as usize) == Some(&true))
    }

    /// The first event from `from` on that the log has.
    pub(super) fn first_held(&self, from: Seq) -> Option<Seq> {
        (from.0..=self.last().0)
            .map(Seq)
            .find(|seq| self.holds(*seq))
    }

    /// The last event that the log has.
    pub(super) fn last_held(&self) -> Option<Seq> {
        (1..=self.last().0)
            .rev()
            .map(Seq)
            .find(|seq| self.holds(*seq))
    }
}

/// A running replay. Its end is fixed when it begins: later events are not part of it.
#[derive(Debug)]
pub(super) struct Replay {
    at: Seq,
    end: Seq,
    page: VecDeque<Seq>,
    returned: bool,
    /// Whether the leader answers, which has every stored event.
    leader: bool,
    until: Option<Seq>,
}

impl Replay {
    /// Begins at `from` on a replica that lags by `lag` events, and ends with `until`.
    pub(super) fn start(log: &Log, from: Seq, lag: u64, until: Option<Seq>) -> Self {
        let seen = Seq(log.last().0.saturating_sub(lag));
        let end = until.map_or(seen, |until| until.min(seen));
        Self {
            at: from,
            end,
            page: VecDeque::new(),
            returned: false,
            leader: lag == 0,
            until,
        }
    }

    /// The next event, from pages of at most `page_max`; `None` when the replay is done.
    pub(super) fn next(&mut self, log: &Log, page_max: usize) -> Option<Seq> {
        if self.page.is_empty() && self.at <= self.end {
            let held = (self.at.0..=self.end.0)
                .map(Seq)
                .filter(|seq| log.holds(*seq));
            self.page = held.take(page_max).collect();
            self.at = self.page.back().map_or(self.end, |last| *last).successor();
        }
        let next = self.page.pop_front();
        self.returned |= next.is_some();
        next
    }

    /// Whether this replay, once done, proves that the log had none of its events when it began.
    pub(super) fn found_nothing(&self) -> bool {
        self.leader && !self.returned
    }

    /// The last event of the replay, if it was limited.
    pub(super) fn until(&self) -> Option<Seq> {
        self.until
    }
}

/// A signal of the live subscription.
#[derive(Clone, Copy, Debug)]
pub(super) enum Signal {
    Copy(Seq),
    Lagged,
}

/// A live subscription, whose copies may be late, lost, repeated or out of order.
#[derive(Debug)]
pub(super) struct Channel {
    waiting: VecDeque<Signal>,
    /// The percentage of copies that are lost without a signal.
    pub(super) silent_loss: u64,
    /// The percentage of copies that are lost with a signal.
    pub(super) reported_loss: u64,
    /// The percentage of copies after which an earlier one is repeated.
    pub(super) repeated: u64,
    /// The next copy is one of the first `reach` that wait.
    pub(super) reach: usize,
}

impl Channel {
    /// Loses nothing and keeps the order; only repeats some events.
    pub(super) fn faithful() -> Self {
        Self {
            waiting: VecDeque::new(),
            silent_loss: 0,
            reported_loss: 0,
            repeated: 25,
            reach: 1,
        }
    }

    /// Any combination of faults.
    pub(super) fn faulty(rng: &mut Rng) -> Self {
        Self {
            silent_loss: rng.pick(&[0, 0, 10, 60]),
            reported_loss: rng.pick(&[0, 0, 10, 40]),
            repeated: rng.pick(&[0, 25]),
            reach: rng.pick(&[1, 2, 4, 100]),
            ..Self::faithful()
        }
    }

    /// Adds a copy of a stored event.
    pub(super) fn publish(&mut self, rng: &mut Rng, seq: Seq) {
        if rng.percent(self.reported_loss) {
            self.waiting.push_back(Signal::Lagged);
        } else if !rng.percent(self.silent_loss) {
            self.waiting.push_back(Signal::Copy(seq));
        }
        if rng.percent(self.repeated) {
            self.waiting
                .push_back(Signal::Copy(Seq(1 + rng.below(seq.0))));
        }
    }

    /// The next signal.
    pub(super) fn next(&mut self, rng: &mut Rng) -> Option<Signal> {
        let among = self.waiting.len().min(self.reach);
        if among == 0 {
            None
        } else {
            self.waiting.remove(rng.index(among))
        }
    }
}
