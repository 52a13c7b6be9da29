//! What waits to be queued in the library for one socket. The amount in flight is limited, so that
//! the queue has room for a ping and holds little. Further events stay in the log.

use std::collections::VecDeque;
use std::sync::Arc;

use serde_json::value::RawValue;
use socketioxide::extract::{AckSender, SocketRef};
use socketioxide::{SendError, SocketError, TransportType};
use tokio::time::Instant;
use tracing::debug;

use super::event::{FrameEvent, name_of};
use super::in_flight::InFlight;
use super::write_buffer::WriteBuffer;
use crate::config::{FLIGHT_PACKETS, FLIGHT_PACKETS_POLLING, POLL_ALONE, REPLIES_MAX};
use crate::edge::access::TokenEvent;
use crate::edge::traffic::Traffic;
use crate::edge::turn::Turn;
use crate::edge::watches::Outgoing;
use crate::session::Position;
use crate::wire::{JobId, ServerFrame, Stored};

/// Where an answer goes.
pub(super) enum ReplyTo {
    /// As the acknowledgement with this number.
    Ack(AckSender, i64),
    /// As an event.
    Event,
}

/// What is sent to a client.
enum OutPacket {
    Event(Arc<Stored>),
    /// Something between the events of a job.
    Frame(JobId, FrameEvent),
    Reply(ReplyTo, FrameEvent),
}

/// The library's socket no longer accepts packets.
#[derive(Debug)]
pub(super) struct SocketBroken;

/// What waits for one client.
pub(super) struct Outbox {
    replies: VecDeque<OutPacket>,
    /// At most what one [`Outgoing`] holds.
    events: VecDeque<OutPacket>,
    /// How many of them were queued, and the position after those.
    queued: (usize, Option<Position>),
    /// Whether the others were dropped until the client accepts more.
    is_released: bool,
    in_flight: InFlight,
    buffer: WriteBuffer,
    turn: Turn,
    /// When the client last received something while something was in flight.
    last_progress: Instant,
    /// Whether the library's queue was full nevertheless.
    is_full: bool,
}

impl Outbox {
    pub(super) fn new(buffer: WriteBuffer) -> Self {
        Self {
            replies: VecDeque::new(),
            events: VecDeque::new(),
            queued: (0, None),
            is_released: false,
            in_flight: InFlight::default(),
            buffer,
            turn: Turn::default(),
            last_progress: Instant::now(),
            is_full: false,
        }
    }

    pub(super) fn deliver(&mut self, outgoing: Outgoing<ReplyTo>) {
        match outgoing {
            Outgoing::Answer(frame, reply_to) => self.reply(frame, reply_to),
            Outgoing::Events(events) => {
                self.queued = (0, None);
                self.events.extend(events.into_iter().map(OutPacket::Event));
            }
            Outgoing::Frame(job, frame) => {
                self.events.push_back(OutPacket::Frame(job, frame.into()));
            }
            Outgoing::Token(TokenEvent::Expiring(expires_in_ms)) => {
                let notice = ServerFrame::TokenExpiring { expires_in_ms };
                self.reply(notice, ReplyTo::Event);
            }
            // The pump ends instead.
            Outgoing::Token(TokenEvent::Ended(_)) => {}
        }
    }

    /// The first event of a connection.
    pub(super) fn greet(&mut self) {
        let connected = OutPacket::Reply(ReplyTo::Event, FrameEvent::connected());
        self.replies.push_back(connected);
    }

    /// Replies precede events, so that no job delays a request. Nothing about a job follows the
    /// reply that it is no longer watched.
    pub(super) fn reply(&mut self, frame: ServerFrame, reply_to: ReplyTo) {
        if let ServerFrame::Unwatched { job } = &frame {
            self.events.retain(|packet| packet.job() != Some(job));
        }
        self.replies
            .push_back(OutPacket::Reply(reply_to, frame.into()));
    }

    /// Whether there is room for more events; after those that hold room in the memory budget, once
    /// they are sent.
    pub(super) fn wants_events(&self, holds_room: bool) -> bool {
        let is_free = !holds_room || self.in_flight.is_empty();
        is_free && !self.is_released && self.events.is_empty() && self.wants_replies()
    }

    /// Whether events wait for the client to accept those that are in flight.
    pub(super) fn holds_events(&self) -> bool {
        matches!(self.events.front(), Some(OutPacket::Event(_)))
    }

    /// Drops the events that wait, until the client accepts more. Returns how many were queued, and
    /// the position after those.
    pub(super) fn release(&mut self) -> (usize, Option<Position>) {
        self.events = VecDeque::new();
        self.is_released = true;
        self.queued
    }

    /// Whether there is room for another reply.
    pub(super) fn wants_replies(&self) -> bool {
        self.replies.len() < REPLIES_MAX
    }

    /// Whether something waits for what is in flight to be sent.
    pub(super) fn waits(&self) -> bool {
        !self.events.is_empty() || !self.replies.is_empty()
    }

    /// Whether everything is sent, and the library's write buffer found no room in the memory budget.
    pub(super) fn is_over_budget(&self) -> bool {
        !self.buffer.is_counted() && self.in_flight.is_empty() && !self.waits()
    }

    /// Since when nothing in flight was sent to the client.
    pub(super) fn stalled_since(&self) -> Option<Instant> {
        (!self.in_flight.is_empty()).then_some(self.last_progress)
    }

    /// Whether to try again soon, although nothing was sent.
    pub(super) const fn is_full(&self) -> bool {
        self.is_full
    }

    /// Lets other clients be served at the end of this one's turn. Returns whether it did: there
    /// may then be room for more.
    pub(super) async fn pause(&mut self) -> bool {
        let is_over = self.turn.is_over();
        self.turn.pause().await;
        is_over
    }

    /// Counts the library's write buffer for what is in flight to a WebSocket: some of it may have been
    /// queued for polls, before the client upgraded.
    fn hold_in_flight(&mut self, transport: TransportType) {
        if transport == TransportType::Websocket {
            self.buffer.hold(self.in_flight.largest());
        }
    }

    /// Queues what there is room for, up to the end of the client's turn.
    pub(super) fn send(
        &mut self,
        socket: &SocketRef,
        traffic: &Traffic,
    ) -> Result<(), SocketBroken> {
        let transport = socket.transport_type();
        self.hold_in_flight(transport);
        if self.in_flight.advance(traffic.sent()) || self.in_flight.is_empty() {
            self.last_progress = Instant::now();
            self.is_released = false;
        }
        self.is_full = false;
        let packets_max = match transport {
            TransportType::Polling => FLIGHT_PACKETS_POLLING,
            TransportType::Websocket => FLIGHT_PACKETS,
        };
        while self.in_flight.has_room(packets_max) && !self.turn.is_over() {
            let queue = if self.replies.is_empty() {
                &mut self.events
            } else {
                &mut self.replies
            };
            let Some(size) = queue.front().map(|packet| packet.size(transport)) else {
                break;
            };
            if must_wait(size, transport, &self.in_flight) {
                break;
            }
            let Some(packet) = queue.pop_front() else {
                break;
            };
            let position = packet.position();
            match packet.emit(socket)? {
                Emitted::Queued => {
                    if position.is_some() {
                        self.queued = (self.queued.0 + 1, position);
                    }
                    self.in_flight.add(size);
                    if transport == TransportType::Websocket {
                        self.buffer.hold(size);
                    }
                    self.turn.count(size);
                }
                Emitted::Full(packet) => {
                    queue.push_front(packet);
                    self.is_full = true;
                    break;
                }
            }
        }
        Ok(())
    }
}

/// Whether a packet of this size must wait until nothing else is in flight.
fn must_wait(size: usize, transport: TransportType, in_flight: &InFlight) -> bool {
    transport == TransportType::Polling && size > POLL_ALONE && !in_flight.is_empty()
}

enum Emitted {
    Queued,
    /// The queue has no room for this packet.
    Full(OutPacket),
}

impl OutPacket {
    /// The job that the packet is about.
    fn job(&self) -> Option<&JobId> {
        match self {
            Self::Event(event) => Some(&event.job),
            Self::Frame(job, _) => Some(job),
            Self::Reply(..) => None,
        }
    }

    /// The position after it, if it is an event.
    fn position(&self) -> Option<Position> {
        match self {
            Self::Event(event) => Some(Position::after(event)),
            Self::Frame(..) | Self::Reply(..) => None,
        }
    }

    /// Its bytes on the connection: `42["name",object]` or `43<number>[object]`, over WebSocket
    /// with the frame's header.
    fn size(&self, transport: TransportType) -> usize {
        let size = match self {
            Self::Event(event) => name_of(event).len() + event.json().len() + 7,
            Self::Frame(_, frame) | Self::Reply(ReplyTo::Event, frame) => {
                frame.name.len() + frame.json.len() + 7
            }
            Self::Reply(ReplyTo::Ack(_, number), frame) => {
                let digits = number.checked_ilog10().unwrap_or(0) as usize + 1;
                digits + frame.json.len() + 4
            }
        };
        match (transport, size) {
            (TransportType::Polling, _) => size,
            (TransportType::Websocket, 0..126) => size + 2,
            (TransportType::Websocket, 126..65_536) => size + 4,
            (TransportType::Websocket, _) => size + 10,
        }
    }

    fn emit(self, socket: &SocketRef) -> Result<Emitted, SocketBroken> {
        let sent = match &self {
            // All watchers share the JSON, but each costs a check that it is JSON, and a copy.
            Self::Event(event) => socket.emit(name_of(event), raw(event.json())?),
            Self::Frame(_, frame) | Self::Reply(ReplyTo::Event, frame) => {
                socket.emit(frame.name, raw(frame.json.as_bytes())?)
            }
            Self::Reply(ReplyTo::Ack(..), _) => return self.acknowledge(),
        };
        match sent {
            Ok(()) => Ok(Emitted::Queued),
            Err(SendError::Socket(SocketError::InternalChannelFull)) => Ok(Emitted::Full(self)),
            Err(SendError::Socket(SocketError::Closed) | SendError::Serialize(_)) => {
                Err(SocketBroken)
            }
        }
    }

    /// An acknowledgement can be sent only once. A full queue would lose it, but the limits on what
    /// is in flight prevent that.
    fn acknowledge(self) -> Result<Emitted, SocketBroken> {
        if let Self::Reply(ReplyTo::Ack(ack, _), frame) = self {
            ack.send(raw(frame.json.as_bytes())?).map_err(|error| {
                debug!(%error, "an acknowledgement is lost");
                SocketBroken
            })?;
        }
        Ok(Emitted::Queued)
    }
}

fn raw(json: &[u8]) -> Result<&RawValue, SocketBroken> {
    serde_json::from_slice(json).map_err(|error| {
        debug!(%error, "an event is not JSON");
        SocketBroken
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::budget::Budget;
    use crate::config::WRITE_BUFFER_FREE;

    #[tokio::test]
    async fn a_packet_that_was_queued_for_a_poll_counts_in_the_buffer_after_an_upgrade() {
        let budget = Budget::new(10 * WRITE_BUFFER_FREE);
        let mut outbox = Outbox::new(WriteBuffer::new(&budget));
        outbox.in_flight.add(WRITE_BUFFER_FREE);
        outbox.in_flight.add(1);
        outbox.hold_in_flight(TransportType::Polling);
        assert_eq!(budget.used(), 0);
        outbox.hold_in_flight(TransportType::Websocket);
        assert_eq!(budget.used(), 2 * WRITE_BUFFER_FREE);
        // Until the connection ends.
        outbox.in_flight.advance(u64::MAX);
        outbox.hold_in_flight(TransportType::Websocket);
        assert_eq!(budget.used(), 2 * WRITE_BUFFER_FREE);
    }

    #[test]
    fn a_packet_that_would_exceed_the_response_to_a_poll_waits_until_it_is_alone() {
        let mut in_flight = InFlight::default();
        assert!(!must_wait(usize::MAX, TransportType::Polling, &in_flight));
        in_flight.add(1);
        assert!(must_wait(
            POLL_ALONE + 1,
            TransportType::Polling,
            &in_flight
        ));
        assert!(!must_wait(POLL_ALONE, TransportType::Polling, &in_flight));
        assert!(!must_wait(usize::MAX, TransportType::Websocket, &in_flight));
    }
}
