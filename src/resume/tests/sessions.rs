//! Random schedules of many readers of one feed: the feed keeps a history out of what its stitcher gives, the readers
//! take from it at their own speed, and go to the log for what it no longer has.

use super::log::{Channel, Log, Replay};
use super::reader::{Reader, Told};
use super::{Event, Rng, run_schedules};
use crate::resume::{History, Input, Slice};
use crate::wire::Seq;

/// A feed: a stitcher over the live side and the log, and the history that it fills.
struct Feed {
    reader: Reader,
    channel: Channel,
    history: History<Event>,
}

impl Feed {
    /// Begins with the last event that is to be seen, as the hub does.
    fn open(rng: &mut Rng, log: &Log) -> Self {
        let last = log.last_held().map(|last| Seq(1 + rng.below(last.0)));
        let next = last.unwrap_or(Seq::FIRST);
        let channel = Channel::faulty(rng);
        let history = History::new(next, rng.pick(&[0, 3, 10, 1000]));
        let reader = Reader::live(next, rng.pick(&[0, 2, 1000]), rng.tells);
        let mut feed = Self {
            reader,
            channel,
            history,
        };
        if let Some(last) = last.filter(|last| log.holds(*last)) {
            feed.reader.take(log, [Input::Live(last)]);
        }
        feed.fill();
        feed
    }

    /// Takes in what comes next from the live side or from the log.
    fn step(&mut self, log: &Log, rng: &mut Rng) {
        match rng.below(3) {
            0 | 1 => {
                if let Some(signal) = self.channel.next(rng) {
                    self.reader.signal(log, signal);
                }
            }
            _ => {
                if let Some(from) = self.reader.wanted() {
                    self.reader.begin(Replay::begin(log, from, 0, None));
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
        for told in self.reader.told.drain(..) {
            match told {
                Told::Event(seq) => self.history.push(Event::sized(seq, 1 + seq.0 as usize % 3)),
                Told::MissingUpTo(to) => self.history.restart(to.successor()),
            }
        }
        assert_eq!(
            self.history.next_seq(),
            self.reader.next,
            "the history awaits what its stitcher awaits"
        );
    }
}

/// One client's session. It keeps nothing: what it cannot hand over at once it reads again.
struct Session {
    reader: Reader,
}

impl Session {
    /// Begins at `next`: with the feed's history, or, as it may, with the log.
    fn open(next: Seq, rng: &mut Rng) -> Self {
        let begin = if rng.percent(80) {
            Reader::live
        } else {
            Reader::from
        };
        Self {
            reader: begin(next, 0, rng.tells),
        }
    }

    /// Takes from the history what fits into one write. Says whether there was something to do.
    fn follow(&mut self, log: &Log, history: &History<Event>, bytes_max: usize) -> bool {
        match history.read(self.reader.next, bytes_max) {
            Slice::Items(items) => {
                let upto = items.last().map(|item| item.seq.successor());
                self.reader
                    .take(log, items.into_iter().map(|item| Input::Live(item.seq)));
                assert_eq!(
                    Some(self.reader.next),
                    upto,
                    "what the history gives is handed over at once"
                );
                true
            }
            Slice::CaughtUp => false,
            Slice::TooOld { first } => {
                assert!(first > self.reader.next, "who is told to be too old is");
                if self.reader.is_live() {
                    self.reader.take(log, [Input::LiveLagged]);
                }
                true
            }
        }
    }

    /// Begins or goes on with a replay of what the history no longer has. What the history begins with was stored, so
    /// a leader that has none of what is before it proves it gone.
    fn refill(&mut self, log: &Log, history: &History<Event>, page_max: usize) {
        if let Some(from) = self.reader.wanted() {
            let first = Some(history.first_seq()).filter(|first| *first > from);
            self.reader.begin(Replay::begin(log, from, 0, first));
        } else {
            self.reader.read(log, page_max);
        }
    }

    fn step(&mut self, log: &Log, history: &History<Event>, rng: &mut Rng) {
        if self.reader.ended {
            return;
        }
        if rng.percent(3) {
            // The client drops, and comes back with its cursor.
            *self = Self::open(self.reader.next, rng);
        } else if self.reader.is_busy() && rng.percent(80) {
            self.refill(log, history, rng.pick(&[1, 4]));
        } else {
            self.follow(log, history, rng.pick(&[0, 1, 5, 1000]));
        }
    }

    /// Reads until there is nothing more, neither in the history nor in the log.
    fn settle(&mut self, log: &Log, history: &History<Event>) {
        let before = self.reader.replays;
        for _ in 0..1_000 {
            if self.reader.is_busy() {
                self.refill(log, history, 64);
            } else if self.reader.ended || !self.follow(log, history, 5) {
                let replays = self.reader.replays - before;
                assert!(
                    replays <= 2,
                    "{replays} replays for what one brings and one proves gone"
                );
                return;
            }
        }
        panic!("a session reads again and again");
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
fn every_session_gets_each_event_once_whatever_its_speed_and_whatever_the_feed_keeps() {
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
            assert!(
                session.reader.next >= feed.reader.next,
                "a session has told all that its feed has"
            );
            assert!(
                log.last_held()
                    .is_none_or(|last| last < session.reader.next),
                "and all that the log has"
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
        let mut session = Session {
            reader: Reader::live(feed.reader.next, 0, rng.tells),
        };
        for _ in 0..60 {
            if let Some(seq) = log.append(false) {
                feed.channel.publish(&mut rng, seq);
            }
            let next = feed.reader.next;
            feed.step(&log, &mut rng);
            // A history that holds one item only cannot serve two that came at once.
            if feed.history.first_seq() <= next {
                session.settle(&log, &feed.history);
            } else {
                session.reader = Reader::live(feed.reader.next, 0, rng.tells);
            }
        }
        assert_eq!(session.reader.replays, 0);
    });
}
