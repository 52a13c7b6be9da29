//! How an edge's clients disconnect when it stops: each is told at a moment of its own, so that
//! they do not all reconnect to another edge at once. It closes nothing itself.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::config::CLOSE_WAIT;
use crate::runtime::Tasks;

/// The clients that are connected for longer than a request.
#[derive(Debug)]
pub(super) struct Clients {
    tasks: Tasks,
    drain: Arc<Drain>,
    count: AtomicU64,
}

#[derive(Debug)]
struct Drain {
    /// Cancelled when the edge stops.
    stop: CancellationToken,
    /// Cancelled when the edge waits no longer.
    closing: CancellationToken,
    /// Over what time the clients are told.
    window: Duration,
    /// When the first of them noticed that the edge stops.
    stopped_at: OnceLock<Instant>,
}

impl Clients {
    /// None yet. They are told within `window` after `stop` is cancelled, and at once when
    /// `closing` is.
    pub(super) fn new(
        stop: CancellationToken,
        window: Duration,
        closing: CancellationToken,
    ) -> Self {
        Self {
            tasks: Tasks::new(stop.clone()),
            drain: Arc::new(Drain {
                stop,
                closing,
                window,
                stopped_at: OnceLock::new(),
            }),
            count: AtomicU64::new(0),
        }
    }

    /// Whether the edge stops, and accepts no more clients.
    pub(super) fn are_leaving(&self) -> bool {
        self.drain.stop.is_cancelled()
    }

    /// Counts a client until its slot is dropped.
    pub(super) fn enter(&self) -> DrainSlot {
        DrainSlot {
            number: self.count.fetch_add(1, Ordering::Relaxed),
            drain: Arc::clone(&self.drain),
            _held: self.tasks.hold(),
        }
    }

    /// Once the edge stops: waits until all clients have disconnected, no longer than they should
    /// need. Returns whether they have.
    pub(super) async fn disconnect(&self) -> bool {
        self.tasks.end(self.drain.window + CLOSE_WAIT).await
    }
}

/// A client's slot in the order in which clients are told.
#[derive(Debug)]
pub(super) struct DrainSlot {
    number: u64,
    drain: Arc<Drain>,
    _held: TaskTrackerToken,
}

impl DrainSlot {
    /// Waits until the client should be told to reconnect. Safe to drop at any await.
    pub(super) async fn moment(&self) {
        let drain = &self.drain;
        drain.stop.cancelled().await;
        let stopped_at = *drain.stopped_at.get_or_init(Instant::now);
        tokio::select! {
            () = sleep_until(stopped_at + delay(self.number, drain.window)) => {}
            () = drain.closing.cancelled() => {}
        }
    }
}

/// The part of the window that passes before the client with this number is told: multiples of the
/// golden ratio, any run of which spreads evenly, whichever clients have disconnected meanwhile.
fn delay(number: u64, window: Duration) -> Duration {
    const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;
    let per_mille = number.wrapping_mul(GOLDEN) / (u64::MAX / 1000);
    window / 1000 * u32::try_from(per_mille.min(999)).unwrap_or(999)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_are_told_evenly_over_the_window_whichever_have_disconnected() {
        let window = Duration::from_secs(10);
        for (first, step) in [(0, 1), (1_000_000, 1), (7, 2), (0, 10)] {
            let mut delays: Vec<_> = (0..100).map(|n| delay(first + n * step, window)).collect();
            delays.sort();
            assert!(delays.iter().all(|delay| *delay < window));
            for (tenth, some) in delays.chunks(10).enumerate() {
                let even = window * u32::try_from(tenth).unwrap() / 10;
                assert!(
                    some[0].abs_diff(even) < window / 10,
                    "from {first}, every {step}th: {delays:?}"
                );
            }
        }
        assert_eq!(delay(5, Duration::ZERO), Duration::ZERO);
    }
}
