//! A job's state: folds the job's whole log, read once.

use super::{EventSource, Refill, Refilled, Replica, Unavailable};
use crate::budget::NoRoom;
use crate::wire::{JobId, JobState, Seq};

/// Why a log could not be folded.
#[derive(Clone, Debug, thiserror::Error)]
pub enum FoldError {
    /// The leader does not answer.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    /// There is no room for a state of this size.
    #[error(transparent)]
    NoRoom(#[from] NoRoom),
}

/// Folds the log of a job up to the event that was last when the call began; `None` when the log has no event.
///
/// # Errors
/// [`Unavailable`] when the leader does not answer. A replica that is behind is asked again; bound the call in time.
pub async fn fold<S: EventSource>(
    source: &S,
    job: &JobId,
) -> Result<Option<JobState>, Unavailable> {
    match fold_within(source, job, |_| Ok(())).await {
        Ok(state) => Ok(state),
        Err(FoldError::Unavailable(error)) => Err(error),
        Err(FoldError::NoRoom(no_room)) => Err(Unavailable(no_room.to_string())),
    }
}

/// The same within some room: `grows` is told how many bytes the state has whenever that changes, and may refuse them.
///
/// # Errors
/// [`FoldError`].
pub async fn fold_within<S: EventSource>(
    source: &S,
    job: &JobId,
    mut grows: impl FnMut(usize) -> Result<(), NoRoom>,
) -> Result<Option<JobState>, FoldError> {
    let Some(last) = source.last(job, Replica::Leader).await? else {
        return Ok(None);
    };
    let mut state = JobState::new(job.clone());
    let (mut next, mut stream_seq) = (Seq::FIRST, None);
    let mut refill = Refill::<S>::default();
    while next <= last.seq {
        if !refill.is_busy() {
            refill.want(next, stream_seq, Some(last.seq));
        }
        match refill.next(source, job).await {
            Refilled::Items(items) => {
                for item in items {
                    if item.seq >= next {
                        // One beyond the last says that the rest has expired.
                        if item.seq <= last.seq {
                            state.apply(&item);
                            grows(state.size())?;
                        }
                        (next, stream_seq) = (item.seq.successor(), Some(item.stream_seq + 1));
                    }
                }
            }
            // What the leader does not have any more is not part of the state.
            Refilled::Done { nothing_left: true } => break,
            Refilled::Done {
                nothing_left: false,
            } => {}
        }
    }
    // It has expired while the rest was read, and may have been output.
    state.truncated |= state.seq < last.seq;
    Ok(Some(state))
}
