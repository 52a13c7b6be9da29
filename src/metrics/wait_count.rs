//! Counts what waits.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// How many of something wait now. Clones share the count.
#[derive(Clone, Debug, Default)]
pub struct WaitCount(Arc<AtomicUsize>);

/// One that waits, until this is dropped.
#[derive(Debug)]
pub struct Waits(Arc<AtomicUsize>);

impl WaitCount {
    /// Counts one more.
    pub fn enter(&self) -> Waits {
        self.0.fetch_add(1, Ordering::Relaxed);
        Waits(Arc::clone(&self.0))
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

impl Drop for Waits {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
