//! Limits how fast a client is read from. Parsing takes the thread's time, so a client that exceeds
//! its burst is read slowly. Writes are not affected.

use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep};

use crate::config::{READ_AHEAD, READ_BURST, READ_RATE};

/// How often reading paused. That is rare, so all threads share the counter.
static PAUSES: AtomicU64 = AtomicU64::new(0);

/// How often reading from a client paused since the process started.
pub(in crate::edge) fn read_pauses() -> u64 {
    PAUSES.load(Ordering::Relaxed)
}

/// The allowance of one connection: [`READ_BURST`] at once, and [`READ_RATE`] a second beyond that.
#[derive(Debug)]
pub(in crate::edge) struct ReadPace {
    /// How many bytes may be read now; negative after a larger read.
    remaining: i64,
    /// Present once the burst was used, which few clients do. One that used it up slowly pauses then, too,
    /// for a moment.
    slowed: Option<Box<SlowedReads>>,
}

/// What limits a connection whose burst was used.
#[derive(Debug)]
struct SlowedReads {
    /// When the allowance was last increased.
    counted_at: Instant,
    wait: Option<Pin<Box<Sleep>>>,
}

impl ReadPace {
    pub(in crate::edge) fn new() -> Self {
        Self {
            remaining: READ_BURST,
            slowed: None,
        }
    }

    /// Counts bytes that were read.
    pub(in crate::edge) fn count(&mut self, bytes: usize) {
        self.remaining -= i64::try_from(bytes).unwrap_or(i64::MAX);
    }

    /// Ready when bytes may be read.
    pub(in crate::edge) fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        /// The smallest allowance to wait for: a timer for each small read would cost more than the
        /// read.
        const LEAST: i64 = READ_AHEAD as i64;
        while self.remaining <= 0 {
            let slowed = self.slowed.get_or_insert_with(|| {
                Box::new(SlowedReads {
                    counted_at: Instant::now(),
                    wait: None,
                })
            });
            if let Some(wait) = &mut slowed.wait {
                ready!(wait.as_mut().poll(cx));
                slowed.wait = None;
            }
            let now = Instant::now();
            let micros = (now - slowed.counted_at).as_micros();
            let micros = i64::try_from(micros).unwrap_or(i64::MAX);
            let more = micros.saturating_mul(READ_RATE) / 1_000_000;
            self.remaining = self.remaining.saturating_add(more).min(READ_BURST);
            slowed.counted_at = now;
            if self.remaining <= 0 {
                let lacking = u64::try_from(LEAST - self.remaining).unwrap_or_default();
                let wait = Duration::from_micros(lacking * 1_000_000 / READ_RATE.unsigned_abs());
                PAUSES.fetch_add(1, Ordering::Relaxed);
                slowed.wait = Some(Box::pin(sleep(wait)));
            }
        }
        Poll::Ready(())
    }
}
