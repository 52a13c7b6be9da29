//! Random schedules of many sessions of one feed: each session reads the feed's history at its own
//! pace, and the log for events that the history no longer has.

use super::log::{Channel, Log, Replay};
use super::reader::{Output, Reader};
use super::{Event, Rng, run_schedules};
use crate::resume::{History, Input, Slice};
use crate::wire::Seq;

/// A feed: a stitcher over the live copies and the log, and the history that it fills.
struct Feed {
    reader: Reader,
    channel: Channel,
    history: History<Event>,
}

impl Feed {
    /// Starts with the last event that the replica has, as the hub does.
    fn open(rng: &mut Rng, log: &Log) -> Self {
        let last = log.last_held().map(|last| Seq(1 + rng.below(last.0)));
        let next = last.unwrap_or(Seq::FIRST);
        let channel = Channel::faulty(rng);
        let history = History::new(next, rng.pick(&[0, 3, 10, 1000]));
        let reader = Reader::caught_up(next, rng.pick(&[0, 2, 1000]), rng.verbose);
        let mut feed = Self {
            reader,
            channel,
            history,
        };
        if let Some(last) = last.filter(|last| log.holds(*last)) {
            feed.reader.handle(log, [Input::Live(last)]);
        }
        feed.fill();
        feed
    }

    /// Handles the next live signal or the next event of a replay.
    fn step(&mut self, log: &Log, rng: &mut Rng) {
        match rng.below(3) {
            0 | 1 => {
                if let Some(signal) = self.channel.next(rng) {
                    self.reader.signal(log, signal);
                }
            }
            _ => {
                if let Some(from) = self.reader.requested() {
                    self.reader.start(Replay::start(log, from, 0, None));
                } else {
                    self.reader.read(log, 3);
                }
            }
        }
        self.fill();
    }

    fn settle(&mut self, log: &Log, rng: &mut Rng) {
        while let Some(signal) = self.channel.next(rng) {
            self.reader.signal(log, signal);
        }
        self.reader.settle(log, rng);
        self.reader.probe(log, 0);
        self.reader.settle(log, rng);
        self.fill();
    }

    fn fill(&mut self) {
        for output in self.reader.output.drain(..) {
            match output {
                Output::Event(seq) => self.history.push(Event::sized(seq, 1 + seq.0 as usize % 3)),
                Output::GapUpTo(to) => self.history.restart(to.successor()),
            }
        }
        assert_eq!(self.history.next_seq(), self.reader.next);
    }
}

/// One client's session. It keeps nothing: events that it cannot deliver at once are read again.
struct Session {
    reader: Reader,
}

impl Session {
    /// Starts at `next`: mostly with the feed's history, sometimes with the log.
    fn open(next: Seq, rng: &mut Rng) -> Self {
        let open = if rng.percent(80) {
            Reader::caught_up
        } else {
            Reader::from
        };
        Self {
            reader: open(next, 0, rng.verbose),
        }
    }

    fn caught_up(feed: &Feed, verbose: bool) -> Self {
        Self {
            reader: Reader::caught_up(feed.reader.next, 0, verbose),
        }
    }

    /// Reads from the history what fits into one write. Returns whether it did anything.
    fn follow(&mut self, log: &Log, history: &History<Event>, bytes_max: usize) -> bool {
        match history.read(self.reader.next, bytes_max) {
            Slice::Items(items) => {
                let upto = items.last().map(|item| item.seq.successor());
                self.reader
                    .handle(log, items.into_iter().map(|item| Input::Live(item.seq)));
                assert_eq!(Some(self.reader.next), upto, "all are delivered at once");
                true
            }
            Slice::CaughtUp => false,
            Slice::TooOld { first } => {
                assert!(first > self.reader.next);
                if self.reader.is_live() {
                    self.reader.handle(log, [Input::LiveLagged]);
                }
                true
            }
        }
    }

    /// Starts or continues a replay of events that the history no longer has. The first event of
    /// the history was stored, so if the leader has no event before it, they have all expired.
    fn refill(&mut self, log: &Log, history: &History<Event>, page_max: usize) {
        if let Some(from) = self.reader.requested() {
            let first = Some(history.first_seq()).filter(|first| *first > from);
            self.reader.start(Replay::start(log, from, 0, first));
        } else {
            self.reader.read(log, page_max);
        }
    }

    fn step(&mut self, log: &Log, history: &History<Event>, rng: &mut Rng) {
        if self.reader.ended {
            return;
        }
        if rng.percent(3) {
            // The client reconnects with its cursor.
            *self = Self::open(self.reader.next, rng);
        } else if self.reader.is_busy() && rng.percent(80) {
            self.refill(log, history, rng.pick(&[1, 4]));
        } else {
            self.follow(log, history, rng.pick(&[0, 1, 5, 1000]));
        }
    }

    /// Reads until neither the history nor the log has more.
    fn settle(&mut self, log: &Log, history: &History<Event>) {
        let before = self.reader.replays;
        for _ in 0..1_000 {
            if self.reader.is_busy() {
                self.refill(log, history, 64);
            } else if self.reader.ended || !self.follow(log, history, 5) {
                let replays = self.reader.replays - before;
                // One for the events that the log has, one to prove a gap.
                assert!(replays <= 2, "{replays} replays");
                return;
            }
        }
        panic!("endless replays");
    }
}

fn some_log(rng: &mut Rng) -> Log {
    let mut log = Log::default();
    for _ in 0..rng.below(8) {
        log.append(false);
    }
    log
}

#[test]
fn every_session_gets_each_event_once_at_any_pace() {
    run_schedules(5_000, |mut rng| {
        let mut log = some_log(&mut rng);
        let mut feed = Feed::open(&mut rng, &log);
        let mut sessions = Vec::new();
        let expires = rng.pick(&[0, 0, 2, 10]);
        for _ in 0..30 + rng.below(200) {
            match rng.below(8) {
                0 | 1 => {
                    if let Some(seq) = log.append(rng.percent(2)) {
                        feed.channel.publish(&mut rng, seq);
                    }
                }
                2 if sessions.len() < 6 => {
                    let next = Seq(1 + rng.below(feed.reader.next.0));
                    sessions.push(Session::open(next, &mut rng));
                }
                2..=4 => feed.step(&log, &mut rng),
                _ if sessions.is_empty() => {}
                _ => {
                    let index = rng.index(sessions.len());
                    sessions[index].step(&log, &feed.history, &mut rng);
                }
            }
            if rng.percent(expires) {
                log.expire(&mut rng);
            }
        }
        feed.settle(&log, &mut rng);
        for session in &mut sessions {
            session.settle(&log, &feed.history);
            let next = session.reader.next;
            assert!(next >= feed.reader.next, "it has everything of the feed");
            assert!(
                log.last_held().is_none_or(|last| last < next),
                "it has everything of the log"
            );
        }
    });
}

#[test]
fn a_session_that_keeps_up_never_reads_the_log() {
    run_schedules(1_000, |mut rng| {
        let mut log = some_log(&mut rng);
        let mut feed = Feed::open(&mut rng, &log);
        feed.settle(&log, &mut rng);
        let mut session = Session::caught_up(&feed, rng.verbose);
        for _ in 0..60 {
            if let Some(seq) = log.append(false) {
                feed.channel.publish(&mut rng, seq);
            }
            let next = feed.reader.next;
            feed.step(&log, &mut rng);
            // A history with room for one item cannot serve two that arrived at once.
            if feed.history.first_seq() <= next {
                session.settle(&log, &feed.history);
            } else {
                session = Session::caught_up(&feed, rng.verbose);
            }
        }
        assert_eq!(session.reader.replays, 0);
    });
}
