//! Whether a log still is the one that a feed has handed out: it may have been restored from a copy, have lost its end
//! in a power cut, or have expired and begun anew. It changes no feed.

use std::sync::Arc;

use crate::source::{At, EventSource, Replica, Unavailable, first_after};
use crate::wire::{JobId, Stored};

/// What a look at the log brought.
#[derive(Debug)]
pub(super) enum Checked {
    /// It goes on from what was handed out. Its last event, which a replica that is behind may not have; `None` when that
    /// was handed out, or there is none.
    Continues(Option<Arc<Stored>>),
    /// It does not hold what was handed out.
    Replaced,
}

/// Compares the log with `ours`, the last event that was handed out.
pub(super) async fn check<S: EventSource>(
    source: &S,
    job: &JobId,
    ours: Option<Arc<Stored>>,
) -> Result<Checked, Unavailable> {
    let last = source.last(job, Replica::Any).await?;
    let Some(ours) = ours else {
        return Ok(Checked::Continues(last));
    };
    let is_ours = |event: &Stored| event.cursor() == ours.cursor();
    if last.as_deref().is_some_and(is_ours) {
        return Ok(Checked::Continues(None));
    }
    // What a replica has is in the log; what it lacks may only have not reached it.
    if let At::Event(event) = source.at(job, ours.stream_seq, Replica::Any).await?
        && is_ours(&event)
    {
        return Ok(Checked::Continues(last));
    }
    match source.at(job, ours.stream_seq, Replica::Leader).await? {
        At::Event(event) if is_ours(&event) => Ok(Checked::Continues(last)),
        At::Removed => {
            let behind = first_after(source, job, ours.stream_seq).await?;
            let anew = behind.is_some_and(|first| first.seq <= ours.seq);
            Ok(if anew {
                Checked::Replaced
            } else {
                Checked::Continues(last)
            })
        }
        At::Event(_) | At::Other | At::NotYet => Ok(Checked::Replaced),
    }
}

/// Whether a live copy whose number is not among the recent ones cannot belong to the same log as `ours`: numbers rise as places do.
pub(super) fn contradicts(ours: &Stored, copy: &Stored) -> bool {
    copy.seq.cmp(&ours.seq) != copy.stream_seq.cmp(&ours.stream_seq)
}
