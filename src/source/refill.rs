//! Reading a log again and again until a gap is filled: one replay at a time, with a growing pause after fruitless
//! ones, and then from the leader. It decides no order; that is the stitcher's.

use std::future::pending;
use std::sync::Arc;

use tokio::time::{Instant, sleep_until};
use tracing::debug;

use super::{EventSource, Replay, Replica, Span};
use crate::backoff::Backoff;
use crate::config::{REREAD_FIRST, REREAD_MAX};
use crate::wire::{JobId, Seq, Stored, StreamSeq};

/// The replays of one reader.
#[derive(Debug)]
pub struct Refill<S: EventSource> {
    replay: Option<S::Replay>,
    due: Option<(Instant, Span)>,
    /// How many replays in a row brought nothing.
    fruitless: u32,
    /// Whether the replay under way has brought something.
    fruitful: bool,
    /// Who answers the replay under way.
    replica: Replica,
}

/// What a refill brought.
#[derive(Debug)]
pub enum Refilled {
    /// These, in order.
    Items(Vec<Arc<Stored>>),
    /// The replay is over.
    Done {
        /// The leader says that it holds none of what was wanted.
        nothing_left: bool,
    },
}

impl<S: EventSource> Default for Refill<S> {
    fn default() -> Self {
        Self {
            replay: None,
            due: None,
            fruitless: 0,
            fruitful: false,
            replica: Replica::Any,
        }
    }
}

impl<S: EventSource> Refill<S> {
    /// Asks for the log from `from` on; see [`Span`].
    pub fn want(&mut self, from: Seq, stream_seq: Option<StreamSeq>, until: Option<Seq>) {
        let (replica, pause) = match self.fruitless.checked_sub(1) {
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

    /// Whether a replay is wanted or under way.
    pub fn is_busy(&self) -> bool {
        self.replay.is_some() || self.due.is_some()
    }

    /// What comes next; waits for ever when nothing is wanted. Safe to drop at any await.
    pub async fn next(&mut self, source: &S, job: &JobId) -> Refilled {
        loop {
            if let Some(replay) = &mut self.replay {
                match replay.next().await {
                    Some(Ok(items)) => {
                        self.fruitful = true;
                        return Refilled::Items(items);
                    }
                    Some(Err(error)) => {
                        debug!(%job, %error, "a replay broke off");
                        return self.done(false);
                    }
                    None => return self.done(self.replica == Replica::Leader && !self.fruitful),
                }
            }
            let Some((at, span)) = self.due else {
                return pending().await;
            };
            sleep_until(at).await;
            self.due = None;
            self.fruitful = false;
            self.replica = span.replica;
            self.replay = Some(source.replay(job, span));
        }
    }

    fn done(&mut self, nothing_left: bool) -> Refilled {
        self.replay = None;
        self.fruitless = if self.fruitful { 0 } else { self.fruitless + 1 };
        Refilled::Done { nothing_left }
    }
}
