//! An incomplete WebSocket message. The library holds it until it is complete, so it counts in the
//! memory budget and has a deadline.

use std::io;
use std::pin::Pin;
use std::task::Context;

use tokio::time::{Instant, Sleep, sleep};

use crate::config::{BODY_WAIT, QUIET_WAIT, SMALL_BYTES, TINY_BYTES};
use crate::edge::memory::{SplitBudget, SplitReservation};
use crate::edge::meter::WebSocketInput;
use crate::wire::limits::BODY_MAX;

/// The part received so far.
#[derive(Debug)]
pub(super) struct PartialMessage {
    bytes: usize,
    /// What had been received before the last read. Pings and pongs may arrive between the parts of
    /// a message.
    before: WebSocketInput,
    since: Instant,
    reservation: SplitReservation,
    /// Runs while the message is large.
    deadline: Option<Pin<Box<Sleep>>>,
}

impl PartialMessage {
    pub(super) fn new(bodies: &SplitBudget) -> Self {
        Self {
            bytes: 0,
            before: WebSocketInput::default(),
            since: Instant::now(),
            reservation: bodies.empty(BODY_MAX),
            deadline: None,
        }
    }

    /// Adds bytes; `input` is all that had been received before them.
    ///
    /// # Errors
    /// When there is no room for them.
    pub(super) fn add(&mut self, bytes: usize, input: WebSocketInput) -> io::Result<()> {
        let control = input.control_bytes - self.before.control_bytes;
        self.bytes = self
            .bytes
            .saturating_sub(usize::try_from(control).unwrap_or(usize::MAX));
        let is_quiet = self.bytes < TINY_BYTES && self.since.elapsed() > QUIET_WAIT;
        if self.is_complete(input) || is_quiet {
            self.reservation.clear();
            self.bytes = 0;
            self.since = Instant::now();
            self.deadline = None;
        }
        self.before = input;
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
    pub(super) const fn is_complete(&self, input: WebSocketInput) -> bool {
        input.messages != self.before.messages
    }

    /// Whether a large message has taken too long. If not, the deadline wakes the reader.
    pub(super) fn is_late(&mut self, cx: &mut Context<'_>) -> bool {
        self.deadline
            .as_mut()
            .is_some_and(|deadline| deadline.as_mut().poll(cx).is_ready())
    }

    #[cfg(test)]
    pub(super) const fn bytes(&self) -> usize {
        self.bytes
    }
}
