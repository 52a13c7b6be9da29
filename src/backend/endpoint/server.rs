//! Sends one request to an endpoint and outputs the answer as it arrives. It does not repeat
//! requests.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, LOCATION};
use reqwest::{Client, Response};
use secrecy::{ExposeSecret as _, SecretString};
use tokio::time::timeout;
use url::Url;

use super::answer::EndpointAnswer;
use super::header::RequestHeader;
use super::report::of_body;
use crate::backend::http::{self, NoClient};
use crate::backend::signature::{self, BadSecret, Signer};
use crate::backend::{Content, Failure, FailureCode, Finish, Job, Output, Retry};
use crate::config::{REFUSAL_MAX, REFUSAL_WAIT};

/// The header of the AI SDK's UI message stream.
const UI_MESSAGE: &str = "x-vercel-ai-ui-message-stream";

/// Why an endpoint cannot be asked.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// The address is invalid.
    #[error(
        "the URL must be an http or https address without user and password; send a login as a header"
    )]
    BadUrl,
    /// The secret is invalid.
    #[error(transparent)]
    BadSecret(#[from] BadSecret),
    /// There is no HTTP client.
    #[error(transparent)]
    NoClient(#[from] NoClient),
}

/// An endpoint.
pub(super) struct EndpointServer {
    client: Client,
    address: Url,
    headers: HeaderMap,
    /// The values of the headers, which are never shown.
    secrets: Vec<SecretString>,
    signer: Option<Signer>,
    /// How long the endpoint may send nothing.
    silence: Duration,
}

impl fmt::Debug for EndpointServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EndpointServer")
            .field("address", &self.shown_address())
            .finish_non_exhaustive()
    }
}

impl EndpointServer {
    pub(super) fn new(
        url: &str,
        headers: Vec<RequestHeader>,
        secret: Option<&SecretString>,
        silence: Duration,
    ) -> Result<Self, EndpointError> {
        let address = Url::parse(url.trim()).map_err(|_| EndpointError::BadUrl)?;
        let has_login = !address.username().is_empty() || address.password().is_some();
        if has_login || !matches!(address.scheme(), "http" | "https") {
            return Err(EndpointError::BadUrl);
        }
        let mut map = HeaderMap::new();
        let mut secrets = Vec::new();
        for RequestHeader {
            name,
            value,
            secret,
        } in headers
        {
            map.append(name, value);
            // `Bearer TOKEN`: a server may repeat the token alone.
            let token = secret.expose_secret().rsplit_once(' ');
            let token = token.map(|(_, token)| SecretString::from(token));
            secrets.push(secret);
            secrets.extend(token);
        }
        map.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        Ok(Self {
            client: http::client()?,
            address,
            headers: map,
            secrets,
            signer: secret.map(Signer::new).transpose()?,
            silence,
        })
    }

    /// Asks once and outputs the answer as it arrives. A busy endpoint has answered nothing yet.
    pub(super) async fn ask(&self, job: &Job, body: &str, out: &Output) -> Result<Finish, Failure> {
        let asked = async {
            let response = self.send(job, body).await?;
            self.relay(response, out).await
        };
        asked.await.map_err(|failure| self.shown(failure))
    }

    /// Sends the request and returns the head of a successful answer.
    async fn send(&self, job: &Job, body: &str) -> Result<Response, Failure> {
        let mut headers = self.headers.clone();
        let mut set = |name: &'static str, value: &str| {
            if let Ok(value) = HeaderValue::from_str(value) {
                headers.insert(HeaderName::from_static(name), value);
            }
        };
        set("tailwater-job", job.id.as_str());
        set("tailwater-kind", job.kind.as_str());
        set("tailwater-attempt", &job.attempt.to_string());
        if let Some(signer) = &self.signer {
            let now = SystemTime::now().duration_since(UNIX_EPOCH);
            let timestamp = now.unwrap_or_default().as_secs();
            // A receiver that drops repeated ids must not drop another attempt.
            let id = format!("{}-{}", job.id, job.attempt);
            set(signature::ID, &id);
            set(signature::TIMESTAMP, &timestamp.to_string());
            set(signature::SIGNATURE, &signer.sign(&id, timestamp, body));
        }
        let sent = self
            .client
            .post(self.address.clone())
            .headers(headers)
            .body(body.to_owned());
        let response = timeout(self.silence, sent.send())
            .await
            .map_err(|_| self.silent())?;
        let response = response.map_err(|error| {
            let why = http::describe(error);
            Failure::retryable(
                FailureCode::EndpointUnreachable,
                format!("the endpoint cannot be asked: {why}"),
            )
        })?;
        if response.status().is_success() {
            Ok(response)
        } else {
            Err(refusal(response).await)
        }
    }

    /// Outputs an answer whose head has arrived.
    async fn relay(&self, mut response: Response, out: &Output) -> Result<Finish, Failure> {
        let is_ui_message = response.headers().contains_key(UI_MESSAGE);
        let content_type = header(response.headers(), CONTENT_TYPE).unwrap_or_default();
        let mut answer = EndpointAnswer::new(content_type, is_ui_message);
        let mut contents = Vec::new();
        while !answer.is_done() {
            let bytes = match self.read(&mut response).await {
                Ok(Some(bytes)) => bytes,
                Ok(None) => break,
                Err(_) if answer.is_complete() => break,
                Err(failure) => return Err(failure),
            };
            let read = answer.read(&bytes, &mut contents);
            output_all(&mut contents, out).await?;
            read?;
        }
        let ended = answer.end(&mut contents);
        output_all(&mut contents, out).await?;
        ended
    }

    /// The next bytes, or `None` at the end of the body.
    async fn read(&self, response: &mut Response) -> Result<Option<Bytes>, Failure> {
        let read = timeout(self.silence, response.chunk())
            .await
            .map_err(|_| self.silent())?;
        read.map_err(|error| {
            let why = http::describe(error);
            Failure::retryable(
                FailureCode::StreamCut,
                format!("the endpoint's answer was cut: {why}"),
            )
        })
    }

    fn silent(&self) -> Failure {
        let silence = humantime::format_duration(self.silence);
        Failure::retryable(
            FailureCode::EndpointSilent,
            format!("the endpoint sent nothing for {silence}"),
        )
    }

    /// The failure as clients may see it: without secrets.
    fn shown(&self, failure: Failure) -> Failure {
        let secrets = self.secrets.iter();
        let message = secrets.fold(failure.message, |text, secret| http::hide(secret, text));
        // Only now: a secret that is cut off would not be found.
        let message = http::shorten(message);
        Failure { message, ..failure }
    }

    fn shown_address(&self) -> String {
        http::without_secrets(self.address.clone()).into()
    }
}

fn header(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok()
}

async fn output_all(contents: &mut Vec<Content>, out: &Output) -> Result<(), Failure> {
    for content in contents.drain(..) {
        out.content(content).await?;
    }
    Ok(())
}

/// The failure of a response that is not a success.
async fn refusal(mut response: Response) -> Failure {
    let status = response.status();
    let mut message = format!("the endpoint answered {status}");
    if status.is_redirection() {
        let target =
            header(response.headers(), LOCATION).and_then(|to| response.url().join(to).ok());
        if let Some(target) = target {
            message += &format!(" to {}", http::without_secrets(target));
        }
        message += "; redirects are not followed, so give the final URL";
        return Failure::fatal(FailureCode::EndpointRefused, message);
    }
    let retry = http::retry_after(response.headers(), SystemTime::now());
    let read = timeout(REFUSAL_WAIT, http::read_at_most(&mut response, REFUSAL_MAX)).await;
    let reason = of_body(&read.unwrap_or_default());
    // FastAPI repeats the status as the text.
    if !reason.is_empty() && !message.ends_with(&reason) {
        message += &format!(": {reason}");
    }
    let (code, retry) = match status.as_u16() {
        429 | 503 => (FailureCode::EndpointBusy, retry),
        _ if http::is_temporary(status) => (FailureCode::EndpointFailed, retry),
        _ => (FailureCode::EndpointRefused, Retry::Never),
    };
    Failure {
        code: code.into(),
        message,
        retry,
    }
}
