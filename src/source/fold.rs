//! Folds the whole log of a job into the job's state.

use super::{EventSource, LogReading, Replica, Unavailable};
use crate::budget::LimitReached;
use crate::wire::{JobId, JobState, Seq};

/// Why a log could not be folded.
#[derive(Clone, Debug, thiserror::Error)]
pub enum FoldError {
    /// The leader does not answer.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    /// There is no room for a state of this size.
    #[error(transparent)]
    LimitReached(#[from] LimitReached),
}

/// Folds the log of a job up to its last event when the call begins; `None` if it has no event.
///
/// # Errors
/// [`Unavailable`] if the leader does not answer. A lagging replica is read again: limit the time
/// of the call.
pub async fn fold<S: EventSource>(
    source: &S,
    job: &JobId,
) -> Result<Option<JobState>, Unavailable> {
    match fold_within(source, job, |_| Ok(())).await {
        Ok(state) => Ok(state),
        Err(FoldError::Unavailable(error)) => Err(error),
        Err(FoldError::LimitReached(error)) => Err(Unavailable(error.to_string())),
    }
}

/// [`fold`] with limited memory: `resize` gets the state's size in bytes after each event and may
/// refuse it.
///
/// # Errors
/// [`FoldError`].
pub async fn fold_within<S: EventSource>(
    source: &S,
    job: &JobId,
    mut resize: impl FnMut(usize) -> Result<(), LimitReached>,
) -> Result<Option<JobState>, FoldError> {
    let Some(last) = source.last(job, Replica::Leader).await? else {
        return Ok(None);
    };
    let mut state = JobState::new(job.clone());
    let mut reading = LogReading::new(Seq::FIRST, None, last.seq);
    while let Some(events) = reading.next(source, job).await {
        for event in events {
            state.apply(&event);
            resize(state.size())?;
        }
    }
    // Events that expired during the reading may have been output.
    state.truncated |= state.seq < last.seq;
    Ok(Some(state))
}
