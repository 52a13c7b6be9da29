//! How full the queue may be.

use std::time::Duration;

/// How many jobs of one kind may wait or run; more are refused until some have ended. This is a
/// fiftieth of the queue's capacity, so that one kind cannot use all of it.
pub const KIND_JOBS_MAX: u64 = 20_000;
/// Inputs up to this size, in bytes, are small. Larger ones are refused once half of the queue's
/// bytes are used, which leaves room for about 20,000 small ones.
pub const SMALL_INPUT: usize = 4096;
/// How long clients go on with a read of the queue's report that is not answered: longer than its
/// requests usually wait.
pub const QUEUE_REPORT_WAIT: Duration = Duration::from_secs(10);
/// How long an edge or a worker uses its last count of the queue. Between two counts it adds its
/// own jobs.
pub const USAGE_AGE: Duration = Duration::from_secs(1);
/// How long an edge waits for the answer of a recorder, and how long a recorder works on one request:
/// longer than [`CANCEL_WAIT`](super::CANCEL_WAIT), so that it does not cut off a cancel.
pub const RECORDER_WAIT: Duration = Duration::from_secs(12);
/// How long an edge asks again while no recorder runs, or waits while the broker is down: long enough for
/// the only recorder to restart.
pub const RECORDER_BACK_WAIT: Duration = Duration::from_secs(3);
/// The pause before an edge asks again while no recorder runs.
pub const RECORDER_PAUSE: Duration = Duration::from_millis(50);
/// How long an edge waits before it asks another recorder as well: longer than a healthy one needs
/// for anything but the cancellation of a busy job.
pub const RECORDER_TRY_WAIT: Duration = Duration::from_secs(4);
/// How many requests of edges a recorder serves at a time. More are refused: each waits for the
/// broker, which is not faster with more.
pub const RECORDER_REQUESTS: usize = 1024;
/// How many bytes the requests that a recorder serves may hold together, measured in memory: an input
/// needs up to a hundred times the bytes of its text once parsed, and is copied once. The largest holds
/// half of this.
pub const RECORDER_BYTES: usize = 64 << 20;
/// How many bytes of requests to recorders the threads of an edge hold, besides its memory budget, until
/// they are sent. More are refused. Those of clients that wait count as submissions, too, usually three
/// times, so they take less than half of this; their buffers may be twice as large.
pub const RECORDINGS_BYTES: usize = 32 << 20;
/// How many kinds a process remembers the usage of. It asks the broker each time for any further
/// kind.
pub const KINDS_MAX: usize = 1000;
