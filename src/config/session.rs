//! Sessions: one client's watch of one job.

use std::time::Duration;

/// How many bytes of events a session delivers in one step: what a slow client costs in memory.
pub const STEP_BYTES: usize = 64 * 1024;
/// How many bytes of text a compacted watch merges into one event: as much as one step.
pub const COMPACT_BYTES: usize = STEP_BYTES;
/// How long a watch waits for the broker before it is refused as unavailable: longer than an
/// election takes.
pub const OPEN_WAIT: Duration = Duration::from_secs(12);
/// The first pause before the log is read again when a read returned nothing new; doubled up to
/// [`REREAD_MAX`].
pub const REREAD_FIRST: Duration = Duration::from_millis(20);
/// The longest pause before the log is read again.
pub const REREAD_MAX: Duration = Duration::from_secs(2);
