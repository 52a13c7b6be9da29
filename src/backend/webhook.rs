//! Callbacks: reports to an address how a job ended, signed as in [Standard
//! Webhooks](https://www.standardwebhooks.com). It calls only hosts that the operator allows, by
//! default at public addresses only, follows no redirects, and passes on nothing of the response: clients must not be able to read
//! from the operator's network.
//!
//! `PROTOCOL.md` lists the codes of its failures.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use reqwest::header::CONTENT_TYPE;
use reqwest::{Client, StatusCode};
use secrecy::SecretString;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::timeout;

use super::http::{self, NoClient};
use super::public_addresses::is_not_public;
use super::signature::{self, BadSecret, Signer};
use super::{Backend, Failure, FailureCode, Finish, Job, Output, Retry, Stopped};
use crate::config::{CALLBACK_ANSWER_MAX, CALLBACK_ANSWER_WAIT, CALLBACK_WAIT};
use crate::wire::{JobId, may_call_back};

/// The end of the year 9999, in milliseconds: RFC 3339 has no later time.
const TIME_MAX: u64 = 253_402_300_799_999;

/// Why the backend cannot start.
#[derive(Debug, thiserror::Error)]
pub enum WebhookError {
    /// No hosts are allowed.
    #[error("no callback hosts are given")]
    NoHosts,
    /// No address can match this host.
    #[error(
        "the callback host {0:?} must be `name` or `name:port`, without the default port of its scheme"
    )]
    BadHost(String),
    /// The secret is not in the form of Standard Webhooks.
    #[error(transparent)]
    BadSecret(#[from] BadSecret),
    /// There is no HTTP client.
    #[error(transparent)]
    NoClient(#[from] NoClient),
}

/// Delivers callbacks.
pub struct Webhook {
    client: Client,
    hosts: Vec<String>,
    signer: Signer,
}

impl fmt::Debug for Webhook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Webhook")
            .field("hosts", &self.hosts)
            .finish_non_exhaustive()
    }
}

/// The input of a callback job.
#[derive(Debug, Deserialize)]
struct Callback {
    url: String,
    #[serde(rename = "type")]
    event_type: String,
    data: Value,
}

/// What is sent.
#[derive(Debug, PartialEq, Eq)]
struct Message {
    timestamp: u64,
    body: String,
    signature: String,
}

impl Backend for Webhook {
    async fn run(&self, job: Job, _out: Output) -> Result<Finish, Failure> {
        let bad = |why: String| Failure::fatal(FailureCode::BadInput, why);
        let callback = Callback::deserialize(&job.input).map_err(|error| bad(error.to_string()))?;
        if !may_call_back(&callback.url, &self.hosts) {
            let message = "the worker's operator does not allow callbacks to this host";
            return Err(Failure::fatal(FailureCode::CallbackNotAllowed, message));
        }
        let now = SystemTime::now();
        let message = self
            .message(&job.id, &callback, now)
            .ok_or_else(|| bad("no ended_at in data".into()))?;
        let unreachable = |why: &str| {
            Failure::retryable(
                FailureCode::CallbackUnreachable,
                format!("the receiver was not reached: {why}"),
            )
        };
        tokio::select! {
            biased;
            () = job.stop.cancelled() => Err(Stopped.into()),
            sent = timeout(CALLBACK_WAIT, self.send(&callback.url, &job.id, message)) => match sent {
                Ok(Ok((status, retry))) => result_of(status, retry),
                Ok(Err(error)) if is_not_public(&error) => {
                    let message = "the name of this host has no public address";
                    Err(Failure::fatal(FailureCode::CallbackNotAllowed, message))
                }
                Ok(Err(error)) => Err(unreachable(&http::describe(error))),
                Err(_) => Err(unreachable("no answer in time")),
            },
        }
    }
}

impl Webhook {
    /// A backend that calls these hosts, each `name` or `name:port`, and signs with this secret. A
    /// name must resolve to public addresses; a host may be any address.
    ///
    /// # Errors
    /// [`WebhookError`].
    pub fn new(hosts: Vec<String>, secret: &SecretString) -> Result<Self, WebhookError> {
        if hosts.is_empty() {
            return Err(WebhookError::NoHosts);
        }
        // With both schemes, so that their default ports are refused as well: an address omits
        // them, so they would never match.
        let matches = |host: &String| {
            let list = std::slice::from_ref(host);
            ["http", "https"]
                .iter()
                .all(|scheme| may_call_back(&format!("{scheme}://{host}/"), list))
        };
        if let Some(bad) = hosts.iter().find(|host| !matches(host)) {
            return Err(WebhookError::BadHost(bad.clone()));
        }
        Ok(Self {
            signer: Signer::new(secret)?,
            client: http::public_client()?,
            hosts,
        })
    }

    /// The same; the names of hosts may also resolve to private addresses and to this machine.
    ///
    /// # Errors
    /// [`NoClient`].
    pub fn with_private_addresses(self) -> Result<Self, NoClient> {
        let client = http::client()?;
        Ok(Self { client, ..self })
    }

    /// The message of a callback, signed at `now`. `None` if the time of the job's end is missing.
    fn message(&self, id: &JobId, callback: &Callback, now: SystemTime) -> Option<Message> {
        let ended = callback
            .data
            .get("ended_at")?
            .as_u64()
            .filter(|ended| *ended <= TIME_MAX)?;
        let ended = humantime::format_rfc3339_millis(UNIX_EPOCH + Duration::from_millis(ended));
        let body =
            json!({"type": callback.event_type, "timestamp": ended.to_string(), "data": callback.data})
                .to_string();
        let timestamp = now.duration_since(UNIX_EPOCH).ok()?.as_secs();
        let signature = self.signer.sign(id.as_str(), timestamp, &body);
        Some(Message {
            timestamp,
            body,
            signature,
        })
    }

    async fn send(
        &self,
        url: &str,
        id: &JobId,
        message: Message,
    ) -> Result<(StatusCode, Retry), reqwest::Error> {
        let Message {
            timestamp,
            body,
            signature,
        } = message;
        let request = self
            .client
            .post(url)
            .header(CONTENT_TYPE, "application/json")
            .header(signature::ID, id.as_str())
            .header(signature::TIMESTAMP, timestamp)
            .header(signature::SIGNATURE, signature)
            .body(body);
        let mut response = request.send().await?;
        let answer = (
            response.status(),
            http::retry_after(response.headers(), SystemTime::now()),
        );
        // The body is discarded; reading some of it lets the receiver finish its response.
        let mut discarded = Vec::new();
        let read = http::read_at_most(&mut response, CALLBACK_ANSWER_MAX, &mut discarded);
        let _ = timeout(CALLBACK_ANSWER_WAIT, read).await;
        Ok(answer)
    }
}

/// What the receiver's answer means.
fn result_of(status: StatusCode, retry: Retry) -> Result<Finish, Failure> {
    let message = format!("the receiver answered {status}");
    if status.is_success() {
        Ok(Finish {
            usage: None,
            finish_reason: Some("delivered".into()),
        })
    } else if status.is_client_error() && !http::is_temporary(status) {
        Err(Failure::fatal(FailureCode::CallbackRefused, message))
    } else {
        Err(Failure {
            code: FailureCode::CallbackFailed.into(),
            message,
            retry,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD as BASE64;
    use futures_util::FutureExt as _;
    use tokio::net::TcpListener;

    /// The secret of the examples of Standard Webhooks.
    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

    fn webhook(hosts: &[&str], secret: &str) -> Result<Webhook, WebhookError> {
        Webhook::new(
            hosts.iter().map(|&host| host.to_owned()).collect(),
            &secret.into(),
        )
    }

    fn job(input: Value) -> Job {
        crate::backend::tests::job("callback-j", "callback", input)
    }

    async fn failed(input: Value) -> (String, Retry) {
        let webhook = webhook(&["h.example"], SECRET).unwrap();
        let failure = webhook.run(job(input), Output::new().0).await.unwrap_err();
        (failure.code, failure.retry)
    }

    #[test]
    fn a_signature_equals_that_of_openssl() {
        let callback = Callback {
            url: "http://h.example/".into(),
            event_type: "job.done".into(),
            data: json!({"id": "j", "ended_at": 1_700_000_000_123_u64}),
        };
        let now = UNIX_EPOCH + Duration::from_millis(1_700_000_005_999);
        let message = webhook(&["h.example"], SECRET).unwrap().message(
            &"callback-j".parse().unwrap(),
            &callback,
            now,
        );
        let body = r#"{"data":{"ended_at":1700000000123,"id":"j"},"timestamp":"2023-11-14T22:13:20.123Z","type":"job.done"}"#;
        // printf %s "callback-j.1700000005.$body" | openssl dgst -sha256 -binary -mac HMAC -macopt
        // "hexkey:$key" | base64 with key=$(printf %s MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw | base64 -d
        // | xxd -p -c 99)
        let signature = "v1,4cIVmkqbd38k1W/DaZTqrYKZOUZHGSrvkvJg5TSLTus=".into();
        assert_eq!(
            message,
            Some(Message {
                timestamp: 1_700_000_005,
                body: body.into(),
                signature
            })
        );
    }

    #[tokio::test]
    async fn an_invalid_callback_or_a_host_that_is_not_allowed_is_not_sent() {
        let input = |url: &str, ended: Value| json!({"url": url, "type": "job.done", "data": {"ended_at": ended}});
        let fatal = |code: &str| (code.to_owned(), Retry::Never);
        assert_eq!(failed(json!("x")).await, fatal("bad_input"));
        assert_eq!(
            failed(json!({"url": "http://h.example/"})).await,
            fatal("bad_input")
        );
        assert_eq!(
            failed(input("http://h.example/", Value::Null)).await,
            fatal("bad_input")
        );
        assert_eq!(
            failed(input("http://h.example/", json!(u64::MAX))).await,
            fatal("bad_input")
        );
        for url in [
            "http://evil.example/",
            "http://h.example:81/",
            "https://h.example@evil.example/",
            "nonsense",
        ] {
            assert_eq!(
                failed(input(url, json!(1))).await,
                fatal("callback_not_allowed"),
                "{url}"
            );
        }
    }

    #[test]
    fn only_a_final_refusal_of_the_receiver_ends_the_attempts() {
        let result = |status| result_of(StatusCode::from_u16(status).unwrap(), Retry::Later);
        assert!(
            [200, 202, 204]
                .into_iter()
                .all(|status| result(status).is_ok())
        );
        for (status, code) in [
            (400, "callback_refused"),
            (404, "callback_refused"),
            (410, "callback_refused"),
        ] {
            let failure = result(status).unwrap_err();
            assert_eq!(
                (failure.code.as_str(), failure.retry),
                (code, Retry::Never),
                "{status}"
            );
        }
        for status in [302, 304, 408, 409, 425, 429, 500, 503] {
            let failure = result(status).unwrap_err();
            assert_eq!(
                (failure.code.as_str(), failure.retry),
                ("callback_failed", Retry::Later),
                "{status}"
            );
        }
    }

    #[test]
    fn invalid_hosts_and_secrets_are_refused_without_showing_the_secret() {
        assert!(matches!(webhook(&[], SECRET), Err(WebhookError::NoHosts)));
        for host in ["", "http://h", "h/x", "h:80", "h:443", "u@h", "h h"] {
            assert!(
                matches!(webhook(&[host], SECRET), Err(WebhookError::BadHost(bad)) if bad == host),
                "{host}"
            );
        }
        for host in ["h.example", "h.example:8443", "127.0.0.1:9", "[::1]:9"] {
            assert!(webhook(&[host], SECRET).is_ok(), "{host}");
        }
        let short = format!("whsec_{}", BASE64.encode([7; 23]));
        let long = format!("whsec_{}", BASE64.encode([7; 65]));
        for secret in [
            "",
            "whsec_",
            "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
            "whsec_!!!",
            &short,
            &long,
        ] {
            assert!(
                matches!(webhook(&["h"], secret), Err(WebhookError::BadSecret(_))),
                "{secret}"
            );
        }
        assert_eq!(
            format!("{:?}", webhook(&["h"], SECRET).unwrap()),
            r#"Webhook { hosts: ["h"], .. }"#
        );
    }

    #[tokio::test]
    async fn a_name_that_means_this_machine_is_called_only_if_private_addresses_are_allowed() {
        let receiver = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = format!("localhost:{}", receiver.local_addr().unwrap().port());
        let url = format!("http://{host}/");
        let input = json!({"url": url, "type": "job.done", "data": {"ended_at": 1}});
        let public = webhook(&[&host], SECRET).unwrap();
        let failure = public.run(job(input.clone()), Output::new().0).await;
        let failure = failure.unwrap_err();
        assert_eq!(failure.code, "callback_not_allowed", "{}", failure.message);
        assert!(receiver.accept().now_or_never().is_none());
        let any = webhook(&[&host], SECRET).unwrap();
        let any = any.with_private_addresses().unwrap();
        let called = async {
            tokio::select! {
                ended = any.run(job(input), Output::new().0) => panic!("{ended:?}"),
                accepted = receiver.accept() => accepted.unwrap(),
            }
        };
        timeout(CALLBACK_WAIT, called).await.unwrap();
    }
}
