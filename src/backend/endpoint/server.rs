//! Sends one request to an endpoint and outputs the answer as it arrives. It does not repeat
//! requests.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Client, Response};
use secrecy::{ExposeSecret as _, SecretString};
use tokio::time::Instant;
use url::Url;

use super::answer::EndpointAnswer;
use super::header::RequestHeader;
use super::report::of_body;
use crate::backend::http::{self, AskedServer, NoClient, header};
use crate::backend::signature::{self, BadSecret, Signer};
use crate::backend::{Content, Failure, FailureCode, Finish, Job, Output, Retry};

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
    server: AskedServer,
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
            server: AskedServer {
                name: "the endpoint",
                setting: "URL",
                silence,
                unreachable: FailureCode::EndpointUnreachable,
                silent: FailureCode::EndpointSilent,
                refused: FailureCode::EndpointRefused,
            },
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
        let response = self.server.send(sent).await?;
        if response.status().is_success() {
            Ok(response)
        } else {
            Err(self.refusal(response).await)
        }
    }

    /// Outputs an answer whose head has arrived.
    async fn relay(&self, mut response: Response, out: &Output) -> Result<Finish, Failure> {
        let is_ui_message = response.headers().contains_key(UI_MESSAGE);
        let content_type = header(response.headers(), CONTENT_TYPE).unwrap_or_default();
        let mut answer = EndpointAnswer::new(content_type, is_ui_message);
        let mut contents = Vec::new();
        while !answer.is_done() {
            let cut = |why: &str| {
                let message = format!("the endpoint's answer was cut: {why}");
                Failure::retryable(FailureCode::StreamCut, message)
            };
            let read = self.server.read(&mut response, Instant::now(), cut);
            let Some(bytes) = read.await? else { break };
            let read = answer.read(&bytes, &mut contents);
            output_all(&mut contents, out).await?;
            read?;
        }
        let ended = answer.end(&mut contents);
        output_all(&mut contents, out).await?;
        ended
    }

    /// The failure of a response that is not a success.
    async fn refusal(&self, mut response: Response) -> Failure {
        if let Some(failure) = self.server.redirected(&response) {
            return failure;
        }
        let status = response.status();
        let mut message = format!("the endpoint answered {status}");
        let retry = http::retry_after(response.headers(), SystemTime::now());
        let reason = of_body(&http::refusal_body(&mut response).await);
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

async fn output_all(contents: &mut Vec<Content>, out: &Output) -> Result<(), Failure> {
    for content in contents.drain(..) {
        out.content(content).await?;
    }
    Ok(())
}
