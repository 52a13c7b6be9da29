//! What a session returns to its transport.

use std::sync::Arc;

use crate::wire::{Seq, Stored};

/// The next thing that a transport sends to its client.
#[derive(Debug)]
pub enum Step {
    /// These events, in order; never empty.
    Events(Vec<Arc<Stored>>),
    /// The log no longer has these events.
    Gap {
        /// The first of them.
        from: Seq,
        /// The last of them.
        to: Seq,
    },
    /// All stored events were delivered; later ones are live. Returned once.
    Live,
    /// The job has ended and all its events were delivered. Nothing follows.
    End,
    /// The log does not continue the delivered events; clients get `cursor_not_in_log`. Nothing
    /// follows; a new session reads the new log.
    Rebuilt,
}
