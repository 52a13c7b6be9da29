//! State of one connection: its peer, how long the client may stop reading, and how many complete
//! messages it received. The WebSocket of a Socket.IO client also counts for that client's
//! [`Traffic`].

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::Context;
use std::time::Duration;

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
    is_large: AtomicBool,
    is_websocket: AtomicBool,
    messages: AtomicU64,
    control_bytes: AtomicU64,
}

/// What was received over a WebSocket.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct WebSocketInput {
    /// How many complete messages.
    pub(super) messages: u64,
    /// How many bytes of pings and pongs.
    pub(super) control_bytes: u64,
}

impl Meter {
    /// For a connection from this address.
    pub(super) fn new(peer: IpAddr) -> Self {
        Self(Arc::new(MeterState {
            peer,
            traffic: OnceLock::new(),
            is_large: AtomicBool::new(false),
            is_websocket: AtomicBool::new(false),
            messages: AtomicU64::new(0),
            control_bytes: AtomicU64::new(0),
        }))
    }

    /// The address of the client, or of the proxy before it. An IPv6 address is reduced to its /64
    /// network, which usually belongs to one client.
    pub(super) fn peer(&self) -> IpAddr {
        match self.0.peer.to_canonical() {
            IpAddr::V6(address) => IpAddr::V6((address.to_bits() >> 64 << 64).into()),
            address @ IpAddr::V4(_) => address,
        }
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

    /// Marks the connection as a WebSocket.
    pub(super) fn become_websocket(&self) {
        self.0.is_websocket.store(true, Ordering::Relaxed);
    }

    /// Marks the connection as the WebSocket of a Socket.IO client.
    pub(super) fn attach(&self, traffic: &Arc<Traffic>) {
        // A connection is upgraded only once.
        let _ = self.0.traffic.set(Arc::clone(traffic));
        self.become_websocket();
    }

    /// Counts a complete message.
    pub(super) fn count_message(&self) {
        self.0.messages.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a ping or pong with this many bytes of payload.
    pub(super) fn count_control(&self, payload: usize) {
        /// The header of a client's control frame, with its mask.
        const HEAD: usize = 6;
        self.0
            .control_bytes
            .fetch_add((HEAD + payload) as u64, Ordering::Relaxed);
    }

    /// What was received over the WebSocket; `None` if the connection is not one.
    pub(super) fn websocket_input(&self) -> Option<WebSocketInput> {
        if !self.0.is_websocket.load(Ordering::Relaxed) {
            return None;
        }
        let requests = self.traffic().map_or(0, Traffic::requests);
        Some(WebSocketInput {
            messages: self.0.messages.load(Ordering::Relaxed) + requests,
            control_bytes: self.0.control_bytes.load(Ordering::Relaxed),
        })
    }

    /// Counts bytes that were written.
    pub(super) fn count_sent(&self, bytes: usize) {
        if let Some(traffic) = self.traffic() {
            traffic.count_sent(bytes);
        }
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
