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
/// The description of the HTTP interface, and an edge that is questioned by it.
mod openapi;
/// The commands of the README, run as a reader would.
mod readme;
/// Plain HTTP: pages of history, waiting for a result, and what every address answers to what it does not take.
mod rest;
/// The schemas of what goes over the wire, against what does.
mod schema;
/// Server-sent events: resuming, the end, refusals, and readers that stop reading.
mod sse;
/// Server-sent events with clients that other people wrote.
mod sse_clients;
/// The rules of the house that no lint knows.
mod tidy;
/// One client or a few follow a job: from anywhere, over any number of drops.
mod watching;
