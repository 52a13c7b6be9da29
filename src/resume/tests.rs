//! Tests of resuming: random schedules over a model of the log, and the stitcher's transitions one
//! by one. This file has what they share. `tests/mutants` checks that they notice bugs.

mod log;
mod machine;
mod reader;
mod schedules;
mod sessions;

use std::panic::catch_unwind;
use std::rc::Rc;

use super::Item;
use crate::wire::Seq;

/// To run one schedule and print its steps, set this to the seed that the failing test printed.
const ONLY: Option<u64> = None;

/// Runs `count` schedules. One that fails is run again and prints its steps.
pub(super) fn run_schedules(count: u64, schedule: fn(Rng)) {
    if let Some(seed) = ONLY {
        return schedule(Rng::verbose(seed));
    }
    for seed in 0..count {
        if catch_unwind(|| schedule(Rng::new(seed))).is_err() {
            println!("---- the schedule with seed {seed}, step by step");
            schedule(Rng::verbose(seed));
            panic!("the schedule with seed {seed} failed once and then passed");
        }
    }
}

/// Random numbers, the same for the same seed.
#[derive(Clone, Debug)]
pub(super) struct Rng {
    random: fastrand::Rng,
    /// Whether the schedule prints its steps.
    pub(super) verbose: bool,
}

impl Rng {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            random: fastrand::Rng::with_seed(seed),
            verbose: false,
        }
    }

    fn verbose(seed: u64) -> Self {
        Self {
            verbose: true,
            ..Self::new(seed)
        }
    }

    /// A number below `end`.
    pub(super) fn below(&mut self, end: u64) -> u64 {
        self.random.u64(..end)
    }

    /// An index below `len`.
    pub(super) fn index(&mut self, len: usize) -> usize {
        self.below(len as u64) as usize
    }

    /// True with this probability.
    pub(super) fn percent(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// One of these.
    pub(super) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.index(from.len())]
    }
}

/// An item of the model. Its copies are counted, so that a test knows how many a stitcher keeps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Event {
    pub(super) seq: Seq,
    pub(super) end: bool,
    pub(super) size: usize,
    pub(super) counted: Rc<()>,
}

impl Event {
    /// An item of this size that is not counted.
    pub(super) fn sized(seq: Seq, size: usize) -> Self {
        Self {
            seq,
            end: false,
            size,
            counted: Rc::default(),
        }
    }
}

impl Item for Event {
    fn seq(&self) -> Seq {
        self.seq
    }

    fn is_end(&self) -> bool {
        self.end
    }

    fn size(&self) -> usize {
        self.size
    }
}
