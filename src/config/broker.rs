//! Connections and requests to the broker, and when its word counts.

use std::time::Duration;

/// How long one request to the broker may take.
pub const REQUEST_WAIT: Duration = Duration::from_secs(3);
/// How long a connection to the broker may be silent before a ping is sent. The client library closes the connection when
/// two pings have no answer and the third is due: a server that hangs is noticed after 7.5 s.
pub const BROKER_PING: Duration = Duration::from_millis(2500);
/// How long connecting to one server may take before the next one is tried. With [`BROKER_PING`], a server that went
/// silent costs less than 15 s, even if it is the first one tried again.
pub const BROKER_CONNECT_WAIT: Duration = Duration::from_secs(3);
/// The longest such time, for slow networks: after each connection that took too long the time is doubled.
pub const BROKER_CONNECT_WAIT_MAX: Duration = Duration::from_secs(30);
/// The pause before a request of the start is repeated.
pub const START_PAUSE: Duration = Duration::from_millis(100);
/// How long a connection to the broker may take to answer before the edge is not ready. An answer takes milliseconds,
/// and probes give up after a few seconds.
pub const READY_WAIT: Duration = Duration::from_secs(2);
/// How long such an answer is reused, so that frequent probes cost nothing.
pub const READY_AGE: Duration = Duration::from_secs(1);

/// The shortest time that a follower of nats-server waits, after it heard its leader, before it calls an election
/// (`minElectionTimeoutDefault` in its `raft.go`; leaders are heard every second). The server has no setting for it.
pub const ELECTION_MIN: Duration = Duration::from_secs(4);
/// How much earlier a leader is no longer trusted: a follower's answer takes time to reach it.
pub const QUORUM_MARGIN: Duration = Duration::from_millis(500);
/// How long the proof of a leader's quorum is reused for other reads. Refused requests cost one such question per stream
/// within this time, however many they are.
pub const QUORUM_AGE: Duration = Duration::from_millis(400);
/// How often a read is repeated that took longer than its leader's quorum was proven for.
pub const QUORUM_TRIES: u32 = 3;
/// How long a leader with a quorum must keep reporting that its stream is shorter than this process has seen before it is
/// believed: longer than a leader that lost its quorum can still appear to have one.
pub const SHORTER_WAIT: Duration = Duration::from_secs(5);

/// How long a command waits for the broker at its start, unless a flag says otherwise.
pub const NATS_WAIT: Duration = Duration::from_secs(5);
/// How much longer than [`REQUEST_WAIT`] a request may take in all. While the connection is down the client library queues
/// requests, and once its queue is full it waits without a limit.
pub const REQUEST_LATE: Duration = Duration::from_millis(500);
/// How long sending a control signal may take. Without it the worker finds out at its next publish.
pub const CONTROL_SIGNAL_WAIT: Duration = Duration::from_secs(1);

/// How many shards a new system has, unless a flag says otherwise.
pub const SHARDS: u32 = 4;
/// How long a new system keeps events, unless a flag says otherwise.
pub const EVENTS_MAX_AGE: Duration = Duration::from_secs(24 * 3600);
/// How many bytes of events a shard of a new system keeps, unless a flag says otherwise.
pub const SHARD_MAX_BYTES: u64 = 1 << 30;
