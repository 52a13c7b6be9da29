//! Pauses that double after each try. Pure: it does not wait, and it adds no random spread.

use std::time::Duration;

/// A pause that doubles after each try, up to a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    first: Duration,
    max: Duration,
    next: Duration,
}

impl Backoff {
    /// Pauses from `first` to `max`.
    pub const fn new(first: Duration, max: Duration) -> Self {
        Self {
            first,
            max,
            next: first,
        }
    }

    /// The pause before the next try. The one after it is twice as long.
    pub fn next_pause(&mut self) -> Duration {
        let pause = self.next.min(self.max);
        self.next = pause.saturating_mul(2);
        pause
    }

    /// Starts again with the first pause.
    pub fn reset(&mut self) {
        self.next = self.first;
    }

    /// Whether the next pause is the first one.
    pub fn is_reset(&self) -> bool {
        self.next == self.first
    }

    /// The pause after this many others, for a caller that counts tries.
    pub fn pause_after(&self, pauses: u32) -> Duration {
        let doubled = 2_u32.saturating_pow(pauses);
        self.first.saturating_mul(doubled).min(self.max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: Duration = Duration::from_millis(20);
    const MAX: Duration = Duration::from_millis(100);

    #[test]
    fn pauses_double_up_to_the_limit_until_a_reset() {
        let mut backoff = Backoff::new(FIRST, MAX);
        assert!(backoff.is_reset());
        for expected in [20, 40, 80, 100, 100] {
            assert_eq!(backoff.next_pause(), Duration::from_millis(expected));
        }
        assert!(!backoff.is_reset());
        backoff.reset();
        assert_eq!((backoff.is_reset(), backoff.next_pause()), (true, FIRST));
    }

    #[test]
    fn a_counted_pause_equals_the_pause_after_that_many_tries() {
        let mut backoff = Backoff::new(FIRST, MAX);
        for pauses in 0..6 {
            assert_eq!(backoff.pause_after(pauses), backoff.next_pause());
        }
        assert_eq!(backoff.pause_after(u32::MAX), MAX);
    }
}
