//! Random schedules of one reader over one log: what is stored, lost, read, and forgotten, in any order. What is
//! checked after every step stands in `reader`.

use super::log::{Channel, Log, Replay};
use super::reader::Reader;
use super::{Rng, run_schedules};
use crate::resume::Input;
use crate::wire::Seq;

/// Everything that takes part, and how often what happens.
struct World {
    rng: Rng,
    log: Log,
    channel: Channel,
    reader: Reader,
    /// How many events a replica may lag.
    lag_max: u64,
    /// How often in a hundred steps events expire.
    expires: u64,
    /// How often in a hundred steps the driver asks for the log's last event.
    probes: u64,
    /// How often in a hundred steps somebody asks the leader what is gone.
    proofs: u64,
    /// An answer of the leader on its way: nothing before this is in the log.
    proof: Option<Seq>,
}

impl World {
    /// Where everything may go wrong.
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

    /// Where nothing goes wrong but what `channel` does.
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

    /// Lets something happen.
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
            tell(rng, log, "expired");
        }
        if rng.percent(self.probes) {
            reader.probe(log, rng.below(self.lag_max + 1));
        }
        if rng.percent(self.proofs) {
            // All that the leader no longer has, up to what it has or what was seen live.
            self.proof = Some(log.first_held(reader.next).unwrap_or(reader.known));
        } else if rng.percent(30)
            && let Some(before) = self.proof.take()
        {
            reader.take(log, [Input::Gap { before }]);
        }
        match rng.below(3) {
            0 => {
                if let Some(seq) = log.append(rng.percent(4)) {
                    channel.publish(rng, seq);
                    tell(rng, log, "stored");
                }
            }
            1 => {
                if let Some(signal) = channel.next(rng) {
                    reader.signal(log, signal);
                }
            }
            _ => {
                if let Some(from) = reader.wanted() {
                    let lag = rng.below(self.lag_max + 1);
                    reader.begin(Replay::begin(log, from, lag, None));
                } else {
                    reader.read(log, rng.pick(&[1, 3]));
                }
            }
        }
    }

    /// Nothing is stored any more, what is on its way arrives, and the reader reads what it thinks it must.
    fn settle(&mut self) {
        tell(&self.rng, &self.log, "settling");
        while let Some(signal) = self.channel.next(&mut self.rng) {
            self.reader.signal(&self.log, signal);
        }
        self.reader.settle(&self.log, &mut self.rng);
    }

    /// Then nothing comes for a while, and the driver asks the log.
    fn probe(&mut self) {
        self.reader.probe(&self.log, 0);
        self.reader.settle(&self.log, &mut self.rng);
    }

    fn check_complete(&self) {
        let Self { log, reader, .. } = self;
        assert!(
            log.last_held().is_none_or(|last| last < reader.next),
            "everything that the log holds was told"
        );
        assert!(
            reader.known <= reader.next,
            "everything that is known of was told"
        );
    }
}

fn tell(rng: &Rng, log: &Log, what: &str) {
    if rng.tells {
        let held: Vec<u64> = (1..=log.last().0)
            .filter(|seq| log.holds(Seq(*seq)))
            .collect();
        println!("{what}: up to {}, there are {held:?}", log.last());
    }
}

/// A log that has begun, or not.
fn whole_log(rng: &mut Rng) -> Log {
    let mut log = Log::default();
    for _ in 0..rng.pick(&[0, 1, 6, 12]) {
        log.append(rng.percent(3));
    }
    log
}

/// A reader that starts anywhere: from the first event, in the middle, at the end, beyond it.
fn some_reader(rng: &mut Rng, log: &Log) -> Reader {
    let ahead_max = rng.pick(&[0, 1, 2, 3, 8, 1000]);
    let last = log.last().0;
    match rng.below(5) {
        0 => Reader::from(Seq::FIRST, ahead_max, rng.tells),
        1 => Reader::from(Seq(1 + rng.below(last + 1)), ahead_max, rng.tells),
        2 => Reader::from(Seq(last + 1), ahead_max, rng.tells),
        3 => Reader::from(Seq(last + 1 + rng.below(4)), ahead_max, rng.tells),
        _ => Reader::live(Seq(last + 1 + rng.pick(&[0, 0, 2])), ahead_max, rng.tells),
    }
}

#[test]
fn every_event_is_told_once_and_in_order_whatever_is_lost_doubled_late_or_expired() {
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
        // One after that under way, one that shows that the rest is gone, and one for what was lost in silence.
        let replays = world.reader.replays - before;
        assert!(replays <= 3, "{replays} replays although nothing happens");
        world.probe();
        assert_eq!(
            world.reader.replays - before,
            replays,
            "who has everything reads nothing"
        );
    });
}

#[test]
fn a_loss_that_is_told_is_repaired_without_asking_a_silent_log() {
    run_schedules(10_000, |mut rng| {
        let steps = 20 + rng.below(120);
        let mut world = World::faulty(rng);
        (world.channel.silent, world.lag_max, world.probes) = (0, 0, 0);
        for _ in 0..steps {
            world.step();
        }
        world.settle();
        world.check_complete();
    });
}

#[test]
fn a_faithful_live_side_and_room_for_it_cost_exactly_one_replay() {
    run_schedules(5_000, |mut rng| {
        let log = whole_log(&mut rng);
        let start = Seq(1 + rng.below(log.last().0 + 1));
        let reader = Reader::from(start, 1000, rng.tells);
        let channel = Channel::faithful();
        let mut world = World::faithful(rng, log, channel, reader);
        for _ in 0..80 {
            world.step();
        }
        world.settle();
        world.check_complete();
        assert_eq!(world.reader.replays, 1);
    });
}

#[test]
fn who_begins_at_the_end_of_the_log_never_reads_it_while_live_is_faithful() {
    run_schedules(2_000, |mut rng| {
        let log = whole_log(&mut rng);
        let reader = Reader::live(log.last().successor(), rng.pick(&[0, 3]), rng.tells);
        let channel = Channel::faithful();
        let mut world = World::faithful(rng, log, channel, reader);
        for _ in 0..80 {
            world.step();
        }
        world.settle();
        world.check_complete();
        assert_eq!(world.reader.replays, 0);
    });
}
