//! Runs the jobs of a worker: claims each in the log, runs the backend, writes how the attempt ended,
//! and only then removes the job from the queue.

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

use super::attempt::{Attempt, StopReason};
use super::callback;
use super::claim::{Claimed, Claimer, OwnedJob};
use super::deadlines::Deadlines;
use super::held::{HeldJob, HeldJobs};
use super::metrics::WorkerCounts;
use super::outcome::{
    AttemptOutcome, attempts_exhausted, handed_back, panicked, retry_pause, timed_out,
};
use super::owner::answer_questions;
use super::report::AttemptRecord;
use super::settings::WorkerSettings;
use crate::backend::{Backend, Failure, Finish, Job, Output, Retry, Stopped};
use crate::config::{HAND_BACK_WAIT, REQUEST_WAIT, STOP_WAIT};
use crate::nats::{Delivery, Queue, UsageCache};
use crate::runtime::{Tasks, WakeQueue, WorkError, WorkThreads, with_own_waker};
use crate::source::Unavailable;
use crate::wire::{Body, JobId};

/// Runs the jobs of a worker.
#[derive(Debug)]
pub(super) struct Runner<B> {
    pub(super) claimer: Claimer<B>,
    pub(super) queue: Queue,
    pub(super) usage_cache: UsageCache,
    pub(super) backend: Arc<B>,
    pub(super) threads: Arc<WorkThreads>,
    /// The wake-ups of the jobs by their backends.
    pub(super) wakes: WakeQueue,
    pub(super) held: HeldJobs,
    pub(super) settings: Arc<WorkerSettings>,
    /// The interval of the progress reports to the queue.
    pub(super) progress_interval: Duration,
    pub(super) counts: Arc<WorkerCounts>,
    pub(super) tasks: Tasks,
}

impl<B: Backend> Runner<B> {
    /// Runs one job that the queue delivered. `hand_back` is cancelled when the worker must hand
    /// its jobs back.
    pub(super) async fn run(&self, held: HeldJob, hand_back: CancellationToken) {
        // Both rarely do anything.
        let beside = async {
            tokio::select! {
                never = self.report_progress(&held) => match never {},
                () = overdue(&hand_back) => {}
            }
        };
        // Concurrently, since none of these may wait for another.
        let outcome = tokio::select! {
            outcome = self.claim_and_run(&held, &hand_back) => outcome,
            () = with_own_waker(beside) => Ok(AttemptOutcome::Unfinished(Duration::ZERO)),
        };
        held.release();
        let delivery = held.delivery();
        match outcome {
            Ok(AttemptOutcome::Ended) => self.leave_queue(delivery).await,
            Ok(AttemptOutcome::Lost) => debug!(job = %delivery.job, "another worker has the job"),
            Ok(AttemptOutcome::Abandoned) => delivery.terminate().await,
            Ok(AttemptOutcome::Unfinished(pause)) => {
                delivery
                    .hand_back(Some(pause).filter(|pause| !pause.is_zero()))
                    .await
            }
            Err(error) => {
                debug!(job = %delivery.job, %error, "handed back: the log cannot be reached");
                delivery.hand_back(Some(self.progress_interval)).await;
            }
        }
    }

    /// Sends progress reports to the queue at intervals, and when requested.
    async fn report_progress(&self, held: &HeldJob) -> Infallible {
        let mut every = interval_at(
            Instant::now() + self.progress_interval,
            self.progress_interval,
        );
        every.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = every.tick() => {}
                () = held.report_requested() => {}
            }
            held.delivery().report_progress().await;
        }
    }

    /// Removes a job that has ended from the queue, after its callback was submitted or abandoned.
    async fn leave_queue(&self, delivery: &Delivery) {
        if let Err(error) = callback::request(&self.queue, &self.usage_cache, delivery).await {
            warn!(job = %delivery.job, %error, "the callback could not be submitted; the job is handed back to try again");
            return delivery.hand_back(Some(self.progress_interval)).await;
        }
        if let Err(error) = delivery.ack().await {
            debug!(job = %delivery.job, %error, "not acked; the queue delivers the job again, and the next claim finds that it has ended");
        }
    }

    async fn claim_and_run(
        &self,
        held: &HeldJob,
        hand_back: &CancellationToken,
    ) -> Result<AttemptOutcome, Unavailable> {
        let OwnedJob {
            writer,
            attempt,
            previous_output,
            limits,
            remaining,
            control,
            backend_failure,
        } = match self.claimer.claim(held.delivery()).await? {
            Claimed::Owned(owned) => *owned,
            Claimed::Over(outcome) => return Ok(outcome),
        };
        let Delivery {
            job: id,
            submission,
            ..
        } = held.delivery();
        info!(job = %id, kind = %submission.kind, attempt, continues = previous_output.is_some(), "started");
        let _running = self.counts.start();
        let record = AttemptRecord {
            job: id.clone(),
            kind: submission.kind.clone(),
            attempt,
            since: Instant::now(),
            counts: Arc::clone(&self.counts),
        };
        let look = Arc::new(Notify::new());
        let job = Job {
            id: id.clone(),
            kind: submission.kind.clone(),
            input: submission.input.clone(),
            attempt,
            previous_output,
            stop: CancellationToken::new(),
        };
        let (out, pieces) = Output::new();
        let run = Attempt::new(
            writer,
            self.settings.flush,
            pieces,
            out.queued(),
            self.wakes.waker(),
            Arc::clone(&look),
            Deadlines::new(limits, remaining),
            self.progress_interval * 2,
            record,
        );
        let questions = answer_questions(self.queue.log(), control, held, attempt, &look);
        tokio::select! {
            outcome = self.attempt(run, job, out, backend_failure, hand_back) => outcome,
            never = with_own_waker(questions) => match never {},
        }
    }

    /// Runs the backend and publishes its output until the attempt ends.
    async fn attempt(
        &self,
        mut run: Attempt,
        job: Job,
        out: Output,
        backend_failure: Option<Failure>,
        hand_back: &CancellationToken,
    ) -> Result<AttemptOutcome, Unavailable> {
        let id = job.id.clone();
        let attempt = job.attempt;
        let stop = job.stop.clone();
        let mut running = std::pin::pin!(self.start(job, out, backend_failure));
        let reason = run.publish(running.as_mut(), hand_back).await;
        let is_done = run.is_backend_done();
        if !is_done {
            run.abandon_output();
        }
        let stopping = async {
            stop.cancel();
            if !is_done && timeout(STOP_WAIT, running).await.is_err() {
                warn!(job = %id, "the backend did not stop in time; it is dropped when it next yields");
            }
        };
        let last = match reason {
            Ok(StopReason::HandBack) => {
                // Before another worker starts the job.
                stopping.await;
                // The job is handed back in any case. This event only records the reason, so that
                // the attempt does not count.
                let ended = timeout(HAND_BACK_WAIT, run.end(Ok(handed_back()))).await;
                return ended.unwrap_or(Ok(AttemptOutcome::Unfinished(Duration::ZERO)));
            }
            Ok(StopReason::TimedOut(message)) => Ok(Body::Failed(timed_out(message))),
            Ok(StopReason::Finished(Ok(Finish {
                usage,
                finish_reason,
            }))) => Ok(Body::Done {
                usage,
                finish_reason,
            }),
            Ok(StopReason::Finished(Err(failure))) => Ok(self
                .after_failure(&id, attempt, run.deadlines, failure)
                .await),
            Err(error) => Err(error),
        };
        tokio::join!(stopping, run.end(last)).1
    }

    /// Starts the backend on the backends' threads. A panic is a failure. Dropping the returned
    /// future drops the backend.
    fn start(
        &self,
        job: Job,
        out: Output,
        backend_failure: Option<Failure>,
    ) -> impl Future<Output = Result<Finish, Failure>> + Send + use<B> {
        let id = job.id.clone();
        let backend = Arc::clone(&self.backend);
        let of = id.clone();
        let work = self.threads.spawn(async move {
            let run = async {
                match backend_failure {
                    Some(failure) => Err(failure),
                    None => backend.run(job, out).await,
                }
            };
            // Caught here, so that it is reported even if the job no longer waits for the backend.
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

    /// The last event of an attempt whose backend failed: another attempt may follow.
    async fn after_failure(
        &self,
        job: &JobId,
        attempt: u32,
        deadlines: Deadlines,
        failure: Failure,
    ) -> Body {
        if failure.retry == Retry::Never {
            return Body::Failed(failure.into());
        }
        // If the log cannot be read, the next claim finds out.
        if self
            .claimer
            .is_exhausted(job, attempt)
            .await
            .unwrap_or(false)
        {
            return Body::Failed(attempts_exhausted(format!(
                "no attempt succeeded; the last one: {} ({})",
                failure.message, failure.code
            )));
        }
        let pause = retry_pause(job, attempt, self.settings.pause, failure.retry);
        // If the job's time ends earlier, the next claim comes then and fails the job.
        let pause = deadlines
            .remaining()
            .map_or(pause, |remaining| pause.min(remaining));
        Body::Retrying {
            code: failure.code,
            message: failure.message,
            delay_ms: u64::try_from(pause.as_millis()).unwrap_or(u64::MAX),
        }
    }
}

/// Returns when a worker that is stopping can no longer wait for a job's last event.
async fn overdue(hand_back: &CancellationToken) {
    hand_back.cancelled().await;
    // Slightly longer than handing a job back can take.
    sleep(STOP_WAIT + HAND_BACK_WAIT + REQUEST_WAIT / 4).await;
}
