//! Subscribes to a job and starts the history: with its last event, or with what another thread of
//! this process has.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::Driver;
use crate::config::{AHEAD_MAX, HISTORY_BYTES, PROBE_FIRST};
use crate::hub::history::FeedHistory;
use crate::resume::{Input, Stitcher};
use crate::source::EventSource;
use crate::wire::{Seq, Stored};

impl<S: EventSource> Driver<S> {
    /// Subscribes, also after a subscription has ended.
    pub(super) fn open(&mut self) {
        let hub = Arc::clone(&self.hub);
        let feed = Arc::clone(&self.feed);
        self.opening = Some(Box::pin(
            async move { hub.source().follow(feed.job()).await },
        ));
    }

    /// Starts the history with the last event, or with all that leads to it.
    pub(super) fn opened(&mut self, tail: S::Tail, last: Option<Arc<Stored>>) {
        // This replica may lag behind the one that was read before.
        let mut last = last
            .into_iter()
            .chain(self.known.take())
            .max_by_key(|last| last.seq);
        self.opening = None;
        self.tail = Some(tail);
        self.open_backoff.reset();
        self.probe_at = Instant::now() + PROBE_FIRST + self.spread(PROBE_FIRST / 4);
        if !self.feed.is_open() {
            if last.is_none() && self.may_refuse {
                self.eventless = self.hub.eventless_slot(&self.feed);
                if self.eventless.is_none() {
                    self.feed.refuse();
                    return;
                }
            }
            let job = self.feed.job();
            let siblings = &self.hub.siblings;
            let copied = last
                .as_ref()
                .and_then(|last| siblings.copy_before(job, last));
            let history = if let Some((history, following)) = copied {
                last = Some(following);
                history
            } else {
                let next = last.as_ref().map_or(Seq::FIRST, |last| last.seq);
                FeedHistory::new(job.clone(), next, HISTORY_BYTES)
            };
            self.stitcher = Stitcher::caught_up(history.next_seq(), AHEAD_MAX);
            self.feed.open(history);
            self.feed.wake();
        }
        match last {
            // The log may have been rebuilt since the previous subscription ended.
            Some(_) if self.last.is_some() => self.suspect_rebuild(Duration::ZERO),
            Some(last) => self.stitcher.handle(Input::Live(last)),
            None => {}
        }
    }
}
