//! What a session returns to its transport.

use std::sync::Arc;

use crate::wire::{Seq, Stored};

/// What a transport sends to its client next.
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
    /// Everything that was stored before was delivered; what follows is live. Returned once.
    Live,
    /// The job has ended and all of it was delivered. Nothing follows.
    End,
    /// The log is not a continuation of what was delivered; reported to clients as `cursor_not_in_log`. Nothing follows; a
    /// new session gets what the log holds now.
    Rebuilt,
}
