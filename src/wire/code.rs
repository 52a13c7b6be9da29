//! The table of public codes: HTTP status, close code and advice for every error.

use super::limits::{RESUBMIT_AFTER_S, RETRY_AFTER_S};

/// The close code that means "try again later".
const TRY_AGAIN_LATER: u16 = 1013;

/// The public description of a [`Code`].
#[derive(Clone, Copy, Debug)]
pub struct CodeInfo {
    /// The stable name, for programs.
    pub code: &'static str,
    /// The HTTP status.
    pub status: u16,
    /// The WebSocket close code; `None` for an error that does not end the connection.
    pub close: Option<u16>,
    /// Whether the same request may succeed later.
    pub retry: bool,
    /// What is wrong and what to do, for people.
    pub text: &'static str,
}

/// Defines [`Code`] from the table: name, code, HTTP status, close code, retry, text.
macro_rules! codes {
    ($($name:ident: $code:literal, $status:literal, $close:expr, $retry:literal, $text:literal;)*) => {
        /// What went wrong, the same on every transport.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Code {
            $(#[doc = $text] $name,)*
        }

        impl Code {
            /// Every code, in the order of the table.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// The public description of this code.
            pub const fn info(self) -> CodeInfo {
                let (code, status, close, retry, text) = match self {
                    $(Self::$name => ($code, $status, $close, $retry, $text),)*
                };
                CodeInfo { code, status, close, retry, text }
            }
        }
    };
}

codes! {
    BadJobId: "bad_job_id", 400, None, false,
        "Job ids are 1 to 64 characters of A-Z a-z 0-9 _ -, optionally after the job's kind and a colon.";
    BadKind: "bad_kind", 400, None, false,
        "Kinds are 1 to 64 characters of A-Z a-z 0-9 _ -.";
    BadJson: "bad_json", 400, None, false,
        "Not valid JSON.";
    BadMsgPack: "bad_msgpack", 400, None, false,
        "Not valid MessagePack, or a value that JSON cannot express.";
    BadRequest: "bad_request", 400, None, false,
        "A field is missing, unknown or has the wrong type.";
    UnknownOp: "unknown_op", 400, None, false,
        "The edge does not know this `op`.";
    UnknownKind: "unknown_kind", 422, None, false,
        "No worker has ever served this kind.";
    TooLarge: "too_large", 413, Some(1009), false,
        "Larger than the limit.";
    UnsupportedMediaType: "unsupported_media_type", 415, Some(1003), false,
        "Send application/json over HTTP; over WebSocket send text for JSON, binary for MessagePack.";
    BadCursor: "bad_cursor", 400, None, false,
        "Invalid cursor: it was not issued by Tailwater.";
    BadPage: "bad_page", 400, None, false,
        "Invalid page token: it was not issued for this log.";
    CursorOfOtherJob: "cursor_of_other_job", 400, None, false,
        "The cursor belongs to another job.";
    CursorNotInLog: "cursor_not_in_log", 410, None, false,
        "The log no longer holds the cursor's event. Start from the first event.";
    AfterTheEnd: "after_the_end", 409, None, false,
        "The log has fewer events than `after` says. Start from the first event.";
    JobNotFound: "job_not_found", 404, None, false,
        "The job does not exist, or all of its events have expired.";
    JobExists: "job_exists", 409, None, false,
        "The id belongs to another job. Use a new id.";
    JobRemoved: "job_removed", 409, None, true,
        "A job with this id or key was submitted a short time ago and is not stored any more. Use another one, or try again later.";
    JobEnded: "job_ended", 409, None, false,
        "The job has already ended.";
    JobNotEnded: "job_not_ended", 409, None, false,
        "The job has not ended. Cancel it, or wait for its end.";
    AlreadyWatching: "already_watching", 409, None, false,
        "This connection already watches the job.";
    NotWatching: "not_watching", 404, None, false,
        "This connection does not watch the job.";
    TooManyWatches: "too_many_watches", 429, None, false,
        "This connection watches too many jobs. Unwatch one, or open another connection.";
    TooManyRequests: "too_many_requests", 429, None, true,
        "This connection has too many requests in progress. Wait for an answer.";
    RateLimited: "rate_limited", 429, Some(1013), true,
        "Too many connections, submissions or running jobs of this client. Try again later.";
    Unauthorized: "unauthorized", 401, Some(4401), false,
        "A valid token is required.";
    TokenExpired: "token_expired", 401, Some(4401), false,
        "The token has expired. Get a new one.";
    TokenRevoked: "token_revoked", 401, Some(4401), false,
        "The token was revoked. Get a new one.";
    Forbidden: "forbidden", 403, Some(4403), false,
        "The token does not allow this.";
    OriginNotAllowed: "origin_not_allowed", 403, None, false,
        "This edge does not allow pages of this origin. Start it with --allow-origin.";
    HostNotAllowed: "host_not_allowed", 421, None, false,
        "This edge does not serve this host name. Start it with --public-host.";
    TokenInUrl: "token_in_url", 400, None, false,
        "A token must not be in a URL. Send it in the Authorization header, or get a ticket.";
    NotFound: "not_found", 404, None, false,
        "Nothing is served at this address.";
    MethodNotAllowed: "method_not_allowed", 405, None, false,
        "This address does not support the method.";
    BadSubprotocol: "bad_subprotocol", 400, None, false,
        "Offer the subprotocol tailwater.v1.json or tailwater.v1.msgpack, or none.";
    UpgradeRequired: "upgrade_required", 426, None, false,
        "Use version 13 of the WebSocket protocol.";
    ProtocolError: "protocol_error", 400, Some(1002), false,
        "A frame violates the WebSocket protocol (RFC 6455).";
    BadUtf8: "bad_utf8", 400, Some(1007), false,
        "A text message is not UTF-8.";
    KeyReused: "key_reused", 422, None, false,
        "The idempotency key was used for another submission. Use a new key.";
    CallbackNotAllowed: "callback_not_allowed", 422, None, false,
        "This edge does not allow callbacks to this host.";
    NotSupportedByKind: "not_supported_by_kind", 422, None, false,
        "The workers of this kind do not support what the job asks for.";
    QueueFull: "queue_full", 503, None, true,
        "The queue is full. Try again later.";
    Overloaded: "overloaded", 503, Some(1013), true,
        "This edge is overloaded. Try again later.";
    Unavailable: "unavailable", 503, Some(1013), true,
        "The log cannot be reached. Try again later.";
    Restarting: "restarting", 503, Some(1012), true,
        "This edge is stopping. Connect again.";
    Timeout: "timeout", 408, Some(1001), true,
        "The client was silent for too long.";
    Internal: "internal", 500, Some(1011), true,
        "Internal error of the edge. Try again later.";
}

impl Code {
    /// The stable name.
    pub const fn as_str(self) -> &'static str {
        self.info().code
    }

    /// In how many seconds the same request may succeed; `None` if it will not.
    pub const fn retry_after_s(self) -> Option<u64> {
        if matches!(self, Self::JobRemoved) {
            Some(RESUBMIT_AFTER_S)
        } else if self.info().retry {
            Some(RETRY_AFTER_S)
        } else {
            None
        }
    }

    /// Whether a connection that it ends should be opened again, but not at once.
    pub const fn is_try_again_later(self) -> bool {
        matches!(self.info().close, Some(TRY_AGAIN_LATER))
    }

    /// The reason of the close that it causes: its name and, with 1013, in how many seconds to come
    /// back.
    pub fn close_reason(self) -> String {
        let name = self.as_str();
        match self.retry_after_s() {
            Some(seconds) if self.is_try_again_later() => format!("{name}; retry_after={seconds}"),
            Some(_) | None => name.to_owned(),
        }
    }
}

/// Whether a client should reconnect after a close with `code`. 1006 means that the connection was
/// cut without a close frame.
pub const fn may_reconnect(code: u16) -> bool {
    matches!(code, 1001 | 1006 | 1011 | 1012 | 1013)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_code_is_unique_and_documented_in_the_protocol() {
        let document = include_str!("PROTOCOL.md");
        let mut seen = HashSet::new();
        for code in Code::ALL.iter().copied() {
            let info = code.info();
            assert!(seen.insert(info.code), "{} is listed twice", info.code);
            assert!(
                document.contains(&format!("`{}`", info.code)),
                "{} is not in PROTOCOL.md",
                info.code
            );
            if let Some(close) = info.close {
                assert!(
                    document.contains(&format!("| {close} |")),
                    "{close} is not in PROTOCOL.md"
                );
                assert_eq!(
                    may_reconnect(close),
                    info.retry,
                    "the table and may_reconnect differ on {close}"
                );
            }
        }
    }

    #[test]
    fn only_a_code_whose_request_may_succeed_later_says_when() {
        for code in Code::ALL.iter().copied() {
            let seconds = if code == Code::JobRemoved {
                RESUBMIT_AFTER_S
            } else {
                RETRY_AFTER_S
            };
            let after = code.info().retry.then_some(seconds);
            assert_eq!(code.retry_after_s(), after, "{}", code.as_str());
        }
    }

    #[test]
    fn a_close_with_try_again_later_says_when() {
        let mut later = Vec::new();
        for code in Code::ALL.iter().copied() {
            let name = code.as_str();
            let reason = code.close_reason();
            if code.info().close == Some(1013) {
                assert_eq!(reason, format!("{name}; retry_after=1"));
                later.push(name);
            } else {
                assert_eq!(reason, name);
            }
            // A close frame has room for 123 bytes of text.
            assert!(reason.len() <= 123, "{reason}");
        }
        assert_eq!(later, ["rate_limited", "overloaded", "unavailable"]);
    }
}
