//! How an edge's clients leave it when it stops: each is told at a moment of its own, so that they do not all come back
//! to another edge at once. It closes nothing itself.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::App;
use crate::config::CLOSE_WAIT;
use crate::runtime::Tasks;

/// The clients that are connected for longer than a request.
#[derive(Debug)]
pub(super) struct Clients {
    tasks: Tasks,
    /// Over what time they are told.
    window: Duration,
    /// When the first of them heard that the edge stops.
    stopped: OnceLock<Instant>,
    count: AtomicU64,
}

impl Clients {
    /// None yet; they are told within `window` after `stop` was cancelled.
    pub(super) fn new(stop: CancellationToken, window: Duration) -> Self {
        let (stopped, count) = (OnceLock::new(), AtomicU64::new(0));
        Self {
            tasks: Tasks::new(stop),
            window,
            stopped,
            count,
        }
    }

    /// Whether the edge stops, and takes no new ones.
    pub(super) fn are_leaving(&self) -> bool {
        self.tasks.stop().is_cancelled()
    }

    /// Counts one more, until its place is dropped.
    pub(super) fn enter(&self) -> DrainSlot {
        DrainSlot {
            number: self.count.fetch_add(1, Ordering::Relaxed),
            _held: self.tasks.hold(),
        }
    }

    /// Once the edge stops: waits until all have left, and no longer than they should need. Says whether they have.
    pub(super) async fn leave(&self) -> bool {
        self.tasks.end(self.window + CLOSE_WAIT).await
    }
}

/// A client's place in the order in which they are told.
#[derive(Debug)]
pub(super) struct DrainSlot {
    number: u64,
    _held: TaskTrackerToken,
}

impl DrainSlot {
    /// Waits until the client should be told to come back. Safe to drop at any await.
    pub(super) async fn moment(&self, app: &App) {
        let clients = &app.clients;
        clients.tasks.stop().cancelled().await;
        let stopped = *clients.stopped.get_or_init(Instant::now);
        tokio::select! {
            () = sleep_until(stopped + share(self.number, clients.window)) => {}
            // The edge waits no longer.
            () = app.tasks.stop().cancelled() => {}
        }
    }
}

/// The part of the window that passes before the client with this number is told: multiples of the golden ratio, of which
/// any run spreads evenly, whoever has left meanwhile.
fn share(number: u64, window: Duration) -> Duration {
    const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;
    let per_mille = number.wrapping_mul(GOLDEN) / (u64::MAX / 1000);
    window / 1000 * u32::try_from(per_mille.min(999)).unwrap_or(999)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_are_told_evenly_over_the_window_whoever_has_left() {
        let window = Duration::from_secs(10);
        for (first, step) in [(0, 1), (1_000_000, 1), (7, 2), (0, 10)] {
            let mut shares: Vec<_> = (0..100).map(|n| share(first + n * step, window)).collect();
            shares.sort();
            assert!(shares.iter().all(|share| *share < window));
            for (tenth, some) in shares.chunks(10).enumerate() {
                let even = window * u32::try_from(tenth).unwrap() / 10;
                assert!(
                    some[0].abs_diff(even) < window / 10,
                    "from {first}, every {step}th: {shares:?}"
                );
            }
        }
        assert_eq!(share(5, Duration::ZERO), Duration::ZERO);
    }
}
