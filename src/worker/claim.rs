//! Claiming a job that the queue handed over: its log says whether there is anything to run, and
//! the `job:started` event makes this worker its owner. It runs nothing; a job that cannot begin is
//! handled in `unbegun`.

use std::panic::{self, AssertUnwindSafe};
use std::time::Duration;

use tokio::time::timeout;
use tracing::warn;

use super::outcome::{AttemptOutcome, attempts_exhausted, panicked, timed_out};
use super::report::Report;
use super::runner::Runner;
use crate::backend::{self, Backend};
use crate::config::{APPEND_WAIT, DELIVERIES_MAX, RETRY_AFTER_MAX};
use crate::nats::{AppendError, Control, Delivery, EventWriter, Tip, Unwritable};
use crate::source::Unavailable;
use crate::source::fold;
use crate::wire::{Body, Event, EventType, JobId, JobState, Limits, Stored, StreamSeq};

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
    /// Subscribed before the job was this worker's, so that no signal since then was missed.
    pub(super) control: Control,
    /// Why the backend must not run.
    pub(super) broken: Option<backend::Failure>,
}

/// Why a job was not claimed.
#[derive(Debug)]
pub(super) enum ClaimError {
    /// The log cannot be reached: nothing is known of the job.
    Unavailable(Unavailable),
    /// The log, whose last event is of this attempt, can never store the event that must come next.
    Unwritable { attempt: u32, error: Unwritable },
}

impl From<Unavailable> for ClaimError {
    fn from(error: Unavailable) -> Self {
        Self::Unavailable(error)
    }
}

/// What a claim keeps between its tries, each of which ends when another process wrote first.
#[derive(Default)]
struct ClaimProgress {
    /// Where the log ended at the last look.
    seen: Option<StreamSeq>,
    /// The attempt that this claim counted for earlier deliveries.
    counted: Option<u32>,
    control: Option<Control>,
}

/// What the next event of a job's log is to be.
struct NextEvent {
    attempt: u32,
    body: Body,
    previous_output: Option<String>,
    broken: Option<backend::Failure>,
}

impl<B: Backend> Runner<B> {
    /// Claims a job, or finds that there is nothing to run. A job whose next event can never be
    /// stored counts as an attempt.
    pub(super) async fn claim(&self, delivery: &Delivery) -> Result<Claimed, Unavailable> {
        match self.try_claim(delivery).await {
            Ok(claimed) => Ok(claimed),
            Err(ClaimError::Unavailable(error)) => {
                let pause = self.claim_pause(delivery);
                warn!(job = %delivery.job, %error, ?pause, "handed back: the log cannot be reached");
                Ok(Claimed::Over(AttemptOutcome::Unfinished(pause)))
            }
            Err(ClaimError::Unwritable { attempt, error }) => self
                .not_begun(delivery, attempt, &error)
                .await
                .map(Claimed::Over),
        }
    }

    /// Makes this worker the job's owner: appends `job:started` after the log's last event, so that
    /// every publish of an earlier owner is refused.
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
                // The submitter has not written it yet. The log begins the same way whichever
                // process writes it. An input that does not fit is not from an edge: another
                // publisher put it there.
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
        if goes_on(seen, last) {
            return Ok(Some(AttemptOutcome::Lost));
        }
        // Before this worker subscribes to the control subject, or it would be asked as well.
        if seen.is_none() && self.is_owned(&delivery.job, last).await {
            return Ok(Some(AttemptOutcome::Lost));
        }
        let remaining = self.time_remaining(delivery);
        if remaining == Some(Duration::ZERO) {
            return Ok(None);
        }
        let wait = self.retry_wait(last).await?;
        Ok(wait.map(|wait| {
            AttemptOutcome::Unfinished(remaining.map_or(wait, |remaining| wait.min(remaining)))
        }))
    }

    /// Appends the event that follows `last`. `None` when another process wrote first.
    async fn append_next(
        &self,
        delivery: &Delivery,
        last: &Stored,
        progress: &mut ClaimProgress,
    ) -> Result<Option<Claimed>, ClaimError> {
        let job = &delivery.job;
        let remaining = self.time_remaining(delivery);
        let NextEvent {
            attempt,
            body,
            previous_output,
            broken,
        } = self.next_event(last, progress.counted, remaining).await?;
        let control = match progress.control.take() {
            Some(control) => control,
            None => delivery.control().await?,
        };
        let is_end = !matches!(body, Body::Started { .. });
        let report = Report::of(&body);
        let mut writer = EventWriter::new(self.log.clone(), job.clone(), attempt, Some(last));
        if !is_appended(writer.append(body).await, last.attempt)? {
            progress.control = Some(control);
            return Ok(None);
        }
        if is_end {
            report.into_iter().for_each(|report| report.log(job));
            return Ok(Some(Claimed::Over(AttemptOutcome::Ended)));
        }
        if attempt > 1 {
            // An earlier owner that publishes nothing would not learn of it for long.
            self.queue.send_control_signal(job).await;
        }
        Ok(Some(Claimed::Owned(Box::new(OwnedJob {
            writer: writer.persistent(),
            attempt,
            previous_output,
            limits: self.limits(delivery),
            // Storing the event may have taken an election.
            remaining: self.time_remaining(delivery),
            control,
            broken,
        }))))
    }

    /// How much of the wait before the next attempt remains. The queue knows it only from the
    /// worker that failed, which may have died before it could report it.
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

    /// The stricter ones of the worker's and the job's own time limits.
    fn limits(&self, delivery: &Delivery) -> Limits {
        self.settings.limits.and(delivery.submission.limits)
    }

    /// How much of the time for a job remains. The submission's time is the broker's and the
    /// current time is this machine's, so the limit is as exact as their clocks agree.
    pub(super) fn time_remaining(&self, delivery: &Delivery) -> Option<Duration> {
        let age = delivery.submitted.elapsed().unwrap_or(Duration::ZERO);
        self.limits(delivery)
            .timeout_ms
            .map(|ms| Duration::from_millis(ms).saturating_sub(age))
    }

    /// The event that follows `last`, which may be the one by which this claim `counted` a delivery
    /// as an attempt.
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
                broken: None,
            })
        };
        if last.event_type == EventType::CancelRequested {
            return end(Body::Cancelled {});
        }
        if remaining == Some(Duration::ZERO) {
            return end(Body::Failed(timed_out("the job exceeded its time limit")));
        }
        let max = self.settings.max_attempts;
        let (continues, broken) =
            match panic::catch_unwind(AssertUnwindSafe(|| self.backend.continues())) {
                Ok(continues) => (continues, None),
                Err(payload) => (false, Some(panicked(&last.job, payload.as_ref()))),
            };
        let past = if attempt > max || continues && last.attempt > 0 {
            self.past(&last.job).await?
        } else {
            None
        };
        let handed_back = past.as_ref().map_or(0, |past| past.handed_back);
        if attempt.saturating_sub(handed_back) > max {
            let message = format!("{max} attempts ended without a result");
            return end(Body::Failed(attempts_exhausted(message)));
        }
        let previous_output = past
            .filter(|past| continues && !past.truncated && !past.output.is_empty())
            .map(|past| past.output);
        let body = Body::Started {
            kind: self.settings.kind.clone(),
            worker: self.settings.name.clone(),
            continues: previous_output.is_some(),
        };
        Ok(NextEvent {
            attempt,
            body,
            previous_output,
            broken,
        })
    }

    /// Whether this is the last attempt that a job may have. Attempts that were handed back do not
    /// count.
    pub(super) async fn is_exhausted(
        &self,
        job: &JobId,
        attempt: u32,
    ) -> Result<bool, Unavailable> {
        let max = self.settings.max_attempts;
        if attempt < max {
            return Ok(false);
        }
        let handed_back = self.past(job).await?.map_or(0, |past| past.handed_back);
        Ok(attempt.saturating_sub(handed_back) >= max)
    }

    /// The state of the job that follows from its log.
    async fn past(&self, job: &JobId) -> Result<Option<JobState>, Unavailable> {
        let reader = self.reader().await?;
        let late = |_| Unavailable("the log was not read in time".into());
        timeout(APPEND_WAIT, fold(reader, job))
            .await
            .map_err(late)?
    }
}

/// Whether a worker has begun or continued the job since a claim found its log ending at `seen`:
/// then that worker owns the job, and lives.
fn goes_on(seen: Option<StreamSeq>, last: &Stored) -> bool {
    let by_owner = last.attempt > 0
        && !matches!(
            last.event_type,
            EventType::Retrying | EventType::CancelRequested
        );
    by_owner && seen.is_some_and(|seen| seen != last.stream_seq)
}

/// Whether an event was appended, to a log whose last event is of this attempt; `false` when
/// another process wrote first.
pub(super) fn is_appended(
    outcome: Result<(), AppendError>,
    attempt: u32,
) -> Result<bool, ClaimError> {
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
    fn a_claim_leaves_a_job_to_a_worker_that_wrote_since_it_looked() {
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
            // Another claim was faster, and its worker may have produced output by now.
            (8, 1, started(), true),
            (9, 1, chunk(), true),
            // No process has written.
            (7, 1, chunk(), false),
            // No worker owns it, or its owner must end it.
            (9, 1, retrying(), false),
            (9, 1, cancel(), false),
            (9, 0, cancel(), false),
        ] {
            let last = stored(stream_seq, attempt, body);
            assert_eq!(goes_on(Some(7), &last), expected, "{last:?}");
            assert!(!goes_on(None, &last), "the claim has not looked before");
        }
    }
}
