//! A timer whose time usually moves into the future before it comes: moving it costs nothing.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::time::{Instant, Sleep, sleep_until};

/// A timer, which needs no memory before it is polled.
#[derive(Debug, Default)]
pub(super) struct LazyTimer(Option<Pin<Box<Sleep>>>);

impl LazyTimer {
    /// Ready at this time, which may differ from poll to poll.
    pub(super) fn poll(&mut self, at: Instant, cx: &mut Context<'_>) -> Poll<()> {
        let sleep = self.0.get_or_insert_with(|| Box::pin(sleep_until(at)));
        if sleep.deadline() > at {
            sleep.as_mut().reset(at);
        }
        // It may be set for an earlier time.
        loop {
            ready!(sleep.as_mut().poll(cx));
            if Instant::now() >= at {
                return Poll::Ready(());
            }
            sleep.as_mut().reset(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt as _;
    use std::future::poll_fn;
    use std::time::Duration;

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
            poll_fn(|cx| timer.poll(at(due), cx)).await;
            assert!(Instant::now() - at(due) < Duration::from_millis(2));
        }
    }
}
