//! What the HTTP backends share: the client, sending a request, hiding secrets, shortening texts,
//! `Retry-After`, and reading a limited part of a response.
//!
//! A proxy that `HTTP_PROXY`, `HTTPS_PROXY` or `ALL_PROXY` names is used, except for what
//! `NO_PROXY` lists.

use std::error::Error as _;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use reqwest::header::{HeaderMap, HeaderName, LOCATION, RETRY_AFTER};
use reqwest::redirect::Policy;
use reqwest::{Client, ClientBuilder, RequestBuilder, Response, StatusCode};
use secrecy::{ExposeSecret as _, SecretString};
use tokio::time::{Instant, timeout, timeout_at};
use url::Url;

use super::public_addresses::PublicAddresses;
use super::{Failure, FailureCode, Retry};
use crate::config::{
    HTTP_CONNECT_WAIT, MODEL_MESSAGE_MAX, REFUSAL_MAX, REFUSAL_WAIT, SECRET_HIDE_MIN,
};

/// What is shown in place of a secret.
const HIDDEN: &str = "***";

/// The text without the secret: a server may repeat it.
pub(super) fn hide(secret: &SecretString, text: String) -> String {
    let secret = secret.expose_secret();
    if secret.len() < SECRET_HIDE_MIN {
        text
    } else {
        text.replace(secret, HIDDEN)
    }
}

/// The address up to its path: a user or a query may hold a secret.
pub(super) fn without_secrets(mut address: Url) -> Url {
    // These fail only for an address without a host, which has neither.
    let _ = address.set_username("");
    let _ = address.set_password(None);
    address.set_query(None);
    address.set_fragment(None);
    address
}

/// The text, cut to the maximum length.
pub(super) fn shorten(mut text: String) -> String {
    if text.len() > MODEL_MESSAGE_MAX {
        text.truncate(text.floor_char_boundary(MODEL_MESSAGE_MAX));
        text.push('…');
    }
    text
}

/// Why there is no HTTP client.
#[derive(Debug, thiserror::Error)]
#[error("cannot set up HTTP: {0}")]
pub struct NoClient(String);

/// A client that follows no redirects: they could send a secret to a host that the operator did not
/// choose. Each request has its own connection: a server may close an idle connection just when it
/// is reused, and a failed attempt costs more than a handshake.
pub(super) fn client() -> Result<Client, NoClient> {
    build(builder())
}

/// [`client()`] for public addresses only, unless a host is given as an address.
pub(super) fn public_client() -> Result<Client, NoClient> {
    build(builder().dns_resolver(PublicAddresses))
}

fn builder() -> ClientBuilder {
    // For the whole process, unless a provider is installed. The NATS client uses the same one.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Client::builder()
        .redirect(Policy::none())
        .connect_timeout(HTTP_CONNECT_WAIT)
        .pool_max_idle_per_host(0)
        .user_agent(concat!("tailwater/", env!("CARGO_PKG_VERSION")))
}

fn build(builder: ClientBuilder) -> Result<Client, NoClient> {
    builder.build().map_err(|error| NoClient(describe(error)))
}

/// A server that a backend asks: how its failures name it, and their codes.
#[derive(Clone, Copy, Debug)]
pub(super) struct AskedServer {
    /// For example `the endpoint`.
    pub(super) name: &'static str,
    /// What its operator sets: `URL`.
    pub(super) setting: &'static str,
    /// How long it may send nothing.
    pub(super) silence: Duration,
    pub(super) unreachable: FailureCode,
    pub(super) silent: FailureCode,
    pub(super) refused: FailureCode,
}

impl AskedServer {
    /// Sends a request, and returns the head of the answer, whatever its status.
    pub(super) async fn send(self, request: RequestBuilder) -> Result<Response, Failure> {
        let sent = timeout(self.silence, request.send()).await;
        let sent = sent.map_err(|_| self.sent_nothing())?;
        sent.map_err(|error| {
            let message = format!("{} cannot be asked: {}", self.name, describe(error));
            Failure::retryable(self.unreachable, message)
        })
    }

    /// The next bytes of an answer, or `None` at its end. The server has been silent since then.
    /// `cut` makes the failure of a connection that breaks.
    pub(super) async fn read(
        self,
        response: &mut Response,
        since: Instant,
        cut: impl FnOnce(&str) -> Failure,
    ) -> Result<Option<Bytes>, Failure> {
        let read = timeout_at(since + self.silence, response.chunk()).await;
        let read = read.map_err(|_| self.sent_nothing())?;
        read.map_err(|error| cut(&describe(error)))
    }

    fn sent_nothing(self) -> Failure {
        let silence = humantime::format_duration(self.silence);
        let message = format!("{} sent nothing for {silence}", self.name);
        Failure::retryable(self.silent, message)
    }

    /// The failure of a redirect, which is not followed; `None` for any other answer.
    pub(super) fn redirected(self, response: &Response) -> Option<Failure> {
        let status = response.status();
        if !status.is_redirection() {
            return None;
        }
        let target = header(response.headers(), LOCATION);
        let target = target.and_then(|to| response.url().join(to).ok());
        let target = target.map_or_else(String::new, |to| format!(" to {}", without_secrets(to)));
        let message = format!(
            "{} answered {status}{target}; redirects are not followed, so give the final {}",
            self.name, self.setting
        );
        Some(Failure::fatal(self.refused, shorten(message)))
    }
}

/// The text of a header; `None` if it is absent, or not text.
pub(super) fn header(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok()
}

/// The body of a refusal, as far as it arrives soon.
pub(super) async fn refusal_body(response: &mut Response) -> Vec<u8> {
    let mut body = Vec::new();
    // What has arrived when it breaks off is enough.
    let _ = timeout(REFUSAL_WAIT, read_at_most(response, REFUSAL_MAX, &mut body)).await;
    body
}

/// The error with its causes and without the address, which may hold a password.
pub(super) fn describe(error: reqwest::Error) -> String {
    let error = error.without_url();
    let causes = std::iter::successors(error.source(), |&cause| cause.source());
    let texts = std::iter::once(error.to_string()).chain(causes.map(ToString::to_string));
    texts.collect::<Vec<_>>().join(": ")
}

/// Whether the same request may succeed later: a server error, 408 (too slow), 409 (conflict), 425
/// (too early) or 429 (too many).
pub(super) fn is_temporary(status: StatusCode) -> bool {
    status.is_server_error() || matches!(status.as_u16(), 408 | 409 | 425 | 429)
}

/// What `retry-after-ms` (milliseconds, which some model servers send) or `Retry-After` (RFC 9110,
/// section 10.2.3: seconds or a date) asks for. A time in the past is ignored.
pub(super) fn retry_after(headers: &HeaderMap, now: SystemTime) -> Retry {
    let text = |name: HeaderName| {
        headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
            .trim()
            .to_owned()
    };
    let exact: Option<f64> = text(HeaderName::from_static("retry-after-ms")).parse().ok();
    let exact = exact.and_then(|ms| Duration::try_from_secs_f64(ms / 1000.0).ok());
    let text = text(RETRY_AFTER);
    let seconds = || {
        text.bytes()
            .all(|byte| byte.is_ascii_digit())
            .then(|| text.parse().ok())
            .flatten()
    };
    let until = || {
        httpdate::parse_http_date(&text)
            .ok()?
            .duration_since(now)
            .ok()
    };
    match exact
        .or_else(|| seconds().map(Duration::from_secs))
        .or_else(until)
    {
        Some(pause) if !pause.is_zero() => Retry::After(pause),
        Some(_) | None => Retry::Later,
    }
}

/// Reads the first `limit` bytes of a response's body. It has no time limit.
///
/// # Errors
/// The body breaks off. What has arrived is in `body`.
pub(super) async fn read_at_most(
    response: &mut Response,
    limit: usize,
    body: &mut Vec<u8>,
) -> Result<(), reqwest::Error> {
    while body.len() < limit
        && let Some(piece) = response.chunk().await?
    {
        body.extend_from_slice(&piece[..piece.len().min(limit - body.len())]);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_hidden_in_text_from_a_server() {
        let secret = SecretString::from("sk-0123456789");
        let shown = hide(&secret, "bad key: sk-0123456789!".into());
        assert_eq!(shown, "bad key: ***!");
        // For a server without keys, users set any word.
        assert_eq!(hide(&"none".into(), "none of it".into()), "none of it");
    }

    #[test]
    fn a_long_text_is_cut_between_characters() {
        let long = shorten("é".repeat(MODEL_MESSAGE_MAX));
        assert!(long.len() <= MODEL_MESSAGE_MAX + '…'.len_utf8() && long.ends_with("é…"));
    }

    #[test]
    fn retry_after_is_seconds_or_a_date_in_the_future() {
        let now = httpdate::parse_http_date("Wed, 21 Oct 2026 07:28:00 GMT").unwrap();
        let retry = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, text.parse().unwrap());
            retry_after(&headers, now)
        };
        let after = |seconds| Retry::After(Duration::from_secs(seconds));
        assert_eq!(retry("7"), after(7));
        assert_eq!(retry(" 120 "), after(120));
        assert_eq!(retry("Wed, 21 Oct 2026 07:29:30 GMT"), after(90));
        // The two old formats that RFC 9110 requires recipients to accept.
        assert_eq!(retry("Wednesday, 21-Oct-26 07:28:05 GMT"), after(5));
        assert_eq!(retry("Wed Oct 21 07:28:05 2026"), after(5));
        for nothing in [
            "0",
            "-1",
            "+1",
            "1.5",
            "soon",
            "",
            "Wed, 21 Oct 2026 07:27:00 GMT",
            "99999999999999999999",
        ] {
            assert_eq!(retry(nothing), Retry::Later, "{nothing}");
        }
        assert_eq!(retry_after(&HeaderMap::new(), now), Retry::Later);
        let exact = |ms: &str| {
            let pairs = [("retry-after-ms", ms), ("retry-after", "7")];
            let pairs = pairs.map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()));
            retry_after(&HeaderMap::from_iter(pairs), now)
        };
        assert_eq!(exact("1500"), Retry::After(Duration::from_millis(1500)));
        assert_eq!(exact("0.5"), Retry::After(Duration::from_micros(500)));
        for nothing in ["soon", "-1", "inf", ""] {
            assert_eq!(exact(nothing), after(7), "{nothing}");
        }
    }

    #[test]
    fn only_some_refusals_are_temporary() {
        let temporary = |status| is_temporary(StatusCode::from_u16(status).unwrap());
        assert!(
            [408, 409, 425, 429, 500, 502, 503, 504, 529]
                .into_iter()
                .all(temporary)
        );
        assert!(
            ![200, 301, 400, 401, 403, 404, 410, 413, 422]
                .into_iter()
                .any(temporary)
        );
    }

    #[test]
    fn an_address_is_shown_without_secrets() {
        let address = "https://u:p@h:1/v1?key=s#t".parse().unwrap();
        assert_eq!(without_secrets(address).as_str(), "https://h:1/v1");
    }
}
