#![doc = include_str!("PROTOCOL.md")]
//!
//! # This module
//! The schema: ids, events, cursors, frames, codes and their encodings. Pure: no clock, no runtime, no I/O.

mod code;
pub mod codec;
mod cursor;
mod event;
mod failure;
mod frame;
mod id;
pub mod limits;
mod listing;
mod refusal;
mod scan;
mod schema;
mod size;
mod state;
mod stored;
mod submission;
mod submit;
mod transcode;

pub use code::{Code, CodeInfo, may_reconnect};
pub use codec::Encoding;
pub use cursor::{BadCursor, Cursor};
pub use event::{Body, Channel, Event, EventType, JobFailure, Status};
pub use failure::FailureCode;
pub use frame::{
    ClientFrame, GapReason, JSON_PROTOCOL, MSGPACK_PROTOCOL, ServerFrame, Start, start,
};
pub use id::{BadName, JobId, Kind, Seq, StreamSeq};
pub use listing::{BadPage, JobPage, JobRow, PageToken, ShardPosition};
pub use refusal::{Refusal, RequestRef, job_id, kind, shortened};
pub use schema::{Dialect, definitions};
pub use size::{Unfit, cut};
pub use state::JobState;
pub use stored::{Stored, Unreadable};
pub use submission::{
    Limits, RESERVED_ID, RESERVED_KIND, Submission, may_call_back, reserved_kind,
};
pub use submit::SubmitFrame;
