//! One job's life in a worker: claim it in the log, run the backend, publish what it puts out under the fence, end it,
//! and only then take it out of the queue. It knows no particular backend.

use std::convert::Infallible;
use std::future::{Future, pending};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, OwnedSemaphorePermit, mpsc};
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::batch::Batch;
use super::claim::{Claimed, Mine, attempts_exhausted, panicked, timed_out};
use super::held::Held;
use super::{Flush, Shared, callback};
use crate::backend::{Backend, Failure, Finish, Job, Output, Piece, Retry, Stopped};
use crate::config::{ATTEMPT_PAUSE_MAX, HAND_BACK_WAIT, REQUEST_WAIT, RETRY_AFTER_MAX, STOP_WAIT};
use crate::nats::{Delivery, Refusal, Unwritable, Writer};
use crate::runtime::WorkError;
use crate::source::Unavailable;
use crate::wire::{self, Body, HANDED_BACK, JobId, Limits};

/// How a worker parts from a job.
#[derive(Debug)]
pub(super) enum Parting {
    /// Its end is in the log: take it out of the queue.
    Ended,
    /// Somebody else has it: say nothing to the queue, which would count for the other.
    Lost,
    /// No log takes it, not even its end: throw it out of the queue.
    Abandoned,
    /// It was not finished: give it back, for another attempt after so long.
    Unfinished(Duration),
}

impl<B: Backend> Shared<B> {
    /// Runs one job that was handed over by the queue. `hand_back` is cancelled when the worker must let go.
    pub(super) async fn run(&self, held: Held, hand_back: CancellationToken) {
        // What must not wait for one another, each for itself.
        let parting = tokio::select! {
            parting = self.live(&held, &hand_back) => parting,
            never = self.keep(&held) => match never {},
            () = overdue(&hand_back) => Ok(Parting::Unfinished(Duration::ZERO)),
        };
        held.release();
        let delivery = held.delivery();
        match parting {
            Ok(Parting::Ended) => self.leave_queue(delivery).await,
            Ok(Parting::Lost) => info!(job = %delivery.job, "another worker has it"),
            Ok(Parting::Abandoned) => delivery.terminate().await,
            Ok(Parting::Unfinished(pause)) => {
                delivery.give_back(Some(pause).filter(|pause| !pause.is_zero())).await
            }
            Err(error) => {
                warn!(job = %delivery.job, %error, "given back: the log is out of reach");
                delivery.give_back(Some(self.keep_every)).await;
            }
        }
    }

    /// Tells the queue again and again that the job is being worked on.
    async fn keep(&self, held: &Held) -> Infallible {
        let mut every = interval_at(Instant::now() + self.keep_every, self.keep_every);
        every.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = every.tick() => {}
                () = held.keep_asked() => {}
            }
            held.delivery().keep().await;
        }
    }

    /// Takes a job that has ended out of the queue. Its callback must be in the queue by then, or given up.
    async fn leave_queue(&self, delivery: &Delivery) {
        if let Err(error) = callback::request(&self.log, &self.loads, delivery).await {
            warn!(job = %delivery.job, %error, "not called back yet; it is tried again");
            return delivery.give_back(Some(self.keep_every)).await;
        }
        if let Err(error) = delivery.done().await {
            debug!(job = %delivery.job, %error, "not acked; it will be handed out again and found to have ended");
        }
    }

    async fn live(&self, held: &Held, hand_back: &CancellationToken) -> Result<Parting, Unavailable> {
        let Mine { writer, attempt, so_far, limits, left, control, broken } =
            match self.claim(held.delivery()).await? {
                Claimed::Mine(mine) => *mine,
                Claimed::Over(parting) => return Ok(parting),
            };
        let Delivery { job: id, submission, .. } = held.delivery();
        let (kind, input) = (submission.kind.clone(), submission.input.clone());
        info!(job = %id, %kind, attempt, continues = so_far.is_some(), "started");
        let (look, patience) = (Arc::new(Notify::new()), Patience::new(limits, left));
        let job = Job { id: id.clone(), kind, input, attempt, so_far, stop: CancellationToken::new() };
        let (out, pieces) = Output::new();
        let run = Attempt::new(
            writer,
            self.settings.flush,
            pieces,
            Arc::clone(&look),
            patience,
            self.keep_every * 2,
        );
        tokio::select! {
            parting = self.attempt(run, job, out, broken, hand_back) => parting,
            never = self.attend(control, held, attempt, &look) => match never {},
        }
    }

    /// Runs the backend and publishes what it puts out, to the attempt's end.
    async fn attempt(
        &self,
        mut run: Attempt,
        job: Job,
        out: Output,
        broken: Option<Failure>,
        hand_back: &CancellationToken,
    ) -> Result<Parting, Unavailable> {
        let (id, attempt, stop) = (job.id.clone(), job.attempt, job.stop.clone());
        let mut running = std::pin::pin!(self.start(job, out, broken));
        let cause = run.publish(running.as_mut(), hand_back).await;
        let over = run.result.is_some();
        if !over {
            run.abandon_output();
        }
        let stopping = async {
            stop.cancel();
            if !over && timeout(STOP_WAIT, running).await.is_err() {
                warn!(job = %id, "the backend did not stop in time; it is dropped when it yields");
            }
        };
        if let Cause::HandBack = cause {
            // Before another worker begins.
            stopping.await;
            // The queue is told in any case; that the log says why is a courtesy, and so is that it does not count.
            let told = timeout(HAND_BACK_WAIT, run.part(cause)).await;
            return told.unwrap_or(Ok(Parting::Unfinished(Duration::ZERO)));
        }
        let cause = self.after_failure(&id, attempt, &mut run, cause).await;
        tokio::join!(stopping, run.part(cause)).1
    }

    /// Starts the backend on the threads of the backends. A panic there is a failure; when what is returned is dropped, the
    /// backend is as well.
    fn start(
        &self,
        job: Job,
        out: Output,
        broken: Option<Failure>,
    ) -> impl Future<Output = Result<Finish, Failure>> + Send + use<B> {
        let (id, backend) = (job.id.clone(), Arc::clone(&self.backend));
        let work = self.threads.spawn(async move {
            match broken {
                Some(failure) => Err(failure),
                None => backend.run(job, out).await,
            }
        });
        async move {
            match work.await {
                Ok(result) => result,
                Err(WorkError::Panicked(payload)) => Err(panicked(&id, payload.as_ref())),
                Err(WorkError::Dropped) => Err(Stopped.into()),
            }
        }
    }

    /// Decides whether a failed attempt is followed by another.
    async fn after_failure(&self, job: &JobId, attempt: u32, run: &mut Attempt, cause: Cause) -> Cause {
        let (Cause::Finished, Some(Err(failure))) = (&cause, &run.result) else { return cause };
        if failure.retry == Retry::Never {
            return cause;
        }
        // If the log cannot be read for so long, the next claim finds out.
        if self.is_exhausted(job, attempt).await.unwrap_or(false) {
            let message =
                format!("no attempt succeeded; the last one: {} ({})", failure.message, failure.code);
            return Cause::Failed(attempts_exhausted(message));
        }
        let pause = pause(job, attempt, self.settings.pause, failure.retry);
        // A job whose time ends before is looked at then, and fails.
        Cause::Retry(run.patience.left().map_or(pause, |left| pause.min(left)))
    }
}

/// Returns when a worker that lets go can wait no longer for the end of a job to be written.
async fn overdue(hand_back: &CancellationToken) {
    hand_back.cancelled().await;
    // Somewhat longer than a hand-over takes at the most.
    sleep(STOP_WAIT + HAND_BACK_WAIT + REQUEST_WAIT / 4).await;
}

/// How long the next attempt waits: longer each time, and not as long as that of other jobs that failed together.
pub(super) fn pause(job: &JobId, attempt: u32, first: Duration, retry: Retry) -> Duration {
    if let Retry::After(pause) = retry {
        return pause.min(RETRY_AFTER_MAX);
    }
    let doubled = first.saturating_mul(2_u32.saturating_pow(attempt.saturating_sub(1)));
    doubled.min(ATTEMPT_PAUSE_MAX) * (192 + job.tag().rotate_left(attempt) % 128) / 256
}

/// How long an attempt may go on, and be silent.
#[derive(Clone, Copy, Debug)]
struct Patience {
    end: Option<Instant>,
    silence: Option<Duration>,
    /// When something was put out or published last.
    heard: Instant,
}

impl Patience {
    fn new(limits: Limits, left: Option<Duration>) -> Self {
        let heard = Instant::now();
        let end = left.and_then(|left| heard.checked_add(left));
        Self { end, silence: limits.silence_timeout_ms.map(Duration::from_millis), heard }
    }

    /// What is left of the time for the whole job.
    fn left(&self) -> Option<Duration> {
        self.end.map(|end| end.saturating_duration_since(Instant::now()))
    }

    /// Returns, with what to say of it, when it has run out. Silence counts only while it is `heeded`.
    async fn runs_out(self, heeded: bool) -> &'static str {
        let until = |at: Option<Instant>| async move {
            match at {
                Some(at) => sleep_until(at).await,
                None => pending().await,
            }
        };
        let silent = self.silence.filter(|_| heeded).and_then(|silence| self.heard.checked_add(silence));
        tokio::select! {
            () = until(self.end) => "the job was not done in time",
            () = until(silent) => "the job put out nothing for too long",
        }
    }
}

/// One attempt, from its `job:started` to its end.
struct Attempt {
    /// The writer, while nothing is in flight.
    idle: Option<Writer>,
    /// The one write or look that is in flight, which gives the writer back.
    busy: Option<Write>,
    /// Whether it is a write.
    storing: bool,
    batch: Batch,
    /// `None` when the backend can put out no more.
    pieces: Option<mpsc::Receiver<Piece>>,
    /// Asks for a look at the log.
    look: Arc<Notify>,
    patience: Patience,
    /// When the log was last seen to be this worker's.
    proven: Instant,
    /// After what time it is looked at again. A signal can be lost, and the queue believes whoever says to be at work: a
    /// worker that only said so would keep a job that it was told to end, or that is another one's, from everybody.
    look_after: Duration,
    result: Option<Result<Finish, Failure>>,
}

/// Whether something was written, or only looked at.
type Write = Pin<Box<dyn Future<Output = (Writer, Result<bool, Refusal>)> + Send>>;

/// Why an attempt stopped publishing.
#[derive(Debug)]
enum Cause {
    /// The backend has ended and everything it put out is in the log.
    Finished,
    Refused(Refusal),
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
    Written(Result<bool, Refusal>),
    Result(Result<Finish, Failure>),
    Piece(Option<Piece>),
    Due,
    /// Somebody else may have written.
    Look,
    Late(&'static str),
}

impl Attempt {
    fn new(
        writer: Writer,
        flush: Flush,
        pieces: mpsc::Receiver<Piece>,
        look: Arc<Notify>,
        patience: Patience,
        look_after: Duration,
    ) -> Self {
        let (idle, pieces, proven) = (Some(writer), Some(pieces), Instant::now());
        let (busy, batch, result) = (None, Batch::new(flush), None);
        Self { idle, busy, storing: false, batch, pieces, look, patience, proven, look_after, result }
    }

    /// Publishes what the backend puts out until it has ended, or must stop.
    async fn publish(
        &mut self,
        mut running: Pin<&mut impl Future<Output = Result<Finish, Failure>>>,
        hand_back: &CancellationToken,
    ) -> Cause {
        loop {
            if self.result.is_some() && self.pieces.is_none() && self.batch.is_empty() && self.busy.is_none()
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
                        self.patience.heard = self.proven;
                    }
                }
                Next::Result(result) => {
                    self.result = Some(result);
                    self.take_the_rest();
                }
                Next::Piece(Some(piece)) => {
                    self.patience.heard = Instant::now();
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
        let due = self.batch.due(now).map(|due| if self.result.is_some() { now } else { due });
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
            message = self.patience.runs_out(heeded) => Next::Late(message),
        }
    }

    /// Takes what the backend had put out when it returned. Whatever it left behind that goes on putting out is refused: the
    /// job does not wait for it.
    fn take_the_rest(&mut self) {
        let Some(mut pieces) = self.pieces.take() else { return };
        pieces.close();
        while let Ok(piece) = pieces.try_recv() {
            self.batch.push(piece);
        }
    }

    /// Drops what was put out and is not published, which wakes a backend that waits to put more out.
    fn abandon_output(&mut self) {
        self.pieces = None;
        self.batch.clear();
    }

    /// Writes what the attempt came to, if this worker may.
    async fn part(mut self, cause: Cause) -> Result<Parting, Unavailable> {
        let settled = self.settle().await;
        let Some(writer) = self.idle.take() else { return Ok(Parting::Unfinished(Duration::ZERO)) };
        let cause = match settled {
            Err(refusal) => Cause::Refused(refusal),
            Ok(_) => cause,
        };
        let retrying = |code: &str, message: &str, pause: Duration| {
            let delay_ms = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX);
            Body::Retrying { code: code.into(), message: message.into(), delay_ms }
        };
        let (last, parting) = match (cause, self.result.take()) {
            (Cause::Refused(Refusal::Superseded), _) => return Ok(Parting::Lost),
            (Cause::Refused(Refusal::Unavailable(error)), _) => return Err(error),
            (Cause::Refused(Refusal::CancelRequested), _) => (Body::Cancelled {}, Parting::Ended),
            (Cause::Refused(Refusal::Unwritable(error)), _) => (bad_output(&error), Parting::Ended),
            (Cause::Failed(failure), _) => (Body::Failed(failure), Parting::Ended),
            (Cause::Retry(pause), Some(Err(failure))) => {
                (retrying(&failure.code, &failure.message, pause), Parting::Unfinished(pause))
            }
            (Cause::Finished, Some(Ok(Finish { usage, finish_reason }))) => {
                (Body::Done { usage, finish_reason }, Parting::Ended)
            }
            (Cause::Finished, Some(Err(failure))) => (Body::Failed(failure.into()), Parting::Ended),
            (Cause::HandBack | Cause::Retry(_) | Cause::Finished, _) => (
                retrying(HANDED_BACK, "the worker was stopped", Duration::ZERO),
                Parting::Unfinished(Duration::ZERO),
            ),
        };
        write_last(writer, last, parting).await
    }

    /// Waits for what is in flight, so that the writer is there.
    async fn settle(&mut self) -> Result<bool, Refusal> {
        let Some(busy) = self.busy.take() else { return Ok(false) };
        let (writer, outcome) = busy.await;
        self.idle = Some(writer);
        outcome
    }
}

fn bad_output(error: &Unwritable) -> Body {
    Body::Failed(Failure::fatal("bad_output", error.to_string()).into())
}

/// Appends the attempt's last event. A cancel request that was faster decides how the job ends.
async fn write_last(
    mut writer: Writer,
    mut last: Body,
    mut parting: Parting,
) -> Result<Parting, Unavailable> {
    let mut ended_as_bad = false;
    loop {
        match writer.append(last).await {
            Ok(()) => {
                info!(job = %writer.job(), seq = writer.seq().0, ?parting, "parted");
                return Ok(parting);
            }
            // The writer stands behind the request now; only a new request could refuse it again.
            Err(Refusal::CancelRequested) => (last, parting) = (Body::Cancelled {}, Parting::Ended),
            Err(Refusal::Superseded) => return Ok(Parting::Lost),
            Err(Refusal::Unavailable(error)) => return Err(error),
            // A log that does not take this either takes nothing: the next claim finds out, and ends the job.
            Err(Refusal::Unwritable(error)) if ended_as_bad => return Err(Unavailable(error.to_string())),
            Err(Refusal::Unwritable(error)) => {
                (last, parting, ended_as_bad) = (bad_output(&error), Parting::Ended, true);
            }
        }
    }
}

/// Appends one event; its room is free again when it is stored.
async fn append(
    mut writer: Writer,
    event: Option<(Body, OwnedSemaphorePermit)>,
) -> (Writer, Result<bool, Refusal>) {
    let Some((body, _room)) = event else { return (writer, Ok(false)) };
    let outcome = writer.append(body).await;
    (writer, outcome.map(|()| true))
}

/// Looks whether somebody else wrote.
async fn check(mut writer: Writer) -> (Writer, Result<bool, Refusal>) {
    let outcome = writer.check().await;
    (writer, outcome.map(|()| false))
}
