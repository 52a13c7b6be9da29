//! A line: what belongs to one Socket.IO client from its first request to its last byte, over whichever connections it
//! comes. It counts the bytes that leave, and can be cut. It knows no event.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::task::{Context, Waker};
use std::time::Duration;

use futures_util::task::AtomicWaker;
use socketioxide::extract::AckSender;
use socketioxide::socket::Sid;
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

use super::handshake::Handshake;
use super::pump::Ask;
use super::request::{Asked, Refused, Request};
use crate::config::{ANSWER_WAIT, ASKED_BYTES_MAX, ASKED_MAX, WRITE_WAIT};
use crate::edge::App;
use crate::edge::memory::Held;

/// One client.
#[derive(Debug)]
pub(super) struct Line {
    /// The thread that took the first request; it serves the client, whoever takes the others.
    pub(super) app: Weak<App>,
    /// Where the client is.
    pub(super) from: IpAddr,
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
    /// What the client asks for, from when it has joined.
    asked: OnceLock<mpsc::Sender<Ask>>,
    /// The other end, until the pump takes it.
    asks: Mutex<Option<mpsc::Receiver<Ask>>>,
    /// Until it has joined.
    handshake: Mutex<Option<Handshake>>,
    /// Its session, once that is known, and who knows it.
    session: OnceLock<(Sid, Lines)>,
    /// How many requests have come.
    messages: AtomicU64,
    /// How many bytes of requests wait.
    asked_bytes: AtomicUsize,
    /// What told the last poll from the one before.
    polled: Mutex<String>,
}

impl Line {
    pub(super) fn new(app: &Arc<App>, handshake: Handshake) -> Arc<Self> {
        Arc::new(Self {
            app: Arc::downgrade(app),
            from: handshake.from(),
            sent: AtomicU64::new(0),
            moved: Notify::new(),
            cut: CancellationToken::new(),
            reader: AtomicWaker::new(),
            writer: AtomicWaker::new(),
            gone: CancellationToken::new(),
            asked: OnceLock::new(),
            asks: Mutex::default(),
            handshake: Mutex::new(Some(handshake)),
            session: OnceLock::new(),
            messages: AtomicU64::new(0),
            asked_bytes: AtomicUsize::new(0),
            polled: Mutex::default(),
        })
    }

    /// The client has joined: it may ask for something. A client that has not costs no queue.
    pub(super) fn joined(&self) {
        let (asked, asks) = mpsc::channel(ASKED_MAX);
        if self.asked.set(asked).is_ok() {
            *self.asks.lock().unwrap_or_else(PoisonError::into_inner) = Some(asks);
        }
        self.handshake
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
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
    pub(super) fn ask(&self, mut asked: Asked, ack: AckSender) {
        let size = asked.size;
        self.messages.fetch_add(1, Ordering::Relaxed);
        let waiting = self.asked_bytes.fetch_add(size, Ordering::Relaxed) + size;
        let room = self
            .app
            .upgrade()
            .and_then(|app| app.room_to_ask(&mut asked));
        let room = room.filter(|_| waiting <= ASKED_BYTES_MAX);
        let (Some(room), Some(queue)) = (room, self.asked.get()) else {
            return self.cut();
        };
        if queue.try_send((asked, ack, room)).is_err() {
            self.cut();
        }
    }

    /// A request of this size waits no longer.
    pub(super) fn answered(&self, size: usize) {
        self.asked_bytes.fetch_sub(size, Ordering::Relaxed);
    }

    /// What the client asks for; once.
    pub(super) fn asks(&self) -> Option<mpsc::Receiver<Ask>> {
        self.asks
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }

    fn is_cut_for(&self, waker: &AtomicWaker, by: &Waker) -> bool {
        waker.register(by);
        self.is_cut()
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if let Some((sid, lines)) = self.session.get() {
            lines.left(*sid);
        }
    }
}

impl App {
    /// The room for a request that waits. A submission that finds none becomes its refusal; none is left even for that when
    /// this is `None`.
    fn room_to_ask(&self, asked: &mut Asked) -> Option<Held> {
        if let Ok(Request::Submit {
            submission,
            reference,
            ..
        }) = &mut asked.request
        {
            match self.room_for(submission) {
                Ok(room) => return Some(room),
                Err(problem) => {
                    let reference = reference.take();
                    asked.request = Err(Refused {
                        problem,
                        job: None,
                        reference,
                    });
                }
            }
        }
        self.shared.memory().submits.hold(size_of::<Asked>()).ok()
    }
}

/// What tells of one connection whose line it is, as soon as that is known: it becomes a client's when it turns into its
/// WebSocket.
#[derive(Clone, Debug)]
pub(in crate::edge) struct Meter(Arc<Metering>);

#[derive(Debug)]
struct Metering {
    peer: IpAddr,
    line: OnceLock<Arc<Line>>,
    hurried: AtomicBool,
    is_socket: AtomicBool,
    /// How many whole messages have come over its WebSocket.
    messages: AtomicU64,
    /// How many bytes of pings and pongs.
    control: AtomicU64,
}

impl Meter {
    /// For a connection from this address.
    pub(in crate::edge) fn new(peer: IpAddr) -> Self {
        Self(Arc::new(Metering {
            peer,
            line: OnceLock::new(),
            hurried: AtomicBool::new(false),
            is_socket: AtomicBool::new(false),
            messages: AtomicU64::new(0),
            control: AtomicU64::new(0),
        }))
    }

    /// Where the client is, or the proxy before it. Whoever has an address of IPv6 has all of its network.
    pub(in crate::edge) fn peer(&self) -> IpAddr {
        match self.0.peer.to_canonical() {
            IpAddr::V6(address) => IpAddr::V6((address.to_bits() >> 64 << 64).into()),
            address @ IpAddr::V4(_) => address,
        }
    }

    /// Whether what is written next takes room of which there is little.
    pub(in crate::edge) fn hurry(&self, hurried: bool) {
        self.0.hurried.store(hurried, Ordering::Relaxed);
    }

    /// How long the client may take nothing.
    pub(super) fn patience(&self) -> Duration {
        if self.0.hurried.load(Ordering::Relaxed) {
            ANSWER_WAIT
        } else {
            WRITE_WAIT
        }
    }

    /// From now on the connection is a WebSocket.
    pub(in crate::edge) fn becomes_socket(&self) {
        self.0.is_socket.store(true, Ordering::Relaxed);
    }

    /// A message of a client is whole.
    pub(in crate::edge) fn message(&self) {
        self.0.messages.fetch_add(1, Ordering::Relaxed);
    }

    /// A ping or pong has come that carries so many bytes.
    pub(in crate::edge) fn control(&self, payload: usize) {
        /// The head of a control frame of a client, with its mask.
        const HEAD: usize = 6;
        self.0
            .control
            .fetch_add((HEAD + payload) as u64, Ordering::Relaxed);
    }

    /// How many messages were whole, and how many bytes of pings and pongs came; `None` while it is no WebSocket.
    pub(super) fn heard(&self) -> Option<(u64, u64)> {
        let of_line = || {
            self.0
                .line
                .get()
                .map_or(0, |line| line.messages.load(Ordering::Relaxed))
        };
        let messages = || self.0.messages.load(Ordering::Relaxed) + of_line();
        let heard = || (messages(), self.0.control.load(Ordering::Relaxed));
        self.0.is_socket.load(Ordering::Relaxed).then(heard)
    }

    /// From now on what is written to the connection is written to this client.
    pub(super) fn attach(&self, line: &Arc<Line>) {
        // A connection becomes one client's WebSocket once; nothing is asked over it after that.
        let _ = self.0.line.set(Arc::clone(line));
        self.becomes_socket();
    }

    /// So many bytes were written.
    pub(super) fn wrote(&self, bytes: usize) {
        if let Some(line) = self.0.line.get() {
            line.left(bytes);
        }
    }

    /// Whether nothing should be read any more. If it should, a cut wakes the reader.
    pub(super) fn stops_reading(&self, cx: &Context<'_>) -> bool {
        self.0
            .line
            .get()
            .is_some_and(|line| line.is_cut_for(&line.reader, cx.waker()))
    }

    /// Whether nothing should wait to be written any more. If it should, a cut wakes the writer.
    pub(super) fn stops_waiting(&self, cx: &Context<'_>) -> bool {
        self.0
            .line
            .get()
            .is_some_and(|line| line.is_cut_for(&line.writer, cx.waker()))
    }
}

/// Which session is whose line, of those that there are: an id that nobody has is not kept.
#[derive(Clone, Debug, Default)]
pub(super) struct Lines(Arc<Mutex<HashMap<Sid, Weak<Line>>>>);

impl Lines {
    /// The session is this client's.
    pub(super) fn opened(&self, sid: Sid, line: &Arc<Line>) {
        if line.session.set((sid, self.clone())).is_ok() {
            self.lock().insert(sid, Arc::downgrade(line));
        }
    }

    /// The client of a session.
    pub(super) fn get(&self, sid: Sid) -> Option<Arc<Line>> {
        // The last of a line locks this map when it is dropped.
        let line = self.lock().get(&sid).cloned();
        line?.upgrade()
    }

    /// Forgets a session.
    pub(super) fn left(&self, sid: Sid) {
        let mut lines = self.lock();
        lines.remove(&sid);
        let keep = lines.len() * 2;
        if lines.capacity() > 4 * keep {
            lines.shrink_to(keep);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Sid, Weak<Line>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
