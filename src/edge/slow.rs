//! Counts the connections that ended because their client was too slow: to make a request, to complete
//! a message, or to read.

use std::sync::atomic::{AtomicU64, Ordering};

/// What a client was too slow to complete.
#[derive(Clone, Copy, Debug)]
pub(super) enum SlowPart {
    /// The TLS handshake.
    Handshake,
    /// The head of a request over HTTP/1 that it had begun.
    Head,
    /// A message over a WebSocket.
    Message,
    /// The reading of what was written to it.
    Output,
}

/// How often that happened. It is rare, so all threads share the counters.
static ENDED: [AtomicU64; SlowPart::ALL.len()] = [const { AtomicU64::new(0) }; SlowPart::ALL.len()];

impl SlowPart {
    /// All of them.
    pub(super) const ALL: [Self; 4] = [Self::Handshake, Self::Head, Self::Message, Self::Output];

    /// Its name in metrics.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Handshake => "handshake",
            Self::Head => "head",
            Self::Message => "message",
            Self::Output => "output",
        }
    }

    /// Counts a connection that ended because of it.
    pub(super) fn count(self) {
        ENDED[self as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// How many did since the process started.
    pub(super) fn ended(self) -> u64 {
        ENDED[self as usize].load(Ordering::Relaxed)
    }
}
