//! The whole system against a real `nats-server`, on one node and on a cluster of three.
#![expect(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]
#![expect(unreachable_pub, reason = "nothing outside sees a test")]

mod support;

/// Attempts: retries, limits, hand-overs, going on, and workers that die.
mod attempts;
/// Frames, requests and cursors that are wrong: each gets its own code and costs nobody else anything.
mod bad_input;
/// Backends that block, panic, or keep what they were given: they hurt nobody else.
mod blocking;
/// Callbacks: signed, once, again after a failure, and to nobody else.
mod callbacks;
/// Cancel: waiting, running, orphaned, and raced against the end.
mod cancelling;
/// The commands of the terminal, as processes.
mod cli;
/// Who this process is to the broker: passwords, tokens, keys, credentials files and certificates.
mod credentials;
/// The documents: their commands work, their links lead somewhere, and what they quote exists.
mod documents;
/// Clients that take or send too much, and others beside them.
mod fairness;
/// Events with numbers that are not theirs, in the logs of jobs that are watched.
mod forged;
/// Requests and frames that break HTTP or the WebSocket protocol, and bodies that are too large.
mod framing;
/// Clients that make an edge hold as much as they can.
mod hostile;
/// Killing and freezing workers, edges and brokers in the middle of jobs.
mod killing;
/// A program of its own that runs jobs with this library.
mod library;
/// Lists of jobs: order, pages, filters, and what a page costs.
mod listing;
/// Many clients, many events, slow readers.
mod load;
/// Undecodable messages in a job's log: they stop nobody.
mod malformed;
/// Answers of model servers as they really are, replayed from `tests/cases/openai`.
mod model_cases;
/// Model servers: what they answer, and all that they do wrong.
mod openai;
/// The description of the HTTP interface, and an edge that is questioned by it.
mod openapi;
/// Outages of the broker: a job that is still its worker's goes on where it was.
mod outages;
/// Leaders that are cut off from their followers, while edges and clients reach them.
mod partition;
/// The worker of the examples that is written in Python, and what an edge refuses when a kind's workers lack it.
mod python_worker;
/// Plain HTTP: pages of history, waiting for a result, and what every address answers to what it does not take.
mod rest;
/// A store that went back under its watchers.
mod restored;
/// Retries: their delay holds whatever happens to the worker, and an old delivery does not touch a newer one.
mod retrying;
/// The schemas of what goes over the wire, against what does.
mod schema;
/// Brokers that hang or are slow, without closing a connection.
mod silent_node;
/// Jobs, output and ends that no log can hold: refused, split, or ended with a code, and never tried without end.
mod sizes;
/// Socket.IO clients of other people, on good and bad networks.
mod socketio;
/// What Socket.IO clients are refused, and their limits.
mod socketio_refusals;
/// What only the WebSocket door does: two encodings, submit and cancel, the close, and how clients of an edge that stops
/// come back.
mod sockets;
/// Server-sent events: resuming, the end, refusals, and readers that stop reading.
mod sse;
/// Server-sent events with clients that other people wrote.
mod sse_clients;
/// Submitting: the same job again, and a queue that is full.
mod submitting;
/// The rules of the house that no lint knows.
mod tidy;
/// The same scenarios through every transport, each with an independent client.
mod transports;
/// Watches of jobs that are not known: of made-up ids they cost little, and they may come before the job.
mod waiting;
/// One client or a few follow a job: from anywhere, over any number of drops.
mod watching;
