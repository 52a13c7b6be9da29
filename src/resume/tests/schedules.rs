//! Random schedules of one reader over one log: events are stored, lost, read and expire in any
//! order. `reader` checks the invariants after every step.

use super::log::{Channel, Log, Replay};
use super::reader::Reader;
use super::{Rng, run_schedules};
use crate::resume::Input;
use crate::wire::Seq;

/// A log, its live copies and a reader, with the percentage of each kind of event.
struct World {
    rng: Rng,
    log: Log,
    channel: Channel,
    reader: Reader,
    /// How many events a replica lags at most.
    lag_max: u64,
    /// The percentage of steps in which events expire.
    expires: u64,
    /// The percentage of steps in which the driver reads the log's last event.
    probes: u64,
    /// The percentage of steps in which the leader is asked for a gap.
    proofs: u64,
    /// The leader's answer before it arrives: the log has nothing before this event.
    proof: Option<Seq>,
}

impl World {
    /// A world with every kind of fault.
    fn faulty(mut rng: Rng) -> Self {
        let mut log = whole_log(&mut rng);
        if rng.percent(25) {
            log.expire(&mut rng);
        }
        let channel = Channel::faulty(&mut rng);
        let reader = some_reader(&mut rng, &log);
        Self {
            lag_max: rng.pick(&[0, 1, 5]),
            expires: rng.pick(&[0, 0, 3, 10]),
            probes: rng.pick(&[0, 5]),
            proofs: rng.pick(&[0, 3, 10]),
            ..Self::faithful(rng, log, channel, reader)
        }
    }

    /// A world in which only `channel` has faults.
    fn faithful(rng: Rng, log: Log, channel: Channel, reader: Reader) -> Self {
        Self {
            rng,
            log,
            channel,
            reader,
            lag_max: 0,
            expires: 0,
            probes: 0,
            proofs: 0,
            proof: None,
        }
    }

    fn step(&mut self) {
        let Self {
            rng,
            log,
            channel,
            reader,
            ..
        } = self;
        if rng.percent(self.expires) {
            log.expire(rng);
            print(rng, log, "expired");
        }
        if rng.percent(self.probes) {
            reader.probe(log, rng.below(self.lag_max + 1));
        }
        if rng.percent(self.proofs) {
            // The gap ends at the first event that the leader has, or at the last one seen live.
            self.proof = Some(log.first_held(reader.next).unwrap_or(reader.stored_end));
        } else if rng.percent(30)
            && let Some(before) = self.proof.take()
        {
            reader.handle(log, [Input::Gap { before }]);
        }
        match rng.below(3) {
            0 => {
                if let Some(seq) = log.append(rng.percent(4)) {
                    channel.publish(rng, seq);
                    print(rng, log, "stored");
                }
            }
            1 => {
                if let Some(signal) = channel.next(rng) {
                    reader.signal(log, signal);
                }
            }
            _ => {
                if let Some(from) = reader.requested() {
                    let lag = rng.below(self.lag_max + 1);
                    reader.start(Replay::start(log, from, lag, None));
                } else {
                    reader.read(log, rng.pick(&[1, 3]));
                }
            }
        }
    }

    /// Nothing more is stored: every live copy arrives, and the reader reads what it requests.
    fn settle(&mut self) {
        print(&self.rng, &self.log, "settling");
        while let Some(signal) = self.channel.next(&mut self.rng) {
            self.reader.signal(&self.log, signal);
        }
        self.reader.settle(&self.log, &mut self.rng);
    }

    /// The job is silent: the driver reads the log's last event.
    fn probe(&mut self) {
        self.reader.probe(&self.log, 0);
        self.reader.settle(&self.log, &mut self.rng);
    }

    fn check_complete(&self) {
        let Self { log, reader, .. } = self;
        assert!(
            log.last_held().is_none_or(|last| last < reader.next),
            "it has everything of the log"
        );
        assert!(
            reader.stored_end <= reader.next,
            "it has everything that is known"
        );
    }
}

fn print(rng: &Rng, log: &Log, what: &str) {
    if rng.verbose {
        let held: Vec<u64> = (1..=log.last().0)
            .filter(|seq| log.holds(Seq(*seq)))
            .collect();
        println!("{what}: last {}, held {held:?}", log.last());
    }
}

/// A log of which nothing has expired.
fn whole_log(rng: &mut Rng) -> Log {
    let mut log = Log::default();
    for _ in 0..rng.pick(&[0, 1, 6, 12]) {
        log.append(rng.percent(3));
    }
    log
}

/// A reader that starts anywhere: at the first event, in the middle, at the end or after it.
fn some_reader(rng: &mut Rng, log: &Log) -> Reader {
    let ahead_max = rng.pick(&[0, 1, 2, 3, 8, 1000]);
    let last = log.last().0;
    match rng.below(5) {
        0 => Reader::from(Seq::FIRST, ahead_max, rng.verbose),
        1 => Reader::from(Seq(1 + rng.below(last + 1)), ahead_max, rng.verbose),
        2 => Reader::from(Seq(last + 1), ahead_max, rng.verbose),
        3 => Reader::from(Seq(last + 1 + rng.below(4)), ahead_max, rng.verbose),
        _ => Reader::caught_up(Seq(last + 1 + rng.pick(&[0, 0, 2])), ahead_max, rng.verbose),
    }
}

#[test]
fn every_event_is_delivered_once_and_in_order_whatever_fails() {
    run_schedules(30_000, |mut rng| {
        let steps = 20 + rng.below(120);
        let mut world = World::faulty(rng);
        for _ in 0..steps {
            world.step();
        }
        let before = world.reader.replays;
        world.settle();
        world.probe();
        world.check_complete();
        // One after the running one, one to prove a gap, and one for unreported losses.
        let replays = world.reader.replays - before;
        assert!(replays <= 3, "{replays} replays");
        world.probe();
        let more = world.reader.replays - before - replays;
        assert_eq!(
            more, 0,
            "a reader that has everything does not read the log"
        );
    });
}

#[test]
fn a_reported_loss_is_repaired_without_a_probe() {
    run_schedules(10_000, |mut rng| {
        let steps = 20 + rng.below(120);
        let mut world = World::faulty(rng);
        world.channel.silent_loss = 0;
        world.lag_max = 0;
        world.probes = 0;
        for _ in 0..steps {
            world.step();
        }
        world.settle();
        world.check_complete();
    });
}

fn replays_without_faults(rng: Rng, log: Log, reader: Reader) -> usize {
    let mut world = World::faithful(rng, log, Channel::faithful(), reader);
    for _ in 0..80 {
        world.step();
    }
    world.settle();
    world.check_complete();
    world.reader.replays
}

#[test]
fn without_faults_a_reader_of_the_log_needs_one_replay() {
    run_schedules(5_000, |mut rng| {
        let log = whole_log(&mut rng);
        let start = Seq(1 + rng.below(log.last().0 + 1));
        let reader = Reader::from(start, 1000, rng.verbose);
        assert_eq!(replays_without_faults(rng, log, reader), 1);
    });
}

#[test]
fn without_faults_a_reader_at_the_end_of_the_log_needs_no_replay() {
    run_schedules(2_000, |mut rng| {
        let log = whole_log(&mut rng);
        let reader = Reader::caught_up(log.last().successor(), rng.pick(&[0, 3]), rng.verbose);
        assert_eq!(replays_without_faults(rng, log, reader), 0);
    });
}
