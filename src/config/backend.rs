//! Backends: how far their output may be ahead of the log, and how they stop.

use std::time::Duration;

/// How many bytes a backend may be ahead of the log: what it produces during an election, with room to spare.
pub const OUTPUT_BUFFER_MAX: usize = 1024 * 1024;
/// How many pieces of output are queued before the worker takes them.
pub const OUTPUT_PIECES_MAX: usize = 256;
/// The largest text of one chunk, in bytes. With its head it stays far below a NATS message.
pub const CHUNK_MAX: usize = 256 * 1024;
/// How long a backend that was told to stop may take to return before it is dropped.
pub const STOP_WAIT: Duration = Duration::from_secs(5);
