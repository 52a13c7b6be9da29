//! One attempt at a job, from its `job:started` to its last event: publishes the backend's output
//! under the fence, one event at a time, and writes how the attempt ended. It does not start the
//! backend or reply to the queue.

use std::future::{Future, pending, poll_fn, ready};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::attempt_writer::{AttemptWriter, Written};
use super::batch::{Flush, OutputBatch};
use super::deadlines::Deadlines;
use super::metrics::TokenUsage;
use super::outcome::AttemptOutcome;
use super::report::{AttemptRecord, AttemptReport};
use crate::backend::{Failure, Finish, Piece, QueuedOutput};
use crate::nats::{AppendError, EventWriter, Unwritable};
use crate::runtime::{LazyTimer, QueuedWaker};
use crate::source::Unavailable;
use crate::wire::{Body, FailureCode};

/// One attempt, from its `job:started` to its end.
pub(super) struct Attempt {
    writer: AttemptWriter,
    batch: OutputBatch,
    /// `None` when the backend can produce no more output.
    pieces: Option<mpsc::Receiver<Piece>>,
    /// What is in `pieces`, about.
    queued: Arc<QueuedOutput>,
    /// Wakes the attempt when the backend produces output.
    waker: QueuedWaker,
    /// Requests a check of the log.
    look: Arc<Notify>,
    pub(super) deadlines: Deadlines,
    /// When the log was last seen to be this worker's.
    proven: Instant,
    /// After this time the log is checked again. A control signal can be lost, and the queue
    /// accepts progress reports from any worker: without checks, a worker could keep a job that was
    /// cancelled, or that another worker owns.
    look_after: Duration,
    /// For everything that is due later.
    timer: LazyTimer,
    result: Option<Result<Finish, Failure>>,
    record: AttemptRecord,
    /// Whether output was stored.
    has_output: bool,
}

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

/// An event in an attempt.
enum AttemptEvent {
    HandBack,
    Written(Result<Written, AppendError>),
    Result(Result<Finish, Failure>),
    Piece(Option<Piece>),
    /// The backend has produced so much that its pieces must be received.
    Urgent,
    /// The next event is due.
    Due,
    /// Another process may have written.
    Look,
    TimedOut(&'static str),
}

impl Attempt {
    #[expect(clippy::too_many_arguments, reason = "each is a part of its own")]
    pub(super) fn new(
        writer: EventWriter,
        flush: Flush,
        pieces: mpsc::Receiver<Piece>,
        queued: Arc<QueuedOutput>,
        waker: QueuedWaker,
        look: Arc<Notify>,
        deadlines: Deadlines,
        look_after: Duration,
        record: AttemptRecord,
    ) -> Self {
        Self {
            writer: AttemptWriter::Idle(Box::new(writer)),
            batch: OutputBatch::new(flush),
            pieces: Some(pieces),
            queued,
            waker,
            look,
            deadlines,
            proven: Instant::now(),
            look_after,
            timer: LazyTimer::default(),
            result: None,
            record,
            has_output: false,
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
        // Waited for once: all jobs of the worker are in one list of those that wait.
        let mut handed_back = pin!(hand_back.cancelled());
        loop {
            if self.pieces.is_none()
                && self.batch.is_empty()
                && self.writer.is_idle()
                && let Some(result) = &self.result
            {
                return Ok(StopReason::Finished(result.clone()));
            }
            match self.next(running.as_mut(), handed_back.as_mut()).await {
                AttemptEvent::HandBack => return Ok(StopReason::HandBack),
                // After a pause of the process, the backend's threads may not have run yet.
                AttemptEvent::TimedOut(message) => {
                    if !self.deadlines.excuse_pause(Instant::now()) {
                        return Ok(StopReason::TimedOut(message));
                    }
                }
                AttemptEvent::Written(result) => {
                    let written = result?;
                    self.proven = Instant::now();
                    if let Written::Appended { bytes, took } = written {
                        self.count_output(bytes, took);
                        // While the log was slow, the backend may have waited for room. That is not
                        // silence.
                        self.deadlines.restart_silence(self.proven);
                    }
                }
                AttemptEvent::Result(result) => {
                    self.result = Some(result);
                    self.drain_output();
                }
                AttemptEvent::Piece(Some(piece)) => {
                    let now = Instant::now();
                    self.deadlines.restart_silence(now);
                    self.batch.push_awaited(piece, now);
                    // At once, as most pieces are: to wait for it costs as much as the piece did.
                    if self.writer.is_idle() && self.batch.due(now).is_some_and(|due| due <= now) {
                        self.append_next(now);
                    }
                }
                AttemptEvent::Piece(None) => self.pieces = None,
                AttemptEvent::Urgent => self.receive_pieces(),
                AttemptEvent::Due => self.append_next(Instant::now()),
                AttemptEvent::Look => self.writer.check(),
            }
        }
    }

    async fn next(
        &mut self,
        running: Pin<&mut impl Future<Output = Result<Finish, Failure>>>,
        handed_back: Pin<&mut impl Future<Output = ()>>,
    ) -> AttemptEvent {
        let now = Instant::now();
        // Once the backend has returned, no more output follows.
        let due = self
            .batch
            .due(now)
            .map(|due| if self.result.is_some() { now } else { due });
        let is_idle = self.writer.is_idle();
        let is_appending = self.writer.is_appending();
        let is_running = self.result.is_none();
        // While the log cannot be reached, a backend may wait for room. That is not silence.
        let with_silence = is_running && !is_appending && self.batch.is_empty();
        let limit = self.deadlines.first(with_silence);
        // Output that was not received is no silence either.
        let rest_end = self
            .batch
            .rest_end(now)
            .filter(|end| is_idle && limit.is_none_or(|(at, _)| at > *end));
        // What cannot be published yet is received later, unless it is a lot: receiving it wakes
        // this task.
        let is_collecting = !self.batch.is_empty() || is_appending || rest_end.is_some();
        let urgent_bytes = self.batch.missing_bytes();
        let piece = async {
            match &mut self.pieces {
                Some(_) if is_collecting => {
                    self.queued.until_urgent(urgent_bytes).await;
                    AttemptEvent::Urgent
                }
                Some(pieces) => AttemptEvent::Piece(pieces.recv().await),
                None => pending().await,
            }
        };
        let mut piece = pin!(piece);
        let piece = poll_fn(|cx| self.waker.poll(piece.as_mut(), cx));
        let limit = limit.map(|(at, message)| (at, AttemptEvent::TimedOut(message)));
        let due = due.filter(|_| is_idle).or(rest_end);
        // Without the timer: its tick of a millisecond is longer than a publish.
        let is_due = due.is_some_and(|due| due <= now);
        let due = due.filter(|_| !is_due).map(|due| (due, AttemptEvent::Due));
        let look = is_idle.then(|| (self.proven + self.look_after, AttemptEvent::Look));
        let later = limit.into_iter().chain(due).chain(look);
        let alarm = later.min_by_key(|(at, _)| *at);
        let alarm = async {
            let Some((at, event)) = alarm else {
                return pending().await;
            };
            poll_fn(|cx| self.timer.poll(at, cx)).await;
            event
        };
        tokio::select! {
            // In this order: if this task runs late, output that is queued, or a result, came before
            // a time limit passed. An event that is due comes before more output, which a fast
            // backend always has, and before a check, since each append is one.
            biased;
            () = handed_back => AttemptEvent::HandBack,
            result = self.writer.written() => AttemptEvent::Written(result),
            result = running, if is_running => AttemptEvent::Result(result),
            () = ready(()), if is_due => AttemptEvent::Due,
            event = piece => event,
            () = self.look.notified(), if is_idle => AttemptEvent::Look,
            event = alarm => event,
        }
    }

    /// Starts to append the next event, with everything that the backend has produced.
    fn append_next(&mut self, now: Instant) {
        self.receive_pieces();
        if let Some((body, permit)) = self.batch.next_event(now) {
            self.writer.append(body, permit);
        }
    }

    /// Receives the pieces that the backend has produced.
    fn receive_pieces(&mut self) {
        self.queued.clear();
        let Some(pieces) = &mut self.pieces else {
            return;
        };
        let mut is_active = false;
        while let Ok(piece) = pieces.try_recv() {
            self.batch.push(piece);
            is_active = true;
        }
        if is_active {
            self.deadlines.restart_silence(Instant::now());
        }
    }

    fn count_output(&mut self, bytes: usize, took: Duration) {
        let AttemptRecord { counts, since, .. } = &self.record;
        counts.count_output(bytes, took);
        if !std::mem::replace(&mut self.has_output, true) {
            counts.count_first_output(since.elapsed());
        }
    }

    /// Collects the output that the backend had produced when it returned. Later output, of a task
    /// that the backend left running, is refused.
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

    /// Appends `last`, the attempt's last event, if this worker still owns the job. An error of an
    /// append, before or now, decides how the attempt ends instead.
    pub(super) async fn end(
        mut self,
        last: Result<Body, AppendError>,
    ) -> Result<AttemptOutcome, Unavailable> {
        let settled = if self.writer.is_idle() {
            Ok(())
        } else {
            self.writer.written().await.map(|_| ())
        };
        let record = self.record;
        let AttemptWriter::Idle(mut writer) = self.writer else {
            return Ok(AttemptOutcome::Unfinished(Duration::ZERO));
        };
        let mut last = settled.and(last);
        let mut is_bad_output = false;
        loop {
            let body = match last {
                Ok(body) => body,
                Err(AppendError::Superseded) => {
                    record.record(&AttemptReport::Superseded);
                    return Ok(AttemptOutcome::Lost);
                }
                Err(AppendError::Unavailable(error)) => {
                    record.record(&AttemptReport::Abandoned(error.to_string()));
                    return Err(error);
                }
                // The writer has moved past the request. Only another request could refuse it
                // again.
                Err(AppendError::CancelRequested) => Body::Cancelled {},
                // The log cannot store even this. The next claim finds out, and ends the job.
                Err(AppendError::Unwritable(error)) if is_bad_output => {
                    record.record(&AttemptReport::Abandoned(error.to_string()));
                    return Err(Unavailable(error.to_string()));
                }
                Err(AppendError::Unwritable(error)) => {
                    is_bad_output = true;
                    bad_output(&error)
                }
            };
            let outcome = AttemptOutcome::after(&body);
            let report = AttemptReport::of(&body);
            let tokens = TokenUsage::of(&body);
            match writer.append(body).await {
                Ok(()) => {
                    record.counts.count_tokens(tokens);
                    record.record(&report);
                    return Ok(outcome);
                }
                Err(error) => last = Err(error),
            }
        }
    }
}

fn bad_output(error: &Unwritable) -> Body {
    Body::Failed(Failure::fatal(FailureCode::BadOutput, error.to_string()).into())
}
