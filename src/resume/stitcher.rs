//! The stitcher: joins items read from the log and live copies into one sequence, each item once
//! and in order. It has no I/O and no clock: the driver decides when to read again after a replay
//! without items.

use std::collections::{BTreeMap, VecDeque};

use super::Item;
use crate::wire::Seq;

/// What the driver reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input<T> {
    /// The next item of the current replay. A replay returns items in order; items that it skips
    /// are not in the log.
    Replayed(T),
    /// The current replay has ended: it returned everything that the replica that was read held
    /// when the replay began.
    ReplayDone,
    /// A live copy. Copies may be lost, repeated or out of order. A driver also passes the last
    /// item of a silent log, which shows whether the last copies were lost.
    Live(T),
    /// An unknown number of live copies was lost.
    LiveLagged,
    /// The log is known to hold nothing from the next item up to, and not including, `before`.
    Gap {
        /// The first item that may still come.
        before: Seq,
    },
}

/// What the driver should do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action<T> {
    /// Deliver this item: it is the next one.
    Deliver(T),
    /// Report a gap: the log no longer has these items.
    Gap {
        /// The first of them.
        from: Seq,
        /// The last of them.
        to: Seq,
    },
    /// Read the log from this item on: pass each item as `Replayed`, then one `ReplayDone`.
    Replay {
        /// The first item to read.
        from: Seq,
    },
    /// The end item was delivered. Nothing follows.
    End,
}

/// ```text
///   new ──▶ Behind ── poll returns Replay ──▶ Replaying ── ReplayDone, all delivered ──▶ Live
///             ▲                                   │                                        │
///             ├── ReplayDone, more is known ──────┘                                        │
///             └───────────── a live copy after a gap, LiveLagged ──────────────────────────┘
///   any ── the end item is delivered ──▶ Ended
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The log may have items that were not delivered, and no replay is running.
    Behind,
    /// A replay is running. `stale` if copies were lost since it began: it may not include them.
    Replaying { stale: bool },
    /// Every known item was delivered.
    Live,
    /// The end item was delivered.
    Ended,
}

/// The state machine. After each [`handle`](Self::handle), call [`poll`](Self::poll) until it
/// returns `None`.
#[derive(Debug)]
pub struct Stitcher<T> {
    state: State,
    /// The item to deliver next.
    next: Seq,
    /// Every item before this one is known to have been stored.
    stored_end: Seq,
    /// `stored_end` when the last replay was requested. That replay proves nothing about later items.
    requested_end: Seq,
    /// Live items after a gap, at most `ahead_max`; others are read from the log.
    ahead: BTreeMap<Seq, T>,
    ahead_max: usize,
    out: VecDeque<Action<T>>,
}

impl<T: Item> Stitcher<T> {
    /// Starts behind the log: the first action is to read it from `next` on.
    pub fn new(next: Seq, ahead_max: usize) -> Self {
        Self {
            state: State::Behind,
            next,
            stored_end: next,
            requested_end: next,
            ahead: BTreeMap::new(),
            ahead_max,
            out: VecDeque::new(),
        }
    }

    /// Starts at the end of the log: the reader does not need anything before `next`.
    pub fn caught_up(next: Seq, ahead_max: usize) -> Self {
        Self {
            state: State::Live,
            ..Self::new(next, ahead_max)
        }
    }

    /// The item to deliver next.
    pub fn next_seq(&self) -> Seq {
        self.next
    }

    /// The first live item that waits after a gap.
    pub fn first_ahead(&self) -> Option<Seq> {
        self.ahead.keys().next().copied()
    }

    /// The end of the gap before the next item, if the gap was known when the last replay was
    /// requested. If that replay read from the leader and returned nothing, the log holds nothing
    /// of the gap, and the driver passes this as [`Input::Gap`]; items in the gap that arrived
    /// live are still delivered. Later items do not extend the gap: they may have been stored
    /// after the replay began.
    pub fn gap_end(&self) -> Option<Seq> {
        (self.next < self.requested_end).then_some(self.requested_end)
    }

    /// Whether every known item was delivered.
    pub fn is_live(&self) -> bool {
        self.state == State::Live
    }

    /// Whether the end item was delivered.
    pub fn is_ended(&self) -> bool {
        self.state == State::Ended
    }

    /// Applies an input.
    pub fn handle(&mut self, input: Input<T>) {
        match (self.state, input) {
            (State::Ended, _) => {}
            (_, Input::Live(item)) => self.handle_live(item),
            (_, Input::Replayed(item)) => self.handle_replayed(item),
            (_, Input::Gap { before }) => self.skip_to(before),
            (State::Replaying { stale }, Input::ReplayDone) => {
                let behind = stale || self.next < self.stored_end;
                self.state = if behind { State::Behind } else { State::Live };
            }
            (State::Replaying { .. }, Input::LiveLagged) => {
                self.state = State::Replaying { stale: true }
            }
            (State::Live, Input::LiveLagged) => self.state = State::Behind,
            (State::Live | State::Behind, Input::ReplayDone)
            | (State::Behind, Input::LiveLagged) => {}
        }
    }

    /// The next action; `None` until there is another input.
    pub fn poll(&mut self) -> Option<Action<T>> {
        if let Some(action) = self.out.pop_front() {
            return Some(action);
        }
        if self.state == State::Behind {
            self.state = State::Replaying { stale: false };
            self.requested_end = self.stored_end;
            return Some(Action::Replay { from: self.next });
        }
        None
    }

    fn handle_live(&mut self, item: T) {
        let seq = item.seq();
        if seq < self.next {
            return;
        }
        self.stored_end = self.stored_end.max(seq.successor());
        if seq == self.next {
            self.deliver(item);
            self.deliver_ahead();
        } else if self.ahead.len() < self.ahead_max {
            self.ahead.insert(seq, item);
        }
        if self.state == State::Live && self.next < self.stored_end {
            self.state = State::Behind;
        }
    }

    fn handle_replayed(&mut self, item: T) {
        let seq = item.seq();
        // Items that the log no longer has may have arrived live.
        self.skip_to(seq);
        if seq == self.next && self.state != State::Ended {
            self.stored_end = self.stored_end.max(seq.successor());
            self.deliver(item);
            self.deliver_ahead();
        }
    }

    /// Advances to `seq`: delivers items that arrived live and reports the gaps between them.
    fn skip_to(&mut self, seq: Seq) {
        while self.next < seq && self.state != State::Ended {
            let to = self.first_ahead().map_or(seq, |ahead| ahead.min(seq));
            self.out.push_back(Action::Gap {
                from: self.next,
                to: to.before(),
            });
            self.next = to;
            self.stored_end = self.stored_end.max(to);
            self.deliver_ahead();
        }
    }

    fn deliver_ahead(&mut self) {
        while self.state != State::Ended
            && let Some(item) = self.ahead.remove(&self.next)
        {
            self.deliver(item);
        }
    }

    fn deliver(&mut self, item: T) {
        self.next = self.next.successor();
        let end = item.is_end();
        self.out.push_back(Action::Deliver(item));
        if end {
            self.out.push_back(Action::End);
            self.state = State::Ended;
            self.ahead.clear();
        }
    }
}
