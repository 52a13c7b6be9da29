//! A driver of one stitcher that checks everything that always holds, after every input. What happens when is for the
//! schedules to say.

use std::collections::BTreeSet;
use std::rc::Rc;

use super::log::{Log, Replay, Signal};
use super::{Event, Rng};
use crate::resume::{Action, Input, Stitcher};
use crate::wire::Seq;

/// More actions than this on one input, or steps in one settling, are a loop.
const STEPS_MAX: usize = 1_000;

/// What a reader was told.
#[derive(Clone, Copy, Debug)]
pub(super) enum Told {
    Event(Seq),
    MissingUpTo(Seq),
}

/// A stitcher, its driver, and what is known about it from outside.
#[derive(Debug)]
pub(super) struct Reader {
    stitcher: Stitcher<Event>,
    ahead_max: usize,
    /// Every copy that the stitcher keeps counts here.
    counted: Rc<()>,
    /// What must be told next.
    pub(super) next: Seq,
    /// Every event before this was stored, as the stitcher could see.
    pub(super) known: Seq,
    /// What the stitcher named as waiting: these it has, so it must hand them over.
    promised: BTreeSet<Seq>,
    /// Whether the end event was handed over, and whether `End` followed.
    end_due: bool,
    pub(super) ended: bool,
    wanted: Option<Seq>,
    replay: Option<Replay>,
    /// How many replays were asked for.
    pub(super) replays: usize,
    /// What was told since somebody took it out of here.
    pub(super) told: Vec<Told>,
    tells: bool,
}

impl Reader {
    /// A reader that wants everything from `next` on.
    pub(super) fn from(next: Seq, ahead_max: usize, tells: bool) -> Self {
        let mut reader = Self::over(Stitcher::new(next, ahead_max), next, ahead_max, tells);
        reader.act(&Log::default());
        assert_eq!(
            reader.wanted,
            Some(next),
            "a reader that is behind reads the log first"
        );
        reader
    }

    /// A reader at the end of the log, or at the end of what another gives it.
    pub(super) fn live(next: Seq, ahead_max: usize, tells: bool) -> Self {
        let mut reader = Self::over(Stitcher::live(next, ahead_max), next, ahead_max, tells);
        reader.act(&Log::default());
        assert_eq!(
            reader.wanted, None,
            "a reader that is live has nothing to read"
        );
        reader
    }

    fn over(stitcher: Stitcher<Event>, next: Seq, ahead_max: usize, tells: bool) -> Self {
        Self {
            stitcher,
            ahead_max,
            counted: Rc::default(),
            next,
            known: next,
            promised: BTreeSet::new(),
            end_due: false,
            ended: false,
            wanted: None,
            replay: None,
            replays: 0,
            told: Vec::new(),
            tells,
        }
    }

    /// Whether a replay was asked for or is under way.
    pub(super) fn is_busy(&self) -> bool {
        self.wanted.is_some() || self.replay.is_some()
    }

    /// Whether a replay was asked for and has not begun.
    pub(super) fn wanted(&self) -> Option<Seq> {
        self.wanted
    }

    pub(super) fn is_live(&self) -> bool {
        self.stitcher.is_live()
    }

    /// Begins the replay that was asked for.
    pub(super) fn begin(&mut self, replay: Replay) {
        assert!(
            self.wanted.take().is_some(),
            "the model begins only what was asked for"
        );
        if self.tells {
            println!("begins {replay:?}");
        }
        self.replay = Some(replay);
    }

    /// Reads on in the replay under way, if there is one: one page at most.
    pub(super) fn read(&mut self, log: &Log, page_max: usize) {
        let Some(replay) = &mut self.replay else {
            return;
        };
        if let Some(seq) = replay.next(log, page_max) {
            return self.take(log, [Input::Replayed(seq)]);
        }
        let (found_nothing, until) = (replay.found_nothing(), replay.until());
        self.replay = None;
        self.give(log, Input::ReplayDone);
        // A session knows that what it reads up to was stored before; a feed asks its stitcher for such a place.
        if found_nothing && let Some(before) = until.or_else(|| self.stitcher.gap_end()) {
            self.give(log, Input::Gap { before });
        }
        self.act(log);
    }

    /// Nothing came for a while: asks for the log's last event, which tells whether the last copies were lost.
    pub(super) fn probe(&mut self, log: &Log, lag: u64) {
        if let Some(last) = log.last_held().filter(|last| last.0 + lag <= log.last().0) {
            self.take(log, [Input::Live(last)]);
        }
    }

    /// Takes in what the live side gives.
    pub(super) fn signal(&mut self, log: &Log, signal: Signal) {
        match signal {
            Signal::Copy(seq) => self.take(log, [Input::Live(seq)]),
            Signal::Lagged => self.take(log, [Input::LiveLagged]),
        }
    }

    /// Nothing is stored any more and every replica has caught up: reads until nothing is asked for.
    pub(super) fn settle(&mut self, log: &Log, rng: &mut Rng) {
        for _ in 0..STEPS_MAX {
            if !self.is_busy() {
                assert!(
                    self.ended || self.is_live(),
                    "who has nothing to read is live"
                );
                return;
            }
            if let Some(from) = self.wanted {
                self.begin(Replay::begin(log, from, 0, None));
            }
            self.read(log, rng.pick(&[1, 2, 64]));
        }
        panic!("the log is read again and again");
    }

    /// Hands inputs to the stitcher and does what it says, checking everything.
    pub(super) fn take(&mut self, log: &Log, inputs: impl IntoIterator<Item = Input<Seq>>) {
        let mut lagged = false;
        for input in inputs {
            lagged |= input == Input::LiveLagged;
            self.give(log, input);
        }
        self.act(log);
        assert!(
            !lagged || self.ended || self.is_busy(),
            "a lag leads back to the log"
        );
    }

    fn give(&mut self, log: &Log, input: Input<Seq>) {
        if self.tells {
            println!("    {input:?}");
        }
        if let Input::Live(seq) | Input::Replayed(seq) = input {
            self.known = self.known.max(seq.successor());
        }
        let input = self.counted(log, input);
        self.stitcher.handle(input);
    }

    fn counted(&self, log: &Log, input: Input<Seq>) -> Input<Event> {
        let event = |seq| Event {
            seq,
            end: log.is_end(seq),
            size: 1,
            counted: Rc::clone(&self.counted),
        };
        match input {
            Input::Replayed(seq) => Input::Replayed(event(seq)),
            Input::Live(seq) => Input::Live(event(seq)),
            Input::ReplayDone => Input::ReplayDone,
            Input::LiveLagged => Input::LiveLagged,
            Input::Gap { before } => Input::Gap { before },
        }
    }

    fn act(&mut self, log: &Log) {
        for _ in 0..STEPS_MAX {
            let Some(action) = self.stitcher.poll() else {
                return self.check();
            };
            if self.tells {
                println!("        {action:?}");
            }
            self.check_action(log, &action);
        }
        panic!("one input leads to actions without end");
    }

    fn check_action(&mut self, log: &Log, action: &Action<Event>) {
        assert!(!self.ended, "nothing follows the end");
        assert_eq!(
            self.end_due,
            *action == Action::End,
            "the end is told right after the end event, and only then"
        );
        match action {
            Action::Deliver(event) => {
                assert_eq!(
                    event.seq, self.next,
                    "events come in order, each once, without a gap"
                );
                assert!(event.seq <= log.last(), "what is handed over was stored");
                self.next = event.seq.successor();
                self.promised.remove(&event.seq);
                self.end_due = event.end;
                self.told.push(Told::Event(event.seq));
            }
            Action::Gap { from, to } => {
                assert!(
                    *from == self.next && from <= to,
                    "a gap is reported in its place, and is not empty"
                );
                assert!(*to <= log.last(), "what was never stored is not missing");
                for seq in (from.0..=to.0).map(Seq) {
                    assert!(
                        !log.holds(seq),
                        "{seq} is told missing and stands in the log"
                    );
                    assert!(
                        !self.promised.contains(&seq),
                        "{seq} is told missing and had arrived live"
                    );
                }
                self.next = to.successor();
                self.told.push(Told::MissingUpTo(*to));
            }
            Action::Replay { from } => {
                assert!(!self.is_busy(), "one replay at a time");
                assert_eq!(*from, self.next, "a replay begins at what is wanted next");
                self.wanted = Some(*from);
                self.replays += 1;
            }
            Action::End => (self.end_due, self.ended) = (false, true),
        }
    }

    /// What holds whenever the stitcher has nothing more to say.
    fn check(&mut self) {
        assert!(!self.end_due, "the end event is followed by the end");
        assert_eq!(self.stitcher.next_seq(), self.next);
        assert_eq!(self.stitcher.is_ended(), self.ended);
        assert!(!self.ended || !self.is_live(), "who has ended is not live");
        assert!(
            self.ended || self.is_live() != self.is_busy(),
            "who is not live reads, who is live does not"
        );
        assert!(
            !self.is_live() || self.next >= self.known,
            "who is live has everything that is known of"
        );
        let kept = Rc::strong_count(&self.counted) - 1;
        assert!(
            kept <= if self.ended { 0 } else { self.ahead_max },
            "{kept} copies are kept"
        );
        assert_eq!(self.stitcher.ahead().is_some(), kept > 0);
        if let Some(ahead) = self.stitcher.ahead() {
            assert!(ahead > self.next, "only what lies after a gap waits");
            self.promised.insert(ahead);
        }
        if let Some(end) = self.stitcher.gap_end() {
            assert!(
                self.next < end && end <= self.known,
                "a gap ends at something that is known"
            );
        }
    }
}
