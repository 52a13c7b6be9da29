//! The Engine.IO session of one Socket.IO client: what belongs to the client from its first request
//! to its last byte, over whichever connections it comes. It knows no event.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use socketioxide::extract::{AckSender, SocketRef};
use socketioxide::socket::Sid;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::handshake::Handshake;
use super::request::{EmittedRequest, JoinRequest};
use crate::config::{ASKED_BYTES_MAX, ASKED_MAX};
use crate::edge::memory::Held;
use crate::edge::traffic::Traffic;

/// What a session needs of the thread that took its first request. That thread serves the client,
/// whichever thread takes the other requests.
pub(super) trait Host: Send + Sync {
    /// The room for a request that waits. A submission for which there is none becomes its refusal;
    /// `None` when there is no room even for that.
    fn room_to_queue(&self, request: &mut EmittedRequest) -> Option<Held>;

    /// Serves a client that has joined.
    fn serve(
        self: Arc<Self>,
        socket: SocketRef,
        session: Arc<EngineSession>,
        requests: mpsc::Receiver<QueuedRequest>,
        join: JoinRequest,
    );
}

/// One client.
#[derive(Debug)]
pub(super) struct EngineSession {
    pub(super) host: Weak<dyn Host>,
    /// The client's address.
    pub(super) client: IpAddr,
    pub(super) traffic: Arc<Traffic>,
    /// Cancelled when the library has ended the client's socket.
    pub(super) disconnected: CancellationToken,
    /// The client's requests, once it has joined.
    requests: OnceLock<mpsc::Sender<QueuedRequest>>,
    /// The other end, until the pump takes it.
    receiver: Mutex<Option<mpsc::Receiver<QueuedRequest>>>,
    /// How many bytes of requests wait.
    queued_bytes: AtomicUsize,
    /// Held until the client has joined.
    handshake: Mutex<Option<Handshake>>,
    /// The session's id, once it is known, and the map that has it.
    registered: OnceLock<(Sid, EngineSessions)>,
    /// The mark that distinguished the last poll from the one before.
    last_poll: Mutex<String>,
}

/// A request that waits, how it is acknowledged, and the room that it takes.
pub(super) struct QueuedRequest {
    pub(super) request: EmittedRequest,
    pub(super) ack: AckSender,
    pub(super) room: Held,
}

impl EngineSession {
    pub(super) fn new(host: Weak<dyn Host>, handshake: Handshake) -> Arc<Self> {
        Arc::new(Self {
            host,
            client: handshake.from(),
            traffic: Arc::default(),
            disconnected: CancellationToken::new(),
            requests: OnceLock::new(),
            receiver: Mutex::default(),
            queued_bytes: AtomicUsize::new(0),
            handshake: Mutex::new(Some(handshake)),
            registered: OnceLock::new(),
            last_poll: Mutex::default(),
        })
    }

    /// The client has joined: it may make requests. A client that has not costs no queue.
    pub(super) fn join(&self) {
        let (requests, receiver) = mpsc::channel(ASKED_MAX);
        if self.requests.set(requests).is_ok() {
            *lock(&self.receiver) = Some(receiver);
        }
        lock(&self.handshake).take();
    }

    /// Whether a poll is the one before, sent again. Browsers and HTTP libraries do so by
    /// themselves when a connection breaks, and the answer to the poll before may have been lost
    /// with it. The client knows of neither, so its session cannot go on.
    pub(super) fn is_repeated(&self, poll: String) -> bool {
        let mut last_poll = lock(&self.last_poll);
        let is_repeated = !poll.is_empty() && *last_poll == poll;
        *last_poll = poll;
        is_repeated
    }

    /// Queues a request. A client whose requests exceed the queue is cut off.
    pub(super) fn queue(&self, mut request: EmittedRequest, ack: AckSender) {
        self.traffic.count_request();
        let size = request.size;
        let queued = self.queued_bytes.fetch_add(size, Ordering::Relaxed) + size;
        let room = self
            .host
            .upgrade()
            .and_then(|host| host.room_to_queue(&mut request))
            .filter(|_| queued <= ASKED_BYTES_MAX);
        let (Some(room), Some(requests)) = (room, self.requests.get()) else {
            return self.traffic.cut();
        };
        if requests
            .try_send(QueuedRequest { request, ack, room })
            .is_err()
        {
            self.traffic.cut();
        }
    }

    /// A request of this size left the queue.
    pub(super) fn dequeued(&self, size: usize) {
        self.queued_bytes.fetch_sub(size, Ordering::Relaxed);
    }

    /// The client's requests; once.
    pub(super) fn receiver(&self) -> Option<mpsc::Receiver<QueuedRequest>> {
        lock(&self.receiver).take()
    }
}

impl Drop for EngineSession {
    fn drop(&mut self) {
        if let Some((sid, sessions)) = self.registered.get() {
            sessions.remove(*sid);
        }
    }
}

/// The sessions that exist, by id. Ids that a client made up are not kept.
#[derive(Clone, Debug, Default)]
pub(super) struct EngineSessions(Arc<Mutex<HashMap<Sid, Weak<EngineSession>>>>);

impl EngineSessions {
    /// Adds a session under its id.
    pub(super) fn insert(&self, sid: Sid, session: &Arc<EngineSession>) {
        if session.registered.set((sid, self.clone())).is_ok() {
            lock(&self.0).insert(sid, Arc::downgrade(session));
        }
    }

    pub(super) fn get(&self, sid: Sid) -> Option<Arc<EngineSession>> {
        // Not in one expression: the last owner of a session locks this map when it drops it.
        let session = lock(&self.0).get(&sid).cloned();
        session?.upgrade()
    }

    pub(super) fn remove(&self, sid: Sid) {
        let mut sessions = lock(&self.0);
        sessions.remove(&sid);
        let keep = sessions.len() * 2;
        if sessions.capacity() > 4 * keep {
            sessions.shrink_to(keep);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
