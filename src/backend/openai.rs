//! Any server of OpenAI-compatible chat completions as a backend: OpenAI itself, vLLM, Ollama, llama.cpp and others. The
//! answer is streamed; of a whole answer nothing is kept here. It runs no tools, and it cannot go on where an earlier
//! attempt stopped: another attempt is another answer.
//!
//! | code | another attempt | when |
//! |---|---|---|
//! | `bad_input` | no | the job's input is no text and no object with `messages`, or asks for what one output cannot hold |
//! | `model_refused` | no | the server answered 4xx, other than those below, or a redirect; with its message |
//! | `too_large` | no | the model's tool calls fit into no event |
//! | `model_busy` | yes | 429; after `Retry-After` if it is there |
//! | `model_failed` | yes | 5xx, 408, 409 or 425, also after `Retry-After`; or an error in the middle of the stream |
//! | `model_unreachable` | yes | no connection, or one that broke before the answer began |
//! | `model_silent` | yes | nothing came for too long |
//! | `stream_cut` | yes | the stream ended without a `finish_reason` |
//! | `bad_stream` | yes | the answer is no event stream, or one that cannot be read |

mod reply;
mod request;
mod sse;
mod tools;

use std::fmt;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use reqwest::{Client, Response, StatusCode};
use serde_json::Value;
use tokio::time::{Instant, timeout, timeout_at};
use url::Url;

use self::reply::Reply;
use self::sse::Parser;
use super::http::{self, NoClient, Secret};
use super::{Backend, Content, Failure, Finish, Job, Output, Retry, Stopped};
use crate::config::{MODEL_SILENCE, MODEL_TAIL_WAIT, REFUSAL_MAX, REFUSAL_WAIT};

/// What the backend is told.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where the API is, up to and without `/chat/completions`; usually it ends in `/v1`.
    pub base_url: String,
    /// The model.
    pub model: String,
    /// The key, for servers that want one.
    pub key: Option<Secret>,
    /// How long the server may send nothing at all.
    pub silence: Duration,
}

impl Settings {
    /// The defaults for this server and model.
    pub fn new(base_url: impl Into<String>, model: impl Into<String>) -> Self {
        Self { base_url: base_url.into(), model: model.into(), key: None, silence: MODEL_SILENCE }
    }
}

/// Why the backend cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address cannot be asked.
    #[error("the base URL is no http or https address without user and password")]
    BadBaseUrl,
    /// No header can carry the key.
    #[error("the API key has characters that no HTTP header may have")]
    BadKey,
    /// There is no HTTP client.
    #[error(transparent)]
    NoClient(#[from] NoClient),
}

/// Asks a model server.
pub struct OpenAi {
    client: Client,
    address: Url,
    model: String,
    key: Option<(Secret, HeaderValue)>,
    silence: Duration,
}

impl fmt::Debug for OpenAi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenAi").field("model", &self.model).finish_non_exhaustive()
    }
}

impl Backend for OpenAi {
    async fn run(&self, job: Job, out: Output) -> Result<Finish, Failure> {
        let body = request::body(&self.model, &job.input)?;
        // Whatever waits is dropped with its connection.
        let answered = tokio::select! {
            biased;
            () = job.stop.cancelled() => return Err(Stopped.into()),
            answered = self.ask(&body, &out) => answered,
        };
        answered.map_err(|failure| match &self.key {
            Some((key, _)) => Failure { message: key.hide_in(failure.message), ..failure },
            None => failure,
        })
    }
}

impl OpenAi {
    /// A backend that asks this server.
    ///
    /// # Errors
    /// [`Error`].
    pub fn new(settings: Settings) -> Result<Self, Error> {
        let Settings { base_url, model, key, silence } = settings;
        let mut address = Url::parse(&base_url).map_err(|_| Error::BadBaseUrl)?;
        let named = !address.username().is_empty() || address.password().is_some();
        if named || !matches!(address.scheme(), "http" | "https") {
            return Err(Error::BadBaseUrl);
        }
        address
            .path_segments_mut()
            .map_err(|()| Error::BadBaseUrl)?
            .pop_if_empty()
            .extend(["chat", "completions"]);
        let key = key.map(|key| bearer(&key).map(|header| (key, header))).transpose()?;
        Ok(Self { client: http::client()?, address, model, key, silence })
    }

    /// Asks and puts the answer out as it comes.
    async fn ask(&self, body: &Value, out: &Output) -> Result<Finish, Failure> {
        let mut response = self.send(body).await?;
        let (mut parser, mut reply, mut contents) = (Parser::default(), Reply::default(), Vec::new());
        // Once the answer is whole, the rest of the stream may not take long.
        let mut deadline = None;
        let cut = loop {
            let piece = match self.read(&mut response, deadline).await {
                Ok(piece) => piece,
                Err(cut) => break cut,
            };
            let mut bytes = &piece[..];
            while !reply.is_done()
                && let Some(event) =
                    parser.next(&mut bytes).map_err(|malformed| bad_stream(&malformed.to_string()))?
            {
                reply.take(&event, &mut contents)?;
                put_out(&mut contents, out).await?;
            }
            if reply.is_done() {
                break stream_cut("the end mark came without a finish_reason");
            }
            if reply.is_whole() && deadline.is_none() {
                deadline = Some(Instant::now() + MODEL_TAIL_WAIT);
            }
        };
        let finish = reply.end(cut, &mut contents)?;
        put_out(&mut contents, out).await?;
        Ok(finish)
    }

    /// Sends the request and takes the head of an answer that is a stream of events.
    async fn send(&self, body: &Value) -> Result<Response, Failure> {
        let mut request = self
            .client
            .post(self.address.clone())
            .header(CONTENT_TYPE, "application/json")
            .body(body.to_string());
        if let Some((_, header)) = &self.key {
            request = request.header(AUTHORIZATION, header.clone());
        }
        let sent = timeout(self.silence, request.send()).await.map_err(|_| self.silent())?;
        let response = sent.map_err(|error| {
            let why = http::describe(error);
            Failure::retryable("model_unreachable", format!("the model server cannot be asked: {why}"))
        })?;
        if !response.status().is_success() {
            return Err(refusal(response).await);
        }
        let kind = response.headers().get(CONTENT_TYPE).map(|kind| String::from_utf8_lossy(kind.as_bytes()));
        match kind {
            Some(kind) if !kind.trim_start().to_ascii_lowercase().starts_with("text/event-stream") => {
                let kind = reply::message(kind.as_bytes());
                Err(bad_stream(&format!("the answer is no event stream but {kind}")))
            }
            // Not every server says what it sends.
            Some(_) | None => Ok(response),
        }
    }

    /// The next bytes; a failure when none will come.
    async fn read(&self, response: &mut Response, deadline: Option<Instant>) -> Result<Bytes, Failure> {
        let silent = Instant::now() + self.silence;
        let read =
            timeout_at(deadline.map_or(silent, |deadline| deadline.min(silent)), response.chunk()).await;
        match read.map_err(|_| self.silent())? {
            Ok(Some(piece)) => Ok(piece),
            Ok(None) => Err(stream_cut("it ended without a finish_reason")),
            Err(error) => Err(stream_cut(&http::describe(error))),
        }
    }

    fn silent(&self) -> Failure {
        let silence = humantime::format_duration(self.silence);
        Failure::retryable("model_silent", format!("the model server sent nothing for {silence}"))
    }
}

fn bearer(key: &Secret) -> Result<HeaderValue, Error> {
    let mut header = HeaderValue::from_str(&format!("Bearer {}", key.expose())).map_err(|_| Error::BadKey)?;
    header.set_sensitive(true);
    Ok(header)
}

async fn put_out(contents: &mut Vec<Content>, out: &Output) -> Result<(), Stopped> {
    for content in contents.drain(..) {
        match content {
            Content::Text { channel, text } => out.text_on(channel, &text).await?,
            Content::Data(data) => out.data(data).await?,
        }
    }
    Ok(())
}

/// What an answer that is no success means for the job.
async fn refusal(mut response: Response) -> Failure {
    let status = response.status();
    let retry = http::retry_after(response.headers(), SystemTime::now());
    let said =
        timeout(REFUSAL_WAIT, http::read_at_most(&mut response, REFUSAL_MAX)).await.unwrap_or_default();
    let message = if status.is_redirection() {
        format!("the model server answered {status}; redirects are not followed, so give the final base URL")
    } else {
        format!("the model server answered {status}: {}", reply::message(&said))
    };
    match status {
        StatusCode::TOO_MANY_REQUESTS => Failure { code: "model_busy".into(), message, retry },
        status if http::is_temporary(status) => Failure { code: "model_failed".into(), message, retry },
        _ => Failure { code: "model_refused".into(), message, retry: Retry::Never },
    }
}

fn bad_stream(why: &str) -> Failure {
    Failure::retryable("bad_stream", format!("the model server's stream cannot be read: {why}"))
}

fn stream_cut(why: &str) -> Failure {
    Failure::retryable("stream_cut", format!("the model server's stream was cut: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(base_url: &str) -> Result<String, Error> {
        OpenAi::new(Settings::new(base_url, "m")).map(|backend| backend.address.into())
    }

    #[test]
    fn the_address_is_the_base_url_with_the_path_of_chat_completions() {
        for (base_url, expected) in [
            ("http://h:1/v1", "http://h:1/v1/chat/completions"),
            ("https://h/v1/", "https://h/v1/chat/completions"),
            ("https://h", "https://h/chat/completions"),
            ("https://h/a/b?api-version=1", "https://h/a/b/chat/completions?api-version=1"),
        ] {
            assert_eq!(address(base_url).unwrap(), expected);
        }
        for bad in ["", "h:1", "localhost/v1", "ftp://h/", "https://u:p@h/v1", "https://u@h/", "data:x"] {
            assert!(matches!(address(bad), Err(Error::BadBaseUrl)), "{bad}");
        }
    }

    #[test]
    fn nothing_shows_the_key() {
        let key =
            |text: &str| Settings { key: Some(text.parse().unwrap()), ..Settings::new("http://h", "m") };
        let settings = key("sk-0123456789");
        let backend = OpenAi::new(settings.clone()).unwrap();
        let error = OpenAi::new(key("sk-0123456789\n")).unwrap_err();
        for shown in [format!("{settings:?}"), format!("{backend:?}"), format!("{error} {error:?}")] {
            assert!(!shown.contains("0123"), "{shown}");
        }
        assert!(backend.key.unwrap().1.is_sensitive());
    }
}
