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
/// How many kinds a process remembers the usage of. It asks the broker each time for any further
/// kind.
pub const KINDS_MAX: usize = 1000;
