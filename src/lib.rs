//! Tailwater: durable job streams over NATS.
//!
//! Workers run jobs and publish the output, chunk by chunk, to JetStream. An edge sends any client
//! the whole stream of a job, live and in order, each event once, even if the client reconnects to
//! another edge. The log on JetStream is the only store.
//!
//! ```text
//!  submit ─▶ tw.jobs.<kind>.<job> ══ TW_JOBS (work queue) ══▶ worker ── backend (demo, exec,
//!                                                               │         openai, your own)
//!                                                               │ one fenced publish at a time
//!                                                               ▼
//!                             tw.chunks.<shard>.<job> ══ TW_CHUNKS_<shard> (the log)
//!                                  │ republished once stored        │ direct get
//!                                  ▼                                ▼
//!                             tw.live.<shard>.<job> ──▶ feed ──▶ session ──▶ WebSocket, SSE,
//!                                                                            Socket.IO, terminal
//! ```
//!
//! # Layout
//! Each module uses only those above it. A pure module has no I/O, no async and no clock.
//!
//! | module | owns |
//! |---|---|
//! | [`wire`] | the schema: ids, events, cursors, frames, codes, and `PROTOCOL.md`. Pure |
//! | [`config`] | every limit with its reason |
//! | [`backoff`] | pauses that double after each try. Pure |
//! | [`short_list`] | a list that rarely has more than one item. Pure |
//! | [`process_group`] | signals to a program and its descendants |
//! | [`guard`] | programs that end with their parent |
//! | [`runtime`] | tasks, their timers, wake-ups and mailboxes, and threads |
//! | [`budget`] | how many bytes a process may hold for its clients |
//! | [`fair_slots`] | slots, shared fairly among addresses |
//! | [`metrics`] | which metrics there are, and their text. Pure |
//! | [`auth`] | who may do what: tokens, and the decision about an operation. Pure |
//! | [`resume`] | the stitcher and a feed's history. Pure |
//! | [`source`] | `trait EventSource`: a log as the reading side needs it |
//! | [`hub`] | feeds: one for each watched job, shared by its watchers |
//! | [`session`] | one client's read position in one job, over a feed and the log |
//! | [`nats`] | the broker: names, streams, fence, queue, recorders, reading. Only it uses `async_nats` |
//! | [`backend`] | produces output: demo, exec, endpoint (HTTP), openai; webhook delivers callbacks. Without NATS |
//! | [`worker`] | a job's life: claim, run, publish, end. Uses only `trait Backend` |
//! | [`edge`] | the server: every transport. Only it uses `axum` and `socketioxide` |
//! | [`cli`] | the commands. Only it prints |
//!
//! # Invariants
//! 1. A client that starts at any cursor gets every later event once and in order. If events have
//!    expired, it gets the range of the gap and the reason.
//! 2. A live event is always a stored one: live copies are the stream's own republish, never a
//!    worker's publish.
//! 3. One writer at a time: every publish carries the expected last sequence of the job's subject,
//!    so the broker refuses a worker that lost its job.
//! 4. A job ends once. The queue's message is acked only after the broker accepted the end event.
//! 5. A client that disconnects never cancels a job.
//! 6. An edge stores nothing: it can be replaced at any time.
//! 7. Every queue, buffer, wait, payload and loop has a limit, named in [`config`]. Events that
//!    were buffered for a slow reader are dropped, and read from the log again.
//! 8. No stored payload is empty, and no chunk splits a character.

pub mod auth;
pub mod backend;
pub mod backoff;
pub mod budget;
pub mod cli;
pub mod config;
pub mod edge;
pub mod fair_slots;
pub mod guard;
pub mod hub;
pub mod metrics;
pub mod nats;
pub mod process_group;
pub mod resume;
pub mod runtime;
pub mod session;
pub mod short_list;
pub mod source;
pub mod wire;
pub mod worker;
