//! Jobs that cannot start: counts deliveries that did not start an attempt, and hands back or ends
//! a job whose next event can never be stored.

use std::time::Duration;

use tracing::warn;

use super::claim::{ClaimError, is_appended};
use super::outcome::{AttemptOutcome, attempts_exhausted, retry_pause, timed_out};
use super::runner::Runner;
use crate::backend::{Backend, Retry};
use crate::backoff::Backoff;
use crate::config::{CLAIM_PAUSE_FACTOR, ENDINGS_MAX};
use crate::nats::{AppendError, Delivery, EventWriter, Tip, Unwritable};
use crate::source::Unavailable;
use crate::wire::{Body, EventType, FailureCode, JobFailure, Stored};

impl<B: Backend> Runner<B> {
    /// Counts earlier deliveries that did not start an attempt as one attempt, in the log.
    ///
    /// The queue's count of deliveries is not enough. It includes attempts, jobs that were handed
    /// back by a stopping worker or before a retry, and tries during an outage. These must not use
    /// up the job's attempts, so a number of uncounted deliveries are allowed. With more than that,
    /// something keeps killing workers before they write anything (for example, an output that is
    /// too large for their memory), so each further delivery is counted before it is tried. If the
    /// attempt then starts, it has the counted number, so that an outage costs no attempts. Returns
    /// that number; `None` when another process wrote first.
    pub(super) async fn count_delivery(
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

    /// Handles a job whose next event can never be stored: hands it back with a growing pause, and
    /// ends it after as many deliveries as it may have attempts, or when its time is over.
    /// Deliveries during an outage count here as well, since the event will be refused again.
    pub(super) async fn handle_not_started(
        &self,
        delivery: &Delivery,
        attempt: u32,
        error: &Unwritable,
    ) -> Result<AttemptOutcome, Unavailable> {
        let job = &delivery.job;
        let tries = delivery.deliveries.saturating_sub(attempt);
        warn!(%job, tries, %error, "the job cannot start");
        let remaining = self.time_remaining(delivery);
        let failure = if remaining == Some(Duration::ZERO) {
            timed_out("the job exceeded its time limit")
        } else if tries >= self.settings.max_attempts {
            attempts_exhausted(format!("no attempt could start; the last error: {error}"))
        } else {
            let pause = retry_pause(job, tries, self.settings.pause, Retry::Later);
            let pause = remaining.map_or(pause, |remaining| pause.min(remaining));
            return Ok(AttemptOutcome::Unfinished(pause));
        };
        self.end_not_started(delivery, attempt, failure).await
    }

    /// Ends a job that cannot start, without its input if the input cannot be stored.
    async fn end_not_started(
        &self,
        delivery: &Delivery,
        attempt: u32,
        failure: JobFailure,
    ) -> Result<AttemptOutcome, Unavailable> {
        let job = &delivery.job;
        // Another process may write first: a cancel request, or the same events.
        for _ in 0..ENDINGS_MAX {
            let Tip::At { last, .. } = self.log.tip(job).await? else {
                warn!(%job, code = %failure.code, error = failure.message, "removed from the queue: readers would not find its final event");
                return Ok(AttemptOutcome::Abandoned);
            };
            let body = match &last {
                None => delivery.submission.queued_without_input(),
                Some(last) if last.event_type.is_end() => return Ok(AttemptOutcome::Ended),
                Some(last) if last.attempt > attempt => return Ok(AttemptOutcome::Lost),
                Some(last) if last.event_type == EventType::CancelRequested => Body::Cancelled {},
                Some(_) => Body::Failed(failure.clone()),
            };
            let mut writer =
                EventWriter::new(self.log.clone(), job.clone(), attempt, last.as_ref());
            match writer.append(body).await {
                Ok(()) | Err(AppendError::Superseded | AppendError::CancelRequested) => {}
                Err(AppendError::Unavailable(error)) => return Err(error),
                Err(AppendError::Unwritable(error)) => {
                    warn!(%job, %error, "removed from the queue: its log can store neither the job nor its final event");
                    return Ok(AttemptOutcome::Abandoned);
                }
            }
        }
        Ok(AttemptOutcome::Unfinished(self.claim_pause(delivery)))
    }

    /// How long a job whose log cannot be reached waits for its next claim. The pause grows with
    /// each delivery, so that other jobs can run, up to a limit, so that jobs continue soon after
    /// an outage.
    pub(super) fn claim_pause(&self, delivery: &Delivery) -> Duration {
        let backoff = Backoff::new(
            self.progress_interval,
            self.progress_interval * CLAIM_PAUSE_FACTOR,
        );
        backoff.pause_after(delivery.deliveries.saturating_sub(1))
    }
}
