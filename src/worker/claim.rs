//! Claims a job that the queue delivered: the log shows whether there is anything to run, and a
//! `job:started` event makes this worker the owner. `not_started` handles jobs that cannot start.

use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::OnceCell;
use tokio::time::{Instant, timeout};
use tracing::warn;

use super::deadlines::{limits, time_remaining};
use super::metrics::WorkerCounts;
use super::not_started::handle_not_started;
use super::outcome::{AttemptOutcome, attempts_exhausted, claim_pause, panicked, timed_out};
use super::owner::is_owned;
use super::report::{AttemptRecord, AttemptReport};
use super::settings::WorkerSettings;
use crate::backend::{self, Backend};
use crate::config::{APPEND_WAIT, DELIVERIES_MAX, FIRST_EVENT_LAG, RETRY_AFTER_MAX};
use crate::nats::{
    AppendError, Control, Delivery, EventWriter, Log, Queue, Reader, Tip, Unwritable,
};
use crate::runtime::Tasks;
use crate::source::Unavailable;
use crate::source::fold;
use crate::wire::{
    Body, Event, EventType, FailureCode, JobId, JobState, Limits, Stored, StreamSeq,
};

/// The result of a claim.
#[derive(Debug)]
pub(super) enum Claimed {
    /// This worker owns the job.
    Owned(Box<OwnedJob>),
    /// There is nothing to run.
    Over(AttemptOutcome),
}

/// A job that this worker owns.
#[derive(Debug)]
pub(super) struct OwnedJob {
    pub(super) writer: EventWriter,
    pub(super) attempt: u32,
    /// The output of earlier attempts, when this one continues it.
    pub(super) previous_output: Option<String>,
    pub(super) limits: Limits,
    /// How much of the time for the whole job remains.
    pub(super) remaining: Option<Duration>,
    /// Subscribed before this worker owned the job, so that no signal was missed since.
    pub(super) control: Control,
    /// Why the backend must not run.
    pub(super) backend_failure: Option<backend::Failure>,
}

/// Why a job was not claimed.
#[derive(Debug)]
pub(super) enum ClaimError {
    /// The log cannot be reached.
    Unavailable(Unavailable),
    /// The log, whose last event is of this attempt, can never store the next event.
    Unwritable { attempt: u32, error: Unwritable },
}

impl From<Unavailable> for ClaimError {
    fn from(error: Unavailable) -> Self {
        Self::Unavailable(error)
    }
}

/// The state of a claim between its tries. A try is repeated when another process wrote first.
#[derive(Default)]
struct ClaimProgress {
    /// The stream sequence of the last event in the previous try.
    seen: Option<StreamSeq>,
    /// The attempt as which this claim counted earlier deliveries.
    counted: Option<u32>,
    control: Option<Control>,
}

/// The next event of a job's log, and what follows from it.
struct NextEvent {
    attempt: u32,
    body: Body,
    previous_output: Option<String>,
    backend_failure: Option<backend::Failure>,
}

/// Claims the jobs of a worker.
#[derive(Debug)]
pub(super) struct Claimer<B> {
    log: Log,
    queue: Queue,
    backend: Arc<B>,
    settings: Arc<WorkerSettings>,
    progress_interval: Duration,
    counts: Arc<WorkerCounts>,
    /// Opened when the earlier events of a job must be read, which most jobs do not need.
    reader: OnceCell<Reader>,
    /// The tasks of the reader.
    tasks: Tasks,
}

impl<B: Backend> Claimer<B> {
    pub(super) fn new(
        queue: Queue,
        backend: Arc<B>,
        settings: Arc<WorkerSettings>,
        progress_interval: Duration,
        counts: Arc<WorkerCounts>,
        tasks: Tasks,
    ) -> Self {
        Self {
            log: queue.log().clone(),
            queue,
            backend,
            settings,
            progress_interval,
            counts,
            reader: OnceCell::new(),
            tasks,
        }
    }

    /// Claims a job, or finds that there is nothing to run. A job whose next event can never be
    /// stored counts as an attempt.
    pub(super) async fn claim(&self, delivery: &Delivery) -> Result<Claimed, Unavailable> {
        let since = Instant::now();
        match self.try_claim(delivery).await {
            Ok(claimed) => Ok(claimed),
            Err(ClaimError::Unavailable(error)) => {
                let pause = claim_pause(self.progress_interval, delivery.deliveries);
                let kind = &self.settings.kind;
                warn!(job = %delivery.job, %kind, %error, ?pause, "handed back: the log cannot be reached");
                Ok(Claimed::Over(AttemptOutcome::Unfinished(pause)))
            }
            Err(ClaimError::Unwritable { attempt, error }) => {
                let record = self.record(delivery, attempt, since);
                handle_not_started(
                    &self.log,
                    &self.settings,
                    self.progress_interval,
                    delivery,
                    &record,
                    &error,
                )
                .await
                .map(Claimed::Over)
            }
        }
    }

    fn record(&self, delivery: &Delivery, attempt: u32, since: Instant) -> AttemptRecord {
        AttemptRecord {
            job: delivery.job.clone(),
            kind: self.settings.kind.clone(),
            attempt,
            since,
            counts: Arc::clone(&self.counts),
        }
    }

    /// Makes this worker the job's owner: appends `job:started` after the log's last event, so that
    /// the publishes of earlier owners are refused.
    async fn try_claim(&self, delivery: &Delivery) -> Result<Claimed, ClaimError> {
        let job = &delivery.job;
        let mut progress = ClaimProgress::default();
        loop {
            let Tip::At { last, .. } = self.log.tip(job).await? else {
                return Err(ClaimError::Unwritable {
                    attempt: 0,
                    error: Unwritable::Undecodable,
                });
            };
            let Some(last) = last else {
                if self.is_removed(delivery).await? {
                    return Ok(Claimed::Over(AttemptOutcome::Ended));
                }
                // The submitter has not written the first event yet. Every process writes the same
                // one. An input that does not fit was submitted by another program, not by an edge.
                let mut writer = EventWriter::new(self.log.clone(), job.clone(), 0, None);
                is_appended(writer.append(delivery.submission.queued()).await, 0)?;
                continue;
            };
            if let Some(outcome) = self.nothing_to_run(delivery, &last, progress.seen).await? {
                return Ok(Claimed::Over(outcome));
            }
            progress.seen = Some(last.stream_seq);
            let uncounted = delivery.deliveries.saturating_sub(last.attempt);
            let is_cancelled = last.event_type == EventType::CancelRequested;
            if uncounted > DELIVERIES_MAX && progress.counted.is_none() && !is_cancelled {
                progress.counted = self.count_delivery(&last, uncounted).await?;
                continue;
            }
            if let Some(claimed) = self.append_next(delivery, &last, &mut progress).await? {
                return Ok(claimed);
            }
        }
    }

    /// Whether the queue has lost a job without a log: it was purged after this delivery was sent.
    async fn is_removed(&self, delivery: &Delivery) -> Result<bool, Unavailable> {
        // The first delivery of a new job often arrives before the first event of its log. No other
        // worker can have run the job then. One that comes late may be of a job that was cancelled
        // while it waited, which ended it without a worker.
        let age = delivery.submitted.elapsed().unwrap_or_default();
        if delivery.deliveries <= 1 && delivery.is_newest() && age < FIRST_EVENT_LAG {
            return Ok(false);
        }
        self.queue.has_removed(delivery).await
    }

    /// Why there is nothing to run after `last`: the job has ended, another worker owns it, or its
    /// next attempt must wait.
    async fn nothing_to_run(
        &self,
        delivery: &Delivery,
        last: &Stored,
        seen: Option<StreamSeq>,
    ) -> Result<Option<AttemptOutcome>, Unavailable> {
        if last.event_type.is_end() {
            return Ok(Some(AttemptOutcome::Ended));
        }
        if is_continued_elsewhere(seen, last) {
            return Ok(Some(AttemptOutcome::Lost));
        }
        // Before this worker subscribes to the control subject, or the question would reach it as
        // well.
        if seen.is_none() && is_owned(&self.queue, &delivery.job, last).await {
            return Ok(Some(AttemptOutcome::Lost));
        }
        let remaining = time_remaining(&self.settings, delivery);
        if remaining == Some(Duration::ZERO) {
            return Ok(None);
        }
        let wait = self.retry_wait(last).await?;
        Ok(wait.map(|wait| {
            AttemptOutcome::Unfinished(remaining.map_or(wait, |remaining| wait.min(remaining)))
        }))
    }

    /// Counts earlier deliveries that did not start an attempt as one attempt, in the log.
    ///
    /// The queue's count of deliveries is not enough. It includes attempts, jobs that were handed
    /// back by a stopping worker or before a retry, and tries during an outage. These must not use
    /// up the job's attempts, so a number of uncounted deliveries are allowed. With more than that,
    /// something keeps killing workers before they write anything (for example, an output that is
    /// too large for their memory), so each further delivery is counted before it is tried. If the
    /// attempt then starts, it has the counted number, so that an outage costs no attempts. Returns
    /// that number; `None` when another process wrote first.
    async fn count_delivery(
        &self,
        last: &Stored,
        uncounted: u32,
    ) -> Result<Option<u32>, ClaimError> {
        let attempt = last.attempt.saturating_add(1);
        let body = Body::Retrying {
            code: FailureCode::NotBegun.into(),
            message: format!("{uncounted} deliveries of the job did not start an attempt"),
            delay_ms: 0,
        };
        let mut writer = EventWriter::new(self.log.clone(), last.job.clone(), attempt, Some(last));
        let counted = is_appended(writer.append(body).await, last.attempt)?;
        Ok(counted.then_some(attempt))
    }

    /// Appends the event that follows `last`. `None` when another process wrote first.
    async fn append_next(
        &self,
        delivery: &Delivery,
        last: &Stored,
        progress: &mut ClaimProgress,
    ) -> Result<Option<Claimed>, ClaimError> {
        let job = &delivery.job;
        let since = Instant::now();
        let remaining = time_remaining(&self.settings, delivery);
        let NextEvent {
            attempt,
            body,
            previous_output,
            backend_failure,
        } = self.next_event(last, progress.counted, remaining).await?;
        let control = match progress.control.take() {
            Some(control) => control,
            None => delivery.control().await?,
        };
        let report = body.is_end().then(|| AttemptReport::of(&body));
        let mut writer = EventWriter::new(self.log.clone(), job.clone(), attempt, Some(last))
            .with_segments(Some(last));
        if !is_appended(writer.append(body).await, last.attempt)? {
            progress.control = Some(control);
            return Ok(None);
        }
        if let Some(report) = report {
            self.record(delivery, attempt, since).record(&report);
            return Ok(Some(Claimed::Over(AttemptOutcome::Ended)));
        }
        if attempt > 1 {
            // An earlier owner that publishes nothing would not notice for a long time.
            self.queue.send_control_signal(job).await;
        }
        Ok(Some(Claimed::Owned(Box::new(OwnedJob {
            writer: writer.persistent(),
            attempt,
            previous_output,
            limits: limits(&self.settings, delivery),
            // Computed again: storing the event may have waited for an election.
            remaining: time_remaining(&self.settings, delivery),
            control,
            backend_failure,
        }))))
    }

    /// How much of the wait before the next attempt remains. The failed worker may have died before
    /// it gave the job back with this delay.
    async fn retry_wait(&self, last: &Stored) -> Result<Option<Duration>, Unavailable> {
        let Ok(Event {
            body:
                Body::Retrying {
                    delay_ms: delay_ms @ 1..,
                    ..
                },
            ..
        }) = last.event()
        else {
            return Ok(None);
        };
        let delay = Duration::from_millis(delay_ms).min(RETRY_AFTER_MAX);
        let age = self.log.age(&last.job, last.stream_seq).await?;
        Ok(age
            .map(|age| delay.saturating_sub(age))
            .filter(|wait| !wait.is_zero()))
    }

    /// The event that follows `last`, which may be the event with which this claim `counted` a
    /// delivery as an attempt.
    async fn next_event(
        &self,
        last: &Stored,
        counted: Option<u32>,
        remaining: Option<Duration>,
    ) -> Result<NextEvent, Unavailable> {
        let counted = counted
            .filter(|&attempt| last.event_type == EventType::Retrying && attempt == last.attempt);
        let attempt = counted.unwrap_or_else(|| last.attempt.saturating_add(1));
        let end = |body| {
            Ok(NextEvent {
                attempt: last.attempt,
                body,
                previous_output: None,
                backend_failure: None,
            })
        };
        if last.event_type == EventType::CancelRequested {
            return end(Body::Cancelled {});
        }
        if remaining == Some(Duration::ZERO) {
            return end(Body::Failed(timed_out("the job exceeded its time limit")));
        }
        let max = self.settings.max_attempts;
        let (continues, backend_failure) =
            match panic::catch_unwind(AssertUnwindSafe(|| self.backend.continues())) {
                Ok(continues) => (continues, None),
                Err(payload) => (false, Some(panicked(&last.job, payload.as_ref()))),
            };
        let state = if attempt > max || continues && last.attempt > 0 {
            self.job_state(&last.job).await?
        } else {
            None
        };
        let handed_back = state.as_ref().map_or(0, |state| state.handed_back);
        if attempt.saturating_sub(handed_back) > max {
            let message = format!("{max} attempts ended without a result");
            return end(Body::Failed(attempts_exhausted(message)));
        }
        let previous_output = state
            .filter(|state| continues && !state.truncated && !state.output.is_empty())
            .map(|state| state.output);
        let body = Body::Started {
            kind: self.settings.kind.clone(),
            worker: self.settings.name.clone(),
            continues: previous_output.is_some(),
        };
        Ok(NextEvent {
            attempt,
            body,
            previous_output,
            backend_failure,
        })
    }

    /// Whether this is the last attempt that a job may have. Attempts that a stopping worker handed
    /// back do not count.
    pub(super) async fn is_exhausted(
        &self,
        job: &JobId,
        attempt: u32,
    ) -> Result<bool, Unavailable> {
        let max = self.settings.max_attempts;
        if attempt < max {
            return Ok(false);
        }
        let handed_back = self
            .job_state(job)
            .await?
            .map_or(0, |state| state.handed_back);
        Ok(attempt.saturating_sub(handed_back) >= max)
    }

    /// The state of the job according to its log.
    async fn job_state(&self, job: &JobId) -> Result<Option<JobState>, Unavailable> {
        let open = || Reader::open(self.log.clone(), &self.tasks);
        let reader = self.reader.get_or_try_init(open).await?;
        let late = |_| Unavailable("the log was not read in time".into());
        timeout(APPEND_WAIT, fold(reader, job))
            .await
            .map_err(late)?
    }
}

/// Whether another worker has started or continued the job since this claim has `seen` the log's
/// last event. That worker owns the job, and is alive.
fn is_continued_elsewhere(seen: Option<StreamSeq>, last: &Stored) -> bool {
    let by_owner = last.attempt > 0
        && !matches!(
            last.event_type,
            EventType::Retrying | EventType::CancelRequested
        );
    by_owner && seen.is_some_and(|seen| seen != last.stream_seq)
}

/// Whether an event was appended; `false` when another process wrote first. `attempt` is that of
/// the log's last event.
fn is_appended(outcome: Result<(), AppendError>, attempt: u32) -> Result<bool, ClaimError> {
    match outcome {
        Ok(()) => Ok(true),
        Err(AppendError::Superseded | AppendError::CancelRequested) => Ok(false),
        Err(AppendError::Unavailable(error)) => Err(error.into()),
        Err(AppendError::Unwritable(error)) => Err(ClaimError::Unwritable { attempt, error }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Seq;

    fn stored(stream_seq: StreamSeq, attempt: u32, body: Body) -> Stored {
        let job: JobId = "j".parse().unwrap();
        let event = Event {
            body,
            job: job.clone(),
            seq: Seq(stream_seq),
            attempt,
            ts: 0,
        };
        let (payload, _) = event.encode_within(1 << 20).unwrap();
        Stored::decode(&job, stream_seq, payload).unwrap()
    }

    #[test]
    fn a_claim_leaves_a_job_to_a_worker_that_wrote_since_the_last_try() {
        let started = || Body::Started {
            kind: "k".parse().unwrap(),
            worker: "w".into(),
            continues: false,
        };
        let chunk = || Body::Chunk {
            text: "t".into(),
            channel: backend::Channel::Output,
        };
        let retrying = || Body::Retrying {
            code: "c".into(),
            message: "m".into(),
            delay_ms: 0,
        };
        let cancel = || Body::CancelRequested { by: None };
        for (stream_seq, attempt, body, expected) in [
            // Another worker claimed the job, and may have produced output.
            (8, 1, started(), true),
            (9, 1, chunk(), true),
            // No process has written.
            (7, 1, chunk(), false),
            // No worker owns the job, or its owner must end it.
            (9, 1, retrying(), false),
            (9, 1, cancel(), false),
            (9, 0, cancel(), false),
        ] {
            let last = stored(stream_seq, attempt, body);
            assert_eq!(is_continued_elsewhere(Some(7), &last), expected, "{last:?}");
            assert!(
                !is_continued_elsewhere(None, &last),
                "this is the first try"
            );
        }
    }
}
