//! What waits to be given to the library's queue of one socket, and giving it: never more than so much in flight, so that
//! the queue has room for a ping, and what lies in it is little. What waits longer is still in the log.

use std::collections::VecDeque;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::value::RawValue;
use socketioxide::extract::SocketRef;
use socketioxide::{SendError, SocketError, TransportType};
use tokio::time::Instant;
use tracing::debug;

use super::engine_session::EngineSession;
use super::in_flight::InFlight;
use super::request::{ERROR, Reply, To};
use crate::config::{FLIGHT_PACKETS, FLIGHT_PACKETS_POLLING, REPLIES_MAX};
use crate::edge::turn::Turn;
use crate::wire::{JobId, Stored};

/// The event name of an event whose own type cannot be one.
const OTHER: &str = "tailwater:event";
/// The names that clients keep for themselves, or that this door gives another meaning.
const RESERVED: [&str; 16] = [
    "connect",
    "connect_error",
    "disconnect",
    "disconnecting",
    "newListener",
    "removeListener",
    "error",
    "connected",
    "watching",
    "unwatched",
    "submitted",
    "cancelling",
    "live",
    "missing",
    "end",
    ERROR,
];

/// What is sent to a client.
enum Packet {
    Event(Arc<Stored>),
    /// What is said about a job between its events.
    About(JobId, Reply),
    Reply(To, Reply),
}

/// Why nothing can be sent any more.
#[derive(Debug)]
pub(super) struct Broken;

/// What waits for one client.
pub(super) struct Outbox {
    replies: VecDeque<Packet>,
    /// At most what one step of a session gives.
    events: VecDeque<Packet>,
    in_flight: InFlight,
    /// What was queued since others of the thread were served.
    turn: Turn,
    /// When something was last taken while something was in flight.
    taken: Instant,
    /// Whether the library's queue was full all the same.
    full: bool,
}

impl Outbox {
    pub(super) fn new() -> Self {
        Self {
            replies: VecDeque::new(),
            events: VecDeque::new(),
            in_flight: InFlight::default(),
            turn: Turn::default(),
            taken: Instant::now(),
            full: false,
        }
    }

    pub(super) fn events(&mut self, events: Vec<Arc<Stored>>) {
        self.events.extend(events.into_iter().map(Packet::Event));
    }

    pub(super) fn about(&mut self, job: JobId, reply: Reply) {
        self.events.push_back(Packet::About(job, reply));
    }

    /// Replies go before events: a request is not kept waiting by a job.
    pub(super) fn reply(&mut self, to: To, reply: Reply) {
        self.replies.push_back(Packet::Reply(to, reply));
    }

    /// Drops what waits of a job.
    pub(super) fn forget(&mut self, job: &JobId) {
        self.events.retain(|packet| match packet {
            Packet::Event(event) => event.job != *job,
            Packet::About(about, _) => about != job,
            Packet::Reply(..) => true,
        });
    }

    /// Whether the sessions may go on.
    pub(super) fn wants_events(&self) -> bool {
        self.events.is_empty() && self.replies.len() < REPLIES_MAX
    }

    /// Whether requests may be answered.
    pub(super) fn wants_replies(&self) -> bool {
        self.replies.len() < REPLIES_MAX
    }

    /// Whether something waits for what is in flight to leave.
    pub(super) fn waits(&self) -> bool {
        !self.events.is_empty() || !self.replies.is_empty()
    }

    /// Since when the client takes nothing of what is in flight.
    pub(super) fn stalled(&self) -> Option<Instant> {
        (!self.in_flight.is_empty()).then_some(self.taken)
    }

    /// Whether to try again soon though nothing is known to have left.
    pub(super) const fn is_full(&self) -> bool {
        self.full
    }

    /// Lets others be served if the client has had its turn. Says whether it did: there may be room for more.
    pub(super) async fn pause(&mut self) -> bool {
        let paused = self.turn.is_over();
        self.turn.pause().await;
        paused
    }

    /// Queues what there is room for, up to the end of the client's turn. Says how many events that were.
    pub(super) fn send(
        &mut self,
        socket: &SocketRef,
        session: &EngineSession,
    ) -> Result<usize, Broken> {
        if self.in_flight.advance(session.traffic.sent()) || self.in_flight.is_empty() {
            self.taken = Instant::now();
        }
        self.full = false;
        let mut events = 0;
        let transport = socket.transport_type();
        let most = match transport {
            TransportType::Polling => FLIGHT_PACKETS_POLLING,
            TransportType::Websocket => FLIGHT_PACKETS,
        };
        while self.in_flight.has_room(most) && !self.turn.is_over() {
            let queue = if self.replies.is_empty() {
                &mut self.events
            } else {
                &mut self.replies
            };
            let Some(packet) = queue.pop_front() else {
                break;
            };
            let size = packet.size(transport);
            let is_event = matches!(packet, Packet::Event(_));
            match packet.emit(socket)? {
                Emitted::Queued => {
                    self.in_flight.queued(size);
                    self.turn.count(size);
                }
                Emitted::Full(packet) => {
                    queue.push_front(packet);
                    self.full = true;
                    break;
                }
            }
            events += usize::from(is_event);
        }
        Ok(events)
    }
}

enum Emitted {
    Queued,
    /// The queue has no room; here is the packet back.
    Full(Packet),
}

impl Packet {
    /// How many bytes it is on its way: `42["name",object]` or `43<number>[object]`, over WebSocket with the frame's head.
    fn size(&self, transport: TransportType) -> usize {
        let size = match self {
            Self::Event(event) => event_name(event).len() + event.json().len() + 7,
            Self::About(_, reply) | Self::Reply(To::Event, reply) => {
                reply.event.len() + reply.json.len() + 7
            }
            Self::Reply(To::Ack(_, number), reply) => {
                let digits = number.checked_ilog10().unwrap_or(0) as usize + 1;
                digits + reply.json.len() + 4
            }
        };
        match (transport, size) {
            (TransportType::Polling, _) => size,
            (TransportType::Websocket, 0..126) => size + 2,
            (TransportType::Websocket, 126..65_536) => size + 4,
            (TransportType::Websocket, _) => size + 10,
        }
    }

    fn emit(self, socket: &SocketRef) -> Result<Emitted, Broken> {
        let sent = match &self {
            Self::Event(event) => {
                // The object is made once for all who watch; each of them costs a check that it is JSON and a copy.
                let json = serde_json::from_slice::<&RawValue>(event.json()).map_err(|error| {
                    debug!(%error, "an event that is no JSON");
                    Broken
                })?;
                socket.emit(event_name(event), json)
            }
            Self::About(_, reply) | Self::Reply(To::Event, reply) => {
                socket.emit(reply.event, raw(reply)?)
            }
            Self::Reply(To::Ack(..), _) => return self.acknowledge(),
        };
        match sent {
            Ok(()) => Ok(Emitted::Queued),
            Err(SendError::Socket(SocketError::InternalChannelFull)) => Ok(Emitted::Full(self)),
            Err(SendError::Socket(SocketError::Closed) | SendError::Serialize(_)) => Err(Broken),
        }
    }

    /// An acknowledgement can be sent once: a full queue, which the limit of what is in flight excludes, would lose it.
    fn acknowledge(self) -> Result<Emitted, Broken> {
        if let Self::Reply(To::Ack(ack, _), reply) = self {
            ack.send(raw(&reply)?).map_err(|error| {
                debug!(%error, "an acknowledgement is lost");
                Broken
            })?;
        }
        Ok(Emitted::Queued)
    }
}

fn raw(reply: &Reply) -> Result<&RawValue, Broken> {
    serde_json::from_str(&reply.json).map_err(|_| Broken)
}

/// The name by which an event is emitted: its type.
fn event_name(event: &Stored) -> &str {
    #[derive(Deserialize)]
    struct Head<'a> {
        #[serde(rename = "type")]
        event_type: &'a str,
    }
    if let Some(name) = event.event_type.as_str() {
        return name;
    }
    // Text with an escape cannot be borrowed, and is no name.
    match serde_json::from_slice::<Head<'_>>(event.json()) {
        Ok(Head { event_type })
            if !event_type.is_empty()
                && event_type.len() <= 128
                && !RESERVED.contains(&event_type) =>
        {
            event_type
        }
        Ok(_) | Err(_) => OTHER,
    }
}
