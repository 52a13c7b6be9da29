//! Verifies that a log can be read from the requested start.

use super::error::SessionError;
use crate::hub::{FeedWatch, Full};
use crate::source::{At, EventSource, Replica, first_after};
use crate::wire::{Cursor, EventMeta, Seq};

/// Waits until the feed has a history.
pub(super) async fn until_open(watch: &FeedWatch) -> Result<(), Full> {
    let feed = watch.feed();
    loop {
        let mut changed = std::pin::pin!(feed.changed());
        changed.as_mut().enable();
        if feed.is_refused() {
            return Err(Full);
        }
        // A feed that ends reports it with its first step.
        if feed.is_open() || feed.is_rebuilt() {
            return Ok(());
        }
        changed.await;
    }
}

/// Verifies that the log holds the cursor's event, or held it until it expired. Returns whether
/// that event is the job's end.
pub(super) async fn verify_cursor<S: EventSource>(
    source: &S,
    watch: &FeedWatch,
    cursor: Cursor,
) -> Result<bool, SessionError> {
    let feed = watch.feed();
    let held = feed.find(cursor.seq).map(|event| event.meta());
    // The newest event is known even if there is no room for it.
    let known = held.or_else(|| feed.last());
    if let Some(event) = known.filter(|event| event.cursor == cursor) {
        return Ok(event.event_type.is_end());
    }
    if let At::Event(event) = source
        .at_claimed(feed.job(), cursor.stream_seq, Replica::Any)
        .await?
        && event.cursor() == cursor
    {
        return Ok(event.event_type.is_end());
    }
    // A replica may lag; only the leader knows that the event is not there.
    match source
        .at_claimed(feed.job(), cursor.stream_seq, Replica::Leader)
        .await?
    {
        At::Event(event) if event.cursor() == cursor => Ok(event.event_type.is_end()),
        At::Removed => {
            // It expired with everything before it. A later event with a higher number proves that
            // this is still the cursor's log; a log that expired as a whole may have started again.
            let later = first_after(source, feed.job(), cursor.stream_seq).await?;
            if later.is_some_and(|first| first.seq > cursor.seq) {
                Ok(false)
            } else {
                Err(SessionError::CursorNotInLog)
            }
        }
        At::Event(_) | At::Other | At::NotYet => Err(SessionError::CursorNotInLog),
    }
}

/// Verifies that the log has the event `after`. Returns whether that event is the job's end.
pub(super) async fn verify_length<S: EventSource>(
    source: &S,
    watch: &FeedWatch,
    after: Seq,
) -> Result<bool, SessionError> {
    let feed = watch.feed();
    let seq_of = |last: Option<EventMeta>| last.map_or(Seq(0), |last| last.cursor.seq);
    let mut last = feed.last();
    if seq_of(last) < after {
        let stored = source.last(feed.job(), Replica::Leader).await?;
        last = stored.map(|last| last.meta());
    }
    if seq_of(last) < after {
        return Err(SessionError::AfterTheEnd { last: seq_of(last) });
    }
    Ok(seq_of(last) == after && last.is_some_and(|last| last.event_type.is_end()))
}
