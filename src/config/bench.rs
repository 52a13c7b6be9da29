//! The benchmark: how large and how long a run may be, and how it paces its own work.

use std::time::Duration;

/// The largest number of connections of a run. Each needs a file descriptor in the benchmark and
/// one in the edge.
pub const BENCH_CONNECTIONS_MAX: usize = 50_000;
/// The longest run, in seconds.
pub const BENCH_SECONDS_MAX: u64 = 3600;
/// The most events of a run, besides the three with which each job begins and ends: more than an hour
/// of 5,000 a second, and more than a broker that stores 30,000 a second takes in
/// [`BENCH_ORDER_WAIT`].
pub const BENCH_EVENTS_MAX: u64 = 20_000_000;
/// The longest delay that is measured; longer ones count as this.
pub const BENCH_DELAY_MAX: Duration = Duration::from_secs(3600);
/// The duration of each point of a timeline.
pub const BENCH_SLICE: Duration = Duration::from_millis(250);
/// The largest number of points of a timeline: those of the longest run.
pub const BENCH_SLICES_MAX: usize = 4 * 3600;
/// How many events a late client reads.
pub const BENCH_LATE_EVENTS: u64 = 2000;
/// How many jobs, connections and submits are started at a time, except in a storm. The edge and
/// the broker limit how many they take at once.
pub const BENCH_AT_ONCE: usize = 128;
/// Over how many connections events are appended to a server of another protocol. Each carries one
/// request at a time.
pub const BENCH_APPEND_CONNECTIONS: usize = 32;
/// How long a client may take to connect, also in a storm, and an edge to answer a submit.
pub const BENCH_CONNECT_WAIT: Duration = Duration::from_secs(60);
/// How long the processes are idle before their memory is measured, and before the first event.
pub const BENCH_SETTLE: Duration = Duration::from_millis(500);
/// How long idle clients are connected before their memory is measured: an edge returns what their
/// handshakes needed within [`FREE_MEMORY_EVERY`](super::FREE_MEMORY_EVERY) and a second, in which its
/// allocator keeps it.
pub const BENCH_IDLE_SETTLE: Duration = Duration::from_secs(4);
/// How long appends are measured before the clients of a storm reconnect.
pub const BENCH_APPENDS_BEFORE: Duration = Duration::from_secs(2);
/// How late deliveries may be before the run ends without them.
pub const BENCH_GRACE: Duration = Duration::from_secs(60);
/// How long the publisher may take for events that have no times of their own, and the edge for the
/// submits of all jobs. A broker on a slow disk takes minutes for a million events; a run that waits
/// longer hangs.
pub const BENCH_ORDER_WAIT: Duration = Duration::from_mins(10);
/// How long the publisher may take to end. It has stored everything before, and only closes its
/// connections.
pub const BENCH_STOP_WAIT: Duration = Duration::from_secs(10);
/// The least time between two moments at which events are published. Whoever publishes each event by itself wakes up
/// for each, and at 30,000 a second takes the time of what is measured.
pub const BENCH_PACE: Duration = Duration::from_micros(200);
/// How often the progress bar is drawn.
pub const BENCH_REDRAW: Duration = Duration::from_millis(200);
