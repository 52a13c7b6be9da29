//! Folds the whole log of a job into the job's state.

use super::{EventSource, Refill, Refilled, Replica, Unavailable};
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
    let mut next = Seq::FIRST;
    let mut stream_seq = None;
    let mut refill = Refill::<S>::default();
    while next <= last.seq {
        if !refill.is_busy() {
            refill.request(next, stream_seq, Some(last.seq));
        }
        match refill.next(source, job).await {
            Refilled::Items(items) => {
                for item in items {
                    if item.seq >= next {
                        // An event after `last` shows that the rest has expired.
                        if item.seq <= last.seq {
                            state.apply(&item);
                            resize(state.size())?;
                        }
                        next = item.seq.successor();
                        stream_seq = Some(item.stream_seq + 1);
                    }
                }
            }
            // The remaining events have expired.
            Refilled::Done { proves_gap: true } => break,
            Refilled::Done { proves_gap: false } => {}
        }
    }
    // Events that expired during the reading may have been output.
    state.truncated |= state.seq < last.seq;
    Ok(Some(state))
}
