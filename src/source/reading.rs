//! One reading of a log up to an event that is known to be stored, for readers that need no live
//! copies.

use std::sync::Arc;

use super::{EventSource, Refill, Refilled};
use crate::wire::{JobId, Seq, Stored, StreamSeq};

/// Reads the events from one up to another, each once and in order.
#[derive(Debug)]
pub struct LogReading<S: EventSource> {
    refill: Refill<S>,
    next: Seq,
    stream_seq: Option<StreamSeq>,
    until: Seq,
}

impl<S: EventSource> LogReading<S> {
    /// Reads from `from`, after `stream_seq` if that is known, up to `until`.
    pub fn new(from: Seq, stream_seq: Option<StreamSeq>, until: Seq) -> Self {
        Self {
            refill: Refill::default(),
            next: from,
            stream_seq,
            until,
        }
    }

    /// The next events; `None` after the last one, or if the rest has expired. Cancel safe.
    pub async fn next(&mut self, source: &S, job: &JobId) -> Option<Vec<Arc<Stored>>> {
        while self.next <= self.until {
            if !self.refill.is_busy() {
                self.refill
                    .request(self.next, self.stream_seq, Some(self.until));
            }
            match self.refill.next(source, job).await {
                Refilled::Items(mut items) => {
                    items.retain(|item| {
                        let is_new = item.seq >= self.next;
                        if is_new {
                            self.next = item.seq.successor();
                            self.stream_seq = Some(item.stream_seq + 1);
                        }
                        // An event after `until` shows that the rest has expired.
                        is_new && item.seq <= self.until
                    });
                    if !items.is_empty() {
                        return Some(items);
                    }
                }
                // The remaining events have expired.
                Refilled::Done { proves_gap: true } => self.next = self.until.successor(),
                Refilled::Done { proves_gap: false } => {}
            }
        }
        None
    }
}
