//! The whole system against a real `nats-server`, on one node and on a cluster of three.
#![expect(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]
#![expect(unreachable_pub, reason = "nothing outside sees a test")]

mod support;

/// Who may do what: each operation over each transport with each kind of token.
mod access;
/// The AI SDK's chat: the whole answer, resuming, stopping, failing, and attempts that supersede.
mod ai_sdk;
/// Attempts: retries, time limits, hand-overs, continuing, and workers that die.
mod attempts;
/// Bad frames, requests and cursors: each gets its own code and affects no other client.
mod bad_input;
/// The benchmark: what it counts, and what it leaves behind.
mod bench;
/// Backends that block, panic, or keep their output: they affect no other job.
mod blocking;
/// The client for browsers and the console, in Chromium.
mod browser;
/// Pages of other origins, other host names, and what a page of the edge may load.
mod browsers;
/// Callbacks: signed, sent once, retried after a failure, and only to allowed hosts.
mod callbacks;
/// Cancelling jobs that wait, run, lost their worker, or end at the same time.
mod cancelling;
/// The commands of the CLI, as processes.
mod cli;
/// `tailwater conformance`, against workers that conform and one that does not.
mod conformance;
/// Killing and freezing workers, edges and brokers in the middle of jobs.
mod crashes;
/// Authentication at the broker: passwords, tokens, keys, credentials files and certificates.
mod credentials;
/// `tailwater doctor` and `tailwater kinds`.
mod doctor;
/// The documents: their commands work, their links are valid, and what they quote exists.
mod documents;
/// Jobs that a user's own HTTP endpoint runs.
mod endpoint;
/// Exporting and importing the log of a job.
mod export;
/// Clients that request or send too much, beside others.
mod fairness;
/// Files for browsers: the client and the console; and the kinds that it offers.
mod files;
/// Forged sequence numbers in the logs of watched jobs.
mod forged;
/// Requests and frames that break HTTP or the WebSocket protocol, and bodies that are too large.
mod framing;
/// Clients that make an edge hold as much memory as they can.
mod hostile;
/// Programs that run jobs with this library.
mod library;
/// Lists of jobs: order, pages, filters, and what a page costs.
mod listing;
/// Many clients, many events, shared scans, and memory after a load.
mod load;
/// What workers and `up` log: why a job failed, and no secrets.
mod logs;
/// Metrics: what is served, and that the documents, alerts and dashboards match.
mod metrics;
/// Recorded answers of model servers, replayed from `tests/cases/openai`.
mod model_cases;
/// Model servers: complete answers and every fault.
mod openai;
/// OpenAI's clients: completions and responses that survive, resume, and are cancelled.
mod openai_clients;
/// The OpenAPI document, and an edge that is tested against it.
mod openapi;
/// Who may do what over the protocols of the AI SDK and of OpenAI.
mod other_protocols;
/// Outages of the broker: a worker continues the jobs that it still owns.
mod outages;
/// What the packages of a release rely on: the server beside the program, the launcher for npm.
mod packages;
/// Leaders that are cut off from their followers, while clients still reach them.
mod partition;
/// Jobs that the programs of an `exec` worker run.
mod programs;
/// Purging jobs: nothing is left of them, on any edge.
mod purge;
/// The Python library: workers, clients, and features that the workers of a kind lack.
mod python_library;
/// Limits of one subject: streams, submissions per second, and jobs in flight.
mod quotas;
/// Recorders: requests that take long, that come during an outage, and that wait when one stops.
mod recorders;
/// Plain HTTP: pages of history, waiting for a result, and the errors of every path.
mod rest;
/// A store that is restored from a copy while clients watch.
mod restored;
/// Retries: their delay holds whatever happens to the worker, and an old delivery does not affect a
/// newer one.
mod retrying;
/// What each role may do in NATS, and what the broker refuses it.
mod roles;
/// The schemas against the frames on the wire.
mod schema;
/// Watches after a number: the log is searched, whatever it holds.
mod searching;
/// What processes print and answer has no secrets and no text of jobs.
mod secrets;
/// Segments: they are read instead of the log, deleting them loses nothing, and a wrong one is never
/// delivered.
mod segments;
/// Brokers that hang or are slow without closing connections.
mod silent_node;
/// Oversized jobs, output and ends: refused, split, or failed with a code, and never retried
/// forever.
mod sizes;
/// Third-party Socket.IO clients, on good and bad networks.
mod socketio;
/// Refusals and limits of Socket.IO clients.
mod socketio_refusals;
/// Server-sent events: resuming, the end, and refusals.
mod sse;
/// Server-sent events with third-party clients.
mod sse_clients;
/// Submitting: repeated submits and a full queue.
mod submitting;
/// House rules that no lint checks.
mod tidy;
/// TLS and HTTP/2 at an edge.
mod tls;
/// Tokens over time: expiry, renewal, revocation, tickets, keys that change.
mod token_life;
/// `tailwater top`.
mod top;
/// The same scenarios through every transport, each with an independent client.
mod transports;
/// Undecodable messages in a job's log: they stop neither workers nor watchers.
mod undecodable;
/// Watches of unknown jobs: they cost little, and can start before the job.
mod unknown_jobs;
/// Following a job from any position, over any number of drops.
mod watching;
/// What only WebSockets have: two encodings, submit and cancel, the close, and draining when an
/// edge stops.
mod websocket;
