//! Folds the whole log of a job: into its state, or into what another protocol shows of it.

use super::{EventSource, LogReading, Replica, Unavailable};
use crate::wire::{JobId, JobState, Seq, Stored};

/// What is computed from a job's log event by event.
pub trait LogFold {
    /// Applies the next event.
    fn apply(&mut self, event: &Stored);
    /// The next events, `from` up to `to`, have expired.
    fn missing(&mut self, from: Seq, to: Seq);
    /// About how many bytes it holds.
    fn size(&self) -> usize;
}

impl LogFold for JobState {
    fn apply(&mut self, event: &Stored) {
        Self::apply(self, event);
    }

    fn missing(&mut self, _: Seq, _: Seq) {
        // They may have been output. The next event drops the output before them.
        self.truncated = true;
    }

    fn size(&self) -> usize {
        Self::size(self)
    }
}

/// The state of a job after its last event when the call begins; `None` if it has no event.
///
/// # Errors
/// [`Unavailable`] if the leader does not answer. A lagging replica is read again: limit the time
/// of the call.
pub async fn fold<S: EventSource>(
    source: &S,
    job: &JobId,
) -> Result<Option<JobState>, Unavailable> {
    let Some(last) = source.last(job, Replica::Leader).await? else {
        return Ok(None);
    };
    let mut state = JobState::new(job.clone());
    let resize = |_| Ok::<_, Unavailable>(());
    fold_until(source, job, last.seq, &mut state, resize).await?;
    Ok(Some(state))
}

/// Folds the log of a job up to its last event, whose number the leader returned. `resize` gets the
/// size of `fold` in bytes after each event and may refuse it.
///
/// # Errors
/// What `resize` returns. A lagging replica is read again: limit the time of the call.
pub async fn fold_until<S: EventSource, E>(
    source: &S,
    job: &JobId,
    last: Seq,
    fold: &mut impl LogFold,
    mut resize: impl FnMut(usize) -> Result<(), E>,
) -> Result<(), E> {
    let mut reading = LogReading::new(Seq::FIRST, None, last);
    let mut next = Seq::FIRST;
    while let Some(events) = reading.next(source, job).await {
        for event in events {
            if event.first_seq() > next {
                fold.missing(next, event.first_seq().before());
            }
            fold.apply(&event);
            next = event.seq.successor();
            resize(fold.size())?;
        }
    }
    if next <= last {
        fold.missing(next, last);
    }
    Ok(())
}
