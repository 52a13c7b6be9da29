//! A line: what belongs to one Socket.IO client from its first request to its last byte, over whichever connections it
//! comes. It counts the bytes that leave, and can be cut. It knows no event.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::task::{Context, Waker};

use futures_util::task::AtomicWaker;
use socketioxide::extract::AckSender;
use socketioxide::socket::Sid;
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

use super::pump::Ask;
use super::request::Asked;
use crate::config::{ASKED_BYTES_MAX, ASKED_MAX};
use crate::edge::App;

/// One client.
#[derive(Debug)]
pub(super) struct Line {
    /// The thread that took the first request; it serves the client, whoever takes the others.
    pub(super) app: Weak<App>,
    /// How many bytes have left for the client.
    sent: AtomicU64,
    /// Told when bytes leave.
    moved: Notify,
    /// Cancelled when nothing more should be taken from the client or given to it.
    cut: CancellationToken,
    /// Who reads from the client's WebSocket, and who writes to it; both must hear of a cut.
    reader: AtomicWaker,
    writer: AtomicWaker,
    /// Cancelled when the library has ended the client's socket.
    pub(super) gone: CancellationToken,
    asked: mpsc::Sender<Ask>,
    /// The other end, until the pump takes it.
    asks: Mutex<Option<mpsc::Receiver<Ask>>>,
    /// How many bytes of requests wait.
    asked_bytes: AtomicUsize,
    /// What told the last poll from the one before.
    polled: Mutex<String>,
}

impl Line {
    pub(super) fn new(app: &Arc<App>) -> Arc<Self> {
        let (asked, asks) = mpsc::channel(ASKED_MAX);
        Arc::new(Self {
            app: Arc::downgrade(app),
            sent: AtomicU64::new(0),
            moved: Notify::new(),
            cut: CancellationToken::new(),
            reader: AtomicWaker::new(),
            writer: AtomicWaker::new(),
            gone: CancellationToken::new(),
            asked,
            asks: Mutex::new(Some(asks)),
            asked_bytes: AtomicUsize::new(0),
            polled: Mutex::default(),
        })
    }

    /// So many bytes have left for the client.
    pub(super) fn left(&self, bytes: usize) {
        self.sent.fetch_add(bytes as u64, Ordering::Relaxed);
        self.moved.notify_one();
    }

    /// How many bytes have left for the client since the beginning.
    pub(super) fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Returns when bytes have left since the last call. One waits at a time.
    pub(super) async fn moved(&self) {
        self.moved.notified().await;
    }

    /// Ends the connection as a network does that breaks: the client comes back by itself, which it would not after the
    /// server's `disconnect`. A poll that waits, and what the client sends by polling from now on, is answered with an
    /// error.
    pub(super) fn cut(&self) {
        self.cut.cancel();
        self.reader.wake();
        self.writer.wake();
    }

    pub(super) fn is_cut(&self) -> bool {
        self.cut.is_cancelled()
    }

    /// Returns when the line is cut.
    pub(super) async fn when_cut(&self) {
        self.cut.cancelled().await;
    }

    /// Whether a poll is the one before, sent again. Browsers and HTTP libraries do so by themselves when a connection
    /// breaks, and what the poll before was answered with may have been lost with it. The client knows of neither, so
    /// its session cannot go on.
    pub(super) fn repeats(&self, poll: String) -> bool {
        let mut polled = self.polled.lock().unwrap_or_else(PoisonError::into_inner);
        let repeats = !poll.is_empty() && *polled == poll;
        *polled = poll;
        repeats
    }

    /// Takes what the client asks for; one that asks for more than is kept for it is cut off.
    pub(super) fn ask(&self, asked: Asked, ack: AckSender) {
        let size = asked.size;
        let waiting = self.asked_bytes.fetch_add(size, Ordering::Relaxed) + size;
        if waiting > ASKED_BYTES_MAX || self.asked.try_send((asked, ack)).is_err() {
            self.cut();
        }
    }

    /// A request of this size waits no longer.
    pub(super) fn answered(&self, size: usize) {
        self.asked_bytes.fetch_sub(size, Ordering::Relaxed);
    }

    /// What the client asks for; once.
    pub(super) fn asks(&self) -> Option<mpsc::Receiver<Ask>> {
        self.asks.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn is_cut_for(&self, waker: &AtomicWaker, by: &Waker) -> bool {
        waker.register(by);
        self.is_cut()
    }
}

/// What tells of one connection whose line it is, as soon as that is known: it becomes a client's when it turns into its
/// WebSocket.
#[derive(Clone, Debug, Default)]
pub(in crate::edge) struct Meter(Arc<OnceLock<Arc<Line>>>);

impl Meter {
    /// From now on what is written to the connection is written to this client.
    pub(super) fn attach(&self, line: &Arc<Line>) {
        // A connection becomes one client's WebSocket once; nothing is asked over it after that.
        let _ = self.0.set(Arc::clone(line));
    }

    /// So many bytes were written.
    pub(super) fn wrote(&self, bytes: usize) {
        if let Some(line) = self.0.get() {
            line.left(bytes);
        }
    }

    /// Whether nothing should be read any more. If it should, a cut wakes the reader.
    pub(super) fn stops_reading(&self, cx: &Context<'_>) -> bool {
        self.0.get().is_some_and(|line| line.is_cut_for(&line.reader, cx.waker()))
    }

    /// Whether nothing should wait to be written any more. If it should, a cut wakes the writer.
    pub(super) fn stops_waiting(&self, cx: &Context<'_>) -> bool {
        self.0.get().is_some_and(|line| line.is_cut_for(&line.writer, cx.waker()))
    }
}

/// Which session is whose line. A session that begins by polling is known by its id only: the request for its WebSocket
/// may come before or after the one by which the client joins, and on another thread.
#[derive(Clone, Debug, Default)]
pub(super) struct Lines(Arc<Mutex<HashMap<Sid, Entry>>>);

#[derive(Debug, Default)]
struct Entry {
    line: Weak<Line>,
    /// The connection that asked to become the session's WebSocket.
    meter: Weak<OnceLock<Arc<Line>>>,
}

impl Lines {
    /// The session is this client's.
    pub(super) fn joined(&self, sid: Sid, line: &Arc<Line>) {
        self.change(sid, |entry| entry.line = Arc::downgrade(line));
    }

    /// This connection asks to become the session's WebSocket.
    pub(super) fn upgrades(&self, sid: Sid, meter: &Meter) {
        self.change(sid, |entry| entry.meter = Arc::downgrade(&meter.0));
    }

    /// The client of a session.
    pub(super) fn get(&self, sid: Sid) -> Option<Arc<Line>> {
        self.lock().get(&sid)?.line.upgrade()
    }

    /// Forgets a session.
    pub(super) fn left(&self, sid: Sid) {
        self.lock().remove(&sid);
    }

    fn change(&self, sid: Sid, change: impl FnOnce(&mut Entry)) {
        let mut lines = self.lock();
        let entry = lines.entry(sid).or_default();
        change(entry);
        if let (Some(line), Some(meter)) = (entry.line.upgrade(), entry.meter.upgrade()) {
            Meter(meter).attach(&line);
        }
        // Ids that nobody has, and sessions that ended before their client joined, leave entries without anything alive.
        if lines.len() == lines.capacity() {
            lines.retain(|_, entry| entry.line.strong_count() + entry.meter.strong_count() > 0);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Sid, Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
