//! Why a session cannot be opened, with the public code of each reason.

use crate::hub::Full;
use crate::source::Unavailable;
use crate::wire::{Code, Seq};

/// Why a session cannot be opened at the requested start.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SessionError {
    /// The cursor was made for another job.
    #[error("the cursor names an event of another job: use a cursor of this job")]
    CursorOfOtherJob,
    /// The log has no such event at the cursor's stream sequence.
    #[error(
        "the log no longer holds the cursor's event: discard what is displayed, and watch from the first event"
    )]
    CursorNotInLog,
    /// The start is after the log's last event.
    #[error("the log ends at event {last}: watch from there, or from the first event")]
    AfterTheEnd {
        /// The sequence number of the log's last event.
        last: Seq,
    },
    /// The broker does not answer.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    /// The edge has no room for another watched job.
    #[error(transparent)]
    Full(#[from] Full),
}

impl SessionError {
    /// The public code.
    pub const fn code(&self) -> Code {
        match self {
            Self::CursorOfOtherJob => Code::CursorOfOtherJob,
            Self::CursorNotInLog => Code::CursorNotInLog,
            Self::AfterTheEnd { .. } => Code::AfterTheEnd,
            Self::Unavailable(_) | Self::Full(_) => Code::Unavailable,
        }
    }
}
