//! Reads a log until a gap is filled: one replay at a time. After a replay without events, the next
//! one waits longer and reads from the leader.

use std::future::pending;
use std::sync::Arc;

use tokio::time::{Instant, sleep_until};
use tracing::debug;

use super::{EventSource, Replay, Replica, Span};
use crate::backoff::Backoff;
use crate::config::{REREAD_FIRST, REREAD_MAX};
use crate::resume::{Input, Stitcher};
use crate::wire::{JobId, Seq, Stored, StreamSeq};

/// The replays of one reader.
#[derive(Debug)]
pub struct Refill<S: EventSource> {
    replay: Option<S::Replay>,
    due: Option<(Instant, Span)>,
    /// How many replays in a row returned nothing.
    empty_replays: u32,
    /// Whether the current replay has returned events.
    found_items: bool,
    /// The replica that the current replay reads.
    replica: Replica,
}

/// What [`Refill::next`] returns.
#[derive(Debug)]
pub enum Refilled {
    /// Events, in order.
    Items(Vec<Arc<Stored>>),
    /// The replay has ended.
    Done {
        /// Whether the leader was read and has none of the requested events.
        proves_gap: bool,
    },
}

impl Refilled {
    /// Passes the result to a stitcher. If the replay proves that the log has none of the requested
    /// events, those before `gap_end` are a gap.
    pub fn apply(self, stitcher: &mut Stitcher<Arc<Stored>>, gap_end: Option<Seq>) {
        match self {
            Self::Items(items) => {
                for item in items {
                    stitcher.handle(Input::Replayed(item));
                }
            }
            Self::Done { proves_gap } => {
                stitcher.handle(Input::ReplayDone);
                if let Some(before) = gap_end.filter(|_| proves_gap) {
                    stitcher.handle(Input::Gap { before });
                }
            }
        }
    }
}

impl<S: EventSource> Default for Refill<S> {
    fn default() -> Self {
        Self {
            replay: None,
            due: None,
            empty_replays: 0,
            found_items: false,
            replica: Replica::Any,
        }
    }
}

impl<S: EventSource> Refill<S> {
    /// Requests a replay; see [`Span`].
    pub fn request(&mut self, from: Seq, stream_seq: Option<StreamSeq>, until: Option<Seq>) {
        let (replica, pause) = match self.empty_replays.checked_sub(1) {
            None => (Replica::Any, std::time::Duration::ZERO),
            Some(times) => (
                Replica::Leader,
                Backoff::new(REREAD_FIRST, REREAD_MAX).pause_after(times),
            ),
        };
        self.replay = None;
        self.due = Some((
            Instant::now() + pause,
            Span {
                from,
                stream_seq,
                until,
                replica,
            },
        ));
    }

    /// Whether a replay is requested or running.
    pub fn is_busy(&self) -> bool {
        self.replay.is_some() || self.due.is_some()
    }

    /// Waits for the next result, forever if no replay is requested. Cancel safe.
    pub async fn next(&mut self, source: &S, job: &JobId) -> Refilled {
        loop {
            if let Some(replay) = &mut self.replay {
                match replay.next().await {
                    Some(Ok(items)) => {
                        self.found_items = true;
                        return Refilled::Items(items);
                    }
                    Some(Err(error)) => {
                        debug!(%job, %error, "a replay failed");
                        return self.done(false);
                    }
                    None => return self.done(self.replica == Replica::Leader && !self.found_items),
                }
            }
            let Some((at, span)) = self.due else {
                return pending().await;
            };
            // Usually it has come. The runtime's timers fire up to two milliseconds late.
            if at > Instant::now() {
                sleep_until(at).await;
            }
            self.due = None;
            self.found_items = false;
            self.replica = span.replica;
            self.replay = Some(source.replay(job, span));
        }
    }

    fn done(&mut self, proves_gap: bool) -> Refilled {
        self.replay = None;
        self.empty_replays = if self.found_items {
            0
        } else {
            self.empty_replays + 1
        };
        Refilled::Done { proves_gap }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::memory::{MemoryLog, chunk, job};
    use futures_util::FutureExt as _;

    #[tokio::test(start_paused = true)]
    async fn the_first_replay_begins_at_once() {
        let log = MemoryLog::default();
        log.append(&job(), chunk("x"));
        let mut refill = Refill::default();
        refill.request(Seq::FIRST, None, None);
        let first = refill.next(&log, &job()).now_or_never();
        assert!(matches!(first, Some(Refilled::Items(items)) if items.len() == 1));
    }
}
