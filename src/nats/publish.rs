//! Publishes to a stream, and classifies the result. It does not know jobs or events.

use async_nats::jetstream::ErrorCode;
use async_nats::{Client, HeaderMap, ToSubject};
use bytes::Bytes;
use serde::Deserialize;

use super::api::{self, ApiError, Unanswered};
use super::error::NatsError;
use crate::runtime::LazyTimer;
use crate::source::Unavailable;
use crate::wire::StreamSeq;

/// The result of a publish to a stream.
#[derive(Debug)]
pub enum Published {
    /// Stored at this stream sequence.
    Stored(StreamSeq),
    /// The subject's last message is not the expected one.
    WrongLast,
    /// Another publish to the subject, or with the same message id, is in flight: the same publish
    /// may succeed in a moment.
    InFlight,
    /// A message with this id was stored a short time ago, at this stream sequence. It may have been
    /// removed since.
    Duplicate(StreamSeq),
    /// The stream has a message of this subject, and accepts only one.
    SubjectTaken,
    /// The stream is full. In a cluster it may also have a message of the subject.
    Full,
    /// It was not stored and never can be, for this reason.
    Never(String),
    /// It was not stored, for a reason that may be temporary.
    Rejected(Unavailable),
    /// It is not known whether it was or will be stored.
    Unknown(Unavailable),
}

/// JetStream's answer to a publish.
#[derive(Deserialize)]
struct Ack {
    error: Option<ApiError>,
    seq: Option<StreamSeq>,
    #[serde(default)]
    duplicate: bool,
}

/// Publishes to a stream and waits for the ack. The timer is for one publish at a time.
pub(super) async fn publish(
    client: &Client,
    subject: impl ToSubject,
    headers: HeaderMap,
    payload: Bytes,
    timer: &mut LazyTimer,
) -> Published {
    let message = match api::send(client, subject, Some(headers), payload, timer).await {
        Ok(message) => message,
        Err(Unanswered::Unavailable(error)) => return Published::Unknown(error),
        Err(Unanswered::Unsendable(reason)) => return Published::Never(reason),
    };
    match serde_json::from_slice(&message.payload) {
        Ok(Ack {
            error: Some(error), ..
        }) => refused(error),
        Ok(Ack {
            seq: Some(stream_seq),
            duplicate: true,
            ..
        }) => Published::Duplicate(stream_seq),
        Ok(Ack {
            seq: Some(stream_seq),
            ..
        }) => Published::Stored(stream_seq),
        Ok(Ack { seq: None, .. }) => {
            Published::Unknown(Unavailable("an ack has no sequence".into()))
        }
        Err(error) => Published::Unknown(Unavailable(format!("invalid ack: {error}"))),
    }
}

/// Classifies the error with which the broker refused a publish.
fn refused(error: ApiError) -> Published {
    match error.code {
        ErrorCode::STREAM_WRONG_LAST_SEQUENCE => return Published::WrongLast,
        // "wrong last sequence" without a number: another publish to the subject is in flight.
        ErrorCode::STREAM_WRONG_LAST_SEQUENCE_CONSTANT
        | ErrorCode::STREAM_DUPLICATE_MESSAGE_CONFLICT => return Published::InFlight,
        _ => {}
    }
    let store = (error.code == ErrorCode::STREAM_STORE_FAILED)
        .then(|| store_failure(&error.description))
        .flatten();
    let is_permanent = matches!(
        error.code,
        ErrorCode::STREAM_MESSAGE_EXCEEDS_MAXIMUM
            | ErrorCode::STREAM_HEADER_EXCEEDS_MAXIMUM
            // A seal cannot be undone.
            | ErrorCode::STREAM_SEALED
    );
    // The server is overloaded, out of resources or without a quorum.
    let is_outage = error.status >= 500 || error.status == 429;
    let text = || NatsError::from(error).to_string();
    match store {
        Some(StoreFailure::SubjectTaken) => Published::SubjectTaken,
        Some(StoreFailure::Full) => Published::Full,
        Some(StoreFailure::TooLarge) => Published::Never(text()),
        None if is_permanent => Published::Never(text()),
        None if is_outage => Published::Unknown(Unavailable(text())),
        None => Published::Rejected(Unavailable(text())),
    }
}

/// Why a stream's store refused a message.
enum StoreFailure {
    SubjectTaken,
    Full,
    TooLarge,
}

/// Reads from the description why the store refused a message: these refusals have the same error
/// code (10077). The texts are as answered by nats-server 2.15.1. Any other text is an outage.
fn store_failure(description: &str) -> Option<StoreFailure> {
    match description {
        "maximum messages per subject exceeded" => Some(StoreFailure::SubjectTaken),
        "maximum messages exceeded" | "maximum bytes exceeded" => Some(StoreFailure::Full), // Not observed, but retrying it as an outage would never end.
        "message too large" => Some(StoreFailure::TooLarge),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(status: u16, code: u64, description: &str) -> Published {
        super::refused(ApiError {
            status,
            code: ErrorCode(code),
            description: description.to_owned(),
        })
    }

    #[test]
    fn permanent_errors_differ_from_temporary_ones() {
        for (status, code, description) in [
            (400, 10054, "message size exceeds maximum allowed"),
            (400, 10097, "header size exceeds maximum allowed of 64k"),
            (400, 10109, "invalid operation on sealed stream"),
            (503, 10077, "message too large"),
        ] {
            let outcome = refused(status, code, description);
            assert!(matches!(outcome, Published::Never(_)), "{code}");
        }
        for (status, code, description) in [
            (503, 10023, "insufficient resources"),
            (503, 10077, "store is closed"),
            (429, 10167, "too many requests"),
            (500, 1, "of a later version"),
        ] {
            let outcome = refused(status, code, description);
            assert!(matches!(outcome, Published::Unknown(_)), "{code}");
        }
        for code in [10002, 1] {
            let outcome = refused(400, code, "of a later version");
            assert!(matches!(outcome, Published::Rejected(_)), "{code}");
        }
    }

    #[test]
    fn a_full_stream_differs_from_a_taken_subject() {
        let full = |description| refused(503, 10077, description);
        assert!(matches!(full("maximum bytes exceeded"), Published::Full));
        assert!(matches!(full("maximum messages exceeded"), Published::Full));
        assert!(matches!(
            full("maximum messages per subject exceeded"),
            Published::SubjectTaken
        ));
    }

    #[test]
    fn a_lost_race_differs_from_a_publish_that_is_in_flight() {
        assert!(matches!(refused(400, 10071, ""), Published::WrongLast));
        assert!(matches!(refused(400, 10164, ""), Published::InFlight));
        assert!(matches!(refused(409, 10158, ""), Published::InFlight));
    }
}
