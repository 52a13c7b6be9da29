//! A position in a job's log.

use crate::wire::{Seq, Stored, StreamSeq};

/// The position after the last event that was delivered.
#[derive(Clone, Copy, Debug)]
pub struct Position {
    /// The next event to deliver.
    pub(super) next_seq: Seq,
    /// A stream sequence at or before that event's, if known.
    pub(super) stream_seq: Option<StreamSeq>,
}

impl Position {
    /// The position after this event.
    pub fn after(event: &Stored) -> Self {
        Self {
            next_seq: event.seq.successor(),
            stream_seq: Some(event.stream_seq + 1),
        }
    }
}
