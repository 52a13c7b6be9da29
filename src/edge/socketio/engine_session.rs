//! The Engine.IO session of one Socket.IO client: its state from the first request to the last
//! byte, over all its connections.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use futures_util::future::BoxFuture;
use socketioxide::extract::{AckSender, SocketRef};
use socketioxide::socket::Sid;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::handshake::Handshake;
use super::request::{Emit, EmittedRequest, JoinRequest};
use crate::config::{ASKED_BYTES_MAX, ASKED_MAX};
use crate::edge::access::Access;
use crate::edge::error::count_refusal;
use crate::edge::memory::SplitReservation;
use crate::edge::traffic::Traffic;
use crate::fair_slots::FairSlot;
use crate::wire::{BearerToken, Code, Refusal};

/// What a session needs of the thread that received its first request. That thread serves the
/// client, even if other threads receive the later requests.
pub(super) trait Host: Send + Sync {
    /// The memory that a submission takes until it is queued, if its input takes this much, in an emit
    /// of this size: the other fields are kept, too.
    fn admit_submission(&self, input: usize, emit: usize) -> Result<SplitReservation, Refusal>;

    /// The memory that any other request, or a refusal, takes until it is handled, if it holds this
    /// much; `None` if there is none.
    fn admit_request(&self, size: usize) -> Option<SplitReservation>;

    /// The access of a client that joins with this token, and with so many bytes of `auth`.
    fn admit(&self, token: Option<BearerToken>, auth: usize)
    -> BoxFuture<'_, Result<Access, Code>>;

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
    /// What the client may do: from its first request, or since it has joined.
    pub(super) access: OnceLock<Access>,
    pub(super) traffic: Arc<Traffic>,
    /// Cancelled when the library has ended the client's socket.
    pub(super) disconnected: CancellationToken,
    /// Queues the client's requests, once it has joined.
    requests: OnceLock<mpsc::Sender<QueuedRequest>>,
    /// The receiving end, until the pump takes it.
    receiver: Mutex<Option<mpsc::Receiver<QueuedRequest>>>,
    /// How many bytes of requests are queued.
    queued_bytes: AtomicUsize,
    /// Held until the client has joined.
    handshake: Mutex<Option<Handshake>>,
    /// Counts it among the connections of its address, since one that polls has none of its own.
    _slot: FairSlot,
    /// The session's id, once it is known, and the map that contains it.
    registered: OnceLock<(Sid, EngineSessions)>,
    /// The mark of the last poll.
    last_poll: Mutex<String>,
}

/// A queued request, how it is acknowledged, and the memory that it takes.
pub(super) struct QueuedRequest {
    pub(super) request: EmittedRequest,
    pub(super) ack: AckSender,
    pub(super) reservation: SplitReservation,
}

impl EngineSession {
    pub(super) fn new(
        host: Weak<dyn Host>,
        handshake: Handshake,
        slot: FairSlot,
        access: Option<Access>,
    ) -> Arc<Self> {
        Arc::new(Self {
            host,
            client: handshake.address(),
            access: access.map(OnceLock::from).unwrap_or_default(),
            traffic: Arc::default(),
            disconnected: CancellationToken::new(),
            requests: OnceLock::new(),
            receiver: Mutex::default(),
            queued_bytes: AtomicUsize::new(0),
            handshake: Mutex::new(Some(handshake)),
            _slot: slot,
            registered: OnceLock::new(),
            last_poll: Mutex::default(),
        })
    }

    /// The client has joined and may send requests. Before that, it has no queue.
    pub(super) fn join(&self) {
        let (requests, receiver) = mpsc::channel(ASKED_MAX);
        if self.requests.set(requests).is_ok() {
            *lock(&self.receiver) = Some(receiver);
        }
        lock(&self.handshake).take();
        // What it joined with is no longer an incomplete message.
        self.traffic.count_request();
    }

    pub(super) fn has_joined(&self) -> bool {
        self.requests.get().is_some()
    }

    /// Whether a poll repeats the previous one. Browsers and HTTP libraries repeat a poll when a
    /// connection breaks; the first response may have been lost without the client's knowledge, so
    /// the session cannot continue.
    pub(super) fn is_repeated(&self, poll: String) -> bool {
        let mut last_poll = lock(&self.last_poll);
        let is_repeated = !poll.is_empty() && *last_poll == poll;
        *last_poll = poll;
        is_repeated
    }

    /// Queues a request. A client whose requests exceed the queue is cut off.
    pub(super) fn queue(&self, emit: Emit, ack: AckSender) {
        self.traffic.count_request();
        let size = emit.size();
        let queued = self.queued_bytes.fetch_add(size, Ordering::Relaxed) + size;
        let is_queued = queued <= ASKED_BYTES_MAX && self.try_queue(emit, ack).is_some();
        if !is_queued {
            self.cut_off();
        }
    }

    /// `None` if there is no room for it.
    fn try_queue(&self, emit: Emit, ack: AckSender) -> Option<()> {
        let requests = self.requests.get()?;
        let host = self.host.upgrade()?;
        let size = emit.size();
        // A submission without memory is replaced by its refusal.
        let (request, reservation) = emit.parse(|input| host.admit_submission(input, size));
        let reservation = reservation.or_else(|| host.admit_request(request.memory()))?;
        let request = QueuedRequest {
            request,
            ack,
            reservation,
        };
        requests.try_send(request).ok()
    }

    /// Cuts off a client that sent more requests than may be queued.
    fn cut_off(&self) {
        count_refusal(Code::TooManyRequests);
        self.traffic.cut();
    }

    /// Records that a request of this size left the queue.
    pub(super) fn dequeued(&self, size: usize) {
        self.queued_bytes.fetch_sub(size, Ordering::Relaxed);
    }

    /// The receiver of the client's requests, at the first call.
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

/// The sessions, by id. Ids that clients invent are not kept.
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
        // Not in one expression: dropping the last owner of a session locks this map.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::edge::app::App;
    use crate::edge::socketio::handshake::Handshakes;
    use crate::fair_slots::FairSlots;

    #[test]
    fn a_client_that_has_joined_has_sent_a_complete_message() {
        let address = IpAddr::from([127, 0, 0, 1]);
        let handshake = Handshakes::default().start(address).unwrap();
        let slot = FairSlots::new(4).acquire(address).unwrap();
        let session = EngineSession::new(Weak::<App>::new(), handshake, slot, None);
        assert_eq!(
            (session.traffic.requests(), session.has_joined()),
            (0, false)
        );
        session.join();
        assert_eq!(
            (session.traffic.requests(), session.has_joined()),
            (1, true)
        );
    }
}
