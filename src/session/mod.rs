//! A session: one client's read position in one job. It reads the feed's history, or the log while
//! the history lacks the next event, and returns one step after another to the client's transport.

mod catch_up;
mod compaction;
mod error;
mod position;
mod start;
mod step;
#[cfg(test)]
mod tests;
mod waiting;
mod watching;

use std::future::poll_fn;
use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroU64;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::time::timeout;

use compaction::Compaction;
pub use error::SessionError;
pub use position::Position;
use start::{until_open, verify_cursor, verify_length};
pub use step::Step;
use waiting::Waiting;
use watching::Watching;

use crate::budget::Budget;
use crate::config::OPEN_WAIT;
use crate::hub::Hub;
use crate::source::{EventSource, Unavailable};
use crate::wire::{JobId, Seq, Start, Status};

/// One client's read position in one job. It runs no task: dropping it releases everything.
#[derive(Debug)]
pub struct Session<S: EventSource> {
    state: SessionState<S>,
    compaction: Option<Box<Compaction>>,
}

#[derive(Debug)]
enum SessionState<S: EventSource> {
    /// Neither the log nor the queue knows the job.
    Waiting(Waiting<S>),
    /// The job has a feed.
    Watching(Watching<S>),
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
            return Ok(Self::new(SessionState::Waiting(Waiting::new(waiter))));
        }
        let watch = hub.watch(job, from)?;
        until_open(&watch).await?;
        let (seq, stream_seq, had_end) = match start {
            Start::Cursor(cursor) => (
                cursor.seq,
                NonZeroU64::new(cursor.stream_seq.saturating_add(1)),
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
        Ok(Self::new(SessionState::Watching(watching)))
    }

    const fn new(state: SessionState<S>) -> Self {
        Self {
            state,
            compaction: None,
        }
    }

    /// Merges the text of the events that are stored now into few large events. Later events come
    /// one by one. Text that waits to be merged takes room in the budget; when there is none, the
    /// events are smaller.
    pub fn compact_stored(&mut self, room: &Budget) {
        if let SessionState::Watching(watching) = &self.state
            && let Some(last) = watching.watch.feed().last()
        {
            let job = watching.watch.feed().job();
            let position = self.state.position();
            let compaction = Compaction::new(&watching.hub, job, position, last, room);
            self.compaction = Some(Box::new(compaction));
        }
    }

    /// The job.
    pub fn job(&self) -> &JobId {
        match &self.state {
            SessionState::Waiting(waiting) => &waiting.job,
            SessionState::Watching(watching) => watching.watch.feed().job(),
        }
    }

    /// Whether the client already had all events of an ended job: there is nothing to send.
    pub const fn had_end(&self) -> bool {
        match &self.state {
            SessionState::Waiting(_) => false,
            SessionState::Watching(watching) => watching.had_end,
        }
    }

    /// The job's status; `None` while the job has no event.
    pub fn status(&self) -> Option<Status> {
        match &self.state {
            SessionState::Waiting(_) => None,
            SessionState::Watching(watching) => {
                watching.watch.feed().last().map(|last| last.status())
            }
        }
    }

    /// The position after the steps returned so far.
    pub fn position(&self) -> Position {
        let held_from = self.compaction.as_ref().and_then(|held| held.held_from());
        held_from.unwrap_or_else(|| self.state.position())
    }

    /// Goes back to a position within the last step.
    pub fn rewind(&mut self, to: Position) {
        if let Some(compaction) = &mut self.compaction {
            compaction.clear();
        }
        if let SessionState::Watching(watching) = &mut self.state {
            watching.next_seq = to.next_seq;
            watching.stream_seq = to.stream_seq;
            watching.catch_up = None;
            watching.ended = false;
        }
    }

    /// Whether the last step came from memory: going back to it costs nothing.
    pub fn reads_memory(&self) -> bool {
        match &self.state {
            SessionState::Waiting(_) => true,
            SessionState::Watching(watching) => watching.catch_up.is_none(),
        }
    }

    /// The next step. Waits forever after [`Step::End`] and [`Step::Rebuilt`]. Cancel safe.
    pub async fn next(&mut self) -> Step {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    /// [`Self::next`] for a task that polls many sessions. The task is woken at each change of the
    /// job's feed, also if it was not waiting for one.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Step> {
        let Some(compaction) = &mut self.compaction else {
            return self.state.poll_next(cx);
        };
        ready!(compaction.poll_prepare(cx));
        loop {
            if let Some(step) = compaction.next_step() {
                return Poll::Ready(step);
            }
            let before = self.state.position();
            let step = ready!(self.state.poll_next(cx));
            if let Some(step) = compaction.apply(before, step) {
                return Poll::Ready(step);
            }
        }
    }
}

impl<S: EventSource> SessionState<S> {
    fn position(&self) -> Position {
        match self {
            Self::Waiting(_) => Position::START,
            Self::Watching(watching) => Position {
                next_seq: watching.next_seq,
                stream_seq: watching.stream_seq,
            },
        }
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Step> {
        loop {
            match self {
                Self::Watching(watching) => return watching.poll_next(cx),
                Self::Waiting(waiting) if !waiting.live_sent => {
                    waiting.live_sent = true;
                    return Poll::Ready(Step::Live);
                }
                Self::Waiting(waiting) => {
                    let watch = ready!(waiting.poll_known(cx));
                    let watching = Watching {
                        live_sent: true,
                        ..Watching::new(&waiting.hub, watch, Seq::FIRST)
                    };
                    *self = Self::Watching(watching);
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
