//! `top`: how often it asks, and how long it waits.

use std::time::Duration;

/// The time between two pictures. A flag overrides it.
pub const TOP_EVERY: Duration = Duration::from_secs(1);
/// How long what is shown may take to answer.
pub const TOP_WAIT: Duration = Duration::from_secs(2);
/// How many bytes of an answer are read: far more than the metrics of a worker have.
pub const TOP_ANSWER_MAX: usize = 4 << 20;
