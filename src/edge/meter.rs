//! State of one connection that the HTTP library has: its peer, and how long the client may stop
//! reading. The WebSocket of a Socket.IO client also counts for that client's [`Traffic`].

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::Context;
use std::time::Duration;

use super::counters::{SentBytes, Transport};
use super::slow::SlowPart;
use super::traffic::Traffic;
use crate::config::{ANSWER_WAIT, WRITE_WAIT};

/// The meter of one connection. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct Meter(Arc<MeterState>);

#[derive(Debug)]
struct MeterState {
    peer: IpAddr,
    /// Set once the connection is the WebSocket of a Socket.IO client.
    traffic: OnceLock<Arc<Traffic>>,
    /// Counts what is written.
    sent: Arc<SentBytes>,
    is_large: AtomicBool,
    /// Whether the client has sent something since something was written to it.
    has_asked: AtomicBool,
    /// Whether the client was cut off because it stopped reading.
    is_unread: AtomicBool,
}

/// An address as limits count it: an IPv6 address is reduced to its /64 network, which usually
/// belongs to one client.
pub(super) fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6((address.to_bits() >> 64 << 64).into()),
        address @ IpAddr::V4(_) => address,
    }
}

impl Meter {
    /// For a connection from this address, whose bytes are counted in `sent`.
    pub(super) fn new(peer: IpAddr, sent: Arc<SentBytes>) -> Self {
        Self(Arc::new(MeterState {
            peer,
            traffic: OnceLock::new(),
            sent,
            is_large: AtomicBool::new(false),
            has_asked: AtomicBool::new(false),
            is_unread: AtomicBool::new(false),
        }))
    }

    /// The address of the client, or of the proxy before it, as limits count it.
    pub(super) fn peer(&self) -> IpAddr {
        network(self.0.peer)
    }

    /// The same address, unchanged.
    pub(super) fn address(&self) -> IpAddr {
        self.0.peer
    }

    /// Sets whether the response being written takes scarce memory.
    pub(super) fn set_large(&self, is_large: bool) {
        self.0.is_large.store(is_large, Ordering::Relaxed);
    }

    /// How long the client may stop reading.
    pub(super) fn write_wait(&self) -> Duration {
        if self.0.is_large.load(Ordering::Relaxed) {
            ANSWER_WAIT
        } else {
            WRITE_WAIT
        }
    }

    /// Counts, once, that the client has stopped reading for longer.
    pub(super) fn count_unread(&self) {
        if !self.0.is_unread.swap(true, Ordering::Relaxed) {
            SlowPart::Output.count();
        }
    }

    /// Marks the connection as the WebSocket of a Socket.IO client.
    pub(super) fn attach(&self, traffic: &Arc<Traffic>) {
        // A connection is upgraded only once.
        let _ = self.0.traffic.set(Arc::clone(traffic));
    }

    /// How many requests a Socket.IO client has made; `None` if the connection is not its
    /// WebSocket.
    pub(super) fn requests(&self) -> Option<u64> {
        self.traffic().map(Traffic::requests)
    }

    /// Notes that the client has sent something.
    pub(super) fn note_received(&self) {
        self.0.has_asked.store(true, Ordering::Relaxed);
    }

    /// Whether the client has sent something that nothing was written for: it is not idle.
    pub(super) fn has_asked(&self) -> bool {
        self.0.has_asked.load(Ordering::Relaxed)
    }

    /// Counts bytes that were written.
    pub(super) fn count_sent(&self, bytes: usize) {
        self.0.has_asked.store(false, Ordering::Relaxed);
        let traffic = self.traffic();
        if let Some(traffic) = traffic {
            traffic.count_sent(bytes);
        }
        let transport = traffic.map(|_| Transport::SocketIo);
        self.0.sent.count(transport, bytes);
    }

    /// Whether to stop reading. If not, a cut wakes the reader.
    pub(super) fn stops_reading(&self, cx: &Context<'_>) -> bool {
        self.traffic()
            .is_some_and(|traffic| traffic.stops_reading(cx))
    }

    /// Whether to stop writing. If not, a cut wakes the writer.
    pub(super) fn stops_writing(&self, cx: &Context<'_>) -> bool {
        self.traffic()
            .is_some_and(|traffic| traffic.stops_writing(cx))
    }

    fn traffic(&self) -> Option<&Traffic> {
        self.0.traffic.get().map(Arc::as_ref)
    }
}
