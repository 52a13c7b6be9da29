//! Tailwater: durable job streams over NATS.
//!
//! Workers run jobs and publish the output, chunk by chunk, to JetStream; an edge gives any client a job's whole stream,
//! live and in order, each event once, however often the client drops or lands on another edge. The log on JetStream is
//! the only store.
//!
//! ```text
//!  submit ──▶ tw.jobs.<kind>.<job> ═══ TW_JOBS (work queue) ═══▶ worker ── backend (demo | exec | openai | your own)
//!                                                                  │ one fenced publish in flight per job
//!                                                                  ▼
//!                               tw.chunks.<shard>.<job> ═══ TW_CHUNKS_<shard> (the log)
//!                                    │ republished once stored          │ direct get, by position
//!                                    ▼                                  ▼
//!                               tw.live.<shard>.<job> ─────▶ feed ──▶ session (stitcher) ──▶ WebSocket | SSE | Socket.IO | terminal
//! ```
//!
//! # Layout
//! Each module uses only those above it in this table.
//!
//! | module | owns |
//! |---|---|
//! | [`wire`] | the schema: ids, events, cursors, frames, codes, and `PROTOCOL.md`. Pure |
//! | [`config`] | every limit with its reason |
//! | [`backoff`] | pauses that double from try to try. Pure |
//! | [`process_group`] | signals to a program and everything that it started |
//! | [`guard`] | programs that end with their parent |
//! | [`runtime`] | tasks and threads |
//! | [`budget`] | how many bytes a process may hold for its clients |
//! | [`share`] | how slots are shared among addresses |
//! | [`resume`] | the stitcher and a feed's history. Pure: no async, no clock, no I/O |
//! | [`source`] | `trait EventSource`, what the reading side needs of a log |
//! | [`hub`] | feeds: one for each watched job, shared by its watchers |
//! | [`session`] | one client's place in one job: drives a stitcher over a feed and the log |
//! | [`nats`] | the broker: names, streams, the fence, the queue, reading. The only folder that names `async_nats` |
//! | [`backend`] | what produces output: demo, exec, openai; webhook, which delivers callbacks. Knows no NATS |
//! | [`worker`] | a job's life: claim, run, publish, end. Knows `trait Backend`, no particular one |
//! | [`edge`] | the server for clients: every transport. The only folder that names `axum` and `socketioxide` |
//! | [`cli`] | the commands. The only place that prints |
//!
//! The trait that separates reading from NATS has a folder of its own, `source`: both the hub and the session stand on it,
//! and neither should own what the other needs.
//!
//! # What always holds
//! 1. A watcher that starts at any cursor gets every later event once, in order, or is told which are gone and why.
//! 2. Nothing is shown live that is not stored: the live side is the stream's own republish, never a worker's publish.
//! 3. One writer at a time: every event is published with the expected last sequence of the job's subject, so the broker
//!    refuses a worker that lost its job.
//! 4. A job ends once. The queue's message is acked only after the end event was accepted under the fence.
//! 5. A dropped client never cancels a job.
//! 6. An edge keeps nothing that matters.
//! 7. Every queue, buffer, wait, payload and loop has a limit, named in [`config`]. A reader that falls behind keeps its
//!    cursor and gives up its buffer.
//! 8. No empty payload is stored, and no chunk splits a character.

pub mod backend;
pub mod backoff;
pub mod budget;
pub mod cli;
pub mod config;
pub mod edge;
pub mod guard;
pub mod hub;
pub mod nats;
pub mod process_group;
pub mod resume;
pub mod runtime;
pub mod session;
pub mod share;
pub mod source;
pub mod wire;
pub mod worker;
