//! The connections of an edge: pings, waits, buffers, answers, and how it stops.

use std::time::Duration;

/// How often a WebSocket client is pinged: more often than proxies usually close idle connections, 60 s.
pub const PING_EVERY: Duration = Duration::from_secs(25);
/// How long a client may take to answer a ping.
pub const PONG_WAIT: Duration = Duration::from_secs(20);
/// How long a client may take nothing of what is written to it before it is disconnected.
pub const WRITE_WAIT: Duration = Duration::from_secs(60);
/// How long a connection may take to send the head of its next request: longer than proxies keep an idle connection for
/// reuse, 60 s.
pub const HEAD_WAIT: Duration = Duration::from_secs(75);
/// How many bytes of an HTTP answer wait in memory for a client to take them, and how long the head of a request may be.
pub const HTTP_BUFFER: usize = 64 * 1024;
/// How many bytes of an event stream wait for the socket at a time. Each stream of a client that takes nothing costs this
/// much, beside its connection.
pub const STREAM_CHUNK: usize = 4 * 1024;
/// How long an event stream keeps events that its client does not take. It reads them again once the client takes more. A
/// client that takes 2 MB in a second does not pause for longer: its socket takes a sixth of a megabyte at a time.
pub const STREAM_STALL: Duration = Duration::from_millis(100);
/// How often an event stream over HTTP sends a comment: proxies and clients commonly give up after 30 to 60 s of silence.
pub const COMMENT_EVERY: Duration = Duration::from_secs(15);
/// How long a client of such a stream waits before it reconnects, at least. Each connection gets a random time up to
/// twice as long, so that the clients of an edge that died do not all return in one moment.
pub const COME_BACK: Duration = Duration::from_millis(500);
/// How many events a page of a job's history holds by default.
pub const PAGE_EVENTS: usize = 100;
/// How many events a page may hold.
pub const PAGE_EVENTS_MAX: usize = 1000;
/// A page with this many bytes takes no further event: it is one message, collected in memory.
pub const PAGE_BYTES_MAX: usize = 1024 * 1024;
/// How much memory a page that is not small takes while it is collected: its events, their JSON, and that in one piece.
pub const PAGE_ROOM: usize = 4 * PAGE_BYTES_MAX;
/// How many states an edge thread folds at a time; others wait. Each holds a page of the log and the state itself.
pub const FOLDS: usize = 16;
/// How long a client may take nothing of a large answer before it is disconnected. There is room for few of them.
pub const ANSWER_WAIT: Duration = Duration::from_secs(10);
/// How long a request may wait for news, in seconds: proxies and clients give up on an answer after 60 s or more.
pub const WAIT_MAX_S: u64 = 60;
/// How long a browser may cache the answer to a preflight request: the longest that any of them honours, since the answer
/// never changes.
pub const PREFLIGHT_AGE: Duration = Duration::from_secs(24 * 3600);
/// How many steps of its sessions a connection writes before it reads from its client again.
pub const STEPS_PER_WRITE: usize = 32;
/// After this many bytes written to one client, a thread serves its other clients first. Two thousand clients that all
/// have a lot to catch up with then take a thread about 30 ms for one turn each; with whole steps it would be 0.1 s, and
/// with as much as a socket takes, seconds.
pub const TURN_BYTES: usize = 16 * 1024;
/// How many bytes the operating system holds for a client that has not taken them (Linux doubles it). Its default is about
/// 4 MiB, and a ping would wait until a slow client has taken all of it.
pub const SEND_BUFFER: usize = 256 * 1024;
/// The listener's backlog. When an edge dies, this many clients return at once.
pub const BACKLOG: i32 = 4096;
/// A WebSocket's read buffer, in bytes. Clients send little, and tungstenite zeroes it on every read.
pub const READ_BUFFER: usize = 512;
/// How many bytes of frames are collected for one write.
pub const WRITE_BUFFER: usize = 4096;
/// How long a connection that is being closed waits for its client to answer the close frame, and for the client's
/// requests to be done.
pub const CLOSE_WAIT: Duration = Duration::from_secs(1);
/// Over what time an edge that stops closes its connections, unless a flag says otherwise. 10,000 clients then return as
/// 5000 a second, and the whole stop stays within the 10 s that container runtimes give by default, and the 5 s that a
/// person is patient.
pub const DRAIN_WINDOW: Duration = Duration::from_secs(2);
/// Over how many seconds the rate of events is averaged.
pub const RATE_SECONDS: u64 = 5;
