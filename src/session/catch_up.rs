//! Reads the log for a session until the feed's history has its next event: joins the two with a
//! stitcher.

use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures_util::future::BoxFuture;

use crate::hub::{Feed, Hub};
use crate::resume::{Action, Input, Slice, Stitcher};
use crate::source::{EventSource, Refill, Refilled};
use crate::wire::{Seq, Stored, StreamSeq};

/// A session's reading of the log.
pub(super) struct CatchUp<S: EventSource> {
    stitcher: Stitcher<Arc<Stored>>,
    refill: RefillState<S>,
    /// Where the feed's history started when the refill was requested.
    until: Option<Seq>,
    /// A gap after the events that were returned, from its first to its last event.
    next_gap: Option<(Seq, Seq)>,
}

/// The refill is either here or in the future that waits for its next result.
enum RefillState<S: EventSource> {
    Idle(Refill<S>),
    Waiting(BoxFuture<'static, (Refill<S>, Refilled)>),
}

/// What comes next.
pub(super) enum CaughtUp {
    /// These events, in order; never empty.
    Events(Vec<Arc<Stored>>),
    /// The log no longer has these events.
    Gap { from: Seq, to: Seq },
    /// Everything was read that the log had. The history may have the next event.
    All,
}

impl<S: EventSource> CatchUp<S> {
    /// The feed's history no longer has the event `next`.
    pub(super) fn new(next: Seq) -> Self {
        let mut stitcher = Stitcher::caught_up(next, 0);
        stitcher.handle(Input::LiveLagged);
        Self {
            stitcher,
            refill: RefillState::Idle(Refill::default()),
            until: None,
            next_gap: None,
        }
    }

    /// The history does not have the next event either: reads the log again.
    pub(super) fn again(&mut self) {
        self.stitcher.handle(Input::LiveLagged);
    }

    /// What comes next. The next event is at `stream_seq` or after it, if that is known.
    pub(super) fn poll_next(
        &mut self,
        hub: &Arc<Hub<S>>,
        feed: &Arc<Feed>,
        stream_seq: Option<StreamSeq>,
        cx: &mut Context<'_>,
    ) -> Poll<CaughtUp> {
        loop {
            if let Some(next) = self.drain(feed, stream_seq) {
                return Poll::Ready(next);
            }
            if self.stitcher.is_live() {
                return Poll::Ready(CaughtUp::All);
            }
            let refilled = ready!(self.poll_refill(hub, feed, cx));
            // The history's current start proves nothing: events evicted since may be in the log.
            refilled.apply(&mut self.stitcher, self.until);
        }
    }

    /// Performs the stitcher's actions until there is something to return.
    fn drain(&mut self, feed: &Feed, mut stream_seq: Option<StreamSeq>) -> Option<CaughtUp> {
        let mut events = Vec::new();
        while self.next_gap.is_none()
            && let Some(action) = self.stitcher.poll()
        {
            match action {
                Action::Deliver(event) => {
                    stream_seq = Some(event.stream_seq + 1);
                    events.push(event);
                }
                Action::Gap { from, to } => self.next_gap = Some((from, to)),
                Action::Replay { from } => self.request(feed, from, stream_seq),
                Action::End => {}
            }
        }
        if !events.is_empty() {
            return Some(CaughtUp::Events(events));
        }
        let (from, to) = self.next_gap.take()?;
        Some(CaughtUp::Gap { from, to })
    }

    fn request(&mut self, feed: &Feed, from: Seq, stream_seq: Option<StreamSeq>) {
        self.until = match feed.read(from, 0) {
            Some(Slice::TooOld { first }) => Some(first),
            _ => None,
        };
        // The stitcher requests one replay at a time.
        if let RefillState::Idle(refill) = &mut self.refill {
            refill.request(from, stream_seq, self.until);
        }
    }

    fn poll_refill(
        &mut self,
        hub: &Arc<Hub<S>>,
        feed: &Arc<Feed>,
        cx: &mut Context<'_>,
    ) -> Poll<Refilled> {
        if let RefillState::Idle(refill) = &mut self.refill {
            let mut refill = std::mem::take(refill);
            let hub = Arc::clone(hub);
            let feed = Arc::clone(feed);
            self.refill = RefillState::Waiting(Box::pin(async move {
                let refilled = refill.next(hub.source(), feed.job()).await;
                (refill, refilled)
            }));
        }
        let RefillState::Waiting(waiting) = &mut self.refill else {
            return Poll::Pending;
        };
        let (refill, refilled) = ready!(waiting.as_mut().poll(cx));
        self.refill = RefillState::Idle(refill);
        Poll::Ready(refilled)
    }
}

impl<S: EventSource> fmt::Debug for CatchUp<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CatchUp")
            .field("stitcher", &self.stitcher)
            .finish_non_exhaustive()
    }
}
