//! When an edge stops, it asks its clients to reconnect one after another, so that they do not all
//! reach another edge at once. This file only keeps the time; the transports close the connections.

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
    /// Cancelled when the edge stops waiting.
    closing: CancellationToken,
    /// The time over which clients are asked to reconnect.
    window: Duration,
    /// When the first client noticed that the edge stops.
    stopped_at: OnceLock<Instant>,
}

impl Clients {
    /// No clients yet. They are asked to reconnect within `window` after `stop` is cancelled, and
    /// at once when `closing` is.
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

    /// Waits, for a limited time after the edge stops, until all clients have disconnected. Returns
    /// whether they have.
    pub(super) async fn disconnect(&self) -> bool {
        self.tasks.end(self.drain.window + CLOSE_WAIT).await
    }
}

/// A client's place in the order of disconnecting.
#[derive(Debug)]
pub(super) struct DrainSlot {
    number: u64,
    drain: Arc<Drain>,
    _held: TaskTrackerToken,
}

impl DrainSlot {
    /// Waits until the client should be asked to reconnect. Safe to drop at any await.
    pub(super) async fn due(&self) {
        let drain = &self.drain;
        drain.stop.cancelled().await;
        let stopped_at = *drain.stopped_at.get_or_init(Instant::now);
        tokio::select! {
            () = sleep_until(stopped_at + delay(self.number, drain.window)) => {}
            () = drain.closing.cancelled() => {}
        }
    }

    /// Whether the client should be asked to reconnect now.
    pub(super) fn is_due(&self) -> bool {
        let drain = &self.drain;
        if !drain.stop.is_cancelled() {
            return false;
        }
        let stopped_at = *drain.stopped_at.get_or_init(Instant::now);
        let delay = delay(self.number, drain.window);
        stopped_at.elapsed() >= delay || drain.closing.is_cancelled()
    }
}

/// How long after the start of the window the client with this number is asked to reconnect.
/// Multiples of the golden ratio spread evenly, even if some clients have disconnected already.
fn delay(number: u64, window: Duration) -> Duration {
    const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;
    let per_mille = number.wrapping_mul(GOLDEN) / (u64::MAX / 1000);
    window / 1000 * u32::try_from(per_mille.min(999)).unwrap_or(999)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_reconnect_evenly_over_the_window_even_if_some_have_left() {
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
