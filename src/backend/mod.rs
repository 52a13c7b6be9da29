//! What produces a job's output: the trait that a worker runs, and the backends that come with it.
//!
//! A backend is given a [`Job`] and an [`Output`] and ends with a [`Finish`] or a [`Failure`]. It knows no queue, no
//! log, no attempts of others and no NATS: what it puts out is published for it.

pub mod demo;
pub mod exec;
mod http;
pub mod openai;
mod surrogates;
pub mod webhook;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

pub use secrecy::SecretString;

pub use self::http::NoClient;
use crate::config::{OUTPUT_BUFFER_MAX, OUTPUT_PIECES_MAX};
use crate::wire::{self, JobId, Kind};
pub use crate::wire::{Channel, FailureCode};

/// Runs jobs of one kind.
pub trait Backend: Send + Sync + 'static {
    /// Whether a later attempt can go on where an earlier one stopped. It is then given the earlier output in
    /// [`Job::previous_output`], puts out only what follows, and clients keep what they have. When the log no longer holds all
    /// of the output, an attempt begins anew instead. It must answer at once: it is called between the publishes of all
    /// jobs.
    fn continues(&self) -> bool {
        false
    }

    /// Runs one job to its end. Called once per attempt, many at a time, on a few threads that only backends use.
    ///
    /// What it may do:
    /// - Wait at any `await`. An attempt may take hours; telling the queue that it goes on is not the backend's concern.
    /// - Use tokio: it runs on a runtime with timers, sockets and processes, and may spawn tasks. What they put out after
    ///   this has returned is refused, and they are not waited for.
    /// - Panic. That is a failed attempt with the code `backend_panicked`, followed by another one; the worker goes on.
    ///
    /// What it should not do is block its thread, with a synchronous client, a long computation, a lock or
    /// `std::thread::sleep`: jobs on other threads are not hurt and no job loses its attempt, but the other backends on
    /// this thread stand still, and there are only as many threads as cores (`Settings::backend_threads` of a worker). Put
    /// such work into `tokio::task::spawn_blocking`, as `examples/blocking.rs` does, or between two awaits into
    /// `tokio::task::block_in_place`.
    ///
    /// When [`Job::stop`] is cancelled the output counts no longer: clean up and return soon, with anything. A future
    /// that has not returned after [`STOP_WAIT`](crate::config::STOP_WAIT) is dropped, so what it holds must be safe
    /// to drop at any await. One that never yields cannot be dropped: its job is ended or handed back all the same, and it
    /// holds its thread until it yields or the process ends.
    fn run(&self, job: Job, out: Output) -> impl Future<Output = Result<Finish, Failure>> + Send;
}

/// What a backend is given.
#[derive(Clone, Debug)]
pub struct Job {
    /// The job.
    pub id: JobId,
    /// Its kind.
    pub kind: Kind,
    /// What the submitter gave.
    pub input: Value,
    /// Which try at the job this is, from 1.
    pub attempt: u32,
    /// The output of the attempts before, for a backend that [continues](Backend::continues), when there is any and it
    /// is whole.
    pub previous_output: Option<String>,
    /// Cancelled when the attempt is over: the job was cancelled, or another worker has it.
    pub stop: CancellationToken,
}

/// How a job ended well.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Finish {
    /// What it cost, in the backend's own words.
    pub usage: Option<Value>,
    /// Why the backend stopped, for example `stop` or `length`.
    pub finish_reason: Option<String>,
}

/// Why an attempt failed, and whether another one makes sense.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Stable, for programs: a [`FailureCode`], or a code of the backend's own.
    pub code: String,
    /// For people. Every client of the job sees it.
    pub message: String,
    /// Whether the same job may do better another time.
    pub retry: Retry,
}

/// Whether and when a failed attempt should be followed by another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// Another attempt would fail as well: the job has failed.
    Never,
    /// After the worker's own back-off.
    Later,
    /// Not before so long has passed, for example because a server said so.
    After(Duration),
}

impl Failure {
    /// A failure that another attempt would meet again.
    pub fn fatal(code: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            code: code.into(),
            message: message.into(),
            retry: Retry::Never,
        }
    }

    /// A failure that another attempt may not meet.
    pub fn retryable(code: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            code: code.into(),
            message: message.into(),
            retry: Retry::Later,
        }
    }
}

impl From<Failure> for wire::Failure {
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

/// Nobody takes the output any more: the attempt is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the attempt is over")]
pub struct Stopped;

impl From<Stopped> for Failure {
    fn from(stopped: Stopped) -> Self {
        Self::retryable(FailureCode::Stopped, stopped.to_string())
    }
}

/// Where a backend puts what it produces. Waits when the log is slower than the backend: at most
/// [`OUTPUT_BUFFER_MAX`] bytes are held.
#[derive(Debug)]
pub struct Output {
    pieces: mpsc::Sender<Piece>,
    room: Arc<Semaphore>,
}

/// One thing that a backend put out, and the room it takes.
#[derive(Debug)]
pub(crate) struct Piece {
    pub(crate) content: Content,
    pub(crate) room: OwnedSemaphorePermit,
}

/// What a piece says.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Content {
    Text { channel: Channel, text: String },
    Data(Value),
}

impl Output {
    /// An output, and the end that the worker reads.
    pub(crate) fn new() -> (Self, mpsc::Receiver<Piece>) {
        let (pieces, taken) = mpsc::channel(OUTPUT_PIECES_MAX);
        (
            Self {
                pieces,
                room: Arc::new(Semaphore::new(OUTPUT_BUFFER_MAX)),
            },
            taken,
        )
    }

    /// Puts out text of the answer. Empty text is nothing.
    ///
    /// # Errors
    /// [`Stopped`] when the attempt is over.
    pub async fn text(&self, text: &str) -> Result<(), Stopped> {
        self.text_on(Channel::Output, text).await
    }

    /// Puts out text of a channel. Empty text is nothing.
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

    /// Puts out something that is not text.
    ///
    /// # Errors
    /// [`Stopped`] when the attempt is over.
    pub async fn data(&self, data: Value) -> Result<(), Stopped> {
        let size = data.to_string().len();
        self.put(Content::Data(data), size).await
    }

    async fn put(&self, content: Content, size: usize) -> Result<(), Stopped> {
        let size = u32::try_from(size.min(OUTPUT_BUFFER_MAX)).map_err(|_| Stopped)?;
        let room = Arc::clone(&self.room)
            .acquire_many_owned(size)
            .await
            .map_err(|_| Stopped)?;
        self.pieces
            .send(Piece { content, room })
            .await
            .map_err(|_| Stopped)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_output_waits_when_nobody_takes_and_ends_when_nobody_will() {
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
