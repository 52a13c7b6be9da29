//! Remembers that a shard has no stream of segments: the system is older than the last `setup`.

use std::sync::{Mutex, PoisonError};

use tokio::time::Instant;

use crate::config::SEGMENTS_ABSENT;

/// When the segments of a shard were found to have no stream.
#[derive(Debug, Default)]
pub(super) struct SegmentsAbsence(Mutex<Option<Instant>>);

impl SegmentsAbsence {
    pub(super) fn is_recent(&self) -> bool {
        let since = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        since.is_some_and(|since| since.elapsed() < SEGMENTS_ABSENT)
    }

    pub(super) fn note(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }
}
