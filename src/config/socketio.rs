//! Socket.IO: what is queued for one client, and what a client may send before it has joined.

use std::time::Duration;

use super::WATCHES_MAX;
use crate::wire::limits::BODY_MAX;

/// How many packets the Socket.IO library queues for one client. A ping that finds the queue full
/// ends the connection.
pub const SOCKET_QUEUE: usize = 128;
/// How many of them may be events and replies at a time: half, so that a ping always finds room.
pub const FLIGHT_PACKETS: usize = SOCKET_QUEUE / 2;
/// The same for a client that polls. A response carries everything that is queued, python-engineio
/// accepts at most 16 packets in one, and the library may add a ping and a greeting.
pub const FLIGHT_PACKETS_POLLING: usize = 14;
/// About how many bytes of them may be queued, and one more packet: about 64 tokens of a model, so
/// that a client that follows one is limited by [`FLIGHT_PACKETS`] only. A client that reads nothing
/// costs this much twice, because the library's write buffer is up to twice as large as what it has
/// held. An event of more bytes than this reserves room in the memory budget until it is sent: the
/// library copies it, and does not return it.
pub const FLIGHT_BYTES: usize = 8 * 1024;
/// A packet of more bytes than this is queued for a client that polls only once nothing else is in
/// flight. Together with the others it could exceed [`BODY_MAX`], which is what one response carries.
/// The library would keep it for the next poll, and lose it if the client upgrades to a WebSocket
/// instead.
pub const POLL_ALONE: usize = BODY_MAX - 2 * FLIGHT_BYTES;
/// The library keeps the write buffer of a client's WebSocket until the connection ends. One that may be
/// larger than this, in bytes, counts in the memory budget; smaller ones are part of what each
/// connection costs.
pub const WRITE_BUFFER_FREE: usize = 128 * 1024;
/// The response to a poll counts as sent in parts of this many bytes: a slow client that reads 2 KB
/// per second accepts one within [`ANSWER_WAIT`](super::ANSWER_WAIT).
pub const POLL_PART: usize = 16 * 1024;
/// The pause before a packet is queued again if the queue was full nevertheless.
pub const FULL_PAUSE: Duration = Duration::from_millis(50);
/// How many requests of one client wait to be read. A client that sends more is disconnected,
/// because the protocol cannot make it wait.
pub const ASKED_MAX: usize = 16 * WATCHES_MAX;
/// How many bytes of them wait: a few of the largest requests. They also take memory of the
/// submissions.
pub const ASKED_BYTES_MAX: usize = 4 * BODY_MAX;
/// How many attachments of one emit over a WebSocket are read before it is refused. Requests have
/// none; a client that sends binary data by mistake sends a few, or an array of them.
pub const ATTACHMENTS_MAX: usize = 1024;
/// How many replies may wait to be sent to a client before its next request is read, and how many of the
/// cursors that it joins with are refused one by one.
pub const REPLIES_MAX: usize = 64;
/// How long a client may take to join after it has connected: one more request over a slow line.
pub const JOIN_WAIT: Duration = Duration::from_secs(20);
/// How many clients may have connected but not joined. Each costs about 6 KiB, mostly the
/// library's.
pub const HANDSHAKES_MAX: usize = 4096;
/// How many of them may come from one address: not all, although many clients may share a proxy.
pub const HANDSHAKES_PER_ADDRESS: usize = 2048;
/// How many bytes of the library's answer to a first request are read. It has about 150.
pub const HANDSHAKE_ANSWER_MAX: usize = 4096;
/// How many characters of a polling request's parameter `t` are compared. Clients send about ten.
pub const POLL_MARK_MAX: usize = 64;
/// How many characters of each part of a query that the library reads are passed to it. The longest
/// that it accepts are `sid=` with 16 characters, and `transport=websocket`.
pub const QUERY_PAIR_MAX: usize = 64;
/// The longest name of an unknown namespace, in bytes, that a client that polls may try to join. The
/// library queues [`SOCKET_QUEUE`] refusals that repeat it, until the client polls.
pub const NAMESPACE_MAX: usize = 64;
/// The longest `type` of an event that is emitted under its own name, in bytes.
pub const EVENT_NAME_MAX: usize = 128;
