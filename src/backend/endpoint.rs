//! A user's own HTTP endpoint as a backend: it gets the job's input with a POST request, and the
//! body of its answer is the job's output, streamed as it arrives. It runs no code of the user's
//! itself, and does not repeat a request whose answer has begun.
//!
//! An endpoint that is busy is asked again within the attempt, for up to
//! [`EndpointSettings::busy`]: after `Retry-After` if it sends it, else after pauses that double.
//! Dropping a request closes its connection, so that the endpoint notices a cancel.
//!
//! `PROTOCOL.md` lists the codes of its failures.

mod answer;
mod dialect;
mod events;
mod header;
mod report;
mod server;

use std::time::Duration;

use secrecy::SecretString;
use serde_json::json;
use tokio::time::sleep;
use tracing::warn;

use self::server::EndpointServer;
use super::busy::BusyBudget;
use super::{Backend, Failure, FailureCode, Finish, Job, Output, Retry, Stopped};
use crate::config::{ENDPOINT_BUSY, ENDPOINT_SILENCE};

pub use self::header::{BadHeader, RequestHeader};
pub use self::server::EndpointError;
pub use super::signature::BadSecret;

/// The settings of the backend.
#[derive(Clone, Debug)]
pub struct EndpointSettings {
    /// Where to send the job's input.
    pub url: String,
    /// Further headers of each request.
    pub headers: Vec<RequestHeader>,
    /// The secret that signs each request, in the form of Standard Webhooks.
    pub secret: Option<SecretString>,
    /// Whether the endpoint can continue an earlier attempt's output. The body is then `{"input":
    /// …, "output": …}`, and it answers only what follows.
    pub continues: bool,
    /// How long the endpoint may send nothing.
    pub silence: Duration,
    /// How long a job waits in total for a busy endpoint.
    pub busy: Duration,
}

impl EndpointSettings {
    /// The defaults for this address.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            headers: Vec::new(),
            secret: None,
            continues: false,
            silence: ENDPOINT_SILENCE,
            busy: ENDPOINT_BUSY,
        }
    }
}

/// Asks an endpoint.
#[derive(Debug)]
pub struct Endpoint {
    server: EndpointServer,
    continues: bool,
    busy: Duration,
}

impl Backend for Endpoint {
    fn continues(&self) -> bool {
        self.continues
    }

    async fn run(&self, job: Job, out: Output) -> Result<Finish, Failure> {
        let stop = job.stop.clone();
        tokio::select! {
            biased;
            () = stop.cancelled() => Err(Stopped.into()),
            answered = self.answer(&job, &out) => answered,
        }
    }
}

impl Endpoint {
    /// A backend that asks this endpoint.
    ///
    /// # Errors
    /// [`EndpointError`].
    pub fn new(settings: EndpointSettings) -> Result<Self, EndpointError> {
        let EndpointSettings {
            url,
            headers,
            secret,
            continues,
            silence,
            busy,
        } = settings;
        Ok(Self {
            server: EndpointServer::new(&url, headers, secret.as_ref(), silence)?,
            continues,
            busy,
        })
    }

    /// Asks until the endpoint answers, refuses, or has been busy for too long.
    async fn answer(&self, job: &Job, out: &Output) -> Result<Finish, Failure> {
        let body = if self.continues {
            let output = job.previous_output.as_deref().unwrap_or_default();
            json!({"input": job.input, "output": output}).to_string()
        } else {
            job.input.to_string()
        };
        let mut budget = BusyBudget::new(self.busy, job.id.tag());
        loop {
            let failure = match self.server.ask(job, &body, out).await {
                Ok(finish) => return Ok(finish),
                Err(failure) => failure,
            };
            if failure.code != FailureCode::EndpointBusy {
                return Err(failure);
            }
            let Some(wait) = budget.wait(failure.retry) else {
                return Err(Failure {
                    retry: Retry::Never,
                    ..failure
                });
            };
            warn!(job = %job.id, ?wait, reason = failure.message, "the endpoint is busy; it is asked again");
            sleep(wait).await;
        }
    }
}
