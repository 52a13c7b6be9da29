//! A session: one client's read position in one job. It joins the feed's history and the log with a
//! stitcher, and returns one step after another to the client's transport.

mod error;
mod start;
mod step;
#[cfg(test)]
mod tests;
mod watching;

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use tokio::time::{sleep, timeout};

pub use error::SessionError;
use start::{until_open, verify_cursor, verify_length};
pub use step::Step;
use watching::Watching;

use crate::config::{OPEN_WAIT, REREAD_MAX};
use crate::hub::{FeedWatch, Full, Hub, Waiter};
use crate::resume::Stitcher;
use crate::source::{EventSource, Refill, Unavailable};
use crate::wire::{JobId, Seq, Start, Status, Stored, StreamSeq};

/// One client's read position in one job. It runs no task: dropping it releases everything.
#[derive(Debug)]
pub struct Session<S: EventSource>(SessionState<S>);

#[derive(Debug)]
enum SessionState<S: EventSource> {
    /// Neither the log nor the queue knows the job.
    Waiting { waiter: Waiter<S>, live_sent: bool },
    /// The job has a feed. Boxed, so that waiting sessions are small.
    Watching(Box<Watching<S>>),
}

/// The position after the last event that was delivered.
#[derive(Clone, Copy, Debug)]
pub struct Position {
    /// The next event to deliver.
    next_seq: Seq,
    /// A stream sequence at or before that event's, if known.
    stream_seq: Option<StreamSeq>,
}

impl Position {
    /// The position after this event.
    pub fn after(event: &Stored) -> Self {
        Self {
            next_seq: event.seq.successor(),
            stream_seq: Some(event.stream_seq + 1),
        }
    }
}

impl<S: EventSource> Session<S> {
    /// Opens a session for this process itself, after the event that `start` names. The job may not
    /// exist yet.
    ///
    /// # Errors
    /// [`SessionError`]; within [`OPEN_WAIT`] in any case.
    pub async fn open(hub: &Arc<Hub<S>>, job: &JobId, start: Start) -> Result<Self, SessionError> {
        Self::open_for(IpAddr::V4(Ipv4Addr::LOCALHOST), hub, job, start).await
    }

    /// [`Self::open`] for a client at this address, in whose share of the feeds it counts.
    ///
    /// # Errors
    /// [`SessionError`]; within [`OPEN_WAIT`] in any case.
    pub async fn open_for(
        from: IpAddr,
        hub: &Arc<Hub<S>>,
        job: &JobId,
        start: Start,
    ) -> Result<Self, SessionError> {
        let late = |_| SessionError::Unavailable(Unavailable("no answer in time".into()));
        timeout(OPEN_WAIT, Self::open_now(from, hub, job, start))
            .await
            .map_err(late)?
    }

    async fn open_now(
        from: IpAddr,
        hub: &Arc<Hub<S>>,
        job: &JobId,
        start: Start,
    ) -> Result<Self, SessionError> {
        if let Start::Cursor(cursor) = start
            && !cursor.is_of(job)
        {
            return Err(SessionError::CursorOfOtherJob);
        }
        if start == Start::After(Seq(0))
            && let Some(waiter) = hub.wait(job, from).await?
        {
            return Ok(Self(SessionState::Waiting {
                waiter,
                live_sent: false,
            }));
        }
        let watch = hub.watch(job, from)?;
        until_open(&watch).await?;
        let (seq, stream_seq, had_end) = match start {
            Start::Cursor(cursor) => (
                cursor.seq,
                Some(cursor.stream_seq.saturating_add(1)),
                verify_cursor(hub.source(), &watch, cursor).await?,
            ),
            Start::After(after) => (
                after,
                None,
                verify_length(hub.source(), &watch, after).await?,
            ),
        };
        let watching = Watching {
            stream_seq,
            had_end,
            ..Watching::new(hub, watch, seq.successor())
        };
        Ok(Self(SessionState::Watching(Box::new(watching))))
    }

    /// The job.
    pub fn job(&self) -> &JobId {
        match &self.0 {
            SessionState::Waiting { waiter, .. } => waiter.job(),
            SessionState::Watching(watching) => watching.watch.feed().job(),
        }
    }

    /// Whether the client already had all events of an ended job: there is nothing to send.
    pub const fn had_end(&self) -> bool {
        match &self.0 {
            SessionState::Waiting { .. } => false,
            SessionState::Watching(watching) => watching.had_end,
        }
    }

    /// The job's status; `None` while the job has no event.
    pub fn status(&self) -> Option<Status> {
        match &self.0 {
            SessionState::Waiting { .. } => None,
            SessionState::Watching(watching) => {
                watching.watch.feed().last().map(|last| last.status())
            }
        }
    }

    /// The position after the steps returned so far.
    pub fn position(&self) -> Position {
        match &self.0 {
            SessionState::Waiting { .. } => Position {
                next_seq: Seq::FIRST,
                stream_seq: None,
            },
            SessionState::Watching(watching) => Position {
                next_seq: watching.next_seq,
                stream_seq: watching.stream_seq,
            },
        }
    }

    /// Goes back to a position within the last step.
    pub fn rewind(&mut self, to: Position) {
        if let SessionState::Watching(watching) = &mut self.0 {
            watching.stitcher = Stitcher::caught_up(to.next_seq, 0);
            watching.next_seq = to.next_seq;
            watching.refill = Refill::default();
            watching.stream_seq = to.stream_seq;
            watching.until = None;
            watching.next_gap = None;
        }
    }

    /// The next step. Waits forever after [`Step::End`] and [`Step::Rebuilt`]. Cancel safe.
    pub async fn next(&mut self) -> Step {
        loop {
            match &mut self.0 {
                SessionState::Watching(watching) => return watching.next().await,
                SessionState::Waiting { live_sent, .. } if !*live_sent => {
                    *live_sent = true;
                    return Step::Live;
                }
                SessionState::Waiting { waiter, .. } => {
                    let watch = watch_known(waiter).await;
                    let watching = Watching::new(waiter.hub(), watch, Seq::FIRST);
                    self.0 = SessionState::Watching(Box::new(Watching {
                        live_sent: true,
                        ..watching
                    }));
                }
            }
        }
    }
}

/// Follows a job to its end for a client at this address, starting after an event of the log, or
/// from the first event if the log is rebuilt meanwhile.
///
/// # Errors
/// [`SessionError`].
pub async fn until_ended<S: EventSource>(
    from: IpAddr,
    hub: &Arc<Hub<S>>,
    job: &JobId,
    after: Seq,
) -> Result<(), SessionError> {
    let mut session = Session::open_for(from, hub, job, Start::After(after)).await?;
    loop {
        match session.next().await {
            Step::End => return Ok(()),
            Step::Rebuilt => {
                session = Session::open_for(from, hub, job, Start::After(Seq(0))).await?
            }
            Step::Events(_) | Step::Gap { .. } | Step::Live => {}
        }
    }
}

/// Watches a job once it is known and there is room for its feed.
async fn watch_known<S: EventSource>(waiter: &mut Waiter<S>) -> FeedWatch {
    loop {
        let found = waiter.until_known().await;
        if let Ok(watch) = waiter.watch(found)
            && until_open(&watch).await.is_ok()
        {
            return watch;
        }
        match waiter.rejoin() {
            Ok(rejoined) => *waiter = rejoined,
            Err(Full) => sleep(REREAD_MAX).await,
        }
    }
}
