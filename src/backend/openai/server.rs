//! Sends one request to a model server and outputs the answer as it arrives. It does not repeat
//! requests.

use std::fmt;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use reqwest::{Client, Response};
use secrecy::{ExposeSecret as _, SecretString};
use tokio::time::Instant;
use url::Url;

use super::address::chat_completions;
use super::body::AnswerBody;
use super::fault::{Fault, stream_cut};
use super::request::ChatRequest;
use super::server_error::ServerError;
use crate::backend::http::{self, AskedServer, NoClient, header};
use crate::backend::{Content, Failure, FailureCode, Finish, Output, Retry, Stopped};

/// Why a server cannot be asked.
#[derive(Debug, thiserror::Error)]
pub enum OpenAiError {
    /// The base URL is invalid.
    #[error("the base URL must be an http or https address without user and password")]
    BadBaseUrl,
    /// No header can carry the key.
    #[error("the API key has characters that an HTTP header cannot have")]
    BadKey,
    /// There is no HTTP client.
    #[error(transparent)]
    NoClient(#[from] NoClient),
}

/// A model server.
pub(super) struct ModelServer {
    client: Client,
    address: Url,
    key: Option<ApiKey>,
    server: AskedServer,
}

/// The key, and the header that carries it.
struct ApiKey {
    secret: SecretString,
    header: HeaderValue,
}

impl ApiKey {
    fn new(secret: SecretString) -> Result<Self, OpenAiError> {
        let mut header = HeaderValue::from_str(&format!("Bearer {}", secret.expose_secret()))
            .map_err(|_| OpenAiError::BadKey)?;
        header.set_sensitive(true);
        Ok(Self { secret, header })
    }
}

impl fmt::Debug for ModelServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ModelServer")
            .field(
                "address",
                &http::without_secrets(self.address.clone()).as_str(),
            )
            .finish_non_exhaustive()
    }
}

impl ModelServer {
    pub(super) fn new(
        base_url: &str,
        key: Option<SecretString>,
        silence: Duration,
    ) -> Result<Self, OpenAiError> {
        Ok(Self {
            client: http::client()?,
            address: chat_completions(base_url).ok_or(OpenAiError::BadBaseUrl)?,
            key: key.map(ApiKey::new).transpose()?,
            server: AskedServer {
                name: "the model server",
                setting: "base URL",
                silence,
                unreachable: FailureCode::ModelUnreachable,
                silent: FailureCode::ModelSilent,
                refused: FailureCode::ModelRefused,
            },
        })
    }

    /// Asks once and outputs the answer as it arrives. `has_output` becomes true with the first
    /// output.
    pub(super) async fn ask(
        &self,
        request: &ChatRequest,
        out: &Output,
        has_output: &mut bool,
    ) -> Result<Finish, Fault> {
        let response = self.send(request).await?;
        let retry = http::retry_after(response.headers(), SystemTime::now());
        let relayed = self.relay(response, out, has_output).await;
        relayed.map_err(|mut fault| {
            if fault.failure.retry == Retry::Later {
                fault.failure.retry = retry;
            }
            fault
        })
    }

    /// The failure as clients may see it: without the key, shortened, and with the address.
    pub(super) fn shown(&self, failure: Failure) -> Failure {
        let message = match &self.key {
            Some(key) => http::hide(&key.secret, failure.message),
            None => failure.message,
        };
        let address = http::without_secrets(self.address.clone());
        Failure {
            message: format!("{} (POST {address})", http::shorten(message)),
            ..failure
        }
    }

    /// Outputs an answer whose head has arrived.
    async fn relay(
        &self,
        mut response: Response,
        out: &Output,
        has_output: &mut bool,
    ) -> Result<Finish, Fault> {
        let mut body = AnswerBody::default();
        let mut contents = Vec::new();
        let mut last_event_at = Instant::now();
        let finish = loop {
            let piece = match self.read(&mut response, &body, last_event_at).await {
                Ok(Some(piece)) => piece,
                Ok(None) => {
                    let content_type = header(response.headers(), CONTENT_TYPE)
                        .unwrap_or("without a Content-Type");
                    break body.end_of_body(content_type, &mut contents)?;
                }
                Err(cut) => break body.end_cut(cut, &mut contents)?,
            };
            let events = body.events();
            let mut bytes = &piece[..];
            while body.read_event(&mut bytes, &mut contents)? {
                output_all(&mut contents, out, has_output).await?;
            }
            if body.is_done() {
                break body.end_at_mark(&mut contents)?;
            }
            if body.events() > events {
                last_event_at = Instant::now();
            }
        };
        output_all(&mut contents, out, has_output).await?;
        Ok(finish)
    }

    /// Sends the request and returns the head of a successful answer.
    async fn send(&self, request: &ChatRequest) -> Result<Response, Fault> {
        let mut sent = self
            .client
            .post(self.address.clone())
            .header(CONTENT_TYPE, "application/json")
            .body(request.to_json());
        if let Some(key) = &self.key {
            sent = sent.header(AUTHORIZATION, key.header.clone());
        }
        let response = self.server.send(sent).await?;
        if response.status().is_success() {
            Ok(response)
        } else {
            Err(self.refusal(response).await)
        }
    }

    /// The next bytes, or `None` at the end of the body; a failure when neither comes in time.
    ///
    /// Any bytes show that the server is alive. Once the answer is complete, only events with a
    /// part of the answer count: some servers never close and keep sending heartbeats. A shorter
    /// wait would cut the answer of a server that sent its reason too early.
    async fn read(
        &self,
        response: &mut Response,
        body: &AnswerBody,
        last_event_at: Instant,
    ) -> Result<Option<Bytes>, Failure> {
        let since = if body.is_trusted() {
            last_event_at
        } else {
            Instant::now()
        };
        self.server.read(response, since, stream_cut).await
    }

    /// The fault of a response that is not a success.
    async fn refusal(&self, mut response: Response) -> Fault {
        if let Some(failure) = self.server.redirected(&response) {
            return failure.into();
        }
        let status = response.status();
        let retry = http::retry_after(response.headers(), SystemTime::now());
        let body = http::refusal_body(&mut response).await;
        let error = ServerError::of_answer(status.as_u16(), &body);
        Fault {
            status: error.status,
            failure: error.failure(&format!("the model server answered {status}"), retry),
        }
    }
}

async fn output_all(
    contents: &mut Vec<Content>,
    out: &Output,
    has_output: &mut bool,
) -> Result<(), Stopped> {
    for content in contents.drain(..) {
        *has_output = true;
        out.content(content).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_with_the_key_is_sensitive() {
        let key = ApiKey::new("sk-0123456789".into()).unwrap();
        assert!(key.header.is_sensitive());
    }
}
