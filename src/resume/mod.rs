//! Resuming: the stitcher joins a replay and live copies into one sequence without gaps, and the
//! history keeps recent items. No I/O, no async, no clock: a driver passes inputs to them and
//! performs their actions.

mod history;
mod stitcher;
#[cfg(test)]
mod tests;

pub use history::{History, Slice};
pub use stitcher::{Action, Input, Stitcher};

use std::sync::Arc;

use crate::wire::{Seq, Stored};

/// An element of a sequence.
pub trait Item {
    /// Its sequence number.
    fn seq(&self) -> Seq;
    /// Whether it is the last one.
    fn is_end(&self) -> bool;
    /// Its approximate size in memory, in bytes.
    fn size(&self) -> usize;
}

impl Item for Arc<Stored> {
    fn seq(&self) -> Seq {
        self.as_ref().seq
    }

    fn is_end(&self) -> bool {
        self.event_type.is_end()
    }

    fn size(&self) -> usize {
        self.as_ref().size()
    }
}
