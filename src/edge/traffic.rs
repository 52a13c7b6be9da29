//! Counts what one Socket.IO client sends and receives over all its connections, and can cut it
//! off.

use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Context;

use futures_util::task::AtomicWaker;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// The traffic of one client. Polling requests may reach any thread, so it is shared.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    /// How many bytes were written to the client.
    sent: AtomicU64,
    /// Notified when bytes were written.
    progress: Notify,
    /// How many requests the client has made, and 1 once it has joined.
    requests: AtomicU64,
    cut: CancellationToken,
    /// The tasks that read from the client's WebSocket and write to it. A cut wakes both.
    reader: AtomicWaker,
    writer: AtomicWaker,
}

impl Traffic {
    /// Counts bytes that were written to the client.
    pub(super) fn count_sent(&self, bytes: usize) {
        self.sent.fetch_add(bytes as u64, Ordering::Relaxed);
        self.progress.notify_one();
    }

    /// How many bytes were written to the client since it connected.
    pub(super) fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Returns when bytes were written since the last call. One task waits at a time.
    pub(super) async fn progress(&self) {
        self.progress.notified().await;
    }

    /// Counts a request that is complete, or the join.
    pub(super) fn count_request(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    /// How many requests the client has made, and 1 once it has joined.
    pub(super) fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// Ends the connection like a broken network: the client reconnects by itself, which it would
    /// not do after the server's `disconnect`. A waiting poll, and all later requests by polling,
    /// are answered with an error.
    pub(super) fn cut(&self) {
        self.cut.cancel();
        self.reader.wake();
        self.writer.wake();
    }

    pub(super) fn is_cut(&self) -> bool {
        self.cut.is_cancelled()
    }

    /// Returns when the client is cut off.
    pub(super) async fn when_cut(&self) {
        self.cut.cancelled().await;
    }

    /// Whether to stop reading. If not, a cut wakes the reader.
    pub(super) fn stops_reading(&self, cx: &Context<'_>) -> bool {
        self.reader.register(cx.waker());
        self.is_cut()
    }

    /// Whether to stop writing. If not, a cut wakes the writer.
    pub(super) fn stops_writing(&self, cx: &Context<'_>) -> bool {
        self.writer.register(cx.waker());
        self.is_cut()
    }
}
