//! How long a delivery of the queue is surely the newest one of its job. It reads the clock, and
//! does not answer the queue.

use std::time::Duration;

use tokio::time::Instant;

/// Until when a delivery is surely this worker's. The queue takes an answer to an old delivery for
/// one to the newest, so a worker that was silent for longer than the ack wait must not give the
/// job back: another worker may have it.
#[derive(Debug)]
pub(super) struct Lease {
    ack_wait: Duration,
    /// When the last confirmed sign of life was sent.
    sent: Instant,
    /// Whether two of them were once too far apart: another worker may have got the job in between.
    lost: bool,
}

impl Lease {
    pub(super) fn new(ack_wait: Duration) -> Self {
        Self {
            ack_wait,
            sent: Instant::now(),
            lost: false,
        }
    }

    /// A sign of life that was sent at `sent` is confirmed.
    pub(super) fn renew(&mut self, sent: Instant) {
        self.lost |= self.sent.elapsed() >= self.ack_wait;
        self.sent = sent;
    }

    /// Whether an answer that is sent now arrives in time: a quarter of the ack wait is for its
    /// way.
    pub(super) fn holds(&self) -> bool {
        !self.lost && self.sent.elapsed() < self.ack_wait * 3 / 4
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::advance;

    const ACK_WAIT: Duration = Duration::from_secs(8);

    async fn after(seconds: u64) -> Instant {
        advance(Duration::from_secs(seconds)).await;
        Instant::now()
    }

    #[tokio::test(start_paused = true)]
    async fn a_delivery_is_answered_only_while_it_is_surely_the_newest() {
        let mut lease = Lease::new(ACK_WAIT);
        for _ in 0..5 {
            let sent = after(3).await;
            assert!(lease.holds());
            lease.renew(sent);
        }
        // Two signs of life were lost: in time for the next one, too late to give the job back.
        let sent = after(7).await;
        assert!(!lease.holds());
        lease.renew(sent);
        assert!(lease.holds());
    }

    #[tokio::test(start_paused = true)]
    async fn a_delivery_that_was_silent_for_too_long_is_never_answered_again() {
        let mut lease = Lease::new(ACK_WAIT);
        lease.renew(after(8).await);
        lease.renew(after(1).await);
        assert!(!lease.holds());
    }

    #[tokio::test(start_paused = true)]
    async fn a_sign_of_life_that_arrives_late_proves_nothing() {
        let mut lease = Lease::new(ACK_WAIT);
        let sent = after(1).await;
        after(8).await;
        lease.renew(sent);
        assert!(!lease.holds());
    }
}
