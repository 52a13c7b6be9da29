//! One attempt at a job, from its `job:started` to its last event: publishes the backend's output
//! under the fence, one event at a time, and writes how the attempt ended. It starts no backend and
//! does not answer the queue.

use std::future::{Future, pending};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, OwnedSemaphorePermit, mpsc};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::batch::{Flush, OutputBatch};
use super::outcome::AttemptOutcome;
use super::report::Report;
use crate::backend::{Failure, Finish, Piece};
use crate::nats::{AppendError, EventWriter, Unwritable};
use crate::source::Unavailable;
use crate::wire::{Body, FailureCode, Limits};

/// The time limits of an attempt: for the whole job, and for silence of the backend.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deadlines {
    end: Option<Instant>,
    silence: Option<Duration>,
    /// When there was output, or an event was published, last.
    heard: Instant,
}

impl Deadlines {
    pub(super) fn new(limits: Limits, remaining: Option<Duration>) -> Self {
        let heard = Instant::now();
        let end = remaining.and_then(|remaining| heard.checked_add(remaining));
        Self {
            end,
            silence: limits.silence_timeout_ms.map(Duration::from_millis),
            heard,
        }
    }

    /// What remains of the time for the whole job.
    pub(super) fn remaining(&self) -> Option<Duration> {
        self.end
            .map(|end| end.saturating_duration_since(Instant::now()))
    }

    /// Returns a message when one of them has passed. The silence counts only if `with_silence`.
    async fn passed(self, with_silence: bool) -> &'static str {
        let until = |at: Option<Instant>| async move {
            match at {
                Some(at) => sleep_until(at).await,
                None => pending().await,
            }
        };
        let silent = self
            .silence
            .filter(|_| with_silence)
            .and_then(|silence| self.heard.checked_add(silence));
        tokio::select! {
            () = until(self.end) => "the job exceeded its time limit",
            () = until(silent) => "the job produced no output for too long",
        }
    }
}

/// One attempt, from its `job:started` to its end.
pub(super) struct Attempt {
    /// The writer, while no request is in flight.
    idle: Option<EventWriter>,
    /// The one append or check that is in flight, which gives the writer back.
    busy: Option<InFlightWrite>,
    /// Whether it is an append.
    storing: bool,
    batch: OutputBatch,
    /// `None` when the backend can produce no more output.
    pieces: Option<mpsc::Receiver<Piece>>,
    /// Asks for a check of the log.
    look: Arc<Notify>,
    pub(super) deadlines: Deadlines,
    /// When the log was last seen to be this worker's.
    proven: Instant,
    /// After what time the log is checked again. A signal can be lost, and the queue believes any
    /// worker that reports to be working on a job: a worker that only reported would keep a job
    /// that was cancelled, or that another worker owns.
    look_after: Duration,
    result: Option<Result<Finish, Failure>>,
}

/// An append or a check; `true` when an event was appended.
type InFlightWrite = Pin<Box<dyn Future<Output = (EventWriter, Result<bool, AppendError>)> + Send>>;

/// Why an attempt stopped publishing, when the log did not refuse an event.
#[derive(Debug)]
pub(super) enum StopReason {
    /// The backend has returned this, and all of its output is in the log.
    Finished(Result<Finish, Failure>),
    /// The worker stops.
    HandBack,
    /// A time limit was exceeded.
    TimedOut(&'static str),
}

/// What happened in an attempt.
enum AttemptEvent {
    HandBack,
    Written(Result<bool, AppendError>),
    Result(Result<Finish, Failure>),
    Piece(Option<Piece>),
    /// The next event is due.
    Due,
    /// Another process may have written.
    Look,
    TimedOut(&'static str),
}

impl Attempt {
    pub(super) fn new(
        writer: EventWriter,
        flush: Flush,
        pieces: mpsc::Receiver<Piece>,
        look: Arc<Notify>,
        deadlines: Deadlines,
        look_after: Duration,
    ) -> Self {
        Self {
            idle: Some(writer),
            busy: None,
            storing: false,
            batch: OutputBatch::new(flush),
            pieces: Some(pieces),
            look,
            deadlines,
            proven: Instant::now(),
            look_after,
            result: None,
        }
    }

    /// Publishes the backend's output until the backend has returned, or must stop.
    ///
    /// # Errors
    /// [`AppendError`] when the log refused an event.
    pub(super) async fn publish(
        &mut self,
        mut running: Pin<&mut impl Future<Output = Result<Finish, Failure>>>,
        hand_back: &CancellationToken,
    ) -> Result<StopReason, AppendError> {
        loop {
            if self.pieces.is_none()
                && self.batch.is_empty()
                && self.busy.is_none()
                && let Some(result) = &self.result
            {
                return Ok(StopReason::Finished(result.clone()));
            }
            match self.next(running.as_mut(), hand_back).await {
                AttemptEvent::HandBack => return Ok(StopReason::HandBack),
                AttemptEvent::TimedOut(message) => return Ok(StopReason::TimedOut(message)),
                AttemptEvent::Written(outcome) => {
                    let appended = outcome?;
                    self.proven = Instant::now();
                    if appended {
                        // A slow log is not a silence of the backend, which may have waited for
                        // room.
                        self.deadlines.heard = self.proven;
                    }
                }
                AttemptEvent::Result(result) => {
                    self.result = Some(result);
                    self.drain_output();
                }
                AttemptEvent::Piece(Some(piece)) => {
                    self.deadlines.heard = Instant::now();
                    self.batch.push(piece);
                }
                AttemptEvent::Piece(None) => self.pieces = None,
                AttemptEvent::Due => {
                    if let Some(writer) = self.idle.take() {
                        let event = self.batch.take(Instant::now());
                        self.busy = Some(Box::pin(append(writer, event)));
                        self.storing = true;
                    }
                }
                AttemptEvent::Look => {
                    if let Some(writer) = self.idle.take() {
                        self.busy = Some(Box::pin(check(writer)));
                    }
                }
            }
        }
    }

    async fn next(
        &mut self,
        running: Pin<&mut impl Future<Output = Result<Finish, Failure>>>,
        hand_back: &CancellationToken,
    ) -> AttemptEvent {
        let now = Instant::now();
        // When the backend has returned, no more output will join what waits.
        let due = self
            .batch
            .due(now)
            .map(|due| if self.result.is_some() { now } else { due });
        let idle = self.idle.is_some();
        let running_on = self.result.is_none();
        // While the log cannot be reached a backend may wait for room: that is not its own silence.
        let with_silence = running_on && !self.storing && self.batch.is_empty();
        let write = async {
            match &mut self.busy {
                Some(write) => write.await,
                None => pending().await,
            }
        };
        let piece = async {
            match &mut self.pieces {
                Some(pieces) => pieces.recv().await,
                None => pending().await,
            }
        };
        let due = async {
            match due {
                // Not through the timer, which ticks once a millisecond: that would be longer than
                // a publish takes.
                Some(due) if due <= now => {}
                Some(due) => sleep_until(due).await,
                None => pending().await,
            }
        };
        tokio::select! {
            () = hand_back.cancelled() => AttemptEvent::HandBack,
            (writer, outcome) = write => {
                self.busy = None;
                self.storing = false;
                self.idle = Some(writer);
                AttemptEvent::Written(outcome)
            }
            result = running, if running_on => AttemptEvent::Result(result),
            piece = piece => AttemptEvent::Piece(piece),
            () = due, if idle => AttemptEvent::Due,
            () = self.look.notified(), if idle => AttemptEvent::Look,
            () = sleep_until(self.proven + self.look_after), if idle => AttemptEvent::Look,
            message = self.deadlines.passed(with_silence) => AttemptEvent::TimedOut(message),
        }
    }

    /// Takes the output that the backend had produced when it returned. A task that it left behind
    /// and that goes on producing output is refused: the job does not wait for it.
    fn drain_output(&mut self) {
        let Some(mut pieces) = self.pieces.take() else {
            return;
        };
        pieces.close();
        while let Ok(piece) = pieces.try_recv() {
            self.batch.push(piece);
        }
    }

    /// Whether the backend has returned.
    pub(super) fn is_backend_done(&self) -> bool {
        self.result.is_some()
    }

    /// Drops unpublished output, which wakes a backend that waits for room.
    pub(super) fn abandon_output(&mut self) {
        self.pieces = None;
        self.batch.clear();
    }

    /// Appends `last`, the attempt's last event, if this worker still owns the job. An error, from
    /// the publishing before it or from its own append, decides instead how the attempt ends.
    pub(super) async fn end(
        mut self,
        last: Result<Body, AppendError>,
    ) -> Result<AttemptOutcome, Unavailable> {
        let settled = self.settle().await;
        let Some(mut writer) = self.idle.take() else {
            return Ok(AttemptOutcome::Unfinished(Duration::ZERO));
        };
        let mut last = settled.and(last);
        let mut is_bad_output = false;
        loop {
            let body = match last {
                Ok(body) => body,
                Err(AppendError::Superseded) => return Ok(AttemptOutcome::Lost),
                Err(AppendError::Unavailable(error)) => return Err(error),
                // The writer has moved past the request; only another request could refuse it
                // again.
                Err(AppendError::CancelRequested) => Body::Cancelled {},
                // A log that cannot store this either stores nothing: the next claim finds out, and
                // ends the job.
                Err(AppendError::Unwritable(error)) if is_bad_output => {
                    return Err(Unavailable(error.to_string()));
                }
                Err(AppendError::Unwritable(error)) => {
                    is_bad_output = true;
                    bad_output(&error)
                }
            };
            let outcome = AttemptOutcome::after(&body);
            let report = Report::of(&body);
            match writer.append(body).await {
                Ok(()) => {
                    let job = writer.job();
                    report.into_iter().for_each(|report| report.log(job));
                    info!(%job, seq = writer.seq().0, ?outcome, "the attempt is over");
                    return Ok(outcome);
                }
                Err(error) => last = Err(error),
            }
        }
    }

    /// Waits for what is in flight, so that the writer is there.
    async fn settle(&mut self) -> Result<(), AppendError> {
        let Some(busy) = self.busy.take() else {
            return Ok(());
        };
        let (writer, outcome) = busy.await;
        self.idle = Some(writer);
        outcome.map(|_| ())
    }
}

fn bad_output(error: &Unwritable) -> Body {
    Body::Failed(Failure::fatal(FailureCode::BadOutput, error.to_string()).into())
}

/// Appends one event; its room is free again when it is stored.
async fn append(
    mut writer: EventWriter,
    event: Option<(Body, OwnedSemaphorePermit)>,
) -> (EventWriter, Result<bool, AppendError>) {
    let Some((body, _room)) = event else {
        return (writer, Ok(false));
    };
    let outcome = writer.append(body).await;
    (writer, outcome.map(|()| true))
}

/// Checks whether another process wrote.
async fn check(mut writer: EventWriter) -> (EventWriter, Result<bool, AppendError>) {
    let outcome = writer.check().await;
    (writer, outcome.map(|()| false))
}
