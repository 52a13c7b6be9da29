//! Checks whether a log continues the events that a feed delivered. It may have been restored from
//! a backup, have lost its end in a power cut, have expired and started again, or have been purged.

use std::sync::Arc;

use crate::source::{At, EventSource, Replica, Unavailable, first_after};
use crate::wire::{Cursor, EventMeta, JobId, Stored};

/// The result of a check.
#[derive(Debug)]
pub(super) enum Checked {
    /// The log continues the delivered events. Its last event, as a replica has it; `None` if that
    /// was delivered or does not exist.
    Continues(Option<Arc<Stored>>),
    /// The log does not have the last delivered event.
    Rebuilt,
}

/// Compares the log with `ours`, the last event that was delivered.
pub(super) async fn check<S: EventSource>(
    source: &S,
    job: &JobId,
    ours: Option<EventMeta>,
) -> Result<Checked, Unavailable> {
    let last = source.last(job, Replica::Any).await?;
    let Some(ours) = ours else {
        return Ok(Checked::Continues(last));
    };
    let is_ours = |event: &Stored| event.cursor() == ours.cursor;
    let stream_seq = ours.cursor.stream_seq;
    if last.as_deref().is_some_and(is_ours) {
        return Ok(Checked::Continues(None));
    }
    // An event that a replica lacks may still be in the log.
    if let At::Event(event) = source.at(job, stream_seq, Replica::Any).await?
        && is_ours(&event)
    {
        return Ok(Checked::Continues(last));
    }
    match source.at(job, stream_seq, Replica::Leader).await? {
        At::Event(event) if is_ours(&event) => Ok(Checked::Continues(last)),
        At::Removed => {
            let later = first_after(source, job, stream_seq).await?;
            // The end is the last event that expires, so a job without it is gone.
            let is_gone = later.map_or_else(
                || ours.event_type.is_end(),
                |first| first.seq <= ours.cursor.seq,
            );
            Ok(if is_gone {
                Checked::Rebuilt
            } else {
                Checked::Continues(last)
            })
        }
        At::Event(_) | At::Other | At::NotYet => Ok(Checked::Rebuilt),
    }
}

/// Whether a live copy that is not in the history cannot be of the same log as `ours`: it has the
/// same number and is another event, or sequence numbers do not rise with stream sequences.
pub(super) fn contradicts(ours: Cursor, copy: &Stored) -> bool {
    let order = copy.seq.cmp(&ours.seq);
    order.is_eq() && copy.cursor() != ours || order != copy.stream_seq.cmp(&ours.stream_seq)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::memory::{chunk, job};
    use crate::wire::{Event, Seq};

    #[test]
    fn only_copies_that_cannot_be_of_the_same_log_contradict_the_newest_event() {
        let event = |seq, stream_seq, text: &str| {
            let event = Event {
                body: chunk(text),
                job: job(),
                seq: Seq(seq),
                attempt: 1,
                ts: 1,
            };
            Stored::decode(&job(), stream_seq, event.encode().unwrap()).unwrap()
        };
        let ours = event(5, 50, "x").cursor();
        for (seq, stream_seq, text, expected) in [
            (5, 50, "x", false),
            (4, 40, "x", false),
            (6, 60, "x", false),
            (5, 50, "y", true),
            (5, 51, "x", true),
            (6, 50, "x", true),
            (6, 40, "x", true),
            (4, 60, "x", true),
        ] {
            let copy = event(seq, stream_seq, text);
            assert_eq!(
                contradicts(ours, &copy),
                expected,
                "{seq} {stream_seq} {text}"
            );
        }
    }
}
