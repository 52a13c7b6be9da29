//! Live copies and replays: which messages are events of the job.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tracing::trace;

use super::Driver;
use crate::backoff::Backoff;
use crate::config::{PROBE_MAX, PROBE_SILENT, PROBE_SPREAD};
use crate::resume::Input;
use crate::source::{EventSource, LiveCopy, Refilled, Signal, Tail};
use crate::wire::{Stored, Unreadable};

impl<S: EventSource> Driver<S> {
    /// Applies all signals that are ready, so that watchers are woken once for all of them.
    pub(super) fn signals(&mut self) {
        while let Some(signal) = self.tail.as_mut().and_then(Tail::ready) {
            self.signal(signal);
        }
    }

    pub(super) fn signal(&mut self, signal: Signal) {
        match signal {
            Signal::Event(event) => self.live(event),
            Signal::Undecodable { .. } if self.in_doubt => self.ignored_copy = true,
            Signal::Undecodable { stream_seq, prev } => self.chain.skip(stream_seq, prev),
            Signal::Disturbed => self.doubt(self.spread(PROBE_SPREAD)),
            Signal::Closed => self.tail = None,
        }
    }

    pub(super) fn live(&mut self, event: Arc<Stored>) {
        trace!(job = %self.feed.job(), seq = event.seq.0, "live");
        // A message that directly follows the known part is of the same log, whatever its number.
        if event.prev != Some(self.chain.read()) && self.is_contradicted(&event) {
            self.doubt(Duration::ZERO);
        }
        if self.in_doubt {
            self.ignored_copy = true;
            // Watchers wait for it: check now, unless a check has just failed.
            if self.doubt_backoff.is_reset() {
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
            .undecodable(self.feed.job(), event.stream_seq, &Unreadable::OutOfOrder);
    }

    pub(super) fn refilled(&mut self, refilled: Refilled) {
        match refilled {
            Refilled::Items(items) => {
                for item in items {
                    self.stitcher.handle(Input::Replayed(item));
                }
            }
            Refilled::Done { nothing_left } => {
                self.stitcher.handle(Input::ReplayDone);
                if let Some(before) = self.stitcher.gap_end().filter(|_| nothing_left) {
                    self.stitcher.handle(Input::Gap { before });
                }
                self.replay_ended(nothing_left);
            }
        }
    }

    /// A replay has ended: copies that waited for it and are not in the log are undecodable.
    pub(super) fn replay_ended(&mut self, nothing_left: bool) {
        if let Some(asked) = self.chain_asked.take().filter(|_| nothing_left) {
            self.chain
                .abandon(asked)
                .iter()
                .for_each(|event| self.note_undecodable(event));
        }
        if self.chain.unclassified().is_some() && self.stitcher.is_live() {
            self.stitcher.handle(Input::LiveLagged);
        }
    }
}
