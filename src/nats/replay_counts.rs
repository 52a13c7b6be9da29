//! What replays took: how long, and how many events they read.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::metrics::{Histogram, HistogramValues};

/// How a replay reads the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplaySource {
    /// By pages of its job.
    Pages,
    /// By a scan of its shard, which it shares with others.
    Scan,
    /// From segments, which hold 64 events each.
    Segments,
}

impl ReplaySource {
    /// Every source.
    pub const ALL: [Self; 3] = [Self::Pages, Self::Scan, Self::Segments];

    /// Its name in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pages => "pages",
            Self::Scan => "scan",
            Self::Segments => "segments",
        }
    }
}

/// What the replays of one thread took.
#[derive(Debug, Default)]
pub struct ReplayCounts {
    took: [Histogram; 3],
    events: [AtomicU64; 3],
}

impl ReplayCounts {
    /// Counts a replay that is over.
    pub(super) fn count(&self, source: ReplaySource, took: Duration, events: u64) {
        self.took[source as usize].observe(took);
        self.events[source as usize].fetch_add(events, Ordering::Relaxed);
    }

    /// How long the replays of a source took.
    pub fn took(&self, source: ReplaySource) -> HistogramValues {
        self.took[source as usize].values()
    }

    /// How many events they read.
    pub fn events(&self, source: ReplaySource) -> u64 {
        self.events[source as usize].load(Ordering::Relaxed)
    }
}
