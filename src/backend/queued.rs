//! Output that a backend has produced and the worker has not received: says when the worker must
//! receive it before its next event is due. Receiving each piece at once would wake the worker for
//! every word.

use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};

use futures_util::FutureExt as _;
use tokio::sync::Notify;

use crate::config::OUTPUT_PIECES_MAX;

/// What a piece has in common with those that it can be joined with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum PieceKind {
    /// Text of the answer.
    Output = 1,
    /// Text of the reasoning.
    Reasoning = 2,
    /// Data, which is never joined.
    Data = 3,
}

/// What is queued for the worker, about.
#[derive(Debug)]
pub(crate) struct QueuedOutput {
    bytes: AtomicUsize,
    pieces: AtomicUsize,
    /// The [`PieceKind`] of the last piece; 0 before the first.
    kind: AtomicU8,
    /// From how many bytes on the output is urgent.
    urgent_bytes: AtomicUsize,
    urgent: Notify,
}

impl QueuedOutput {
    pub(super) fn new() -> Self {
        Self {
            bytes: AtomicUsize::new(0),
            pieces: AtomicUsize::new(0),
            kind: AtomicU8::new(0),
            urgent_bytes: AtomicUsize::new(usize::MAX),
            urgent: Notify::new(),
        }
    }

    /// A piece was queued. Wakes the worker if the output before it is complete, or if it is a lot.
    pub(super) fn add(&self, kind: PieceKind, bytes: usize) {
        // Relaxed: the pieces themselves are ordered by their queue, and a wake-up that is early
        // or late by a piece does no harm.
        let queued = self.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let pieces = self.pieces.fetch_add(1, Ordering::Relaxed) + 1;
        let before = self.kind.swap(kind as u8, Ordering::Relaxed);
        let completes_another = before != kind as u8 || kind == PieceKind::Data;
        if completes_another
            || queued >= self.urgent_bytes.load(Ordering::Relaxed)
            || pieces >= OUTPUT_PIECES_MAX / 2
        {
            self.urgent.notify_one();
        }
    }

    /// The worker now receives what is queued.
    pub(crate) fn clear(&self) {
        self.bytes.store(0, Ordering::Relaxed);
        self.pieces.store(0, Ordering::Relaxed);
        // A wake-up until now is for what is received now.
        let _ = self.urgent.notified().now_or_never();
    }

    /// Returns once the output is urgent: there are this many bytes, or many pieces, or the piece
    /// before the last is complete.
    pub(crate) async fn until_urgent(&self, bytes: usize) {
        self.urgent_bytes.store(bytes, Ordering::Relaxed);
        if self.bytes.load(Ordering::Relaxed) < bytes {
            self.urgent.notified().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_urgent(queued: &QueuedOutput) -> bool {
        queued.until_urgent(100).now_or_never().is_some()
    }

    #[test]
    fn little_text_of_one_channel_is_not_urgent() {
        let queued = QueuedOutput::new();
        queued.add(PieceKind::Output, 10);
        assert!(is_urgent(&queued), "the first piece");
        for _ in 0..8 {
            queued.add(PieceKind::Output, 10);
            assert!(!is_urgent(&queued));
        }
        queued.add(PieceKind::Output, 10);
        assert!(is_urgent(&queued), "100 bytes");
        queued.clear();
        assert!(!is_urgent(&queued));
    }

    #[test]
    fn another_channel_data_and_many_pieces_are_urgent() {
        use PieceKind::{Data, Output, Reasoning};
        let queued = QueuedOutput::new();
        for kind in [Output, Reasoning, Data, Data, Output] {
            queued.add(kind, 1);
            assert!(is_urgent(&queued), "{kind:?}");
        }
        let mut pieces = 0;
        while !is_urgent(&queued) {
            queued.add(Output, 0);
            pieces += 1;
        }
        assert!(pieces < OUTPUT_PIECES_MAX);
    }
}
