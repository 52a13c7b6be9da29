//! Requests to JetStream and their answers, as JSON. It knows no job and no event.

use std::time::Duration;

use async_nats::{Client, HeaderMap, RequestErrorKind};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::Value;
use tokio::time::timeout;

use super::error::{Error, code};
use super::names;
use crate::config::REQUEST_WAIT;
use crate::source::Unavailable;

/// Why a request has no answer.
enum Unanswered {
    /// It may have one later.
    Unavailable(Unavailable),
    /// The client library does not send it, and never will.
    Unsendable(String),
}

/// Sends one request and waits for its one answer, [`REQUEST_WAIT`] at the most.
pub(super) async fn request(
    client: &Client,
    subject: String,
    headers: Option<HeaderMap>,
    payload: Bytes,
) -> Result<async_nats::Message, Unavailable> {
    send(client, subject, headers, payload)
        .await
        .map_err(|unanswered| match unanswered {
            Unanswered::Unavailable(error) => error,
            Unanswered::Unsendable(reason) => Unavailable(reason),
        })
}

async fn send(
    client: &Client,
    subject: String,
    headers: Option<HeaderMap>,
    payload: Bytes,
) -> Result<async_nats::Message, Unanswered> {
    let unavailable = |text: String| Unanswered::Unavailable(Unavailable(text));
    let mut request = async_nats::Request::new()
        .payload(payload)
        .timeout(Some(REQUEST_WAIT));
    if let Some(headers) = headers {
        request = request.headers(headers);
    }
    // While the connection is down the library queues requests, and past its queue it waits without a limit.
    let limit = REQUEST_WAIT + Duration::from_millis(500);
    match timeout(limit, client.send_request(subject, request)).await {
        Ok(Ok(message)) => Ok(message),
        Ok(Err(error)) => Err(match error.kind() {
            RequestErrorKind::NoResponders => unavailable(
                "nobody answers: JetStream is off, the stream is missing or has no leader".into(),
            ),
            RequestErrorKind::MaxPayloadExceeded | RequestErrorKind::InvalidSubject => {
                Unanswered::Unsendable(error.to_string())
            }
            RequestErrorKind::TimedOut | RequestErrorKind::Other => unavailable(error.to_string()),
        }),
        Err(_) => Err(unavailable("no answer in time".into())),
    }
}

#[derive(Deserialize)]
struct Answer {
    error: Option<ApiError>,
}

#[derive(Deserialize)]
struct ApiError {
    #[serde(default)]
    code: u16,
    #[serde(default)]
    err_code: u64,
    #[serde(default)]
    description: String,
}

/// Sends an API request with a JSON body; an `error` in the answer becomes [`Error::Api`].
pub(super) async fn call(client: &Client, subject: &str, body: &Value) -> Result<Value, Error> {
    let payload = if body.is_null() {
        Bytes::new()
    } else {
        body.to_string().into()
    };
    parse(
        &request(client, names::api(subject), None, payload)
            .await?
            .payload,
    )
}

/// [`call`] for what may not exist: the given error codes become `None`.
pub(super) async fn find(
    client: &Client,
    subject: &str,
    body: &Value,
    absent: &[u64],
) -> Result<Option<Value>, Error> {
    match call(client, subject, body).await {
        Ok(value) => Ok(Some(value)),
        Err(Error::Api { code, .. }) if absent.contains(&code) => Ok(None),
        Err(error) => Err(error),
    }
}

fn parse(payload: &[u8]) -> Result<Value, Error> {
    let value: Value = serde_json::from_slice(payload)
        .map_err(|error| Unavailable(format!("an answer that is no JSON: {error}")))?;
    match serde_json::from_value::<Answer>(value.clone()) {
        Ok(Answer {
            error:
                Some(ApiError {
                    code,
                    err_code,
                    description,
                }),
        }) => Err(Error::Api {
            status: code,
            code: err_code,
            description,
        }),
        _ => Ok(value),
    }
}

/// How a publish ended.
#[derive(Debug)]
pub(super) enum Published {
    /// Stored at this place.
    Stored(u64),
    /// The broker has a message with this id already.
    Duplicate,
    /// The fence holds: the subject's last sequence is another.
    Refused,
    /// Another publish to the subject, or with the same id, is in flight: the same may do in a moment.
    InFlight,
    /// The stream is full and takes nothing new. On a cluster it may also have a message of the subject.
    Full,
    /// The stream has a message of the subject, and takes no second one.
    Taken,
    /// It was not stored, and the same publish can never be.
    Never(String),
    /// It was not stored, for a reason that may pass or not.
    Rejected(Unavailable),
    /// Nobody knows whether it was or will be stored.
    Unsure(Unavailable),
}

/// Publishes to a stream and waits for the ack.
pub(super) async fn publish(
    client: &Client,
    subject: String,
    headers: HeaderMap,
    payload: Bytes,
) -> Published {
    let answer = match send(client, subject, Some(headers), payload).await {
        Ok(answer) => parse(&answer.payload),
        Err(Unanswered::Unavailable(error)) => return Published::Unsure(error),
        Err(Unanswered::Unsendable(reason)) => return Published::Never(reason),
    };
    match answer {
        Ok(ack) if ack["duplicate"] == true => Published::Duplicate,
        Ok(ack) => match ack["seq"].as_u64() {
            Some(stream_seq) => Published::Stored(stream_seq),
            None => Published::Unsure(Unavailable("an ack without a sequence".into())),
        },
        Err(Error::Api {
            code: code::WRONG_LAST_SEQUENCE,
            ..
        }) => Published::Refused,
        Err(Error::Api {
            code: code::IN_FLIGHT | code::DUPLICATE_IN_FLIGHT,
            ..
        }) => Published::InFlight,
        Err(Error::Api {
            status,
            code,
            description,
        }) => refused(status, code, description),
        Err(Error::Unavailable(error)) => Published::Unsure(error),
        Err(error) => Published::Unsure(Unavailable(error.to_string())),
    }
}

/// What it means that the broker refused a publish with this code.
fn refused(status: u16, code: u64, description: String) -> Published {
    if code == code::NOT_STORED {
        if description == code::FULL_SUBJECT {
            return Published::Taken;
        }
        if code::FULL.contains(&description.as_str()) {
            return Published::Full;
        }
    }
    let permanent = code::PERMANENT.contains(&code)
        || code == code::NOT_STORED && description == code::TOO_LARGE_TO_STORE;
    // A server that is overloaded, out of resources or without a quorum says so: that is an outage.
    let outage = status >= 500 || status == 429;
    let text = Error::Api {
        status,
        code,
        description,
    }
    .to_string();
    if permanent {
        Published::Never(text)
    } else if outage {
        Published::Unsure(Unavailable(text))
    } else {
        Published::Rejected(Unavailable(text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_never_be_stored_differs_from_what_may_be_stored_later() {
        let refused =
            |status, code, description: &str| refused(status, code, description.to_owned());
        for (status, code, description) in [
            (400, 10054, "message size exceeds maximum allowed"),
            (400, 10097, "header size exceeds maximum allowed of 64k"),
            (400, 10109, "invalid operation on sealed stream"),
            (503, 10077, "message too large"),
        ] {
            assert!(
                matches!(refused(status, code, description), Published::Never(_)),
                "{code}"
            );
        }
        for (status, code, description) in [
            (503, 10023, "insufficient resources"),
            (503, 10077, "store is closed"),
            (429, 10167, "too many requests"),
            (500, 1, "of a later version"),
        ] {
            assert!(
                matches!(refused(status, code, description), Published::Unsure(_)),
                "{code}"
            );
        }
        for code in [10002, 1] {
            assert!(
                matches!(
                    refused(400, code, "of a later version"),
                    Published::Rejected(_)
                ),
                "{code}"
            );
        }
        assert!(matches!(
            refused(503, 10077, "maximum bytes exceeded"),
            Published::Full
        ));
        assert!(matches!(
            refused(503, 10077, "maximum messages exceeded"),
            Published::Full
        ));
        assert!(matches!(
            refused(503, 10077, "maximum messages per subject exceeded"),
            Published::Taken
        ));
    }
}
