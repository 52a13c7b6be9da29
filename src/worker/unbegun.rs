//! Jobs that cannot begin: deliveries that did not begin an attempt are counted as attempts, and a
//! job whose next event can never be stored is handed back or ended. It runs nothing.

use std::time::Duration;

use tracing::warn;

use super::claim::{ClaimError, is_appended};
use super::outcome::{AttemptOutcome, attempts_exhausted, retry_pause, timed_out};
use super::runner::Runner;
use crate::backend::{Backend, Retry};
use crate::backoff::Backoff;
use crate::config::{CLAIM_PAUSE_MAX, ENDINGS_MAX};
use crate::nats::{AppendError, Delivery, EventWriter, Tip, Unwritable};
use crate::source::Unavailable;
use crate::wire::{Body, EventType, FailureCode, JobFailure, Stored};

impl<B: Backend> Runner<B> {
    /// Counts, as an attempt in the log, that earlier deliveries of the job did not begin one.
    ///
    /// The queue's own count says little. It grows with each attempt, which the log counts as well,
    /// with each job that a worker gives back when it stops or when a retry must wait, and with
    /// each try during an outage. None of these may cost a job its attempts, so a number of
    /// uncounted deliveries are allowed. Beyond that, something keeps killing workers before they
    /// write anything (reading an output that is too large for their memory, for example). From
    /// then on each delivery counts before it is tried. The attempt that follows at once is the one
    /// that was counted, so that an outage, however long, costs a job none. Returns its number;
    /// `None` when another process wrote first.
    pub(super) async fn count_delivery(
        &self,
        last: &Stored,
        uncounted: u32,
    ) -> Result<Option<u32>, ClaimError> {
        let attempt = last.attempt.saturating_add(1);
        let body = Body::Retrying {
            code: FailureCode::NotBegun.into(),
            message: format!("{uncounted} deliveries of the job did not begin an attempt"),
            delay_ms: 0,
        };
        let mut writer = EventWriter::new(self.log.clone(), last.job.clone(), attempt, Some(last));
        let counted = is_appended(writer.append(body).await, last.attempt)?;
        Ok(counted.then_some(attempt))
    }

    /// Handles a job whose next event can never be stored: gives it back with a growing pause, and
    /// ends it when as many deliveries as it may have attempts came to nothing, or when its time is
    /// over. A delivery that an outage cost counts here as well: what is refused now will be
    /// refused again.
    pub(super) async fn not_begun(
        &self,
        delivery: &Delivery,
        attempt: u32,
        error: &Unwritable,
    ) -> Result<AttemptOutcome, Unavailable> {
        let job = &delivery.job;
        let tries = delivery.deliveries.saturating_sub(attempt);
        warn!(%job, tries, %error, "the job cannot begin");
        let remaining = self.time_remaining(delivery);
        let failure = if remaining == Some(Duration::ZERO) {
            timed_out("the job exceeded its time limit")
        } else if tries >= self.settings.max_attempts {
            attempts_exhausted(format!("no attempt could begin; the last one: {error}"))
        } else {
            let pause = retry_pause(job, tries, self.settings.pause, Retry::Later);
            let pause = remaining.map_or(pause, |remaining| pause.min(remaining));
            return Ok(AttemptOutcome::Unfinished(pause));
        };
        self.end_unbegun(delivery, attempt, failure).await
    }

    /// Ends a job that cannot begin, without its input if that is what cannot be stored.
    async fn end_unbegun(
        &self,
        delivery: &Delivery,
        attempt: u32,
        failure: JobFailure,
    ) -> Result<AttemptOutcome, Unavailable> {
        let job = &delivery.job;
        // Another process may write first: a cancel request, or the same events.
        for _ in 0..ENDINGS_MAX {
            let Tip::At { last, .. } = self.log.tip(job).await? else {
                warn!(%job, code = %failure.code, error = failure.message, "removed from the queue: no reader would find its end");
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
                    warn!(%job, %error, "removed from the queue: its log can store neither the job nor its end");
                    return Ok(AttemptOutcome::Abandoned);
                }
            }
        }
        Ok(AttemptOutcome::Unfinished(self.claim_pause(delivery)))
    }

    /// How long a job whose log cannot be reached waits for its next claim: longer with each
    /// delivery, so that such jobs leave the worker to others, but not so long that an outage is
    /// felt long after its end.
    pub(super) fn claim_pause(&self, delivery: &Delivery) -> Duration {
        let backoff = Backoff::new(self.keep_every, self.keep_every * CLAIM_PAUSE_MAX);
        backoff.pause_after(delivery.deliveries.saturating_sub(1))
    }
}
