//! The one table of public codes: what went wrong, as HTTP status, close code and advice. It holds no causes.

/// What went wrong, as every front door tells it. The text of a code is stable; programs may rely on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Code {
    /// The job id has a forbidden character or length.
    BadJobId,
    /// The kind has a forbidden character or length.
    BadKind,
    /// The body or frame is no JSON.
    BadJson,
    /// The frame is no MessagePack.
    BadMsgPack,
    /// The body, frame or query lacks a field, or one has another shape.
    BadRequest,
    /// The frame's `op` is none that this edge knows.
    UnknownOp,
    /// No worker has ever served this kind.
    UnknownKind,
    /// The body, frame or input is larger than the limit.
    TooLarge,
    /// The body is not `application/json`.
    UnsupportedMediaType,
    /// The cursor is no text that an edge gave out.
    BadCursor,
    /// The page is none that a listing of this log gave out.
    BadPage,
    /// The cursor names an event of another job.
    CursorOfOtherJob,
    /// The log has another event where the cursor's should be: the log was rebuilt. Start from the first event.
    CursorNotInLog,
    /// `after` is larger than the number of the job's last event.
    AfterTheEnd,
    /// There is no such job, or all of it has expired.
    JobNotFound,
    /// The id names another job.
    JobExists,
    /// The job had ended before it could be cancelled.
    JobEnded,
    /// This connection watches the job already.
    AlreadyWatching,
    /// This connection does not watch the job.
    NotWatching,
    /// This connection watches as many jobs as it may.
    TooManyWatches,
    /// This connection has as many requests under way as it may.
    TooManyRequests,
    /// There is no such address.
    NotFound,
    /// The address does not take this method.
    MethodNotAllowed,
    /// None of the offered subprotocols is known.
    BadSubprotocol,
    /// The client speaks another version of the WebSocket protocol.
    UpgradeRequired,
    /// A frame breaks the WebSocket protocol.
    ProtocolError,
    /// A text message is not UTF-8.
    BadUtf8,
    /// The idempotency key was used for another submission.
    KeyReused,
    /// The edge does not call back to this host.
    CallbackNotAllowed,
    /// The workers of this kind do not do what the job asks for.
    NotSupportedByKind,
    /// The queue of this kind is full.
    QueueFull,
    /// The edge holds as much for its clients as it may.
    Overloaded,
    /// The log cannot be read or written for the moment.
    Unavailable,
    /// The edge is stopping; another one, or the next one, serves.
    Restarting,
    /// Nothing was heard from the client for too long.
    Timeout,
    /// A fault of the edge.
    Internal,
}

/// One line of the table.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// The stable text.
    pub code: &'static str,
    /// The HTTP status.
    pub status: u16,
    /// The WebSocket close code, for what ends a connection.
    pub close: Option<u16>,
    /// Whether the same request may do better later.
    pub retry: bool,
    /// One sentence for people.
    pub text: &'static str,
}

const fn row(
    code: &'static str,
    status: u16,
    close: Option<u16>,
    retry: bool,
    text: &'static str,
) -> Row {
    Row {
        code,
        status,
        close,
        retry,
        text,
    }
}

impl Code {
    /// Every code, in the order of the table.
    pub const ALL: &[Self] = &[
        Self::BadJobId,
        Self::BadKind,
        Self::BadJson,
        Self::BadMsgPack,
        Self::BadRequest,
        Self::UnknownOp,
        Self::UnknownKind,
        Self::TooLarge,
        Self::UnsupportedMediaType,
        Self::BadCursor,
        Self::BadPage,
        Self::CursorOfOtherJob,
        Self::CursorNotInLog,
        Self::AfterTheEnd,
        Self::JobNotFound,
        Self::JobExists,
        Self::JobEnded,
        Self::AlreadyWatching,
        Self::NotWatching,
        Self::TooManyWatches,
        Self::TooManyRequests,
        Self::NotFound,
        Self::MethodNotAllowed,
        Self::BadSubprotocol,
        Self::UpgradeRequired,
        Self::ProtocolError,
        Self::BadUtf8,
        Self::KeyReused,
        Self::CallbackNotAllowed,
        Self::NotSupportedByKind,
        Self::QueueFull,
        Self::Overloaded,
        Self::Unavailable,
        Self::Restarting,
        Self::Timeout,
        Self::Internal,
    ];

    /// The line of this code.
    #[expect(clippy::too_many_lines, reason = "a table")]
    pub const fn row(self) -> Row {
        match self {
            Self::BadJobId => row(
                "bad_job_id",
                400,
                None,
                false,
                "A job id is 1 to 64 characters out of A-Z a-z 0-9 _ -.",
            ),
            Self::BadKind => row(
                "bad_kind",
                400,
                None,
                false,
                "A kind is 1 to 64 characters out of A-Z a-z 0-9 _ -.",
            ),
            Self::BadJson => row("bad_json", 400, None, false, "This is not JSON."),
            Self::BadMsgPack => row(
                "bad_msgpack",
                400,
                None,
                false,
                "This is not MessagePack, or cannot be said in JSON.",
            ),
            Self::BadRequest => row(
                "bad_request",
                400,
                None,
                false,
                "A field is missing or has another shape.",
            ),
            Self::UnknownOp => row(
                "unknown_op",
                400,
                None,
                false,
                "This edge does not know the op.",
            ),
            Self::UnknownKind => row(
                "unknown_kind",
                422,
                None,
                false,
                "No worker has ever served this kind.",
            ),
            Self::TooLarge => row(
                "too_large",
                413,
                Some(1009),
                false,
                "Larger than the limit.",
            ),
            Self::UnsupportedMediaType => row(
                "unsupported_media_type",
                415,
                Some(1003),
                false,
                "Send application/json, or the messages of the subprotocol: text for JSON, binary for MessagePack.",
            ),
            Self::BadCursor => row(
                "bad_cursor",
                400,
                None,
                false,
                "This is no cursor that an edge gave out.",
            ),
            Self::BadPage => row(
                "bad_page",
                400,
                None,
                false,
                "This is no page that a listing of this log gave out.",
            ),
            Self::CursorOfOtherJob => row(
                "cursor_of_other_job",
                400,
                None,
                false,
                "The cursor names an event of another job.",
            ),
            Self::CursorNotInLog => row(
                "cursor_not_in_log",
                410,
                None,
                false,
                "The log was rebuilt and does not hold the cursor's event; start from the first event.",
            ),
            Self::AfterTheEnd => row(
                "after_the_end",
                409,
                None,
                false,
                "The job's log has fewer events than `after` says; start from the first event.",
            ),
            Self::JobNotFound => row(
                "job_not_found",
                404,
                None,
                false,
                "There is no such job, or all of it has expired.",
            ),
            Self::JobExists => row("job_exists", 409, None, false, "The id names another job."),
            Self::JobEnded => row("job_ended", 409, None, false, "The job has ended already."),
            Self::AlreadyWatching => row(
                "already_watching",
                409,
                None,
                false,
                "This connection watches the job already.",
            ),
            Self::NotWatching => row(
                "not_watching",
                404,
                None,
                false,
                "This connection does not watch the job.",
            ),
            Self::TooManyWatches => row(
                "too_many_watches",
                429,
                None,
                false,
                "This connection watches as many jobs as it may.",
            ),
            Self::TooManyRequests => row(
                "too_many_requests",
                429,
                None,
                true,
                "This connection has as many requests under way as it may; wait for an answer.",
            ),
            Self::NotFound => row(
                "not_found",
                404,
                None,
                false,
                "There is nothing at this address.",
            ),
            Self::MethodNotAllowed => row(
                "method_not_allowed",
                405,
                None,
                false,
                "This address does not take the method.",
            ),
            Self::BadSubprotocol => row(
                "bad_subprotocol",
                400,
                None,
                false,
                "Offer the subprotocol tailwater.v1.json or tailwater.v1.msgpack, or none.",
            ),
            Self::UpgradeRequired => row(
                "upgrade_required",
                426,
                None,
                false,
                "Use version 13 of the WebSocket protocol.",
            ),
            Self::ProtocolError => row(
                "protocol_error",
                400,
                Some(1002),
                false,
                "A frame breaks the WebSocket protocol (RFC 6455).",
            ),
            Self::BadUtf8 => row(
                "bad_utf8",
                400,
                Some(1007),
                false,
                "A text message is not UTF-8.",
            ),
            Self::KeyReused => row(
                "key_reused",
                422,
                None,
                false,
                "The idempotency key was used for another submission.",
            ),
            Self::CallbackNotAllowed => row(
                "callback_not_allowed",
                422,
                None,
                false,
                "Callbacks to this host are not allowed.",
            ),
            Self::NotSupportedByKind => row(
                "not_supported_by_kind",
                422,
                None,
                false,
                "The workers of this kind do not do what the job asks for.",
            ),
            Self::QueueFull => row(
                "queue_full",
                503,
                None,
                true,
                "The queue is full; try again later.",
            ),
            Self::Overloaded => row(
                "overloaded",
                503,
                Some(1013),
                true,
                "This edge is overloaded; try again later.",
            ),
            Self::Unavailable => row(
                "unavailable",
                503,
                Some(1013),
                true,
                "The log is out of reach for the moment.",
            ),
            Self::Restarting => row(
                "restarting",
                503,
                Some(1012),
                true,
                "This edge is stopping; connect again.",
            ),
            Self::Timeout => row(
                "timeout",
                408,
                Some(1001),
                true,
                "Nothing was heard for too long.",
            ),
            Self::Internal => row("internal", 500, Some(1011), true, "A fault of the edge."),
        }
    }

    /// The stable text.
    pub const fn as_str(self) -> &'static str {
        self.row().code
    }
}

/// Whether a client should connect again after a connection was closed with `code`; 1006 is a connection that was
/// cut without a close frame.
pub const fn may_reconnect(code: u16) -> bool {
    matches!(code, 1001 | 1006 | 1011 | 1012 | 1013)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_code_has_its_own_text_and_stands_in_the_protocol_document() {
        let document = include_str!("PROTOCOL.md");
        let mut seen = HashSet::new();
        for code in Code::ALL.iter().copied() {
            let row = code.row();
            assert!(seen.insert(row.code), "{} stands twice", row.code);
            assert!(
                document.contains(&format!("`{}`", row.code)),
                "{} is not in PROTOCOL.md",
                row.code
            );
            if let Some(close) = row.close {
                assert!(
                    document.contains(&format!("| {close} |")),
                    "{close} is not in PROTOCOL.md"
                );
                assert_eq!(
                    may_reconnect(close),
                    row.retry,
                    "the table and may_reconnect differ on {close}"
                );
            }
        }
    }
}
