//! One attempt at a job, from its `job:started` to its last event: publishes what the backend puts out under the fence, one
//! event at a time, and writes what the attempt came to. It starts no backend and answers no queue.

use std::future::{Future, pending};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, OwnedSemaphorePermit, mpsc};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::Flush;
use super::batch::Batch;
use super::outcome::{AttemptOutcome, timed_out};
use super::report::Report;
use crate::backend::{Failure, Finish, Piece};
use crate::nats::{AppendError, LogWriter, Unwritable};
use crate::source::Unavailable;
use crate::wire::{self, Body, FailureCode, Limits};

/// The time limits of an attempt: for the whole job, and for silence of the backend.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deadlines {
    end: Option<Instant>,
    silence: Option<Duration>,
    /// When something was put out or published last.
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

    /// Returns, with what to say of it, when it has run out. Silence counts only while it is `heeded`.
    async fn runs_out(self, heeded: bool) -> &'static str {
        let until = |at: Option<Instant>| async move {
            match at {
                Some(at) => sleep_until(at).await,
                None => pending().await,
            }
        };
        let silent = self
            .silence
            .filter(|_| heeded)
            .and_then(|silence| self.heard.checked_add(silence));
        tokio::select! {
            () = until(self.end) => "the job was not done in time",
            () = until(silent) => "the job put out nothing for too long",
        }
    }
}

/// One attempt, from its `job:started` to its end.
pub(super) struct Attempt {
    /// The writer, while nothing is in flight.
    idle: Option<LogWriter>,
    /// The one write or look that is in flight, which gives the writer back.
    busy: Option<Write>,
    /// Whether it is a write.
    storing: bool,
    batch: Batch,
    /// `None` when the backend can put out no more.
    pieces: Option<mpsc::Receiver<Piece>>,
    /// Asks for a look at the log.
    look: Arc<Notify>,
    pub(super) deadlines: Deadlines,
    /// When the log was last seen to be this worker's.
    proven: Instant,
    /// After what time it is looked at again. A signal can be lost, and the queue believes whoever says to be at work: a
    /// worker that only said so would keep a job that it was told to end, or that is another one's, from everybody.
    look_after: Duration,
    pub(super) result: Option<Result<Finish, Failure>>,
}

/// Whether something was written, or only looked at.
type Write = Pin<Box<dyn Future<Output = (LogWriter, Result<bool, AppendError>)> + Send>>;

/// Why an attempt stopped publishing.
#[derive(Debug)]
pub(super) enum Cause {
    /// The backend has ended and everything it put out is in the log.
    Finished,
    Refused(AppendError),
    /// The worker stops.
    HandBack,
    /// The backend failed, and another attempt is to follow after so long.
    Retry(Duration),
    /// The job has failed, whatever the backend says.
    Failed(wire::Failure),
}

/// What happened next in an attempt.
enum Next {
    HandBack,
    Written(Result<bool, AppendError>),
    Result(Result<Finish, Failure>),
    Piece(Option<Piece>),
    Due,
    /// Somebody else may have written.
    Look,
    Late(&'static str),
}

impl Attempt {
    pub(super) fn new(
        writer: LogWriter,
        flush: Flush,
        pieces: mpsc::Receiver<Piece>,
        look: Arc<Notify>,
        deadlines: Deadlines,
        look_after: Duration,
    ) -> Self {
        let (idle, pieces, proven) = (Some(writer), Some(pieces), Instant::now());
        let (busy, batch, result) = (None, Batch::new(flush), None);
        Self {
            idle,
            busy,
            storing: false,
            batch,
            pieces,
            look,
            deadlines,
            proven,
            look_after,
            result,
        }
    }

    /// Publishes what the backend puts out until it has ended, or must stop.
    pub(super) async fn publish(
        &mut self,
        mut running: Pin<&mut impl Future<Output = Result<Finish, Failure>>>,
        hand_back: &CancellationToken,
    ) -> Cause {
        loop {
            if self.result.is_some()
                && self.pieces.is_none()
                && self.batch.is_empty()
                && self.busy.is_none()
            {
                return Cause::Finished;
            }
            match self.next(running.as_mut(), hand_back).await {
                Next::HandBack => return Cause::HandBack,
                Next::Written(Err(refusal)) => return Cause::Refused(refusal),
                Next::Written(Ok(wrote)) => {
                    self.proven = Instant::now();
                    if wrote {
                        // A log that was slow is no silence of the backend, which may have waited for room.
                        self.deadlines.heard = self.proven;
                    }
                }
                Next::Result(result) => {
                    self.result = Some(result);
                    self.take_the_rest();
                }
                Next::Piece(Some(piece)) => {
                    self.deadlines.heard = Instant::now();
                    self.batch.push(piece);
                }
                Next::Late(message) => return Cause::Failed(timed_out(message)),
                Next::Piece(None) => self.pieces = None,
                Next::Due => {
                    if let Some(writer) = self.idle.take() {
                        let event = self.batch.take(Instant::now());
                        self.busy = Some(Box::pin(append(writer, event)));
                        self.storing = true;
                    }
                }
                Next::Look => {
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
    ) -> Next {
        let now = Instant::now();
        // When the backend has ended, nothing more will join what waits.
        let due = self
            .batch
            .due(now)
            .map(|due| if self.result.is_some() { now } else { due });
        let (idle, running_on) = (self.idle.is_some(), self.result.is_none());
        // While the log is out of reach a backend may wait for room: that is no silence of its own.
        let heeded = running_on && !self.storing && self.batch.is_empty();
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
                // Not through the timer, which ticks once a millisecond: that would be longer than a publish takes.
                Some(due) if due <= now => {}
                Some(due) => sleep_until(due).await,
                None => pending().await,
            }
        };
        tokio::select! {
            () = hand_back.cancelled() => Next::HandBack,
            (writer, outcome) = write => {
                self.busy = None;
                self.storing = false;
                self.idle = Some(writer);
                Next::Written(outcome)
            }
            result = running, if running_on => Next::Result(result),
            piece = piece => Next::Piece(piece),
            () = due, if idle => Next::Due,
            () = self.look.notified(), if idle => Next::Look,
            () = sleep_until(self.proven + self.look_after), if idle => Next::Look,
            message = self.deadlines.runs_out(heeded) => Next::Late(message),
        }
    }

    /// Takes what the backend had put out when it returned. Whatever it left behind that goes on putting out is refused: the
    /// job does not wait for it.
    fn take_the_rest(&mut self) {
        let Some(mut pieces) = self.pieces.take() else {
            return;
        };
        pieces.close();
        while let Ok(piece) = pieces.try_recv() {
            self.batch.push(piece);
        }
    }

    /// Drops what was put out and is not published, which wakes a backend that waits to put more out.
    pub(super) fn abandon_output(&mut self) {
        self.pieces = None;
        self.batch.clear();
    }

    /// Writes what the attempt came to, if this worker may.
    pub(super) async fn part(mut self, cause: Cause) -> Result<AttemptOutcome, Unavailable> {
        let settled = self.settle().await;
        let Some(writer) = self.idle.take() else {
            return Ok(AttemptOutcome::Unfinished(Duration::ZERO));
        };
        let cause = match settled {
            Err(refusal) => Cause::Refused(refusal),
            Ok(_) => cause,
        };
        let retrying = |code: &str, message: &str, pause: Duration| {
            let delay_ms = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX);
            Body::Retrying {
                code: code.into(),
                message: message.into(),
                delay_ms,
            }
        };
        let (last, outcome) = match (cause, self.result.take()) {
            (Cause::Refused(AppendError::Superseded), _) => return Ok(AttemptOutcome::Lost),
            (Cause::Refused(AppendError::Unavailable(error)), _) => return Err(error),
            (Cause::Refused(AppendError::CancelRequested), _) => {
                (Body::Cancelled {}, AttemptOutcome::Ended)
            }
            (Cause::Refused(AppendError::Unwritable(error)), _) => {
                (bad_output(&error), AttemptOutcome::Ended)
            }
            (Cause::Failed(failure), _) => (Body::Failed(failure), AttemptOutcome::Ended),
            (Cause::Retry(pause), Some(Err(failure))) => (
                retrying(&failure.code, &failure.message, pause),
                AttemptOutcome::Unfinished(pause),
            ),
            (
                Cause::Finished,
                Some(Ok(Finish {
                    usage,
                    finish_reason,
                })),
            ) => (
                Body::Done {
                    usage,
                    finish_reason,
                },
                AttemptOutcome::Ended,
            ),
            (Cause::Finished, Some(Err(failure))) => {
                (Body::Failed(failure.into()), AttemptOutcome::Ended)
            }
            (Cause::HandBack | Cause::Retry(_) | Cause::Finished, _) => (
                retrying(
                    FailureCode::HandedBack.as_str(),
                    "the worker was stopped",
                    Duration::ZERO,
                ),
                AttemptOutcome::Unfinished(Duration::ZERO),
            ),
        };
        write_last(writer, last, outcome).await
    }

    /// Waits for what is in flight, so that the writer is there.
    async fn settle(&mut self) -> Result<bool, AppendError> {
        let Some(busy) = self.busy.take() else {
            return Ok(false);
        };
        let (writer, outcome) = busy.await;
        self.idle = Some(writer);
        outcome
    }
}

fn bad_output(error: &Unwritable) -> Body {
    Body::Failed(Failure::fatal(FailureCode::BadOutput, error.to_string()).into())
}

/// Appends the attempt's last event. A cancel request that was faster decides how the job ends.
async fn write_last(
    mut writer: LogWriter,
    mut last: Body,
    mut outcome: AttemptOutcome,
) -> Result<AttemptOutcome, Unavailable> {
    let mut ended_as_bad = false;
    loop {
        let report = Report::of(&last);
        match writer.append(last).await {
            Ok(()) => {
                report
                    .into_iter()
                    .for_each(|report| report.log(writer.job()));
                info!(job = %writer.job(), seq = writer.seq().0, ?outcome, "parted");
                return Ok(outcome);
            }
            // The writer stands behind the request now; only a new request could refuse it again.
            Err(AppendError::CancelRequested) => {
                (last, outcome) = (Body::Cancelled {}, AttemptOutcome::Ended)
            }
            Err(AppendError::Superseded) => return Ok(AttemptOutcome::Lost),
            Err(AppendError::Unavailable(error)) => return Err(error),
            // A log that does not take this either takes nothing: the next claim finds out, and ends the job.
            Err(AppendError::Unwritable(error)) if ended_as_bad => {
                return Err(Unavailable(error.to_string()));
            }
            Err(AppendError::Unwritable(error)) => {
                (last, outcome, ended_as_bad) = (bad_output(&error), AttemptOutcome::Ended, true);
            }
        }
    }
}

/// Appends one event; its room is free again when it is stored.
async fn append(
    mut writer: LogWriter,
    event: Option<(Body, OwnedSemaphorePermit)>,
) -> (LogWriter, Result<bool, AppendError>) {
    let Some((body, _room)) = event else {
        return (writer, Ok(false));
    };
    let outcome = writer.append(body).await;
    (writer, outcome.map(|()| true))
}

/// Looks whether somebody else wrote.
async fn check(mut writer: LogWriter) -> (LogWriter, Result<bool, AppendError>) {
    let outcome = writer.check().await;
    (writer, outcome.map(|()| false))
}
