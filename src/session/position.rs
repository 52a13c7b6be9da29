//! A position in a job's log.

use std::num::NonZeroU64;

use crate::wire::{Seq, Stored};

/// The position after the last event that was delivered.
#[derive(Clone, Copy, Debug)]
pub struct Position {
    /// The next event to deliver.
    pub(super) next_seq: Seq,
    /// A stream sequence at or before that event's, if known.
    pub(super) stream_seq: Option<NonZeroU64>,
}

impl Position {
    /// Before the first event.
    pub const START: Self = Self {
        next_seq: Seq::FIRST,
        stream_seq: None,
    };

    /// The position after this event.
    pub fn after(event: &Stored) -> Self {
        Self {
            next_seq: event.seq.successor(),
            stream_seq: NonZeroU64::new(event.stream_seq + 1),
        }
    }
}
