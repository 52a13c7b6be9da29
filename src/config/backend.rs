//! Backends: how far their output may be ahead of the log, and how they stop.

use std::time::Duration;

/// How many bytes a backend may be ahead of the log: what it produces during an election, with room
/// to spare.
pub const OUTPUT_BUFFER_MAX: usize = 1024 * 1024;
/// How many pieces of output are queued for the worker.
pub const OUTPUT_PIECES_MAX: usize = 256;
/// The largest text of one chunk, in bytes. With its head it stays far below a NATS message.
pub const CHUNK_MAX: usize = 256 * 1024;
/// How long a backend may take to return after its stop signal before it is dropped.
pub const STOP_WAIT: Duration = Duration::from_secs(5);

// exec

/// The longest line of the format `lines`, in bytes; a longer one is split. Each part is one chunk.
pub const EXEC_LINE_MAX: usize = CHUNK_MAX;
/// The longest line of the format `ndjson`, in bytes: its content must fit into one event.
pub const EXEC_JSON_LINE_MAX: usize = 512 * 1024;
/// How many bytes of an invalid line an error message quotes.
pub const EXEC_EXCERPT_MAX: usize = 160;
/// About how many bytes are read from a program at once.
pub const EXEC_READ_BYTES: usize = 16 * 1024;
/// How long a program may clean up after SIGTERM. A cancelled job ends, with all of its processes,
/// within a second.
pub const EXEC_STOP_GRACE: Duration = Duration::from_millis(700);
/// How long processes that outlive their program may hold its standard output open, counted while
/// the worker waits.
pub const EXEC_LEFT_WAIT: Duration = Duration::from_secs(1);
/// How many bytes are read after the program has ended: as many as a pipe can hold. Processes that
/// outlive the program could write forever.
pub const EXEC_LEFT_BYTES: usize = 1024 * 1024;
/// How long a pipe may take to close after its writers were killed. A process that left the group
/// was not killed.
pub const EXEC_SETTLE_WAIT: Duration = Duration::from_millis(100);
/// The longest line of standard error, in bytes; a longer one is logged in parts.
pub const EXEC_LOG_LINE_MAX: usize = 2 * 1024;
/// How many of the last lines of standard error a failure quotes.
pub const EXEC_LAST_LINES: usize = 20;
/// How many bytes of them a failure quotes: a failure is an event that every client receives.
pub const EXEC_LAST_BYTES: usize = 4 * 1024;

// demo

/// The largest number of words of one job.
pub const DEMO_WORDS_MAX: u32 = 1_000_000;
/// The largest number of words per second. The timer ticks once per millisecond; a higher rate
/// would only make larger pieces.
pub const DEMO_RATE_MAX: f64 = 1_000_000.0;
/// The longest word, in letters.
pub const DEMO_LENGTH_MAX: u32 = 64;
/// About how many bytes are written at once. [`OUTPUT_PIECES_MAX`] such pieces also fill
/// [`OUTPUT_BUFFER_MAX`].
pub const DEMO_PIECE_BYTES: usize = 4 * 1024;
/// The latest time after the start at which a word is due: a rate near 0 must not overflow the
/// clock.
pub const DEMO_DUE_MAX: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);
