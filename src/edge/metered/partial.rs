//! An incomplete message over the WebSocket of a Socket.IO client. The library holds it until it is complete, so it counts in the
//! memory budget and has a deadline.

use std::io;
use std::pin::Pin;
use std::task::Context;

use tokio::time::{Instant, Sleep, sleep};

use crate::config::{BODY_WAIT, QUIET_WAIT, SMALL_BYTES, TINY_BYTES};
use crate::edge::memory::{SplitBudget, SplitReservation};
use crate::wire::limits::BODY_MAX;

/// The part received so far.
#[derive(Debug)]
pub(super) struct PartialMessage {
    bytes: usize,
    /// How many requests had been received before the last read.
    before: u64,
    since: Instant,
    reservation: SplitReservation,
    /// Runs while the message is large.
    deadline: Option<Pin<Box<Sleep>>>,
}

impl PartialMessage {
    pub(super) fn new(bodies: &SplitBudget) -> Self {
        Self {
            bytes: 0,
            before: 0,
            since: Instant::now(),
            reservation: bodies.empty(BODY_MAX),
            deadline: None,
        }
    }

    /// Adds bytes; `requests` is how many requests had been received before them.
    ///
    /// # Errors
    /// When there is no room for them.
    pub(super) fn add(&mut self, bytes: usize, requests: u64) -> io::Result<()> {
        let is_quiet = self.bytes < TINY_BYTES && self.since.elapsed() > QUIET_WAIT;
        if self.is_complete(requests) || is_quiet {
            self.reservation.clear();
            self.bytes = 0;
            self.since = Instant::now();
            self.deadline = None;
        }
        self.before = requests;
        self.bytes += bytes;
        if self.bytes > SMALL_BYTES && self.deadline.is_none() {
            self.deadline = Some(Box::pin(sleep(BODY_WAIT)));
        }
        let counted = if self.bytes > TINY_BYTES {
            self.bytes
        } else {
            0
        };
        self.reservation.resize(counted).map_err(io::Error::other)
    }

    /// Whether the message was completed since the last read.
    pub(super) const fn is_complete(&self, requests: u64) -> bool {
        requests != self.before
    }

    /// Whether a large message has taken too long. If not, the deadline wakes the reader.
    pub(super) fn is_late(&mut self, cx: &mut Context<'_>) -> bool {
        self.deadline
            .as_mut()
            .is_some_and(|deadline| deadline.as_mut().poll(cx).is_ready())
    }
}
