//! The stitcher: joins what is read from the log and what arrives live into one sequence, each item once, in order.
//! It reads nothing itself and knows no time; when to read again after a fruitless read is the driver's.

use std::collections::{BTreeMap, VecDeque};

use super::Item;
use crate::wire::Seq;

/// What the driver has learnt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input<T> {
    /// The next item of the replay under way. A replay gives items in order; what it skips, the log does not have.
    Replayed(T),
    /// The replay under way has ended: it gave everything that the log held when it began, as far as its reader saw.
    ReplayDone,
    /// A live copy; copies may be lost, doubled or out of order. Also the log's last item, when a driver asked a silent
    /// log for it: if the last copies were lost, that is how it shows.
    Live(T),
    /// Live copies were lost, nobody knows how many.
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
    /// Hand this over: it is the next one.
    Deliver(T),
    /// Report a gap: the log no longer has these items.
    Gap {
        /// The first of them.
        from: Seq,
        /// The last of them.
        to: Seq,
    },
    /// Read the log from this item on and answer with `Replayed`… and one `ReplayDone`.
    Replay {
        /// The first item that is wanted.
        from: Seq,
    },
    /// The last item was handed over; nothing follows.
    End,
}

/// ```text
///   new ──▶ Behind ──── poll gives Replay ────▶ Replaying ──── ReplayDone, nothing more known of ───▶ Live ◀── live
///             ▲                                     │                                                  │
///             ├── ReplayDone, more is known of ─────┘                                                  │
///             └────────────────────────── a copy after a gap, LiveLagged ─────────────────────────────┘
///   any ──── the end item is delivered ──▶ Ended
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The log has, or may have, items that were not delivered, and no replay is under way.
    Behind,
    /// A replay is under way. `stale` when something was lost since it began: it may have ended before that.
    Replaying { stale: bool },
    /// Everything known of was delivered.
    Live,
    /// The end item was delivered.
    Ended,
}

/// The state machine. Feed it with [`handle`](Self::handle), then drain [`poll`](Self::poll) before the next input.
#[derive(Debug)]
pub struct Stitcher<T> {
    state: State,
    /// The item to deliver next.
    next: Seq,
    /// The item before which everything is known to have been stored.
    known: Seq,
    /// `known` as it was when the last replay was asked for: of what was stored later, that replay proves nothing.
    asked: Seq,
    /// Live items after a gap, at most `ahead_max`; what does not fit is read from the log.
    ahead: BTreeMap<Seq, T>,
    ahead_max: usize,
    out: VecDeque<Action<T>>,
}

impl<T: Item> Stitcher<T> {
    /// Begins behind the log: the first action is to read it from `next` on.
    pub fn new(next: Seq, ahead_max: usize) -> Self {
        let (ahead, out) = (BTreeMap::new(), VecDeque::new());
        Self {
            state: State::Behind,
            next,
            known: next,
            asked: next,
            ahead,
            ahead_max,
            out,
        }
    }

    /// Begins at the end of the log: the reader has, or does not want, everything before `next`.
    pub fn live(next: Seq, ahead_max: usize) -> Self {
        Self {
            state: State::Live,
            ..Self::new(next, ahead_max)
        }
    }

    /// The item to be delivered next.
    pub fn next_seq(&self) -> Seq {
        self.next
    }

    /// The lowest live item that waits after a gap.
    pub fn ahead(&self) -> Option<Seq> {
        self.ahead.keys().next().copied()
    }

    /// The end of the gap that blocks the stitcher, if it knew of one when it asked for the last replay. If the leader
    /// had nothing for that replay, the log holds nothing of the gap, and [`Input::Gap`] covers all of it; items in it
    /// that arrived live are still delivered. Items that became known later do not extend it: they may have been stored
    /// after the replay began.
    pub fn gap_end(&self) -> Option<Seq> {
        (self.next < self.asked).then_some(self.asked)
    }

    /// Whether everything that is known of was delivered.
    pub fn is_live(&self) -> bool {
        self.state == State::Live
    }

    /// Whether the end item was delivered.
    pub fn is_ended(&self) -> bool {
        self.state == State::Ended
    }

    /// Takes in what the driver has learnt.
    pub fn handle(&mut self, input: Input<T>) {
        match (self.state, input) {
            (State::Ended, _) => {}
            (_, Input::Live(item)) => self.handle_live(item),
            (_, Input::Replayed(item)) => self.handle_replayed(item),
            (_, Input::Gap { before }) => self.skip_to(before),
            (State::Replaying { stale }, Input::ReplayDone) => {
                let behind = stale || self.next < self.known;
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

    /// What to do next; `None` until there is another input.
    pub fn poll(&mut self) -> Option<Action<T>> {
        if let Some(action) = self.out.pop_front() {
            return Some(action);
        }
        if self.state == State::Behind {
            self.state = State::Replaying { stale: false };
            self.asked = self.known;
            return Some(Action::Replay { from: self.next });
        }
        None
    }

    fn handle_live(&mut self, item: T) {
        let seq = item.seq();
        if seq < self.next {
            return;
        }
        self.known = self.known.max(seq.successor());
        if seq == self.next {
            self.deliver(item);
            self.deliver_ahead();
        } else if self.ahead.len() < self.ahead_max {
            self.ahead.insert(seq, item);
        }
        if self.state == State::Live && self.next < self.known {
            self.state = State::Behind;
        }
    }

    fn handle_replayed(&mut self, item: T) {
        let seq = item.seq();
        // What the log no longer has may still have arrived live.
        self.skip_to(seq);
        if seq == self.next && self.state != State::Ended {
            self.known = self.known.max(seq.successor());
            self.deliver(item);
            self.deliver_ahead();
        }
    }

    /// Advances to `seq`: delivers what arrived live and reports the gaps between.
    fn skip_to(&mut self, seq: Seq) {
        while self.next < seq && self.state != State::Ended {
            let to = self.ahead().map_or(seq, |ahead| ahead.min(seq));
            self.out.push_back(Action::Gap {
                from: self.next,
                to: to.before(),
            });
            self.next = to;
            self.known = self.known.max(to);
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
