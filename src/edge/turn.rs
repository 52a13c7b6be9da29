//! Limits how much a thread writes to one client before it serves its other clients.

use tokio::task::yield_now;

use crate::config::TURN_BYTES;

/// How many bytes were written to one client since others were served.
#[derive(Debug, Default)]
pub(super) struct Turn {
    written: u32,
}

impl Turn {
    /// Counts bytes that were written.
    pub(super) fn count(&mut self, bytes: usize) {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        self.written = self.written.saturating_add(bytes);
    }

    /// Lets the other tasks of the thread run once [`TURN_BYTES`] were written. Otherwise a socket
    /// would be written to until it is full.
    pub(super) async fn pause(&mut self) {
        if self.is_over() {
            self.written = 0;
            yield_now().await;
        }
    }

    /// Whether the next [`Self::pause`] lets others run.
    pub(super) const fn is_over(&self) -> bool {
        self.written as usize >= TURN_BYTES
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    /// How many bytes each poll writes if no write waits.
    fn written_per_poll(sizes: impl Iterator<Item = usize>) -> Vec<usize> {
        let written = std::cell::Cell::new(0);
        let writes = async {
            let mut turn = Turn::default();
            for size in sizes {
                written.set(written.get() + size);
                turn.count(size);
                turn.pause().await;
            }
        };
        let mut writes = pin!(writes);
        let mut polls = Vec::new();
        loop {
            let poll = writes
                .as_mut()
                .poll(&mut Context::from_waker(Waker::noop()));
            polls.push(written.take());
            if poll == Poll::Ready(()) {
                return polls;
            }
        }
    }

    #[test]
    fn a_turn_ends_with_the_write_that_reaches_its_limit() {
        let polls = written_per_poll((0..1000).map(|_| 100));
        assert_eq!(polls.iter().sum::<usize>(), 100_000);
        assert!(
            polls.iter().all(|bytes| *bytes < TURN_BYTES + 100),
            "{polls:?}"
        );
        assert_eq!(
            polls.len(),
            100_000_usize.div_ceil(TURN_BYTES.next_multiple_of(100))
        );
        assert_eq!(
            written_per_poll([3 * TURN_BYTES, 1, 1].into_iter()),
            [3 * TURN_BYTES, 2]
        );
    }
}
