//! Live copies and replays: which messages are events of the job.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::Instant;
use tracing::trace;

use super::Driver;
use crate::backoff::Backoff;
use crate::config::{PROBE_MAX, PROBE_SILENT, PROBE_SPREAD};
use crate::resume::Input;
use crate::source::{EventSource, LiveCopy, Refilled, Tail, TailSignal};
use crate::wire::{DecodeError, Stored};

impl<S: EventSource> Driver<S> {
    /// Applies all signals that are ready, so that watchers are woken once for all of them.
    pub(super) fn signals(&mut self, cx: &mut Context<'_>) {
        while let Some(tail) = &mut self.tail
            && let Poll::Ready(signal) = tail.poll_next(cx)
        {
            self.signal(signal);
        }
    }

    pub(super) fn signal(&mut self, signal: TailSignal) {
        match signal {
            TailSignal::Event(event) => self.live(event),
            TailSignal::Undecodable { .. } if self.feed.may_be_rebuilt() => {
                self.ignored_copy = true;
            }
            TailSignal::Undecodable { stream_seq, prev } => self.chain.skip(stream_seq, prev),
            TailSignal::Disturbed => self.suspect_rebuild(self.spread(PROBE_SPREAD)),
            TailSignal::Closed => self.tail = None,
        }
    }

    pub(super) fn live(&mut self, event: Arc<Stored>) {
        trace!(job = %self.feed.job(), seq = event.seq.0, "live");
        // A message that directly follows the known part is of the same log, whatever its number.
        if event.prev != Some(self.chain.read()) && self.is_contradicted(&event) {
            self.suspect_rebuild(Duration::ZERO);
        }
        if self.feed.may_be_rebuilt() {
            self.ignored_copy = true;
            // Watchers wait for it: check now, unless a check has just failed.
            if self.check_backoff.is_reset() {
                self.probe_at = Instant::now();
            }
            return;
        }
        self.probe_backoff = Backoff::new(PROBE_SILENT, PROBE_MAX);
        self.probe_at = Instant::now() + PROBE_SILENT + self.spread(PROBE_SILENT / 4);
        self.copied(event);
    }

    /// Applies a live copy.
    pub(super) fn copied(&mut self, event: Arc<Stored>) {
        match self.chain.apply(event) {
            LiveCopy::Next(event) => self.stitcher.handle(Input::Live(event)),
            LiveCopy::Undecodable(event) => self.note_undecodable(&event),
            // A running replay may return what comes before it; another one follows if it does not.
            LiveCopy::Waits if self.stitcher.is_live() => self.stitcher.handle(Input::LiveLagged),
            LiveCopy::Waits | LiveCopy::Old => {}
        }
    }

    pub(super) fn note_undecodable(&self, event: &Stored) {
        self.hub
            .source()
            .undecodable(self.feed.job(), event.stream_seq, &DecodeError::OutOfOrder);
    }

    pub(super) fn refilled(&mut self, refilled: Refilled) {
        let ended = match refilled {
            Refilled::Items(_) => None,
            Refilled::Done { proves_gap } => Some(proves_gap),
        };
        let gap_end = self.stitcher.gap_end();
        refilled.apply(&mut self.stitcher, gap_end);
        if let Some(proves_gap) = ended {
            self.replay_ended(proves_gap);
        }
    }

    /// A replay has ended: copies that waited for it and are not in the log are undecodable.
    pub(super) fn replay_ended(&mut self, proves_gap: bool) {
        if let Some(unclassified) = self.unclassified_at_request.take().filter(|_| proves_gap) {
            self.chain
                .abandon(unclassified)
                .iter()
                .for_each(|event| self.note_undecodable(event));
        }
        if self.chain.unclassified().is_some() && self.stitcher.is_live() {
            self.stitcher.handle(Input::LiveLagged);
        }
    }
}
