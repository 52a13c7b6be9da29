//! One job's life in a worker: claim it in the log, run the backend, publish what it puts out under the fence, end it,
//! and only then take it out of the queue. It knows no particular backend.

use std::future::{Future, pending};
use std::pin::Pin;

use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::Settings;
use super::batch::Batch;
use crate::backend::{Backend, Failure, Finish, Job, Output, Piece};
use crate::config::STOP_WAIT;
use crate::nats::{Delivery, Log, Nudges, Refusal, Writer};
use crate::source::Unavailable;
use crate::wire::{Body, Type};

/// How a worker parts from a job.
#[derive(Debug)]
enum Parting {
    /// Its end is in the log: take it out of the queue.
    Ended,
    /// Somebody else has it: say nothing to the queue, which would count for the other.
    Lost,
    /// It was not finished: give it back.
    Unfinished,
}

/// Runs one job that was handed over by the queue. `hand_back` is cancelled when the worker must let go.
pub(super) async fn run<B: Backend>(
    log: &Log,
    settings: &Settings,
    backend: &B,
    delivery: Delivery,
    hand_back: CancellationToken,
) {
    let mut keep = interval_at(Instant::now() + settings.keep_every, settings.keep_every);
    keep.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut life = std::pin::pin!(live(log, settings, backend, &delivery, hand_back));
    let parting = loop {
        tokio::select! {
            parting = &mut life => break parting,
            _ = keep.tick() => delivery.keep().await,
        }
    };
    match parting {
        Ok(Parting::Ended) => {
            if let Err(error) = delivery.done().await {
                debug!(job = %delivery.job, %error, "not acked; it will be handed out again and found to have ended");
            }
        }
        Ok(Parting::Lost) => info!(job = %delivery.job, "lost to another worker"),
        Ok(Parting::Unfinished) => delivery.give_back(None).await,
        Err(error) => {
            warn!(job = %delivery.job, %error, "given back: the log is out of reach");
            delivery.give_back(Some(settings.keep_every)).await;
        }
    }
}

async fn live<B: Backend>(
    log: &Log,
    settings: &Settings,
    backend: &B,
    delivery: &Delivery,
    hand_back: CancellationToken,
) -> Result<Parting, Unavailable> {
    // Subscribed before the log is read, so that no nudge falls in between.
    let nudges = delivery.nudges().await?;
    let (writer, attempt) = match claim(log, settings, delivery).await? {
        Claimed::Mine(writer, attempt) => (writer, attempt),
        Claimed::Over(parting) => return Ok(parting),
    };
    info!(job = %delivery.job, kind = %delivery.kind, attempt, "started");
    let job = Job {
        id: delivery.job.clone(),
        kind: delivery.kind.clone(),
        input: delivery.input.clone(),
        attempt,
        stop: CancellationToken::new(),
    };
    let (out, pieces) = Output::new();
    let stop = job.stop.clone();
    let mut running = std::pin::pin!(backend.run(job, out));
    let mut attempt = Attempt::new(writer, settings, pieces, nudges);
    let cause = attempt.publish(running.as_mut(), &hand_back).await;
    if attempt.result.is_none() {
        stop.cancel();
        // Nobody takes the output any more, so a backend that waits to put some out is woken.
        attempt.pieces = None;
        if timeout(STOP_WAIT, running).await.is_err() {
            warn!(job = %delivery.job, "the backend did not stop in time and was dropped");
        }
    }
    attempt.part(cause).await
}

/// What a claim came to.
enum Claimed {
    Mine(Writer, u32),
    Over(Parting),
}

/// Makes this worker the job's owner: appends `job:started` behind whatever the log ends with, so that every publish of
/// an owner before is refused.
async fn claim(log: &Log, settings: &Settings, delivery: &Delivery) -> Result<Claimed, Unavailable> {
    let (job, kind) = (&delivery.job, &delivery.kind);
    let mut seen = None;
    loop {
        let last = log.last(job).await?;
        let Some(last) = last else {
            // Faster than the submitter's second publish: the log begins the same way whoever writes it.
            let queued = Body::Queued { kind: kind.clone(), input: delivery.input.clone() };
            match Writer::new(log.clone(), job.clone(), 0, None).append(queued).await {
                Ok(()) | Err(Refusal::Superseded | Refusal::CancelRequested) => continue,
                Err(Refusal::Unavailable(error)) => return Err(error),
                Err(Refusal::Unwritable(_)) => return Ok(Claimed::Over(Parting::Ended)),
            }
        };
        if last.kind.is_end() {
            return Ok(Claimed::Over(Parting::Ended));
        }
        if seen.is_some_and(|pos| pos != last.pos) && last.kind == Type::Started {
            return Ok(Claimed::Over(Parting::Lost));
        }
        seen = Some(last.pos);
        let exhausted = last.attempt >= settings.max_attempts;
        let attempt =
            if exhausted || last.kind == Type::CancelRequested { last.attempt } else { last.attempt + 1 };
        let mut writer = Writer::new(log.clone(), job.clone(), attempt, Some(&last));
        let body = if last.kind == Type::CancelRequested {
            Body::Cancelled {}
        } else if exhausted {
            Body::Failed(attempts_exhausted(settings.max_attempts))
        } else {
            Body::Started { kind: kind.clone(), worker: settings.name.clone(), continues: false }
        };
        let over = !matches!(body, Body::Started { .. });
        match writer.append(body).await {
            Ok(()) if over => return Ok(Claimed::Over(Parting::Ended)),
            Ok(()) => return Ok(Claimed::Mine(writer, attempt)),
            Err(Refusal::Superseded | Refusal::CancelRequested) => {}
            Err(Refusal::Unavailable(error)) => return Err(error),
            Err(Refusal::Unwritable(error)) => return Err(Unavailable(error.to_string())),
        }
    }
}

fn attempts_exhausted(max: u32) -> Failure {
    Failure {
        code: "attempts_exhausted".into(),
        message: format!("{max} attempts ended without a result"),
        retryable: false,
    }
}

/// One attempt, from its `job:started` to its end.
struct Attempt {
    /// The writer, while nothing is in flight.
    idle: Option<Writer>,
    /// The one write or look that is in flight, which gives the writer back.
    busy: Option<Write>,
    batch: Batch,
    /// `None` when the backend can put out no more.
    pieces: Option<mpsc::Receiver<Piece>>,
    nudges: Nudges,
    result: Option<Result<Finish, Failure>>,
}

type Write = Pin<Box<dyn Future<Output = (Writer, Result<(), Refusal>)> + Send>>;

/// Why an attempt stopped publishing.
#[derive(Debug)]
enum Cause {
    /// The backend has ended and everything it put out is in the log.
    Finished,
    Refused(Refusal),
    HandBack,
}

/// What happened next in an attempt.
enum Next {
    HandBack,
    Written(Result<(), Refusal>),
    Result(Result<Finish, Failure>),
    Piece(Option<Piece>),
    Due,
    Nudged,
}

impl Attempt {
    fn new(writer: Writer, settings: &Settings, pieces: mpsc::Receiver<Piece>, nudges: Nudges) -> Self {
        let batch = Batch::new(settings.flush);
        Self { idle: Some(writer), busy: None, batch, pieces: Some(pieces), nudges, result: None }
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
                Next::Written(Ok(())) => {}
                Next::Result(result) => self.result = Some(result),
                Next::Piece(Some(piece)) => self.batch.push(piece),
                Next::Piece(None) => self.pieces = None,
                Next::Due => {
                    if let Some(writer) = self.idle.take() {
                        let event = self.batch.take(Instant::now());
                        self.busy = Some(Box::pin(append(writer, event)));
                    }
                }
                Next::Nudged => {
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
                self.idle = Some(writer);
                Next::Written(outcome)
            }
            result = running, if running_on => Next::Result(result),
            piece = piece => Next::Piece(piece),
            () = due, if idle => Next::Due,
            () = self.nudges.next(), if idle => Next::Nudged,
        }
    }

    /// Writes the job's end, if this worker may.
    async fn part(mut self, cause: Cause) -> Result<Parting, Unavailable> {
        let end = match cause {
            Cause::HandBack => return Ok(Parting::Unfinished),
            Cause::Refused(Refusal::Superseded) => return Ok(Parting::Lost),
            Cause::Refused(Refusal::Unavailable(error)) => return Err(error),
            Cause::Refused(Refusal::CancelRequested) => Body::Cancelled {},
            Cause::Refused(Refusal::Unwritable(error)) => Body::Failed(Failure {
                code: "bad_output".into(),
                message: error.to_string(),
                retryable: false,
            }),
            Cause::Finished => match self.result.take() {
                Some(Ok(Finish { usage, finish_reason })) => Body::Done { usage, finish_reason },
                Some(Err(failure)) => Body::Failed(failure),
                None => return Ok(Parting::Unfinished),
            },
        };
        let Some(writer) = self.idle.take() else { return Ok(Parting::Unfinished) };
        write_end(writer, end).await
    }
}

/// Appends the event that ends the job. A cancel request that was faster decides how it ends.
async fn write_end(mut writer: Writer, mut end: Body) -> Result<Parting, Unavailable> {
    loop {
        match writer.append(end).await {
            Ok(()) => {
                info!(job = %writer.job(), seq = writer.seq().0, "ended");
                return Ok(Parting::Ended);
            }
            // The writer stands behind the request now; only a new request could refuse it again.
            Err(Refusal::CancelRequested) => end = Body::Cancelled {},
            Err(Refusal::Superseded) => return Ok(Parting::Lost),
            Err(Refusal::Unavailable(error)) => return Err(error),
            Err(Refusal::Unwritable(error)) => {
                let failure =
                    Failure { code: "bad_output".into(), message: error.to_string(), retryable: false };
                end = Body::Failed(failure);
            }
        }
    }
}

/// Appends one event; its room is free again when it is stored.
async fn append(
    mut writer: Writer,
    event: Option<(Body, OwnedSemaphorePermit)>,
) -> (Writer, Result<(), Refusal>) {
    let Some((body, _room)) = event else { return (writer, Ok(())) };
    let outcome = writer.append(body).await;
    (writer, outcome)
}

/// Looks whether somebody else wrote.
async fn check(mut writer: Writer) -> (Writer, Result<(), Refusal>) {
    let outcome = writer.check().await;
    (writer, outcome)
}
