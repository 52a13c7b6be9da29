//! A timer whose time usually moves into the future before it comes: moving it costs a look at the
//! clock.

use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use tokio::task::coop::unconstrained;
use tokio::time::{Instant, Sleep, sleep_until};

/// A timer, which needs no memory before it is polled.
#[derive(Debug, Default)]
pub(crate) struct LazyTimer {
    sleep: Option<Pin<Box<Sleep>>>,
    /// When it wakes this task: known here, since the timer itself is rarely in the processor's
    /// cache.
    set: Option<(Instant, Waker)>,
}

impl LazyTimer {
    /// Ready at this time, which may differ from poll to poll; at once if it has come. The runtime's
    /// timers fire up to two milliseconds late.
    pub(crate) fn poll(&mut self, at: Instant, cx: &mut Context<'_>) -> Poll<()> {
        let now = Instant::now();
        if self.wakes_by(at, now, cx.waker()) {
            return Poll::Pending;
        }
        if now >= at {
            self.set = None;
            return Poll::Ready(());
        }
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(sleep_until(at)));
        if sleep.deadline() > at {
            sleep.as_mut().reset(at);
        }
        // It may be set for an earlier time.
        while poll_in_any_turn(sleep.as_mut(), cx).is_ready() {
            if Instant::now() >= at {
                self.set = None;
                return Poll::Ready(());
            }
            sleep.as_mut().reset(at);
        }
        self.set = Some((sleep.deadline(), cx.waker().clone()));
        Poll::Pending
    }

    /// Whether it is set, and will wake this task by then.
    fn wakes_by(&self, at: Instant, now: Instant, waker: &Waker) -> bool {
        self.set.as_ref().is_some_and(|(wakes_at, wakes)| {
            *wakes_at <= at && wakes.will_wake(waker) && now < *wakes_at
        })
    }
}

/// Polls a timer. Otherwise the runtime would not set it in a turn in which the task has done much,
/// and poll the task again.
fn poll_in_any_turn(sleep: Pin<&mut Sleep>, cx: &mut Context<'_>) -> Poll<()> {
    Pin::new(&mut unconstrained(sleep)).poll(cx)
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt as _;
    use std::future::poll_fn;
    use std::time::Duration;
    use tokio::task::coop::consume_budget;
    use tokio::time::timeout;

    /// Waits for a timer. If it does not wake this task, the limit polls it, too late.
    async fn ready_at(timer: &mut LazyTimer, at: Instant) {
        let ready = poll_fn(|cx| timer.poll(at, cx));
        timeout(Duration::from_secs(60), ready).await.unwrap();
        assert!(Instant::now() - at < Duration::from_millis(2));
    }

    #[tokio::test(start_paused = true)]
    async fn a_timer_follows_its_time_in_both_directions() {
        let begun = Instant::now();
        let at = |seconds| begun + Duration::from_secs(seconds);
        let mut timer = LazyTimer::default();
        for later in [10, 20, 15, 40] {
            assert!(
                poll_fn(|cx| timer.poll(at(later), cx))
                    .now_or_never()
                    .is_none()
            );
        }
        for due in [5, 30, 31, 60] {
            ready_at(&mut timer, at(due)).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_time_that_has_come_is_not_waited_for() {
        let mut timer = LazyTimer::default();
        let now = Instant::now();
        assert!(poll_fn(|cx| timer.poll(now, cx)).now_or_never().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_timer_is_set_in_a_turn_in_which_the_task_has_done_much() {
        let is_over = (0..1000).any(|_| consume_budget().now_or_never().is_none());
        assert!(is_over);
        let at = Instant::now() + Duration::from_secs(1);
        let mut timer = LazyTimer::default();
        ready_at(&mut timer, at).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_timer_wakes_the_task_that_polled_it_last() {
        let at = Instant::now() + Duration::from_secs(1);
        let mut timer = LazyTimer::default();
        let mut other_task = Context::from_waker(Waker::noop());
        assert!(timer.poll(at, &mut other_task).is_pending());
        ready_at(&mut timer, at).await;
    }
}
