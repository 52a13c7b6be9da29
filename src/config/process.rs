//! A process as a whole: its log, its files, its threads, and how long it takes to stop.

use std::time::Duration;

/// How many lines of the log wait to be written to stderr; more are lost. With the longest lines they hold 8 MiB.
pub const LOG_LINES: usize = 1024;
/// The longest line of the log, in bytes.
pub const LOG_LINE_MAX: usize = 8 * 1024;
/// How long a process that ends waits for its log to be written. A reader that is only slow takes it within this time.
pub const LOG_FLUSH_WAIT: Duration = Duration::from_millis(500);
/// How many of the files that a process may open are kept for its connections to the broker, its logs, and short-lived
/// files.
pub const FILES_RESERVED: usize = 256;
/// How long a worker, or an edge that has closed its connections, may take to stop.
pub const DRAIN_WAIT: Duration = Duration::from_secs(4);
