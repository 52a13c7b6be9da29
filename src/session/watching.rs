//! A session of a job that has a feed: joins the feed's history and the log with a stitcher.

use std::future::pending;
use std::sync::Arc;

use super::step::Step;
use crate::config::STEP_BYTES;
use crate::hub::{FeedWatch, Hub};
use crate::resume::{Action, Input, Slice, Stitcher};
use crate::source::{EventSource, Refill};
use crate::wire::{Seq, Stored, StreamSeq};

/// A session of a job that has a feed.
#[derive(Debug)]
pub(super) struct Watching<S: EventSource> {
    pub(super) hub: Arc<Hub<S>>,
    pub(super) watch: FeedWatch,
    pub(super) stitcher: Stitcher<Arc<Stored>>,
    pub(super) refill: Refill<S>,
    /// The sequence number after the steps that were returned; the stitcher may be ahead.
    pub(super) next_seq: Seq,
    /// The stream sequence after the last delivered event, if known.
    pub(super) stream_seq: Option<StreamSeq>,
    /// Where the feed's history started when the refill was requested.
    pub(super) until: Option<Seq>,
    /// A gap after the last step, from its first to its last event.
    pub(super) next_gap: Option<(Seq, Seq)>,
    /// See [`Session::had_end`](super::Session::had_end).
    pub(super) had_end: bool,
    pub(super) live_sent: bool,
    pub(super) end_sent: bool,
}

impl<S: EventSource> Watching<S> {
    pub(super) fn new(hub: &Arc<Hub<S>>, watch: FeedWatch, next: Seq) -> Self {
        Self {
            hub: Arc::clone(hub),
            watch,
            stitcher: Stitcher::caught_up(next, 0),
            next_seq: next,
            refill: Refill::default(),
            stream_seq: None,
            until: None,
            next_gap: None,
            had_end: false,
            live_sent: false,
            end_sent: false,
        }
    }

    /// See [`Session::next`](super::Session::next).
    pub(super) async fn next(&mut self) -> Step {
        loop {
            if self.watch.feed().is_rebuilt() && !self.end_sent {
                self.end_sent = true;
                return Step::Rebuilt;
            }
            let step = self.drain();
            self.watch
                .report(self.stitcher.next_seq(), self.refill.is_busy());
            if let Some(step) = step {
                return step;
            }
            if self.end_sent {
                // Undecodable messages after the end are not delivered.
                return pending().await;
            }
            if self.refill.is_busy() {
                self.refill().await;
            } else if let Some(step) = self.follow().await {
                return step;
            }
        }
    }

    /// Performs the stitcher's actions until there is a step to return.
    fn drain(&mut self) -> Option<Step> {
        if let Some(gap) = self.take_gap() {
            return Some(gap);
        }
        let mut events = Vec::new();
        while let Some(action) = self.stitcher.poll() {
            match action {
                Action::Deliver(event) => {
                    self.next_seq = event.seq.successor();
                    self.stream_seq = Some(event.stream_seq + 1);
                    events.push(event);
                }
                Action::Gap { from, to } => {
                    self.next_gap = Some((from, to));
                    break;
                }
                Action::Replay { from } => {
                    self.until = match self.watch.feed().read(from, 0) {
                        Some(Slice::TooOld { first }) => Some(first),
                        _ => None,
                    };
                    self.refill.request(from, self.stream_seq, self.until);
                }
                Action::End => {}
            }
        }
        if !events.is_empty() {
            return Some(Step::Events(events));
        }
        if let Some(gap) = self.take_gap() {
            return Some(gap);
        }
        if (self.had_end || self.stitcher.is_ended()) && !self.end_sent {
            self.end_sent = true;
            return Some(Step::End);
        }
        None
    }

    fn take_gap(&mut self) -> Option<Step> {
        let (from, to) = self.next_gap.take()?;
        self.next_seq = to.successor();
        Some(Step::Gap { from, to })
    }

    async fn refill(&mut self) {
        let feed = self.watch.feed();
        let refilled = tokio::select! {
            biased;
            () = feed.rebuilt() => return,
            refilled = self.refill.next(self.hub.source(), feed.job()) => refilled,
        };
        // The history's current start proves nothing: events evicted since may be in the log.
        refilled.apply(&mut self.stitcher, self.until);
    }

    /// Reads the feed, or waits until it changes.
    async fn follow(&mut self) -> Option<Step> {
        let feed = self.watch.feed();
        let mut changed = std::pin::pin!(feed.changed());
        changed.as_mut().enable();
        match feed.read(self.stitcher.next_seq(), STEP_BYTES) {
            Some(Slice::Items(items)) => {
                for item in items {
                    self.stitcher.handle(Input::Live(item));
                }
            }
            Some(Slice::TooOld { .. }) => self.stitcher.handle(Input::LiveLagged),
            Some(Slice::CaughtUp) if !self.live_sent => {
                self.live_sent = true;
                return Some(Step::Live);
            }
            Some(Slice::CaughtUp) | None => changed.await,
        }
        None
    }
}
