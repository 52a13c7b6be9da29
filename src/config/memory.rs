//! How the memory of an edge is divided among its clients. `edge::memory` builds these budgets.
//!
//! ```text
//!   --memory
//!    ├─ reads of the log that no client has taken yet   an eighth, up to READS_BYTES
//!    └─ clients                                         the rest, shared by:
//!        ├─ feeds and their histories                   up to half of --memory
//!        ├─ bodies that arrive        small, large      ┐
//!        ├─ submissions in progress   small, large      │ each up to its constant below,
//!        ├─ answers                   small, large      │ or a quarter of --memory
//!        ├─ event streams and WebSockets                ┘
//!        ├─ watches beyond one for each connection      up to a quarter
//!        ├─ Socket.IO clients                           up to an eighth
//!        │   └─ write buffers                           up to half of that
//!        └─ text that compacted watches merge           up to a sixteenth
//! ```
//!
//! The parts of `clients` may be larger together than the whole, which limits them, too. Reads have a
//! part of their own: otherwise clients that hold the rest would stop the delivery of stored events
//! to all others.

use crate::wire::JobState;

/// The part of the machine's memory, or of its container's limit, that an edge holds for its
/// clients unless `--memory` is given: a quarter. The broker and workers often run on the same
/// machine.
pub const MEMORY_PART: usize = 4;
/// The budget when the machine does not report its memory.
pub const MEMORY_UNKNOWN: usize = 1024 * 1024 * 1024;
/// The smallest budget: the largest inputs of a few clients at a time, and the largest state of one.
pub const MEMORY_MIN: usize = 64 * 1024 * 1024;
/// Bodies, submissions and answers up to this size, in bytes, are small. Small ones have a budget
/// of their own, which large ones cannot use.
pub const SMALL_BYTES: usize = 64 * 1024;
/// How many bytes of large bodies that are arriving an edge holds: 16 of the largest. A flood of
/// them costs up to three times as much, because the allocator keeps the smaller buffers that they
/// grew from, and ends after [`BODY_WAIT`](super::BODY_WAIT).
pub const BODIES_BYTES: usize = 16 * 1024 * 1024;
/// How many bytes of small bodies that are arriving an edge holds: thousands of typical ones.
pub const SMALL_BODIES_BYTES: usize = 8 * 1024 * 1024;
/// How many bytes of large submissions that wait or are in progress an edge holds, measured in
/// memory: a parsed input needs up to a hundred times the bytes of its text.
pub const SUBMITS_BYTES: usize = 24 * 1024 * 1024;
/// How many bytes of small submissions that wait or are in progress an edge holds, and of other
/// requests of Socket.IO clients that wait.
pub const SMALL_SUBMITS_BYTES: usize = 16 * 1024 * 1024;
/// How many bytes of large answers that are being collected or sent an edge holds: 4 of the largest
/// states, or 1 in the smallest budget.
pub const ANSWERS_BYTES: usize = 4 * JobState::SIZE_MAX;
/// How many bytes of small answers that are being collected or sent an edge holds.
pub const SMALL_ANSWERS_BYTES: usize = 16 * 1024 * 1024;
/// The part of an edge's memory that events over Socket.IO may hold while they are sent, if they are
/// larger than [`FLIGHT_BYTES`](super::FLIGHT_BYTES): an eighth. Even in the smallest budget, 300
/// clients that read nothing may each hold an event of 16 KiB, until they are disconnected after
/// [`WRITE_WAIT`](super::WRITE_WAIT), or after [`ANSWER_WAIT`](super::ANSWER_WAIT) if half of it was
/// used before. Events of other clients that find no room wait.
pub const SOCKETS_PART: usize = 8;
/// The part of that which large write buffers of the Socket.IO library may hold: half. They are held
/// until the connections end, and the other half is always there for events that are being sent.
pub const WRITE_BUFFERS_PART: usize = 2;
/// About how many bytes a watch holds while it catches up, besides the events: measured with 1,200 to
/// 9,600 of them. The first one of a connection is part of what the connection costs.
pub const WATCH_BYTES: usize = 6 * 1024;
/// The part of an edge's memory that the further watches of connections may hold: a quarter, which is
/// 2,730 of them in the smallest budget.
pub const WATCHES_PART: usize = 4;
/// The part of an edge's memory that text of compacted watches may hold while it waits to be merged with
/// more: a sixteenth, which is enough for 30 of them even in the smallest budget. A watch that finds no
/// room sends what it has read so far: smaller events, but still far fewer than were stored.
pub const MERGED_PART: usize = 16;
/// How many bytes of events the event streams of an edge buffer for their clients; a stream that
/// finds no room reads them again later. A page of the log needs up to about 0.5 MiB.
pub const STREAMS_BYTES: usize = 8 * 1024 * 1024;
/// The part of an edge's memory that reads of the log may hold: an eighth, which is enough for 64
/// pages of the log at a time even in the smallest budget.
pub const READS_PART: usize = 8;
/// How many bytes reads of the log hold at most, however large the memory is. All threads of an edge
/// share them: they have room for 512 pages at a time, more than a broker serves within
/// milliseconds.
pub const READS_BYTES: usize = 64 * 1024 * 1024;
