//! The whole system against a real `nats-server`, on one node and on a cluster of three.
#![expect(clippy::expect_used, clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(unreachable_pub, reason = "nothing outside sees a test")]

mod support;

/// Frames, requests and cursors that are wrong: each gets its own code and costs nobody else anything.
mod bad_input;
/// Callbacks: signed, once, again after a failure, and to nobody else.
mod callbacks;
/// Cancel: waiting, running, orphaned, and raced against the end.
mod cancelling;
/// The commands of the terminal, as processes.
mod cli;
/// Killing and freezing workers, edges and brokers in the middle of jobs.
mod killing;
/// A program of its own that runs jobs with this library.
mod library;
/// Many clients, many events, slow readers.
mod load;
/// Model servers: what they answer, and all that they do wrong.
mod openai;
/// The commands of the README, run as a reader would.
mod readme;
/// The rules of the house that no lint knows.
mod tidy;
/// One client or a few follow a job: from anywhere, over any number of drops.
mod watching;
