//! How long a delivery is certain to be the newest one of its job. It reads the clock, and does not
//! reply to the queue.

use std::time::Duration;

use tokio::time::Instant;

/// Until when a delivery certainly belongs to this worker. The queue applies a reply to an old
/// delivery to the newest one, so a worker that was silent for longer than the ack wait must not
/// hand the job back: another worker may have it.
#[derive(Debug)]
pub(super) struct Lease {
    ack_wait: Duration,
    /// When the last confirmed progress report was sent; at first, the earliest moment at which the
    /// broker may have sent the delivery.
    sent: Instant,
    /// Whether two reports were ever too far apart: another worker may have received the job.
    lost: bool,
}

impl Lease {
    /// The lease of a delivery that was read now. A busy worker reads late, and the delivery does
    /// not say when it was sent, so a quarter of the ack wait is taken off.
    pub(super) fn new(ack_wait: Duration) -> Self {
        let now = Instant::now();
        Self {
            ack_wait,
            sent: now.checked_sub(ack_wait / 4).unwrap_or(now),
            lost: false,
        }
    }

    /// Renews the lease with a confirmed progress report that was sent at `sent`.
    pub(super) fn renew(&mut self, sent: Instant) {
        self.lost |= self.sent.elapsed() >= self.ack_wait;
        self.sent = sent;
    }

    /// Whether a reply that is sent now arrives in time. A quarter of the ack wait is left for
    /// delivery.
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
    async fn a_delivery_is_answered_only_while_it_is_certainly_the_newest() {
        let mut lease = Lease::new(ACK_WAIT);
        for _ in 0..5 {
            let sent = after(3).await;
            assert!(lease.holds());
            lease.renew(sent);
        }
        // Two reports were lost: it is too late to hand the job back, but not for the next report.
        let sent = after(7).await;
        assert!(!lease.holds());
        lease.renew(sent);
        assert!(lease.holds());
    }

    #[tokio::test(start_paused = true)]
    async fn a_delivery_may_have_waited_before_it_was_read() {
        let lease = Lease::new(ACK_WAIT);
        after(3).await;
        assert!(lease.holds());
        after(1).await;
        assert!(!lease.holds());
    }

    #[tokio::test(start_paused = true)]
    async fn a_delivery_that_was_silent_for_too_long_is_never_answered_again() {
        let mut lease = Lease::new(ACK_WAIT);
        lease.renew(after(8).await);
        lease.renew(after(1).await);
        assert!(!lease.holds());
    }

    #[tokio::test(start_paused = true)]
    async fn a_report_that_is_confirmed_late_does_not_renew_the_lease() {
        let mut lease = Lease::new(ACK_WAIT);
        let sent = after(1).await;
        after(8).await;
        lease.renew(sent);
        assert!(!lease.holds());
    }
}
