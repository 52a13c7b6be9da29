//! One job's life in a worker: claim it in the log, run the backend, see its attempt to the end, and only then take it out
//! of the queue. It knows no particular backend.

use std::convert::Infallible;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::sync::Notify;
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::attempt::{Attempt, Cause, Deadlines};
use super::claim::{Claimed, OwnedJob};
use super::held::Held;
use super::outcome::{AttemptOutcome, attempts_exhausted, panicked, retry_pause};
use super::{Shared, callback};
use crate::backend::{Backend, Failure, Finish, Job, Output, Retry, Stopped};
use crate::config::{HAND_BACK_WAIT, REQUEST_WAIT, STOP_WAIT};
use crate::nats::Delivery;
use crate::runtime::WorkError;
use crate::source::Unavailable;
use crate::wire::JobId;

impl<B: Backend> Shared<B> {
    /// Runs one job that was handed over by the queue. `hand_back` is cancelled when the worker must let go.
    pub(super) async fn run(&self, held: Held, hand_back: CancellationToken) {
        // What must not wait for one another, each for itself.
        let outcome = tokio::select! {
            outcome = self.live(&held, &hand_back) => outcome,
            never = self.keep(&held) => match never {},
            () = overdue(&hand_back) => Ok(AttemptOutcome::Unfinished(Duration::ZERO)),
        };
        held.release();
        let delivery = held.delivery();
        match outcome {
            Ok(AttemptOutcome::Ended) => self.leave_queue(delivery).await,
            Ok(AttemptOutcome::Lost) => info!(job = %delivery.job, "another worker has it"),
            Ok(AttemptOutcome::Abandoned) => delivery.terminate().await,
            Ok(AttemptOutcome::Unfinished(pause)) => {
                delivery
                    .give_back(Some(pause).filter(|pause| !pause.is_zero()))
                    .await
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
        if let Err(error) = callback::request(&self.queue, &self.usage_cache, delivery).await {
            warn!(job = %delivery.job, %error, "not called back yet; it is tried again");
            return delivery.give_back(Some(self.keep_every)).await;
        }
        if let Err(error) = delivery.done().await {
            debug!(job = %delivery.job, %error, "not acked; it will be handed out again and found to have ended");
        }
    }

    async fn live(
        &self,
        held: &Held,
        hand_back: &CancellationToken,
    ) -> Result<AttemptOutcome, Unavailable> {
        let OwnedJob {
            writer,
            attempt,
            previous_output,
            limits,
            remaining,
            control,
            broken,
        } = match self.claim(held.delivery()).await? {
            Claimed::Owned(owned) => *owned,
            Claimed::Over(outcome) => return Ok(outcome),
        };
        let Delivery {
            job: id,
            submission,
            ..
        } = held.delivery();
        let (kind, input) = (submission.kind.clone(), submission.input.clone());
        info!(job = %id, %kind, attempt, continues = previous_output.is_some(), "started");
        let (look, deadlines) = (Arc::new(Notify::new()), Deadlines::new(limits, remaining));
        let job = Job {
            id: id.clone(),
            kind,
            input,
            attempt,
            previous_output,
            stop: CancellationToken::new(),
        };
        let (out, pieces) = Output::new();
        let run = Attempt::new(
            writer,
            self.settings.flush,
            pieces,
            Arc::clone(&look),
            deadlines,
            self.keep_every * 2,
        );
        tokio::select! {
            outcome = self.attempt(run, job, out, broken, hand_back) => outcome,
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
    ) -> Result<AttemptOutcome, Unavailable> {
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
            return told.unwrap_or(Ok(AttemptOutcome::Unfinished(Duration::ZERO)));
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
        let of = id.clone();
        let work = self.threads.spawn(async move {
            let run = async {
                match broken {
                    Some(failure) => Err(failure),
                    None => backend.run(job, out).await,
                }
            };
            // Here, where it is reported even if nobody waits for the backend any more.
            let run = AssertUnwindSafe(run).catch_unwind().await;
            run.unwrap_or_else(|payload| Err(panicked(&of, payload.as_ref())))
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
    async fn after_failure(
        &self,
        job: &JobId,
        attempt: u32,
        run: &mut Attempt,
        cause: Cause,
    ) -> Cause {
        let (Cause::Finished, Some(Err(failure))) = (&cause, &run.result) else {
            return cause;
        };
        if failure.retry == Retry::Never {
            return cause;
        }
        // If the log cannot be read for so long, the next claim finds out.
        if self.is_exhausted(job, attempt).await.unwrap_or(false) {
            let message = format!(
                "no attempt succeeded; the last one: {} ({})",
                failure.message, failure.code
            );
            return Cause::Failed(attempts_exhausted(message));
        }
        let pause = retry_pause(job, attempt, self.settings.pause, failure.retry);
        // A job whose time ends before is looked at then, and fails.
        Cause::Retry(
            run.deadlines
                .remaining()
                .map_or(pause, |left| pause.min(left)),
        )
    }
}

/// Returns when a worker that lets go can wait no longer for the end of a job to be written.
async fn overdue(hand_back: &CancellationToken) {
    hand_back.cancelled().await;
    // Somewhat longer than a hand-over takes at the most.
    sleep(STOP_WAIT + HAND_BACK_WAIT + REQUEST_WAIT / 4).await;
}
