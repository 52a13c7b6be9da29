//! `conformance`: how a worker is tested, and how long it may take.

use std::time::Duration;

/// How long the tested worker may be silent before its jobs go to another one: short, so that a test
/// takes a minute. A flag overrides it.
pub const CONFORMANCE_ACK_WAIT: Duration = Duration::from_secs(3);
/// How many jobs are submitted at a time. A flag overrides it.
pub const CONFORMANCE_JOBS: u16 = 4;
/// How long a worker's program may take to start and to claim its first job, or to claim one that
/// was its predecessor's, after the ack wait.
pub const CONFORMANCE_START_WAIT: Duration = Duration::from_secs(30);
/// How much longer than the ack wait a running job may take to be cancelled: a busy machine, and a
/// program that cleans up, need time also when the ack wait is short.
pub const CONFORMANCE_CANCEL_WAIT: Duration = Duration::from_secs(10);
/// How long the jobs of one step may take in all.
pub const CONFORMANCE_END_WAIT: Duration = Duration::from_secs(180);
/// How often the log is read.
pub const CONFORMANCE_POLL: Duration = Duration::from_millis(50);
/// How many of the last lines of a worker that failed are shown.
pub const CONFORMANCE_LINES: usize = 20;
/// How many bytes of events its server keeps for each shard.
pub const CONFORMANCE_SHARD_BYTES: u64 = 64 << 20;
