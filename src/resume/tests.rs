//! Tests of resuming: random schedules over a model of the log, and the machine's transitions one by one. What they
//! run on is here: random numbers, and how a failing schedule is told. `tests/mutants` proves that they see faults.

mod log;
mod machine;
mod reader;
mod schedules;
mod sessions;

use std::panic::catch_unwind;
use std::rc::Rc;

use super::Item;
use crate::wire::Seq;

/// To replay one schedule and see each of its steps, put here the seed that the failing test named.
const ONLY: Option<u64> = None;

/// Runs `count` schedules. One that fails is run again and tells its steps.
pub(super) fn run_schedules(count: u64, schedule: fn(Rng)) {
    if let Some(seed) = ONLY {
        return schedule(Rng::telling(seed));
    }
    for seed in 0..count {
        if catch_unwind(|| schedule(Rng::new(seed))).is_err() {
            println!("---- the schedule of seed {seed}, step by step");
            schedule(Rng::telling(seed));
            panic!("the schedule of seed {seed} failed once and not again");
        }
    }
}

/// Random numbers, the same for the same seed.
#[derive(Clone, Debug)]
pub(super) struct Rng {
    random: fastrand::Rng,
    /// Whether the schedule tells its steps.
    pub(super) tells: bool,
}

impl Rng {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            random: fastrand::Rng::with_seed(seed),
            tells: false,
        }
    }

    fn telling(seed: u64) -> Self {
        Self {
            random: fastrand::Rng::with_seed(seed),
            tells: true,
        }
    }

    /// A number from 0 up to, but without, `end`.
    pub(super) fn below(&mut self, end: u64) -> u64 {
        self.random.u64(..end)
    }

    /// The same for an index.
    pub(super) fn index(&mut self, len: usize) -> usize {
        self.below(len as u64) as usize
    }

    /// Whether something happens that happens so often in a hundred times.
    pub(super) fn percent(&mut self, often: u64) -> bool {
        self.below(100) < often
    }

    /// One of these.
    pub(super) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.index(from.len())]
    }
}

/// An item of the model. Its copies can be counted, so that a test sees what a stitcher keeps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Event {
    pub(super) seq: Seq,
    pub(super) end: bool,
    pub(super) size: usize,
    pub(super) counted: Rc<()>,
}

impl Event {
    /// An item of the given size that nobody counts.
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
