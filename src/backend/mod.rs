//! What produces a job's output: the trait that a worker runs, and the backends that come with it.
//!
//! A backend gets a [`Job`] and an [`Output`] and returns a [`Finish`] or a [`Failure`]. It knows
//! nothing of the queue, the log, other attempts or NATS: the worker publishes its output.

mod busy;
pub mod demo;
pub mod endpoint;
pub mod exec;
pub(crate) mod fetch;
mod format;
mod http;
pub mod openai;
mod public_addresses;
mod queued;
mod signature;
mod sse;
mod surrogates;
pub mod webhook;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

pub use secrecy::SecretString;

pub use self::fetch::fetch_key_set;
pub use self::http::NoClient;
use self::queued::PieceKind;
pub(crate) use self::queued::QueuedOutput;
use crate::config::{OUTPUT_BUFFER_MAX, OUTPUT_PIECES_MAX};
use crate::wire::{self, JobId, Kind};
pub use crate::wire::{Channel, FailureCode};

/// Runs jobs of one kind.
///
/// ```
/// use tailwater::backend::{Backend, Failure, FailureCode, Finish, Job, Output};
///
/// /// Outputs its input in capitals, word by word.
/// struct Shout;
///
/// impl Backend for Shout {
///     async fn run(&self, job: Job, out: Output) -> Result<Finish, Failure> {
///         let Some(text) = job.input.as_str() else {
///             return Err(Failure::fatal(FailureCode::BadInput, "the input must be a text"));
///         };
///         for word in text.split_inclusive(' ') {
///             out.text(&word.to_uppercase()).await?;
///         }
///         Ok(Finish::default())
///     }
/// }
/// ```
pub trait Backend: Send + Sync + 'static {
    /// Whether a later attempt can continue where an earlier one stopped. It then gets the earlier
    /// output in [`Job::previous_output`] and outputs only what follows; clients keep what they
    /// have. If the log no longer has all of the output, the attempt starts over instead. This must
    /// not block: it is called between the publishes of all jobs.
    fn continues(&self) -> bool {
        false
    }

    /// Runs one job to its end. Called once per attempt, for many jobs at a time, on threads that
    /// only backends use.
    ///
    /// It may:
    /// - Wait at any `await`. An attempt may take hours; the worker keeps the queue informed.
    /// - Use tokio: it runs on a runtime with timers, sockets and processes, and may spawn tasks.
    ///   Output of a task after this has returned is refused, and tasks are not waited for.
    /// - Panic. The attempt fails with the code `backend_panicked`, another one follows, and the
    ///   worker continues.
    ///
    /// It should not block its thread with a synchronous client, a long computation, a lock or
    /// `std::thread::sleep`. No job loses its attempt, but the other backends on this thread stop
    /// meanwhile, and there are only as many threads as cores (`backend_threads` of the worker's
    /// settings). Put such work into `tokio::task::spawn_blocking`, as `examples/blocking.rs` does,
    /// or between two awaits into `tokio::task::block_in_place`.
    ///
    /// Once [`Job::stop`] is cancelled, the output no longer counts: clean up and return soon, with
    /// any result. A future that has not returned after [`STOP_WAIT`](crate::config::STOP_WAIT) is
    /// dropped, so it must be safe to drop at any await. A future that never yields cannot be
    /// dropped: its job is ended or handed back anyway, and it occupies its thread until it yields
    /// or the process ends.
    fn run(&self, job: Job, out: Output) -> impl Future<Output = Result<Finish, Failure>> + Send;
}

/// The job that a backend runs.
#[derive(Clone, Debug)]
pub struct Job {
    /// The job's id.
    pub id: JobId,
    /// Its kind.
    pub kind: Kind,
    /// The input of its submission.
    pub input: Value,
    /// The number of the attempt, from 1.
    pub attempt: u32,
    /// The output of earlier attempts, for a backend that [continues](Backend::continues), if there
    /// is any and it is complete.
    pub previous_output: Option<String>,
    /// Cancelled when the attempt is over: the job was cancelled, or another worker has it.
    pub stop: CancellationToken,
}

/// How a job succeeded.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Finish {
    /// What it cost, in any form.
    pub usage: Option<Value>,
    /// Why the backend stopped, for example `stop` or `length`.
    pub finish_reason: Option<String>,
}

/// Why an attempt failed, and whether to try again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// For programs: a [`FailureCode`], or a stable code of the backend's own.
    pub code: String,
    /// For people. Every client of the job sees it.
    pub message: String,
    /// Whether another attempt may succeed.
    pub retry: Retry,
}

/// Whether and when a failed attempt should be followed by another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// No: another attempt would also fail, so the job has failed.
    Never,
    /// Yes, after the worker's back-off.
    Later,
    /// Yes, but not before this time, for example because a server asked for it.
    After(Duration),
}

impl Failure {
    /// A failure that would happen again in another attempt.
    pub fn fatal(code: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            code: code.into(),
            message: message.into(),
            retry: Retry::Never,
        }
    }

    /// A failure that may not happen in another attempt.
    pub fn retryable(code: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            code: code.into(),
            message: message.into(),
            retry: Retry::Later,
        }
    }
}

impl From<Failure> for wire::JobFailure {
    fn from(
        Failure {
            code,
            message,
            retry,
        }: Failure,
    ) -> Self {
        Self {
            code,
            message,
            retryable: retry != Retry::Never,
        }
    }
}

/// The attempt is over; its output is no longer accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the attempt is over")]
pub struct Stopped;

impl From<Stopped> for Failure {
    fn from(stopped: Stopped) -> Self {
        Self::retryable(FailureCode::Stopped, stopped.to_string())
    }
}

/// Accepts a backend's output. It waits when the log is slower than the backend, and holds at most
/// [`OUTPUT_BUFFER_MAX`] bytes.
///
/// ```
/// use serde_json::json;
/// use tailwater::backend::{Channel, Output, Stopped};
///
/// async fn answer(out: &Output) -> Result<(), Stopped> {
///     out.text_on(Channel::Reasoning, "They ask for the sum.").await?;
///     out.text("2 + 2 = 4").await?;
///     out.data(json!({"sum": 4})).await
/// }
/// ```
#[derive(Debug)]
pub struct Output {
    pieces: mpsc::Sender<Piece>,
    permits: Arc<Semaphore>,
    queued: Arc<QueuedOutput>,
}

/// A piece of output, and the permits for its bytes.
#[derive(Debug)]
pub(crate) struct Piece {
    pub(crate) content: Content,
    pub(crate) permit: OwnedSemaphorePermit,
}

/// What a piece consists of.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Content {
    Text { channel: Channel, text: String },
    Data(Value),
}

impl Content {
    fn kind(&self) -> PieceKind {
        match self {
            Self::Text {
                channel: Channel::Output,
                ..
            } => PieceKind::Output,
            Self::Text {
                channel: Channel::Reasoning,
                ..
            } => PieceKind::Reasoning,
            Self::Data(_) => PieceKind::Data,
        }
    }
}

impl Output {
    /// An output, and the receiver that the worker reads.
    pub(crate) fn new() -> (Self, mpsc::Receiver<Piece>) {
        let (pieces, taken) = mpsc::channel(OUTPUT_PIECES_MAX);
        (
            Self {
                pieces,
                permits: Arc::new(Semaphore::new(OUTPUT_BUFFER_MAX)),
                queued: Arc::new(QueuedOutput::new()),
            },
            taken,
        )
    }

    /// What is queued for the worker.
    pub(crate) fn queued(&self) -> Arc<QueuedOutput> {
        Arc::clone(&self.queued)
    }

    /// Outputs text of the answer. Empty text is ignored.
    ///
    /// # Errors
    /// [`Stopped`] when the attempt is over.
    pub async fn text(&self, text: &str) -> Result<(), Stopped> {
        self.text_on(Channel::Output, text).await
    }

    /// Outputs text of a channel. Empty text is ignored.
    ///
    /// # Errors
    /// [`Stopped`] when the attempt is over.
    pub async fn text_on(&self, channel: Channel, mut text: &str) -> Result<(), Stopped> {
        while !text.is_empty() {
            let (part, rest) = text.split_at(text.floor_char_boundary(OUTPUT_BUFFER_MAX / 4));
            self.put(
                Content::Text {
                    channel,
                    text: part.to_owned(),
                },
                part.len(),
            )
            .await?;
            text = rest;
        }
        Ok(())
    }

    /// Outputs data that is not text.
    ///
    /// # Errors
    /// [`Stopped`] when the attempt is over.
    pub async fn data(&self, data: Value) -> Result<(), Stopped> {
        let size = data.to_string().len();
        self.put(Content::Data(data), size).await
    }

    /// Outputs text or data.
    pub(crate) async fn content(&self, content: Content) -> Result<(), Stopped> {
        match content {
            Content::Text { channel, text } => self.text_on(channel, &text).await,
            Content::Data(data) => self.data(data).await,
        }
    }

    async fn put(&self, content: Content, size: usize) -> Result<(), Stopped> {
        let size = u32::try_from(size.min(OUTPUT_BUFFER_MAX)).map_err(|_| Stopped)?;
        let permit = Arc::clone(&self.permits)
            .acquire_many_owned(size)
            .await
            .map_err(|_| Stopped)?;
        let kind = content.kind();
        let bytes = permit.num_permits();
        let piece = Piece { content, permit };
        self.pieces.send(piece).await.map_err(|_| Stopped)?;
        self.queued.add(kind, bytes);
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The first attempt of a job.
    pub(crate) fn job(id: &str, kind: &str, input: Value) -> Job {
        Job {
            id: id.parse().unwrap(),
            kind: kind.parse().unwrap(),
            input,
            attempt: 1,
            previous_output: None,
            stop: CancellationToken::new(),
        }
    }

    #[tokio::test]
    async fn an_output_waits_while_it_is_full_and_ends_with_its_reader() {
        let (out, mut taken) = Output::new();
        let flood = async { while out.text(&"x".repeat(10_000)).await.is_ok() {} };
        let reader = async {
            let piece = taken.recv().await.unwrap();
            assert!(matches!(piece.content, Content::Text { text, .. } if text.len() == 10_000));
            // Everything that fits is queued before this task runs again; then the queue is closed.
            tokio::task::yield_now().await;
            let mut held = 0;
            while let Ok(piece) = taken.try_recv() {
                held += 1;
                drop(piece);
            }
            assert!(held * 10_000 <= OUTPUT_BUFFER_MAX);
            drop(taken);
        };
        tokio::join!(flood, reader);
    }

    #[tokio::test]
    async fn long_text_is_cut_between_characters_only() {
        let (out, mut taken) = Output::new();
        let text = "é".repeat(OUTPUT_BUFFER_MAX);
        let mut seen = String::new();
        let put = async {
            out.text(&text).await.unwrap();
            drop(out);
        };
        let take = async {
            while let Some(Piece {
                content: Content::Text { text, .. },
                ..
            }) = taken.recv().await
            {
                seen.push_str(&text);
            }
        };
        tokio::join!(put, take);
        assert_eq!(seen, text);
    }
}
