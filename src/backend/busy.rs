//! How long a job waits for a busy server. Pure. Waits are part of an attempt, so they do not use
//! up attempts.

use std::time::Duration;

use crate::backend::Retry;
use crate::backoff::Backoff;
use crate::config::{MODEL_BUSY_FIRST, MODEL_BUSY_PAUSE_MAX};

/// The time that remains to wait for a busy server.
#[derive(Debug)]
pub(super) struct BusyBudget {
    remaining: Duration,
    tries: u32,
    /// Spreads the jobs that were refused together.
    spread: u32,
}

impl BusyBudget {
    /// A budget of this much time. Jobs with a different `spread` wait for different times.
    pub(super) fn new(remaining: Duration, spread: u32) -> Self {
        Self {
            remaining,
            tries: 0,
            spread,
        }
    }

    /// How long to wait before the server is asked again: at least as long as it asked for, else
    /// longer each time. `None` if not enough time remains.
    pub(super) fn wait(&mut self, asked: Retry) -> Option<Duration> {
        let backoff = Backoff::new(MODEL_BUSY_FIRST, MODEL_BUSY_PAUSE_MAX);
        let doubled = backoff.pause_after(self.tries);
        // Between 0 and 127 of 256.
        let spread = self.spread.rotate_left(self.tries) % 128;
        self.tries = self.tries.saturating_add(1);
        let wait = match asked {
            Retry::After(asked) => asked.saturating_add(MODEL_BUSY_FIRST * spread / 256),
            Retry::Never | Retry::Later => doubled * (256 - spread) / 256,
        };
        self.remaining = self.remaining.checked_sub(wait)?;
        Some(wait)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_a_limit_and_end_with_the_budget() {
        let left = Duration::from_secs(600);
        let mut budget = BusyBudget::new(left, 0);
        let waits: Vec<_> = std::iter::from_fn(|| budget.wait(Retry::Later)).collect();
        assert_eq!(
            waits[..3],
            [MODEL_BUSY_FIRST, MODEL_BUSY_FIRST * 2, MODEL_BUSY_FIRST * 4]
        );
        assert!(waits.iter().all(|wait| *wait <= MODEL_BUSY_PAUSE_MAX));
        let total: Duration = waits.iter().sum();
        assert!(
            total <= left && total > left - MODEL_BUSY_PAUSE_MAX,
            "{total:?}"
        );
    }

    #[test]
    fn a_server_is_not_asked_before_its_retry_after() {
        let asked = Duration::from_secs(7);
        for spread in [0, 1, u32::MAX] {
            let wait = BusyBudget::new(Duration::from_secs(10), spread)
                .wait(Retry::After(asked))
                .unwrap();
            assert!(wait >= asked && wait < asked + MODEL_BUSY_FIRST, "{wait:?}");
        }
        for asked in [Duration::from_secs(11), Duration::MAX] {
            assert_eq!(
                BusyBudget::new(Duration::from_secs(10), 0).wait(Retry::After(asked)),
                None
            );
        }
    }

    #[test]
    fn jobs_that_were_refused_together_ask_again_at_different_times() {
        let wait = |spread| {
            BusyBudget::new(Duration::from_secs(600), spread)
                .wait(Retry::Later)
                .unwrap()
        };
        assert!(wait(0) > wait(64) && wait(64) > wait(127) && wait(127) > MODEL_BUSY_FIRST / 3);
    }
}
