//! What clients may send, and how fast.

use std::time::Duration;

use crate::wire::limits::BODY_MAX;

/// Bodies and messages up to this size, in bytes, do not count towards the memory budget. Their
/// connection costs as much anyway, and small requests must be served however full the memory is.
pub const TINY_BYTES: usize = 4096;
/// How long bytes that arrived over a WebSocket without completing a message are remembered while
/// they are few. The pongs of Socket.IO, a few bytes every [`PING_EVERY`](super::PING_EVERY), look
/// like the start of a message.
pub const QUIET_WAIT: Duration = Duration::from_secs(60);
/// How many submits and cancels one connection may have in progress. With the largest inputs they
/// hold 16 MiB; at 10 ms for each answer of the broker they allow 3000 per second.
pub const REQUESTS_MAX: usize = 32;
/// How many submits, cancels, states and pages an edge may have in progress for all clients. A
/// broker answers them within milliseconds; more than this means that the broker does not answer.
pub const REQUESTS_ALL_MAX: usize = 4096;
/// How long an HTTP body may take to arrive: one megabyte over a slow mobile line.
pub const BODY_WAIT: Duration = Duration::from_secs(30);
/// How long a body may pause. A phone that switches cells is silent for a few seconds.
pub const BODY_STALL: Duration = Duration::from_secs(10);
/// How many jobs one connection may watch. Each costs a session of about 1 KiB and a place in the
/// scan.
pub const WATCHES_MAX: usize = 1024;
/// How many bytes are read ahead from a client that accepts no data. The answers to them, such as
/// pongs, are not larger.
pub const READ_AHEAD: usize = 64 * 1024;
/// How many bytes are read from a client at full speed: two of the largest messages.
pub const READ_BURST: i64 = 2 * BODY_MAX as i64;
/// How many bytes are read from a client per second after that. The most expensive megabyte costs a
/// thread about 50 ms, so one connection takes at most a fifth of it. A client can submit 4000 jobs
/// of 1 KiB per second.
pub const READ_RATE: i64 = 4 * 1024 * 1024;
