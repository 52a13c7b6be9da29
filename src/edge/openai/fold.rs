//! What all folds over a job's log have in common.

use crate::wire::Stored;

/// A fold over a job's log whose size is limited.
pub(super) trait LogFold {
    /// Applies the next event.
    fn apply(&mut self, stored: &Stored);
    /// About how many bytes it holds.
    fn size(&self) -> usize;
}
