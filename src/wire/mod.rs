#![doc = include_str!("PROTOCOL.md")]
//!
//! # This module
//! Ids, events, cursors, frames, codes and their encodings. Pure: no clock, no runtime, no I/O.

mod bearer;
mod client_frame;
mod code;
pub mod codec;
mod compact;
mod cursor;
mod event;
mod failure;
pub mod framing;
mod id;
pub mod limits;
mod listing;
mod msgpack;
mod number;
mod object;
mod plain;
mod refusal;
mod scan;
mod schema;
mod segment;
mod server_frame;
mod size;
mod state;
mod stored;
mod submission;
mod submit;
mod transcode;
mod writers;

pub use bearer::{BearerToken, WatchTokenTerms};
pub use client_frame::{ClientFrame, Start, start};
pub use code::{Code, CodeInfo, may_reconnect};
pub use codec::{Encoding, JSON_PROTOCOL, MSGPACK_PROTOCOL};
pub use compact::Compactor;
pub use cursor::{BadCursor, Cursor};
pub use event::{Body, Channel, Event, EventType, JobFailure, Status};
pub use failure::FailureCode;
pub use id::{BadId, BadName, JobId, Kind, Prefix, Seq, StreamSeq};
pub use listing::{BadPage, JobPage, JobRow, PageToken, ShardPosition};
pub use object::Excerpt;
pub use refusal::{Refusal, RequestRef, check_key, job_id, kind, read_fields, shortened};
pub use scan::map_memory;
pub use schema::{Dialect, definitions};
pub use segment::{
    Segment, SegmentBase, SegmentBuilder, SegmentDigest, completes_segment, first_of_segment,
    segment_of,
};
pub use server_frame::{GapReason, ServerFrame};
pub use size::{Unfit, cut};
pub use state::JobState;
pub use stored::{DecodeError, EventHead, EventMeta, Stored};
pub use submission::{KEY_ID, Limits, RESERVED_KIND, Submission, may_call_back, reserved_kind};
pub use submit::{SubmitFrame, foreign_body, input_memory};
