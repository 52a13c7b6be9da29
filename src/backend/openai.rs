//! Any server of OpenAI-compatible chat completions as a backend: OpenAI itself, vLLM, Ollama, llama.cpp and others. The
//! answer is streamed; a server that gives it whole is understood, too. It runs no tools, and it cannot continue where an
//! earlier attempt stopped: another attempt is another answer.
//!
//! A server that is busy before anything was put out is asked again within the attempt, for as long as
//! [`Settings::busy`] says: after `Retry-After` if it is there, else after pauses that double.
//!
//! `PROTOCOL.md` lists the codes of its failures.

mod busy;
mod chunk;
mod reply;
mod request;
mod said;
mod sse;
mod tools;

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, LOCATION};
use reqwest::{Client, Response};
use secrecy::{ExposeSecret as _, SecretString};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tracing::{debug, warn};
use url::Url;

use self::busy::Budget;
use self::reply::Reply;
use self::request::Request;
use self::said::Said;
use self::sse::{Parser, Rest};
use super::http::{self, NoClient};
use super::{Backend, Content, Failure, FailureCode, Finish, Job, Output, Retry, Stopped};
use crate::config::{MEDIA_TYPE_MAX, MODEL_BUSY, MODEL_SILENCE, REFUSAL_MAX, REFUSAL_WAIT};

/// How the backend is set up.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where the API is; usually it ends in `/v1`. `/chat/completions` is added if it is not there.
    pub base_url: String,
    /// The model.
    pub model: String,
    /// The key, for servers that want one.
    pub key: Option<SecretString>,
    /// How long the server may send nothing at all.
    pub silence: Duration,
    /// How long a job waits in all for a server that is busy.
    pub busy: Duration,
}

impl Settings {
    /// The defaults for this server and model.
    pub fn new(base_url: impl Into<String>, model: impl Into<String>) -> Self {
        let (base_url, model) = (base_url.into(), model.into());
        Self {
            base_url,
            model,
            key: None,
            silence: MODEL_SILENCE,
            busy: MODEL_BUSY,
        }
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
    key: Option<(SecretString, HeaderValue)>,
    silence: Duration,
    busy: Duration,
    /// The server has refused `stream_options` and answered without them.
    refuses_options: AtomicBool,
}

/// A failure, and the HTTP status that the server named with it.
#[derive(Debug)]
struct Fault {
    failure: Failure,
    status: Option<u16>,
}

impl From<Failure> for Fault {
    fn from(failure: Failure) -> Self {
        Self {
            failure,
            status: None,
        }
    }
}

impl From<Stopped> for Fault {
    fn from(stopped: Stopped) -> Self {
        Failure::from(stopped).into()
    }
}

impl fmt::Debug for OpenAi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenAi")
            .field("model", &self.model)
            .finish_non_exhaustive()
    }
}

impl Backend for OpenAi {
    async fn run(&self, job: Job, out: Output) -> Result<Finish, Failure> {
        let request = Request::new(&self.model, &job.input)?;
        // Whatever waits is dropped with its connection.
        tokio::select! {
            biased;
            () = job.stop.cancelled() => Err(Stopped.into()),
            answered = self.answer(&job, request, &out) => answered,
        }
    }
}

impl OpenAi {
    /// A backend that asks this server.
    ///
    /// # Errors
    /// [`Error`].
    pub fn new(settings: Settings) -> Result<Self, Error> {
        let Settings {
            base_url,
            model,
            key,
            silence,
            busy,
        } = settings;
        let address = address(&base_url).ok_or(Error::BadBaseUrl)?;
        let key = key
            .map(|key| bearer(&key).map(|header| (key, header)))
            .transpose()?;
        let client = http::client()?;
        Ok(Self {
            client,
            address,
            model,
            key,
            silence,
            busy,
            refuses_options: AtomicBool::new(false),
        })
    }

    /// Asks until the server answers, refuses, or has been busy for too long.
    async fn answer(
        &self,
        job: &Job,
        mut request: Request,
        out: &Output,
    ) -> Result<Finish, Failure> {
        if self.refuses_options.load(Ordering::Relaxed) {
            request = request.without_options();
        }
        let mut budget = Budget::new(self.busy, job.id.tag());
        let mut learns = false;
        loop {
            let mut begun = false;
            let Fault { failure, status } = match self.ask(&request, out, &mut begun).await {
                Ok(finish) => {
                    self.refuses_options.fetch_or(learns, Ordering::Relaxed);
                    return Ok(finish);
                }
                Err(fault) => fault,
            };
            let failure = self.shown(failure);
            if begun {
                return Err(failure);
            }
            if request.adds_options() && refuses_options(&failure, status) {
                debug!(job = %job.id, message = failure.message, "asks again without stream_options");
                request = request.without_options();
                learns = true;
                continue;
            }
            if failure.code != FailureCode::ModelBusy {
                return Err(failure);
            }
            let Some(wait) = budget.wait(failure.retry) else {
                return Err(Failure::fatal(failure.code, failure.message));
            };
            warn!(job = %job.id, ?wait, message = failure.message, "the model server is busy and is asked again");
            sleep(wait).await;
        }
    }

    /// The failure as everybody may see it: without the key, not too long, and with the address that was asked.
    fn shown(&self, failure: Failure) -> Failure {
        let message = match &self.key {
            Some((key, _)) => http::hide(key, failure.message),
            None => failure.message,
        };
        let address = without_secrets(self.address.clone());
        Failure {
            message: format!("{} (POST {address})", said::shorten(message)),
            ..failure
        }
    }

    /// Asks once and puts the answer out as it comes. `begun` becomes true with the first output.
    async fn ask(
        &self,
        request: &Request,
        out: &Output,
        begun: &mut bool,
    ) -> Result<Finish, Fault> {
        let response = self.send(request).await?;
        let retry = http::retry_after(response.headers(), SystemTime::now());
        self.relay(response, out, begun)
            .await
            .map_err(|fault| match fault.failure.retry {
                Retry::Later => Fault {
                    failure: Failure {
                        retry,
                        ..fault.failure
                    },
                    ..fault
                },
                Retry::Never | Retry::After(_) => fault,
            })
    }

    /// Puts out an answer that has begun.
    async fn relay(
        &self,
        mut response: Response,
        out: &Output,
        begun: &mut bool,
    ) -> Result<Finish, Fault> {
        let mut parser = Parser::default();
        let mut reply = Reply::default();
        let mut contents = Vec::new();
        let mut heard = Instant::now();
        let cut = loop {
            let piece = match self.read(&mut response, &reply, heard).await {
                Ok(Some(piece)) => piece,
                Ok(None) => {
                    let kind = header(response.headers(), CONTENT_TYPE)
                        .unwrap_or("without a Content-Type");
                    break end_of_body(parser, kind, &mut reply, &mut contents)?;
                }
                Err(cut) => break cut,
            };
            let events = reply.events();
            let mut bytes = &piece[..];
            while !reply.is_done()
                && let Some(event) = parser
                    .next(&mut bytes)
                    .map_err(|error| bad_stream(&error.to_string()))?
            {
                reply.push(&event, &mut contents)?;
                put_out(&mut contents, out, begun).await?;
            }
            if reply.is_done() {
                break stream_cut(&format!(
                    "the end mark came without a finish_reason{}",
                    reply.last_words()
                ));
            }
            if reply.events() > events {
                heard = Instant::now();
            }
        };
        let finish = reply.end(cut, &mut contents)?;
        put_out(&mut contents, out, begun).await?;
        Ok(finish)
    }

    /// Sends the request and gives the head of a successful answer.
    async fn send(&self, request: &Request) -> Result<Response, Fault> {
        let mut sent = self
            .client
            .post(self.address.clone())
            .header(CONTENT_TYPE, "application/json")
            .body(request.to_json());
        if let Some((_, header)) = &self.key {
            sent = sent.header(AUTHORIZATION, header.clone());
        }
        let response = timeout(self.silence, sent.send())
            .await
            .map_err(|_| self.silent())?;
        let response = response.map_err(|error| {
            let why = http::describe(error);
            Failure::retryable(
                FailureCode::ModelUnreachable,
                format!("the model server cannot be asked: {why}"),
            )
        })?;
        if response.status().is_success() {
            Ok(response)
        } else {
            Err(refusal(response).await)
        }
    }

    /// The next bytes, or `None` at the end of the body; a failure when neither comes in time. Bytes show that the server
    /// is there. Once the answer is whole, only a part of the answer counts: there are servers that never close and keep
    /// sending heartbeats. A shorter wait would cut the answer of one that has named its reason too early.
    async fn read(
        &self,
        response: &mut Response,
        reply: &Reply,
        heard: Instant,
    ) -> Result<Option<Bytes>, Failure> {
        let since = if reply.is_trusted() {
            heard
        } else {
            Instant::now()
        };
        let read = timeout_at(since + self.silence, response.chunk())
            .await
            .map_err(|_| self.silent())?;
        match read {
            Ok(piece) => Ok(piece),
            Err(error) => Err(stream_cut(&http::describe(error))),
        }
    }

    fn silent(&self) -> Failure {
        let silence = humantime::format_duration(self.silence);
        Failure::retryable(
            FailureCode::ModelSilent,
            format!("the model server sent nothing for {silence}"),
        )
    }
}

/// The address to ask: the base URL, with the path of chat completions unless it is there already.
fn address(base_url: &str) -> Option<Url> {
    let mut address = Url::parse(base_url.trim()).ok()?;
    let named = !address.username().is_empty() || address.password().is_some();
    if named || !matches!(address.scheme(), "http" | "https") {
        return None;
    }
    let path = address.path().trim_end_matches('/');
    let path = path
        .strip_suffix("/chat/completions")
        .unwrap_or(path)
        .trim_end_matches('/')
        .to_owned();
    address.set_path(&format!("{path}/chat/completions"));
    Some(address)
}

/// The address up to its path: what a user or a query says may be a secret.
fn without_secrets(mut address: Url) -> Url {
    // They fail for addresses that have no host, which have neither.
    let _ = address.set_username("");
    let _ = address.set_password(None);
    address.set_query(None);
    address.set_fragment(None);
    address
}

fn bearer(key: &SecretString) -> Result<HeaderValue, Error> {
    let mut header = HeaderValue::from_str(&format!("Bearer {}", key.expose_secret()))
        .map_err(|_| Error::BadKey)?;
    header.set_sensitive(true);
    Ok(header)
}

fn header(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok()
}

async fn put_out(
    contents: &mut Vec<Content>,
    out: &Output,
    begun: &mut bool,
) -> Result<(), Stopped> {
    for content in contents.drain(..) {
        *begun = true;
        match content {
            Content::Text { channel, text } => out.text_on(channel, &text).await?,
            Content::Data(data) => out.data(data).await?,
        }
    }
    Ok(())
}

/// What an answer that is not a success means for the job.
async fn refusal(mut response: Response) -> Fault {
    let status = response.status();
    let what = format!("the model server answered {status}");
    if status.is_redirection() {
        let target =
            header(response.headers(), LOCATION).and_then(|to| response.url().join(to).ok());
        let target = target.map_or_else(String::new, |to| format!(" to {}", without_secrets(to)));
        let message =
            format!("{what}{target}; redirects are not followed, so give the final base URL");
        return Failure::fatal(FailureCode::ModelRefused, said::shorten(message)).into();
    }
    let retry = http::retry_after(response.headers(), SystemTime::now());
    let read = timeout(REFUSAL_WAIT, http::read_at_most(&mut response, REFUSAL_MAX)).await;
    let said = Said::of_answer(status.as_u16(), &read.unwrap_or_default());
    Fault {
        status: said.status,
        failure: said.failure(&what, retry),
    }
}

/// Whether a server may have failed because of the `stream_options` that were added.
fn refuses_options(failure: &Failure, status: Option<u16>) -> bool {
    let named = ["stream_options", "include_usage"]
        .iter()
        .any(|name| failure.message.contains(name));
    failure.code != FailureCode::ModelBusy && (named || matches!(status, Some(400 | 422)))
}

/// Takes in the end of a body of this type, and gives the failure that it is unless the answer is whole.
fn end_of_body(
    parser: Parser,
    kind: &str,
    reply: &mut Reply,
    contents: &mut Vec<Content>,
) -> Result<Failure, Fault> {
    let Rest {
        events,
        is_cut: mut within,
        foreign,
    } = parser.end();
    for event in events {
        match reply.push(&event, contents) {
            // Half a piece is text that is lost.
            Err(fault)
                if fault.failure.code == FailureCode::BadStream
                    && fault.failure.retry != Retry::Never =>
            {
                within = true;
            }
            pushed => pushed?,
        }
    }
    // A page for people is not for here.
    let words = if foreign.is_empty() || foreign.starts_with('<') {
        reply.last_words()
    } else {
        format!("; it also sent: {}", Said::of_text(&foreign, None).message)
    };
    if within {
        return Err(stream_cut(&format!("it ended within an event{words}")).into());
    }
    if reply.events() == 0 && !reply.is_done() && (reply.is_foreign() || !foreign.is_empty()) {
        let kind: String = kind.chars().take(MEDIA_TYPE_MAX).collect();
        return Err(unreadable(&format!("it is not a chat completion but {kind}{words}")).into());
    }
    Ok(stream_cut(&format!(
        "it ended without a finish_reason that can be trusted and without [DONE]{words}"
    )))
}

/// The answer is damaged; another one may not be.
fn bad_stream(why: &str) -> Failure {
    Failure::retryable(
        FailureCode::BadStream,
        format!("the model server's answer cannot be read: {why}"),
    )
}

/// The answer has a form that another attempt would meet again.
fn unreadable(why: &str) -> Failure {
    Failure::fatal(
        FailureCode::BadStream,
        format!("the model server's answer cannot be read: {why}"),
    )
}

fn stream_cut(why: &str) -> Failure {
    Failure::retryable(
        FailureCode::StreamCut,
        format!("the model server's stream was cut: {why}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Channel;

    /// The output of a body, and how it ends.
    fn read(body: &[u8]) -> (String, Result<Finish, Failure>) {
        let mut parser = Parser::default();
        let mut reply = Reply::default();
        let mut contents = Vec::new();
        let mut bytes = body;
        let mut ended = || {
            while !reply.is_done()
                && let Some(event) = parser
                    .next(&mut bytes)
                    .map_err(|error| bad_stream(&error.to_string()))?
            {
                reply
                    .push(&event, &mut contents)
                    .map_err(|fault| fault.failure)?;
            }
            let cut = if reply.is_done() {
                stream_cut("the end mark")
            } else {
                let parser = std::mem::take(&mut parser);
                end_of_body(parser, "x/y", &mut reply, &mut contents)
                    .map_err(|fault| fault.failure)?
            };
            std::mem::take(&mut reply).end(cut, &mut contents)
        };
        let ended = ended();
        let text = |content: &Content| match content {
            Content::Text {
                channel: Channel::Output,
                text,
            } => text.clone(),
            Content::Text {
                channel: Channel::Reasoning,
                ..
            } => String::new(),
            Content::Data(data) => data.to_string(),
        };
        (contents.iter().map(text).collect(), ended)
    }

    #[test]
    fn a_body_that_is_cut_anywhere_is_never_a_short_answer() {
        let piece = |delta: &str, reason: &str| {
            format!(r#"{{"choices":[{{"index":0,"delta":{delta},"finish_reason":{reason}}}]}}"#)
        };
        let stop = r#""stop""#;
        let of = |reason: &str| {
            let words = ["é", "b", r"\ud83d", r"\ude00", "c"];
            let thought = piece(r#"{"reasoning":"hm"}"#, reason);
            let call = |text: &str| {
                let call = format!(
                    r#"{{"tool_calls":[{{"index":0,"function":{{"name":"f","arguments":"{text}"}}}}]}}"#
                );
                piece(&call, reason)
            };
            let texts = words.map(|word| piece(&format!(r#"{{"content":"{word}"}}"#), reason));
            [vec![thought], texts.to_vec(), vec![call("{"), call("}")]].concat()
        };
        let alone = piece("{}", stop);
        let usage = r#"{"choices":[],"usage":{"total_tokens":1}}"#.to_owned();
        let mark = "[DONE]".to_owned();
        let answers = [
            [of("null"), vec![alone.clone(), usage, mark.clone()]].concat(),
            [of("null"), vec![alone.clone()]].concat(),
            [of(stop), vec![mark.clone()]].concat(),
            [of(r#""null""#), vec![alone.clone(), mark.clone()]].concat(),
            [of(r#""""#), vec![alone, mark]].concat(),
        ];
        let mut bodies: Vec<String> = Vec::new();
        for answer in &answers {
            bodies.push(
                answer
                    .iter()
                    .map(|data| format!(": ping\n\ndata: {data}\n\n"))
                    .collect(),
            );
            bodies.push(
                answer
                    .iter()
                    .map(|data| format!("data:{data}\r\n"))
                    .collect(),
            );
            bodies.push(answer.iter().map(|data| format!("{data}\n")).collect());
        }
        let call = r#"[{"function":{"name":"f","arguments":"{}"}}]"#;
        bodies.push(format!(
            "\n {{\"choices\":[{{\"message\":{{\"content\":\"ébc\",\"tool_calls\":{call}}}}}]\n}}"
        ));
        for (number, body) in bodies.into_iter().enumerate() {
            let (whole, ended) = read(body.as_bytes());
            assert!(
                ended.is_ok() && whole.contains("arguments"),
                "{body}: {ended:?}"
            );
            // Every fifth place in each body; together they have every place.
            for cut in (number % 5..body.len()).step_by(5) {
                let (text, ended) = read(&body.as_bytes()[..cut]);
                match ended {
                    Ok(_) => assert_eq!(text, whole, "cut at {cut}: {body}"),
                    Err(failure) => {
                        assert_eq!(failure.code, "stream_cut", "cut at {cut}: {failure:?}")
                    }
                }
            }
        }
    }

    #[test]
    fn a_body_that_is_not_an_answer_is_refused_with_what_it_says() {
        for (body, words) in [
            ("<!doctype html>\n<p>Sign in</p>", "but x/y"),
            ("Not a model server", "it also sent: Not a model server"),
            (r#"{"hello": "world"}"#, "but x/y"),
            (
                "event: content_block_delta\ndata: {\"delta\": {\"text\": \"a\"}}\n\n",
                "but x/y",
            ),
        ] {
            let failure = read(body.as_bytes()).1.unwrap_err();
            assert_eq!(
                (failure.code.as_str(), failure.retry),
                ("bad_stream", Retry::Never),
                "{body}"
            );
            assert!(
                failure.message.contains(words) && !failure.message.contains("Sign in"),
                "{}",
                failure.message
            );
        }
        for (body, words) in [
            ("", "without [DONE]"),
            (
                "data: the GPU fell off\n\n",
                "its last words: the GPU fell off",
            ),
            (
                "data: \"the GPU fell off\"\n\ndata: \"ping\"\n\n",
                "its last words: the GPU fell off",
            ),
            (
                "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\nInternal Server Error",
                "Internal Server Error",
            ),
            (
                "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\ndata: [DONE]\n\n",
                "the end mark",
            ),
        ] {
            let failure = read(body.as_bytes()).1.unwrap_err();
            assert_eq!(
                (failure.code.as_str(), failure.retry),
                ("stream_cut", Retry::Later),
                "{body}"
            );
            assert!(failure.message.contains(words), "{}", failure.message);
        }
    }

    fn address(base_url: &str) -> Result<String, Error> {
        OpenAi::new(Settings::new(base_url, "m")).map(|backend| backend.address.into())
    }

    #[test]
    fn the_address_is_the_base_url_with_the_path_of_chat_completions() {
        for (base_url, expected) in [
            ("http://h:1/v1", "http://h:1/v1/chat/completions"),
            ("https://h/v1/", "https://h/v1/chat/completions"),
            ("https://h", "https://h/chat/completions"),
            ("https://h/v1//", "https://h/v1/chat/completions"),
            (
                "http://h/v1/chat/completions",
                "http://h/v1/chat/completions",
            ),
            (
                " http://h/v1/chat/completions/ ",
                "http://h/v1/chat/completions",
            ),
            (
                "http://h/chat/completions?key=1",
                "http://h/chat/completions?key=1",
            ),
            (
                "https://h/a/b?api-version=1",
                "https://h/a/b/chat/completions?api-version=1",
            ),
        ] {
            assert_eq!(address(base_url).unwrap(), expected);
        }
        for bad in [
            "",
            "h:1",
            "localhost/v1",
            "ftp://h/",
            "https://u:p@h/v1",
            "https://u@h/",
            "data:x",
        ] {
            assert!(matches!(address(bad), Err(Error::BadBaseUrl)), "{bad}");
        }
    }

    #[test]
    fn an_address_is_shown_without_what_may_be_a_secret() {
        let address = "https://u:p@h:1/v1?key=s#t".parse().unwrap();
        assert_eq!(without_secrets(address).as_str(), "https://h:1/v1");
    }

    #[test]
    fn nothing_shows_the_key() {
        let key = |text: &str| Settings {
            key: Some(text.into()),
            ..Settings::new("http://h", "m")
        };
        let settings = key("sk-0123456789");
        let backend = OpenAi::new(settings.clone()).unwrap();
        let error = OpenAi::new(key("sk-0123456789\n")).unwrap_err();
        for shown in [
            format!("{settings:?}"),
            format!("{backend:?}"),
            format!("{error} {error:?}"),
        ] {
            assert!(!shown.contains("0123"), "{shown}");
        }
        assert!(backend.key.unwrap().1.is_sensitive());
    }
}
