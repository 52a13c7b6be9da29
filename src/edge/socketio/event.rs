//! The names and arguments of frames and events of jobs as Socket.IO events.

use serde::Deserialize;
use serde_json::json;

use crate::config::EVENT_NAME_MAX;
use crate::wire::{ServerFrame, Stored};

/// The name of an error for a request without acknowledgement. Neither client libraries nor events
/// of jobs use it.
const ERROR: &str = "tailwater:error";
/// The name of a job's event whose type cannot be a name.
const OTHER: &str = "tailwater:event";
/// The names that client libraries reserve, or that have another meaning in this transport.
const RESERVED: [&str; 18] = [
    "connect",
    "connect_error",
    "disconnect",
    "disconnecting",
    "newListener",
    "removeListener",
    "error",
    "connected",
    "authenticated",
    "token_expiring",
    "watching",
    "unwatched",
    "submitted",
    "cancelling",
    "live",
    "missing",
    "end",
    ERROR,
];

/// A server frame as a Socket.IO event.
#[derive(Debug)]
pub(super) struct FrameEvent {
    /// The event's name, unless it is sent as an acknowledgement.
    pub(super) name: &'static str,
    /// The argument, a JSON object.
    pub(super) json: String,
}

impl FrameEvent {
    /// The first event of a connection.
    pub(super) fn connected() -> Self {
        let version = env!("CARGO_PKG_VERSION");
        Self {
            name: "connected",
            json: json!({"protocol": "tailwater.v1", "version": version}).to_string(),
        }
    }
}

impl From<ServerFrame> for FrameEvent {
    fn from(frame: ServerFrame) -> Self {
        let name = match &frame {
            ServerFrame::Hello { .. } => "connected",
            ServerFrame::Pong => "pong",
            ServerFrame::Authenticated { .. } => "authenticated",
            ServerFrame::TokenExpiring { .. } => "token_expiring",
            ServerFrame::Watching { .. } => "watching",
            ServerFrame::Live { .. } => "live",
            ServerFrame::Missing { .. } => "missing",
            ServerFrame::End { .. } => "end",
            ServerFrame::Unwatched { .. } => "unwatched",
            ServerFrame::Submitted { .. } => "submitted",
            ServerFrame::Cancelling { .. } => "cancelling",
            ServerFrame::Error { .. } => ERROR,
        };
        Self {
            name,
            json: frame.to_json(),
        }
    }
}

/// The name of a job's event: its type, if that can be a name.
pub(super) fn name_of(event: &Stored) -> &str {
    #[derive(Deserialize)]
    struct Typed<'a> {
        #[serde(rename = "type")]
        event_type: &'a str,
    }
    if let Some(name) = event.event_type.as_str() {
        return name;
    }
    // Text with an escape cannot be borrowed, and cannot be a name either.
    match serde_json::from_slice::<Typed<'_>>(event.json()) {
        Ok(Typed { event_type }) if can_be_name(event_type) => event_type,
        Ok(_) | Err(_) => OTHER,
    }
}

fn can_be_name(event_type: &str) -> bool {
    (1..=EVENT_NAME_MAX).contains(&event_type.len()) && !RESERVED.contains(&event_type)
}
