//! `doctor`: from where on it warns.

use std::time::Duration;

/// How long a job may wait for a worker. A flag overrides it. A person who waits for an answer has
/// left by then.
pub const DOCTOR_WAIT: Duration = Duration::from_secs(300);
/// From which difference of clocks on time limits are visibly wrong.
pub const DOCTOR_CLOCK_WARN: Duration = Duration::from_secs(1);
/// From which difference on jobs may end before they start.
pub const DOCTOR_CLOCK_FAIL: Duration = Duration::from_secs(30);
/// How full the disk space of an account may be, in percent.
pub const DOCTOR_FULL_PERCENT: u64 = 90;
