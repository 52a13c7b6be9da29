//! Checks whether the log was rebuilt, and whether a silent log has more events.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tracing::debug;

use super::{Driver, Probed};
use crate::backoff::Backoff;
use crate::config::{PROBE_FIRST, PROBE_MAX, PROBE_SILENT};
use crate::hub::check::{Checked, check, contradicts};
use crate::resume::Input;
use crate::source::{EventSource, Refill};
use crate::wire::Stored;

impl<S: EventSource> Driver<S> {
    pub(super) fn is_contradicted(&self, event: &Stored) -> bool {
        match self.feed.find(event.seq) {
            Some(known) => known.cursor() != event.cursor(),
            None => self
                .last
                .is_some_and(|last| contradicts(last.cursor, event)),
        }
    }

    /// The log may have been rebuilt: it is checked within `soon`.
    pub(super) fn suspect_rebuild(&mut self, soon: Duration) {
        self.probing = None;
        self.probe_backoff = Backoff::new(PROBE_SILENT, PROBE_MAX);
        self.probe_at = self.probe_at.min(Instant::now() + soon);
        self.check_backoff.reset();
        self.feed.set_may_be_rebuilt(true);
        if self.refill.is_busy() {
            self.abandon_replay();
        }
    }

    /// Events of the current replay may be of another log: it is repeated after the check.
    pub(super) fn abandon_replay(&mut self) {
        self.refill = Refill::default();
        self.unclassified_at_request = None;
        self.stitcher.handle(Input::ReplayDone);
        self.ignored_copy = true;
    }

    /// Checks whether the log has events that did not arrive, and whether it was rebuilt.
    pub(super) fn probe(&mut self) {
        let hub = Arc::clone(&self.hub);
        let feed = Arc::clone(&self.feed);
        let last = self.last;
        self.probing = Some(Box::pin(async move {
            check(hub.source(), feed.job(), last).await
        }));
    }

    pub(super) fn probed(&mut self, probed: Probed) {
        self.probing = None;
        match probed {
            Ok(Checked::Continues(last)) => {
                self.feed.set_may_be_rebuilt(false);
                if std::mem::take(&mut self.ignored_copy) {
                    self.stitcher.handle(Input::LiveLagged);
                    // The replica that is read may lag.
                    self.probe_backoff = Backoff::new(PROBE_FIRST, PROBE_MAX);
                }
                if let Some(last) = last {
                    self.stitcher.handle(Input::Live(last));
                }
            }
            Ok(Checked::Rebuilt) => self.rebuilt = true,
            Err(error) => {
                debug!(job = %self.feed.job(), %error, "cannot check the log");
                if self.feed.may_be_rebuilt() {
                    self.probe_at = Instant::now() + self.check_backoff.next_pause();
                    return;
                }
            }
        }
        let pause = self.probe_backoff.next_pause();
        self.probe_at = Instant::now() + pause + self.spread(pause / 4);
    }
}
