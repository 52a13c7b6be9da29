//! Requests to JetStream and their answers. It does not know jobs or events.

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;

use async_nats::jetstream::ErrorCode;
use async_nats::{Client, HeaderMap, Message, RequestErrorKind, Subscriber, ToSubject};
use bytes::Bytes;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use super::error::{NatsError, unavailable};
use super::names;
use crate::config::REQUEST_WAIT;
use crate::runtime::LazyTimer;
use crate::source::Unavailable;

/// Why a request was not answered.
pub(super) enum Unanswered {
    /// Another try may be answered.
    Unavailable(Unavailable),
    /// The client library refuses to send it, for this reason.
    Unsendable(String),
}

/// Sends a request and waits for its answer, at most [`REQUEST_WAIT`].
pub(super) async fn request(
    client: &Client,
    subject: String,
    headers: Option<HeaderMap>,
    payload: Bytes,
) -> Result<Message, Unavailable> {
    let mut timer = LazyTimer::default();
    send(client, subject, headers, payload, &mut timer)
        .await
        .map_err(|unanswered| match unanswered {
            Unanswered::Unavailable(error) => error,
            Unanswered::Unsendable(reason) => Unavailable(reason),
        })
}

/// As [`request`], but reports a request that can never be sent. A timer that is used for many
/// requests, one after the other, is set once in [`REQUEST_WAIT`].
pub(super) async fn send(
    client: &Client,
    subject: impl ToSubject,
    headers: Option<HeaderMap>,
    payload: Bytes,
    timer: &mut LazyTimer,
) -> Result<Message, Unanswered> {
    let mut request = async_nats::Request::new().payload(payload).timeout(None);
    if let Some(headers) = headers {
        request = request.headers(headers);
    }
    // The library's own time limit would not include its queue: while the connection is down and
    // the queue is full, it waits without a limit.
    let too_late = Instant::now() + REQUEST_WAIT;
    let mut answer = pin!(client.send_request(subject, request));
    let answer = poll_fn(|cx| match answer.as_mut().poll(cx) {
        Poll::Ready(answer) => Poll::Ready(Some(answer)),
        Poll::Pending => timer.poll(too_late, cx).map(|()| None),
    });
    match answer.await {
        Some(Ok(message)) => Ok(message),
        Some(Err(error)) => Err(match error.kind() {
            RequestErrorKind::NoResponders => Unanswered::Unavailable(unavailable(
                "no server answers: JetStream is off, or the stream is missing or has no leader",
            )),
            RequestErrorKind::MaxPayloadExceeded | RequestErrorKind::InvalidSubject => {
                Unanswered::Unsendable(error.to_string())
            }
            RequestErrorKind::TimedOut | RequestErrorKind::Other => {
                Unanswered::Unavailable(unavailable(error))
            }
        }),
        None => Err(Unanswered::Unavailable(unavailable("no answer in time"))),
    }
}

/// Subscribes to a subject.
pub(super) async fn subscribe(client: &Client, subject: String) -> Result<Subscriber, Unavailable> {
    client.subscribe(subject).await.map_err(unavailable)
}

/// An error that JetStream returns.
#[derive(Debug, Deserialize)]
pub(super) struct ApiError {
    /// The class of the error, as an HTTP status.
    #[serde(default, rename = "code")]
    pub(super) status: u16,
    #[serde(default, rename = "err_code")]
    pub(super) code: ErrorCode,
    #[serde(default)]
    pub(super) description: String,
}

impl From<ApiError> for NatsError {
    fn from(error: ApiError) -> Self {
        let ApiError {
            status,
            code,
            description,
        } = error;
        Self::Api {
            status,
            code,
            description,
        }
    }
}

/// An answer of JetStream's API.
enum ApiAnswer<T> {
    Error(ApiError),
    Value(T),
}

impl<T: DeserializeOwned> ApiAnswer<T> {
    /// Parses the answer twice, for an error first: an untagged enum would buffer all of it.
    fn parse(payload: &[u8]) -> Result<Self, serde_json::Error> {
        #[derive(Deserialize)]
        struct Failed {
            error: Option<ApiError>,
        }
        match serde_json::from_slice(payload)? {
            Failed { error: Some(error) } => Ok(Self::Error(error)),
            Failed { error: None } => serde_json::from_slice(payload).map(Self::Value),
        }
    }
}

/// Sends an API request; an error in the answer becomes [`NatsError::Api`].
pub(super) async fn call<T: DeserializeOwned>(
    client: &Client,
    request: &str,
    body: impl Into<Bytes>,
) -> Result<T, NatsError> {
    let message = self::request(client, names::api(request), None, body.into()).await?;
    match ApiAnswer::parse(&message.payload) {
        Ok(ApiAnswer::Value(value)) => Ok(value),
        Ok(ApiAnswer::Error(error)) => Err(error.into()),
        Err(error) => Err(Unavailable(format!("invalid answer: {error}")).into()),
    }
}

/// As [`call`], but the error code `absent` becomes `None`.
pub(super) async fn find<T: DeserializeOwned>(
    client: &Client,
    request: &str,
    body: impl Into<Bytes>,
    absent: ErrorCode,
) -> Result<Option<T>, NatsError> {
    match call(client, request, body).await {
        Ok(value) => Ok(Some(value)),
        Err(NatsError::Api { code, .. }) if code == absent => Ok(None),
        Err(error) => Err(error),
    }
}
