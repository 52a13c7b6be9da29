//! A session of a job that has a feed. Usually it reads the feed's history; while that lacks the
//! next event, it reads the log.

use std::num::NonZeroU64;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use super::catch_up::{CatchUp, CaughtUp};
use super::step::Step;
use crate::config::STEP_BYTES;
use crate::hub::{FeedWatch, Hub};
use crate::resume::Slice;
use crate::source::EventSource;
use crate::wire::{Seq, Stored};

/// A session of a job that has a feed.
#[derive(Debug)]
pub(super) struct Watching<S: EventSource> {
    pub(super) hub: Arc<Hub<S>>,
    pub(super) watch: FeedWatch,
    /// The sequence number after the steps that were returned.
    pub(super) next_seq: Seq,
    /// The stream sequence after the last delivered event, if known.
    pub(super) stream_seq: Option<NonZeroU64>,
    /// Present while the log is read.
    pub(super) catch_up: Option<Box<CatchUp<S>>>,
    /// See [`Session::had_end`](super::Session::had_end).
    pub(super) had_end: bool,
    /// Whether the job's end was delivered, or reported in a gap.
    pub(super) ended: bool,
    pub(super) live_sent: bool,
    pub(super) end_sent: bool,
}

impl<S: EventSource> Watching<S> {
    pub(super) fn new(hub: &Arc<Hub<S>>, watch: FeedWatch, next: Seq) -> Self {
        Self {
            hub: Arc::clone(hub),
            watch,
            next_seq: next,
            stream_seq: None,
            catch_up: None,
            had_end: false,
            ended: false,
            live_sent: false,
            end_sent: false,
        }
    }

    /// See [`Session::poll_next`](super::Session::poll_next).
    pub(super) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Step> {
        // Registered before anything is checked, so that no change is missed.
        self.watch.register(cx.waker());
        if self.end_sent {
            // Undecodable messages after the end are not delivered.
            return Poll::Pending;
        }
        if self.watch.feed().is_rebuilt() {
            self.end_sent = true;
            return Poll::Ready(Step::Rebuilt);
        }
        if self.had_end || self.ended {
            self.end_sent = true;
            return Poll::Ready(Step::End);
        }
        let step = self.poll_step(cx);
        self.watch.report(self.next_seq, self.catch_up.is_some());
        step
    }

    fn poll_step(&mut self, cx: &mut Context<'_>) -> Poll<Step> {
        loop {
            if let Some(catch_up) = &mut self.catch_up {
                let feed = self.watch.feed();
                let stream_seq = self.stream_seq.map(NonZeroU64::get);
                match ready!(catch_up.poll_next(&self.hub, feed, stream_seq, cx)) {
                    CaughtUp::Events(events) => return Poll::Ready(self.deliver(events)),
                    CaughtUp::Gap { from, to } => {
                        self.next_seq = to.successor();
                        self.hub.note_gap(self.next_seq.0 - from.0);
                        // If the job's end is among them, nothing follows.
                        let last = self.watch.feed().last();
                        self.ended = last
                            .is_some_and(|last| last.event_type.is_end() && last.cursor.seq <= to);
                        return Poll::Ready(Step::Gap { from, to });
                    }
                    CaughtUp::All => {}
                }
            }
            match self.watch.feed().read(self.next_seq, STEP_BYTES) {
                Some(Slice::Items(events)) => {
                    self.catch_up = None;
                    return Poll::Ready(self.deliver(events));
                }
                Some(Slice::CaughtUp) => {
                    self.catch_up = None;
                    if self.live_sent {
                        return Poll::Pending;
                    }
                    self.live_sent = true;
                    return Poll::Ready(Step::Live);
                }
                Some(Slice::TooOld { .. }) => match &mut self.catch_up {
                    Some(catch_up) => catch_up.again(),
                    None => self.catch_up = Some(Box::new(CatchUp::new(self.next_seq))),
                },
                // The feed is being opened again.
                None => return Poll::Pending,
            }
        }
    }

    fn deliver(&mut self, events: Vec<Arc<Stored>>) -> Step {
        if let Some(last) = events.last() {
            self.next_seq = last.seq.successor();
            self.stream_seq = NonZeroU64::new(last.stream_seq + 1);
            self.ended = last.event_type.is_end();
        }
        Step::Events(events)
    }
}
