//! Verifies that a log can be read from where its client wants.

use super::error::SessionError;
use crate::hub::{FeedWatch, Full};
use crate::source::{At, EventSource, Replica, first_after};
use crate::wire::{Cursor, Seq};

/// Waits until the feed has its history.
pub(super) async fn until_open(watch: &FeedWatch) -> Result<(), Full> {
    let feed = watch.feed();
    loop {
        let mut changed = std::pin::pin!(feed.changed());
        changed.as_mut().enable();
        if feed.is_refused() {
            return Err(Full);
        }
        if feed.is_open() {
            return Ok(());
        }
        changed.await;
    }
}

/// Verifies that the log holds the event that the cursor names, or held it until it expired. Returns whether that event is
/// the job's end.
pub(super) async fn verify_cursor<S: EventSource>(
    source: &S,
    watch: &FeedWatch,
    cursor: Cursor,
) -> Result<bool, SessionError> {
    let feed = watch.feed();
    if let Some(event) = feed
        .find(cursor.seq)
        .filter(|event| event.cursor() == cursor)
    {
        return Ok(event.event_type.is_end());
    }
    if let At::Event(event) = source
        .at(feed.job(), cursor.stream_seq, Replica::Any)
        .await?
        && event.cursor() == cursor
    {
        return Ok(event.event_type.is_end());
    }
    // A replica may lag; only the leader can say that the event is not there.
    match source
        .at(feed.job(), cursor.stream_seq, Replica::Leader)
        .await?
    {
        At::Event(event) if event.cursor() == cursor => Ok(event.event_type.is_end()),
        At::Removed => {
            // It expired with everything before it, and further gaps are reported, provided that the log goes on. A log
            // that expired as a whole may have been started again, and nothing after the cursor would show it.
            let behind = first_after(source, feed.job(), cursor.stream_seq).await?;
            let goes_on = behind.is_some_and(|first| first.seq > cursor.seq);
            if goes_on {
                Ok(false)
            } else {
                Err(SessionError::CursorNotInLog)
            }
        }
        At::Event(_) | At::Other | At::NotYet => Err(SessionError::CursorNotInLog),
    }
}

/// Verifies that the log is as long as the client says. Returns whether the client has all of an ended job.
pub(super) async fn verify_length<S: EventSource>(
    source: &S,
    watch: &FeedWatch,
    after: Seq,
) -> Result<bool, SessionError> {
    let feed = watch.feed();
    let mut last = feed.last();
    if last.as_ref().map_or(Seq(0), |last| last.seq) < after {
        last = source.last(feed.job(), Replica::Leader).await?;
    }
    match last {
        Some(last) if last.seq >= after => Ok(last.seq == after && last.event_type.is_end()),
        None if after == Seq(0) => Ok(false),
        last => Err(SessionError::AfterTheEnd {
            last: last.map_or(Seq(0), |last| last.seq),
        }),
    }
}
