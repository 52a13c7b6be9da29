//! Any server of OpenAI-compatible chat completions as a backend: OpenAI, vLLM, Ollama, llama.cpp
//! and others. The answer is streamed; a server may also send it whole. It runs no tools, and
//! cannot continue the answer of an earlier attempt: each attempt is a new answer.
//!
//! A server that is busy before it sent any output is asked again within the attempt, for up to
//! [`OpenAiSettings::busy`]: after `Retry-After` if the server sends it, else after pauses that
//! double.
//!
//! `PROTOCOL.md` lists the codes of its failures.

mod address;
mod body;
mod chunk;
mod completeness;
mod completion;
mod error_class;
mod fault;
mod request;
mod server;
mod server_error;
mod tools;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use secrecy::SecretString;
use tokio::time::sleep;
use tracing::{debug, warn};

use self::fault::Fault;
use self::request::ChatRequest;
use self::server::ModelServer;
use super::busy::BusyBudget;
use super::{Backend, Failure, FailureCode, Finish, Job, Output, Stopped};
use crate::config::{MODEL_BUSY, MODEL_SILENCE};

pub use self::server::OpenAiError;

/// The settings of the backend.
#[derive(Clone, Debug)]
pub struct OpenAiSettings {
    /// Where the API is; usually it ends in `/v1`. `/chat/completions` is added if it is not there.
    pub base_url: String,
    /// The model.
    pub model: String,
    /// The key, for servers that need one.
    pub key: Option<SecretString>,
    /// How long the server may send nothing.
    pub silence: Duration,
    /// How long a job waits in total for a busy server.
    pub busy: Duration,
}

impl OpenAiSettings {
    /// The defaults for this server and model.
    pub fn new(base_url: impl Into<String>, model: impl Into<String>) -> Self {
        Self {
            base_url: base_url.into(),
            model: model.into(),
            key: None,
            silence: MODEL_SILENCE,
            busy: MODEL_BUSY,
        }
    }
}

/// Asks a model server.
#[derive(Debug)]
pub struct OpenAi {
    server: ModelServer,
    model: String,
    busy: Duration,
    /// Whether the server has refused `stream_options` and answered without them.
    refuses_options: AtomicBool,
}

impl Backend for OpenAi {
    async fn run(&self, job: Job, out: Output) -> Result<Finish, Failure> {
        let request = ChatRequest::new(&self.model, &job.input)?;
        // A request that is waiting is dropped with its connection.
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
    /// [`OpenAiError`].
    pub fn new(settings: OpenAiSettings) -> Result<Self, OpenAiError> {
        let OpenAiSettings {
            base_url,
            model,
            key,
            silence,
            busy,
        } = settings;
        Ok(Self {
            server: ModelServer::new(&base_url, key, silence)?,
            model,
            busy,
            refuses_options: AtomicBool::new(false),
        })
    }

    /// Asks until the server answers, refuses, or has been busy for too long.
    async fn answer(
        &self,
        job: &Job,
        mut request: ChatRequest,
        out: &Output,
    ) -> Result<Finish, Failure> {
        if self.refuses_options.load(Ordering::Relaxed) {
            request = request.without_options();
        }
        let mut budget = BusyBudget::new(self.busy, job.id.tag());
        let mut left_out_options = false;
        loop {
            let mut has_output = false;
            let asked = self.server.ask(&request, out, &mut has_output).await;
            let Fault { failure, status } = match asked {
                Ok(finish) => {
                    self.refuses_options
                        .fetch_or(left_out_options, Ordering::Relaxed);
                    return Ok(finish);
                }
                Err(fault) => fault,
            };
            let failure = self.server.shown(failure);
            if has_output {
                return Err(failure);
            }
            if request.adds_options() && refuses_options(&failure, status) {
                debug!(job = %job.id, message = failure.message, "asks again without stream_options");
                request = request.without_options();
                left_out_options = true;
                continue;
            }
            if failure.code != FailureCode::ModelBusy {
                return Err(failure);
            }
            let Some(wait) = budget.wait(failure.retry) else {
                return Err(Failure::fatal(failure.code, failure.message));
            };
            warn!(job = %job.id, ?wait, message = failure.message, "the model server is busy; it is asked again");
            sleep(wait).await;
        }
    }
}

/// Whether a server may have failed because of the added `stream_options`. There is no status or
/// type for that: a server that does not know them answers with 400 or 422, or names them in its
/// message.
fn refuses_options(failure: &Failure, status: Option<u16>) -> bool {
    let named = ["stream_options", "include_usage"]
        .iter()
        .any(|name| failure.message.contains(name));
    failure.code != FailureCode::ModelBusy && (named || matches!(status, Some(400 | 422)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_is_never_shown() {
        let with_key = |text: &str| OpenAiSettings {
            key: Some(text.into()),
            ..OpenAiSettings::new("http://h", "m")
        };
        let settings = with_key("sk-0123456789");
        let backend = OpenAi::new(settings.clone()).unwrap();
        let error = OpenAi::new(with_key("sk-0123456789\n")).unwrap_err();
        for shown in [
            format!("{settings:?}"),
            format!("{backend:?}"),
            format!("{error} {error:?}"),
        ] {
            assert!(!shown.contains("0123"), "{shown}");
        }
    }
}
