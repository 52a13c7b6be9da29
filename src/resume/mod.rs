//! Resuming, decided without I/O: the stitcher joins replay and live into one gapless sequence, the history keeps what
//! is recent. No async, no clock, no NATS: a driver feeds them and does what they say.

mod history;
mod stitcher;
#[cfg(test)]
mod tests;

pub use history::{History, Slice};
pub use stitcher::{Action, Input, Stitcher};

use std::sync::Arc;

use crate::wire::{Seq, Stored};

/// What can be put in order: something with a number.
pub trait Item {
    /// Its place in the sequence.
    fn seq(&self) -> Seq;
    /// Whether nothing follows it.
    fn is_end(&self) -> bool;
    /// How many bytes it keeps in memory, about.
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
