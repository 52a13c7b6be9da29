//! The whole system against a real `nats-server`, on one node and on a cluster of three.
#![expect(clippy::expect_used, clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(unreachable_pub, reason = "nothing outside sees a test")]

mod support;

/// Frames, requests and cursors that are wrong: each gets its own code and costs nobody else anything.
mod bad_input;
/// Cancel: waiting, running, orphaned, and raced against the end.
mod cancelling;
/// The commands of the terminal, as processes.
mod cli;
/// Killing and freezing workers, edges and brokers in the middle of jobs.
mod killing;
/// Many clients, many events, slow readers.
mod load;
/// The commands of the README, run as a reader would.
mod readme;
/// Socket.IO clients of other people, on good and bad networks.
mod socketio;
/// The rules of the house that no lint knows.
mod tidy;
/// One client or a few follow a job: from anywhere, over any number of drops.
mod watching;
