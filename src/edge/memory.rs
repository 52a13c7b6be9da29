//! What the memory budget of an edge is divided into: one share for each kind of thing that clients can make it hold. It
//! counts nothing itself.

use crate::budget::Budget;
use crate::config::{ANSWERS_BYTES, BODIES_BYTES, SUBMITS_BYTES};

/// The budget of a process and its shares. Each is far smaller than the whole, so that no kind of request takes the room
/// of the others, nor that of the feeds.
#[derive(Debug)]
pub(super) struct Memory {
    /// All of it.
    pub(super) whole: Budget,
    /// Bodies of requests, as they arrive.
    pub(super) bodies: Budget,
    /// Submissions that wait or are under way.
    pub(super) submits: Budget,
    /// Answers that are gathered, or wait for their client to take them.
    pub(super) answers: Budget,
}

impl Memory {
    pub(super) fn new(whole: Budget) -> Self {
        // A small budget is divided alike.
        let share = |bytes: usize| whole.share(bytes.min(whole.limit() / 2));
        let (bodies, submits, answers) = (share(BODIES_BYTES), share(SUBMITS_BYTES), share(ANSWERS_BYTES));
        Self { whole, bodies, submits, answers }
    }

    /// How many requests found no room.
    pub(super) fn refused(&self) -> u64 {
        let Self { whole, bodies, submits, answers } = self;
        [whole, bodies, submits, answers].into_iter().map(Budget::refused).sum()
    }
}
