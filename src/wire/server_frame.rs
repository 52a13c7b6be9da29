//! The frames that an edge sends besides events, in both encodings. It does not know connections.

use bytes::Bytes;
use schemars::{JsonSchema, Schema};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::bearer::BearerToken;
use super::code::Code;
use super::codec;
use super::event::Status;
use super::id::{JobId, Seq};
use super::refusal::RequestRef;

/// A frame that an edge sends besides events. Event frames have no `op`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "op", rename_all = "lowercase")]
pub enum ServerFrame {
    /// The first frame of a connection.
    Hello {
        /// The subprotocol in use.
        protocol: String,
        /// The version of the edge.
        version: String,
    },
    /// The answer to a `ping`.
    Pong,
    /// The token of an `auth` is accepted.
    Authenticated {
        /// In how many milliseconds the token expires; absent if it does not expire.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        expires_in_ms: Option<u64>,
    },
    /// The connection's token expires soon. Send an `auth` with a new one.
    #[serde(rename = "token_expiring")]
    TokenExpiring {
        /// In how many milliseconds it expires.
        expires_in_ms: u64,
    },
    /// The job is watched; its events follow.
    Watching {
        /// The job.
        job: JobId,
        /// The job's status when the watch started; absent while it has no event.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        status: Option<Status>,
    },
    /// All events that were stored before have been sent; the following ones are live.
    Live {
        /// The job.
        job: JobId,
    },
    /// Events that the log no longer has.
    Missing {
        /// The job.
        job: JobId,
        /// The first of them.
        from: Seq,
        /// The last of them.
        to: Seq,
        /// Why they are gone.
        reason: GapReason,
    },
    /// The job has ended and all of its events have been sent. The watch is over.
    End {
        /// The job.
        job: JobId,
    },
    /// The job is no longer watched.
    Unwatched {
        /// The job.
        job: JobId,
    },
    /// The job is submitted.
    #[schemars(transform = require_ref)]
    Submitted {
        /// The `ref` of the submit.
        #[serde(rename = "ref", default, skip_serializing_if = "Option::is_none")]
        #[schemars(required)]
        reference: Option<String>,
        /// The job.
        job: JobId,
        /// Its status: `queued`, unless it was submitted before.
        status: Status,
        /// A token that allows to watch this job and nothing else; only from an edge that signs
        /// tokens.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        watch_token: Option<BearerToken>,
    },
    /// The job's log has a request to cancel it.
    Cancelling {
        /// The `ref` of the cancel.
        #[serde(rename = "ref", default, skip_serializing_if = "Option::is_none")]
        reference: Option<String>,
        /// The job.
        job: JobId,
        /// The sequence number of the event that requests it.
        seq: Seq,
    },
    /// A frame was refused or its request failed; the connection continues unless a close follows.
    Error {
        /// The stable code.
        code: String,
        /// For people.
        message: String,
        /// The `ref` of the client's frame.
        #[serde(rename = "ref", default, skip_serializing_if = "Option::is_none")]
        reference: Option<String>,
        /// The job, as the client named it. For a `submit` with neither `id` nor `key`: the job that it
        /// may have started although it failed; repeat the `submit` with this `id`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        job: Option<String>,
        /// In how many seconds the same request may succeed; absent if it will not.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        retry_after: Option<u64>,
    },
}

/// Over a WebSocket every submit has a `ref`.
fn require_ref(schema: &mut Schema) {
    if let Some(Value::Array(required)) = schema.get_mut("required") {
        required.insert(1, "ref".into());
    }
}

impl ServerFrame {
    /// A frame that reports an error.
    pub fn error(code: Code, message: impl Into<String>, request: RequestRef) -> Self {
        let RequestRef { reference, job } = request;
        Self::Error {
            code: code.as_str().to_owned(),
            message: message.into(),
            reference,
            job,
            retry_after: code.retry_after_s(),
        }
    }

    /// The frame as MessagePack: a map with the names of the JSON object.
    pub fn to_msgpack(&self) -> Bytes {
        codec::to_msgpack(self)
            .unwrap_or_else(|_| unreachable!("strings and numbers are always MessagePack"))
    }

    /// The frame as JSON text.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self)
            .unwrap_or_else(|_| unreachable!("strings and numbers are always JSON"))
    }
}

/// Why events are gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum GapReason {
    /// They were older than the log's retention, or the log was full.
    Expired,
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn server_frames_have_the_names_of_the_protocol_in_both_encodings() {
        let job: JobId = "j1".parse().unwrap();
        let reference = Some("r".to_owned());
        let request = RequestRef {
            reference: None,
            job: Some("x".into()),
        };
        let later = ServerFrame::error(Code::Overloaded, "no", RequestRef::default());
        for (frame, expected) in [
            (
                ServerFrame::Missing {
                    job: job.clone(),
                    from: Seq(1),
                    to: Seq(9),
                    reason: GapReason::Expired,
                },
                json!({"op": "missing", "job": "j1", "from": 1, "to": 9, "reason": "expired"}),
            ),
            (
                ServerFrame::Watching {
                    job: job.clone(),
                    status: Some(Status::Running),
                },
                json!({"op": "watching", "job": "j1", "status": "running"}),
            ),
            (
                ServerFrame::Submitted {
                    reference: reference.clone(),
                    job: job.clone(),
                    status: Status::Queued,
                    watch_token: None,
                },
                json!({"op": "submitted", "ref": "r", "job": "j1", "status": "queued"}),
            ),
            (
                ServerFrame::Cancelling {
                    reference,
                    job,
                    seq: Seq(4),
                },
                json!({"op": "cancelling", "ref": "r", "job": "j1", "seq": 4}),
            ),
            (
                ServerFrame::Authenticated {
                    expires_in_ms: None,
                },
                json!({"op": "authenticated"}),
            ),
            (
                ServerFrame::TokenExpiring {
                    expires_in_ms: 29_500,
                },
                json!({"op": "token_expiring", "expires_in_ms": 29_500}),
            ),
            (
                ServerFrame::error(Code::BadJson, "no", request),
                json!({"op": "error", "code": "bad_json", "message": "no", "job": "x"}),
            ),
            (
                later,
                json!({"op": "error", "code": "overloaded", "message": "no", "retry_after": 1}),
            ),
        ] {
            let json: Value = serde_json::from_str(&frame.to_json()).unwrap();
            assert_eq!(json, expected);
            let msgpack: Value = rmp_serde::from_slice(&frame.to_msgpack()).unwrap();
            assert_eq!(msgpack, expected);
        }
    }
}
