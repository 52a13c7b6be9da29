//! Why a session cannot be opened, and the public code of each reason.

use crate::hub::Full;
use crate::source::Unavailable;
use crate::wire::{Code, Seq};

/// Why a session cannot be opened where its client wants.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SessionError {
    /// The cursor was made for another job.
    #[error("the cursor names an event of another job")]
    CursorOfOtherJob,
    /// Another event stands where the cursor's should be.
    #[error("the log does not hold the cursor's event: it was rebuilt")]
    CursorNotInLog,
    /// The log is shorter than the client says it has read.
    #[error("the log ends at {last}")]
    AfterTheEnd {
        /// The number of the log's last event.
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
