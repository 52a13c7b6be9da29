//! Connections and requests to the broker, and when its answers are trusted.

use std::time::Duration;

/// How long one request to the broker may take.
pub const REQUEST_WAIT: Duration = Duration::from_secs(3);
/// How long a connection to the broker may be silent before a ping is sent. The client library
/// closes the connection when two pings are unanswered and the third is due: a server that hangs is
/// detected after 7.5 s.
pub const BROKER_PING: Duration = Duration::from_millis(2500);

/// How many pings a connection for live copies may leave unanswered, as in the client library.
pub const BROKER_PINGS_UNANSWERED: u32 = 2;
/// The longest line that a broker sends: an INFO with the addresses of a large cluster.
pub const BROKER_LINE_MAX: usize = 64 * 1024;
/// More than the largest message that a broker accepts.
pub const BROKER_MESSAGE_MAX: usize = 64 * 1024 * 1024;
/// How long connecting to one server may take before the next one is tried. With [`BROKER_PING`], a
/// silent server costs less than 15 s, even if it is the first one that is tried again.
pub const BROKER_CONNECT_WAIT: Duration = Duration::from_secs(3);
/// The longest such time, for slow networks: it is doubled after each attempt that took too long.
pub const BROKER_CONNECT_WAIT_MAX: Duration = Duration::from_secs(30);
/// How long the client library may take to list the servers that it knows. Without its list, those
/// that were configured are used.
pub const SERVER_POOL_WAIT: Duration = Duration::from_millis(100);
/// The pause before a request during startup is repeated.
pub const START_PAUSE: Duration = Duration::from_millis(100);
/// How long a connection to the broker may take to answer before the edge is not ready. An answer
/// takes milliseconds, and probes give up after a few seconds.
pub const READY_WAIT: Duration = Duration::from_secs(2);
/// How long such an answer is reused, so that frequent probes cost nothing.
pub const READY_AGE: Duration = Duration::from_secs(1);
/// How long the client library may take to pass on a refusal that it has received.
pub const BROKER_REFUSAL_WAIT: Duration = Duration::from_millis(300);

/// The shortest time that a follower in nats-server waits after its leader's last heartbeat before
/// it starts an election (`minElectionTimeoutDefault` in `raft.go`; leaders send a heartbeat every
/// second). The server has no setting for it.
pub const ELECTION_MIN: Duration = Duration::from_secs(4);
/// How much earlier than that a leader is no longer trusted: a follower's answer takes time to
/// reach it.
pub const QUORUM_MARGIN: Duration = Duration::from_millis(500);
/// How long the proof of a leader's quorum is reused for other reads. However many requests are
/// refused, they cost one proof per stream within this time.
pub const QUORUM_AGE: Duration = Duration::from_millis(400);
/// How often a read is repeated if it took longer than the proof of its leader's quorum is valid.
pub const QUORUM_TRIES: u32 = 3;
/// How long a leader with a quorum must keep reporting a stream that is shorter than this process
/// has seen before it is trusted: longer than a leader that lost its quorum can still appear to
/// have one.
pub const SHORTER_WAIT: Duration = Duration::from_secs(5);

/// How long a command waits for the broker when it starts. A flag overrides it.
pub const NATS_WAIT: Duration = Duration::from_secs(5);
/// How long sending a control signal may take. Without it the worker learns of the change at its
/// next publish.
pub const CONTROL_SIGNAL_WAIT: Duration = Duration::from_secs(1);

/// How many shards a new system has. A flag overrides it.
pub const SHARDS: u32 = 4;
/// How long a new system keeps events. A flag overrides it.
pub const EVENTS_MAX_AGE: Duration = Duration::from_secs(24 * 3600);
/// How many bytes of events a shard of a new system keeps. A flag overrides it.
pub const SHARD_MAX_BYTES: u64 = 1 << 30;
