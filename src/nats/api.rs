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

/// Sends one request and waits for its one answer, [`REQUEST_WAIT`] at the most.
pub(super) async fn request(
    client: &Client,
    subject: String,
    headers: Option<HeaderMap>,
    payload: Bytes,
) -> Result<async_nats::Message, Unavailable> {
    let mut request = async_nats::Request::new().payload(payload).timeout(Some(REQUEST_WAIT));
    if let Some(headers) = headers {
        request = request.headers(headers);
    }
    // While the connection is down the library queues requests, and past its queue it waits without a limit.
    let limit = REQUEST_WAIT + Duration::from_millis(500);
    match timeout(limit, client.send_request(subject, request)).await {
        Ok(Ok(message)) => Ok(message),
        Ok(Err(error)) if error.kind() == RequestErrorKind::NoResponders => Err(Unavailable(
            "nobody answers: JetStream is off, the stream is missing or has no leader".into(),
        )),
        Ok(Err(error)) => Err(Unavailable(error.to_string())),
        Err(_) => Err(Unavailable("no answer in time".into())),
    }
}

#[derive(Deserialize)]
struct Answer {
    error: Option<ApiError>,
}

#[derive(Deserialize)]
struct ApiError {
    #[serde(default)]
    err_code: u64,
    #[serde(default)]
    description: String,
}

/// Sends an API request with a JSON body; an `error` in the answer becomes [`Error::Api`].
pub(super) async fn call(client: &Client, subject: &str, body: &Value) -> Result<Value, Error> {
    let payload = if body.is_null() { Bytes::new() } else { body.to_string().into() };
    parse(&request(client, names::api(subject), None, payload).await?.payload)
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
        Ok(Answer { error: Some(ApiError { err_code, description }) }) => {
            Err(Error::Api { code: err_code, description })
        }
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
    let answer = match request(client, subject, Some(headers), payload).await {
        Ok(answer) => parse(&answer.payload),
        Err(error) => return Published::Unsure(error),
    };
    match answer {
        Ok(ack) if ack["duplicate"] == true => Published::Duplicate,
        Ok(ack) => match ack["seq"].as_u64() {
            Some(pos) => Published::Stored(pos),
            None => Published::Unsure(Unavailable("an ack without a sequence".into())),
        },
        Err(Error::Api { code: code::WRONG_LAST_SEQUENCE, .. }) => Published::Refused,
        Err(Error::Api { code: code::IN_FLIGHT | code::DUPLICATE_IN_FLIGHT, .. }) => Published::InFlight,
        Err(Error::Api { code, description }) if code::FULL.contains(&code) => {
            if description.contains(code::OF_A_SUBJECT) { Published::Taken } else { Published::Full }
        }
        Err(error) => Published::Unsure(Unavailable(error.to_string())),
    }
}
