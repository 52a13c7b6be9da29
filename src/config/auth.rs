//! Tokens: clocks, key sets, and tickets. What clients see of them is in `wire::limits`.

use std::time::Duration;

use crate::wire::limits::EXPIRY_NOTICE_MS;

/// How far the clocks of an issuer and an edge may differ, in seconds, when a token was issued or
/// becomes valid. Machines with a time service differ by far less than this. It does not extend the
/// life of a token.
pub const CLOCK_SKEW_S: u64 = 30;
/// The shortest secret that signs tokens, in bytes: RFC 7518, section 3.2.
pub const SECRET_MIN: usize = 32;
/// The shortest static token, in characters: 18 random bytes in base64 cannot be guessed.
pub const STATIC_TOKEN_MIN: usize = 24;
/// The largest file of static tokens, and the largest key set, in bytes. A key has about 500.
pub const KEYS_BYTES_MAX: usize = 256 * 1024;
/// How many keys of a key set are used. Providers publish two or three.
pub const KEYS_MAX: usize = 64;
/// How often a key set is read again. A key that was removed is accepted for this long.
pub const KEYS_REFRESH: Duration = Duration::from_secs(300);
/// How long after a token with an unknown key id the key set is not read again for another one:
/// anybody can send such tokens.
pub const KEYS_REFETCH_PAUSE: Duration = Duration::from_secs(10);
/// How long reading a key set may take. A client waits for it.
pub const KEYS_WAIT: Duration = Duration::from_secs(5);
/// How long an edge waits at its start until it knows all revocations.
pub const REVOCATIONS_WAIT: Duration = Duration::from_secs(30);
/// How long before its token expires a client is told.
pub const EXPIRY_NOTICE: Duration = Duration::from_millis(EXPIRY_NOTICE_MS);
/// How often the watch of revocations is started again while the broker does not answer.
pub const REVOCATIONS_PAUSE: Duration = Duration::from_millis(250);
/// The longest token that is kept in a cookie, in bytes: browsers discard cookies of more than 4096
/// bytes, name and attributes included.
pub const COOKIE_TOKEN_MAX: usize = 3800;
/// How many streams one subject may have open at an edge. A flag overrides it. The browsers of an
/// application's users share its subject, because a `watch_token` has the subject of the submitter;
/// ten thousand is what one edge is meant to serve. The tokens for one job share them as addresses
/// share connections: see [`SHARE_TIMES_FREE`](super::SHARE_TIMES_FREE).
pub const SUBJECT_CONNECTIONS: usize = 10_000;
/// How many jobs one subject may submit per second at an edge. A flag overrides it. An edge thread
/// queues a few thousand per second, so no subject takes all of that from others.
pub const SUBJECT_SUBMITS_PER_S: u32 = 500;
/// How many jobs that one subject submitted at an edge may be queued or running. A flag overrides it.
/// It is half of [`KIND_JOBS_MAX`](super::KIND_JOBS_MAX), so that two subjects share a kind.
pub const SUBJECT_JOBS: usize = 10_000;
/// How many jobs of one subject an edge remembers, if a flag allows more: about 8 MB.
pub const SUBJECT_JOBS_KEPT: usize = 100_000;
/// How many of these jobs are looked up at a time, to find those that have ended, once there are too
/// many. Each may have an input of 512 KiB.
pub const QUOTA_PROBE_JOBS: usize = 8;
/// How often that is repeated before a submission is refused.
pub const QUOTA_PROBES: usize = 4;
/// The time over which submissions are counted: `Retry-After` has whole seconds.
pub const QUOTA_WINDOW: Duration = Duration::from_secs(1);
/// How many tickets one edge issues within the time that a ticket is valid. A ticket takes up to 2
/// KiB, and all edges share a bucket of 64 MiB: eight may be at this limit at the same time.
pub const TICKETS_MAX: usize = 4096;
/// How many of them one subject gets. A page needs one each time that it opens a stream.
pub const TICKETS_PER_SUBJECT: usize = 1024;
/// How long the jobs of a subject count that has no stream and submits nothing. Few jobs run longer.
pub const SUBJECT_KEPT: Duration = Duration::from_secs(3600);
