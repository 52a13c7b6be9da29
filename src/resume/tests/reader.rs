//! Drives one stitcher and checks its invariants after every input. The schedules decide what
//! happens when.

use std::collections::BTreeSet;
use std::rc::Rc;

use super::log::{Log, Replay, Signal};
use super::{Event, Rng};
use crate::resume::{Action, Input, Stitcher};
use crate::wire::Seq;

/// More actions than this after one input, or more steps to settle, are an endless loop.
const STEPS_MAX: usize = 1_000;

/// What a stitcher delivered.
#[derive(Clone, Copy, Debug)]
pub(super) enum Output {
    Event(Seq),
    GapUpTo(Seq),
}

/// A stitcher, its driver, and the state that the checks need.
#[derive(Debug)]
pub(super) struct Reader {
    stitcher: Stitcher<Event>,
    ahead_max: usize,
    /// Its strong count is the number of copies that the stitcher keeps.
    counted: Rc<()>,
    /// The event to deliver next.
    pub(super) next: Seq,
    /// Every event before this one was stored, as far as the stitcher can know.
    pub(super) stored_end: Seq,
    /// Events that the stitcher has kept, and so must deliver.
    promised: BTreeSet<Seq>,
    /// Whether the end event was delivered and `End` must follow.
    end_due: bool,
    pub(super) ended: bool,
    requested: Option<Seq>,
    replay: Option<Replay>,
    /// How many replays were requested.
    pub(super) replays: usize,
    /// What was delivered since a schedule last drained this.
    pub(super) output: Vec<Output>,
    verbose: bool,
}

impl Reader {
    /// A reader that needs everything from `next` on.
    pub(super) fn from(next: Seq, ahead_max: usize, verbose: bool) -> Self {
        let stitcher = Stitcher::new(next, ahead_max);
        let reader = Self::new(stitcher, next, ahead_max, verbose);
        assert_eq!(reader.requested, Some(next), "it reads the log first");
        reader
    }

    /// A reader at the end of the log, or at the end of the history that it reads.
    pub(super) fn caught_up(next: Seq, ahead_max: usize, verbose: bool) -> Self {
        let stitcher = Stitcher::caught_up(next, ahead_max);
        let reader = Self::new(stitcher, next, ahead_max, verbose);
        assert_eq!(reader.requested, None, "it does not read the log");
        reader
    }

    fn new(stitcher: Stitcher<Event>, next: Seq, ahead_max: usize, verbose: bool) -> Self {
        let mut reader = Self {
            stitcher,
            ahead_max,
            counted: Rc::default(),
            next,
            stored_end: next,
            promised: BTreeSet::new(),
            end_due: false,
            ended: false,
            requested: None,
            replay: None,
            replays: 0,
            output: Vec::new(),
            verbose,
        };
        reader.act(&Log::default());
        reader
    }

    /// Whether a replay was requested or is running.
    pub(super) fn is_busy(&self) -> bool {
        self.requested.is_some() || self.replay.is_some()
    }

    /// The first event of a replay that was requested and has not started.
    pub(super) fn requested(&self) -> Option<Seq> {
        self.requested
    }

    pub(super) fn is_live(&self) -> bool {
        self.stitcher.is_live()
    }

    /// Starts the requested replay.
    pub(super) fn start(&mut self, replay: Replay) {
        assert!(self.requested.take().is_some(), "no replay was requested");
        if self.verbose {
            println!("starts {replay:?}");
        }
        self.replay = Some(replay);
    }

    /// Reads at most one page of the running replay, if there is one.
    pub(super) fn read(&mut self, log: &Log, page_max: usize) {
        let Some(replay) = &mut self.replay else {
            return;
        };
        if let Some(seq) = replay.next(log, page_max) {
            return self.handle(log, [Input::Replayed(seq)]);
        }
        let found_nothing = replay.found_nothing();
        let until = replay.until();
        self.replay = None;
        self.input(log, Input::ReplayDone);
        // A session's `until` was stored before the replay began; a feed asks its stitcher.
        if found_nothing && let Some(before) = until.or_else(|| self.stitcher.gap_end()) {
            self.input(log, Input::Gap { before });
        }
        self.act(log);
    }

    /// Reads the log's last event from a replica that lags by `lag` events.
    pub(super) fn probe(&mut self, log: &Log, lag: u64) {
        if let Some(last) = log.last_held().filter(|last| last.0 + lag <= log.last().0) {
            self.handle(log, [Input::Live(last)]);
        }
    }

    /// Handles a signal of the live subscription.
    pub(super) fn signal(&mut self, log: &Log, signal: Signal) {
        match signal {
            Signal::Copy(seq) => self.handle(log, [Input::Live(seq)]),
            Signal::Lagged => self.handle(log, [Input::LiveLagged]),
        }
    }

    /// Reads from the leader until no replay is requested, while nothing more is stored.
    pub(super) fn settle(&mut self, log: &Log, rng: &mut Rng) {
        for _ in 0..STEPS_MAX {
            if !self.is_busy() {
                assert!(self.ended || self.is_live());
                return;
            }
            if let Some(from) = self.requested {
                self.start(Replay::start(log, from, 0, None));
            }
            self.read(log, rng.pick(&[1, 2, 64]));
        }
        panic!("endless replays");
    }

    /// Passes inputs to the stitcher, performs its actions and checks everything.
    pub(super) fn handle(&mut self, log: &Log, inputs: impl IntoIterator<Item = Input<Seq>>) {
        let mut lagged = false;
        for input in inputs {
            lagged |= input == Input::LiveLagged;
            self.input(log, input);
        }
        self.act(log);
        assert!(
            !lagged || self.ended || self.is_busy(),
            "a lag requests a replay"
        );
    }

    fn input(&mut self, log: &Log, input: Input<Seq>) {
        if self.verbose {
            println!("    {input:?}");
        }
        let event = |seq| Event {
            seq,
            end: log.is_end(seq),
            size: 1,
            counted: Rc::clone(&self.counted),
        };
        if let Input::Live(seq) | Input::Replayed(seq) = input {
            self.stored_end = self.stored_end.max(seq.successor());
        }
        self.stitcher.handle(match input {
            Input::Replayed(seq) => Input::Replayed(event(seq)),
            Input::Live(seq) => Input::Live(event(seq)),
            Input::ReplayDone => Input::ReplayDone,
            Input::LiveLagged => Input::LiveLagged,
            Input::Gap { before } => Input::Gap { before },
        });
    }

    fn act(&mut self, log: &Log) {
        for _ in 0..STEPS_MAX {
            let Some(action) = self.stitcher.poll() else {
                return self.check();
            };
            if self.verbose {
                println!("        {action:?}");
            }
            self.check_action(log, &action);
        }
        panic!("endless actions after one input");
    }

    fn check_action(&mut self, log: &Log, action: &Action<Event>) {
        assert!(!self.ended, "nothing follows the end");
        assert_eq!(
            self.end_due,
            *action == Action::End,
            "`End` directly follows the end event"
        );
        match action {
            Action::Deliver(event) => {
                assert_eq!(event.seq, self.next, "each event once and in order");
                assert!(event.seq <= log.last(), "only stored events are delivered");
                self.next = event.seq.successor();
                self.promised.remove(&event.seq);
                self.end_due = event.end;
                self.output.push(Output::Event(event.seq));
            }
            Action::Gap { from, to } => {
                assert!(
                    *from == self.next && from <= to,
                    "a gap is in order and not empty"
                );
                assert!(*to <= log.last(), "a gap contains only stored events");
                for seq in (from.0..=to.0).map(Seq) {
                    assert!(!log.holds(seq), "{seq} is in a gap and in the log");
                    assert!(
                        !self.promised.contains(&seq),
                        "{seq} is in a gap and arrived live"
                    );
                }
                self.next = to.successor();
                self.output.push(Output::GapUpTo(*to));
            }
            Action::Replay { from } => {
                assert!(!self.is_busy(), "one replay at a time");
                assert_eq!(*from, self.next, "a replay starts at the next event");
                self.requested = Some(*from);
                self.replays += 1;
            }
            Action::End => {
                self.end_due = false;
                self.ended = true;
            }
        }
    }

    /// Checks the invariants between two inputs.
    fn check(&mut self) {
        assert!(!self.end_due, "`End` follows the end event");
        assert_eq!(self.stitcher.next_seq(), self.next);
        assert_eq!(self.stitcher.is_ended(), self.ended);
        assert!(!self.ended || !self.is_live());
        assert!(
            self.ended || self.is_live() != self.is_busy(),
            "it reads the log unless it is live"
        );
        assert!(
            !self.is_live() || self.next >= self.stored_end,
            "a live reader has every known event"
        );
        let kept = Rc::strong_count(&self.counted) - 1;
        assert!(
            kept <= if self.ended { 0 } else { self.ahead_max },
            "{kept} copies are kept"
        );
        assert_eq!(self.stitcher.first_ahead().is_some(), kept > 0);
        if let Some(ahead) = self.stitcher.first_ahead() {
            assert!(ahead > self.next, "only items after a gap wait");
            self.promised.insert(ahead);
        }
        if let Some(end) = self.stitcher.gap_end() {
            assert!(
                self.next < end && end <= self.stored_end,
                "a gap ends before a known event"
            );
        }
    }
}
