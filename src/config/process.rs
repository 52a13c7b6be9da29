//! A process as a whole: its log, its files, its threads, and how long it takes to stop.

use std::time::Duration;

/// How many lines of the log wait to be written to stderr; more are lost. With the longest lines
/// they hold 8 MiB.
pub const LOG_LINES: usize = 1024;
/// The longest line of the log, in bytes.
pub const LOG_LINE_MAX: usize = 8 * 1024;
/// How long a process that ends waits for its log to be written. A reader that is only slow reads
/// it within this time.
pub const LOG_FLUSH_WAIT: Duration = Duration::from_millis(500);
/// How often such a process tries again while the log's queue is full.
pub const LOG_FLUSH_EVERY: Duration = Duration::from_millis(1);
/// How often an edge thread returns free memory to the system, once it was not used for as long.
pub const FREE_MEMORY_EVERY: Duration = Duration::from_secs(1);
/// A block of this size, in bytes, has a page of the allocator to itself: only blocks of up to 512 KiB
/// share pages (`MI_LARGE_MAX_OBJ_SIZE` of mimalloc 3).
pub const FREE_MEMORY_BLOCK: usize = 2 * 1024 * 1024;
/// How many of the files that a process may open are kept for its connections to the broker, its
/// logs, and short-lived files.
pub const FILES_RESERVED: usize = 256;
/// How long a worker, or an edge that has closed its connections, may take to stop.
pub const DRAIN_WAIT: Duration = Duration::from_secs(4);
/// One address may hold this many times the number of free slots. With 3, a single address gets
/// three quarters of all slots, and each of two greedy ones three sevenths: the last slots are for
/// newcomers.
pub const SHARE_TIMES_FREE: usize = 3;
/// How often a guard checks whether its parent still lives, on systems that send no signal: a
/// program may outlive its parent by this long.
pub const PARENT_CHECK_EVERY: Duration = Duration::from_millis(200);
/// How long the nats-server of `up` may take to open its port: it reads its store first.
pub const SERVER_START_WAIT: Duration = Duration::from_secs(30);
/// How often `up` checks whether it has.
pub const SERVER_POLL_EVERY: Duration = Duration::from_millis(20);
/// How many bytes must be free on the disk for the server to start: its logs and the start of its
/// streams.
pub const SERVER_SPACE_MIN: usize = 4 << 20;
/// How long the server may take to end after SIGTERM.
pub const SERVER_END_WAIT: Duration = Duration::from_secs(2);
/// How long `up` waits for its own server to answer.
pub const UP_NATS_WAIT: Duration = Duration::from_secs(10);
/// How long the tasks of `up` may take to stop.
pub const UP_STOP_WAIT: Duration = Duration::from_secs(3);
/// How long `tail --edge` may take to connect.
pub const TAIL_CONNECT_WAIT: Duration = Duration::from_secs(10);
