//! Feeds: what an edge keeps for each watched job.

use std::time::Duration;

/// How many bytes of recent events a feed keeps, so that a short disconnect never needs the log:
/// about two minutes of a fast model.
pub const HISTORY_BYTES: usize = 256 * 1024;
/// How many of the newest events a feed holds decoded and with their frames; older ones are packed.
/// At ten events per second, clients may be a second behind.
pub const NEWEST_EVENTS: usize = 16;
/// How many events are packed at a time.
pub const ARCHIVE_EVENTS: usize = 8;
/// How many blocks of packed events stay unpacked after they were read: enough for a storm of
/// clients that resume within 500 events.
pub const UNPACKED_BLOCKS: usize = 64;
/// For how long they do.
pub const UNPACKED_FOR: Duration = Duration::from_secs(2);
/// How many live events a feed holds while it reads the events before them from the log.
pub const AHEAD_MAX: usize = 512;
/// How many live copies wait for one feed. More are dropped, and the feed reads them from the log.
pub const LIVE_CAPACITY: usize = 1024;

/// How many bytes of live copies are read at once.
pub const LIVE_BUFFER: usize = 64 * 1024;
/// How many pings of a connection for live copies may wait for their answers. One is sent for the
/// subscriptions of one turn, so further ones wait only if the broker is far behind.
pub const LIVE_PINGS_MAX: usize = 64;
/// How long a feed outlives its last watcher: a client that lost its connection is usually back
/// within this time.
pub const FEED_LINGER: Duration = Duration::from_secs(15);
/// What a feed costs without its history, in bytes: its task and its subscription.
pub const FEED_BYTES: usize = 12 * 1024;
/// In which steps a feed reserves the memory of its history: all threads share the budget, and
/// would change it with each event. It reserves one from its beginning. A newest event that fits
/// into that is always in memory, so that a lack of memory sends the watchers of an ordinary job to
/// the log only when they fall behind.
pub const FEED_STEP: usize = 4 * 1024;
/// How many feeds one edge thread holds, watched or lingering. Each costs [`FEED_BYTES`] and its
/// history, for which at least [`FEED_STEP`] is reserved.
pub const FEEDS_MAX: usize = 50_000;
/// How many of them may be for jobs without an event: 64 MiB. Such jobs were just submitted,
/// or clients resume them and claim to have seen events. The rest is kept for jobs that exist.
pub const FEEDS_WITHOUT_EVENTS_MAX: usize = 4096;
/// How many watched jobs may be unknown to both the log and the queue. Each costs about 200 bytes
/// and its session.
pub const WAITING_MAX: usize = 200_000;
/// How often some of them are looked up. Signals are delivered at most once, so they are not
/// enough.
pub const LOOK_TICK: Duration = Duration::from_millis(100);
/// How many are looked up in one tick, and in progress at a time. Each costs a few requests, so
/// invented ids take a few percent of one broker core and little of the broker's request queue.
pub const LOOKS_PER_TICK: usize = 100;
/// The pause before a failed lookup is repeated. The first lookup is after [`PROBE_FIRST`].
pub const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// The time between two lookups of a job. A random part, up to half as much again, is added to
/// spread them.
pub const LOOK_EVERY: Duration = Duration::from_secs(40);
/// When a feed first checks the log for missed live messages. In a cluster, interest in a subject
/// spreads only after the subscription was confirmed.
pub const PROBE_FIRST: Duration = Duration::from_millis(500);
/// When a feed next checks the log of a silent job; doubled up to [`PROBE_MAX`].
pub const PROBE_SILENT: Duration = Duration::from_secs(5);
/// The longest time between two such checks.
pub const PROBE_MAX: Duration = Duration::from_secs(60);
/// The time over which the feeds of a shard spread their checks after a leader change.
pub const PROBE_SPREAD: Duration = Duration::from_secs(1);
/// Of how many events the delay of one is measured: reading the time of each would cost more than
/// anything else that is counted.
pub const LIVE_DELAY_EVERY: u64 = 16;
