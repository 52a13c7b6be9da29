//! Jobs that cannot start because their next event can never be stored: hands them back, or ends them.

use std::time::Duration;

use tracing::warn;

use super::deadlines::time_remaining;
use super::outcome::{AttemptOutcome, attempts_exhausted, claim_pause, retry_pause, timed_out};
use super::report::{AttemptRecord, AttemptReport};
use super::settings::WorkerSettings;
use crate::backend::Retry;
use crate::config::ENDINGS_MAX;
use crate::nats::{AppendError, Delivery, EventWriter, Log, Tip, Unwritable};
use crate::source::Unavailable;
use crate::wire::{Body, EventType, JobFailure};

/// Handles a job whose next event can never be stored: hands it back with a growing pause, and
/// ends it after as many deliveries as it may have attempts, or when its time is over.
/// Deliveries during an outage count here as well, since the event will be refused again.
pub(super) async fn handle_not_started(
    log: &Log,
    settings: &WorkerSettings,
    progress_interval: Duration,
    delivery: &Delivery,
    record: &AttemptRecord,
    error: &Unwritable,
) -> Result<AttemptOutcome, Unavailable> {
    let AttemptRecord {
        job, kind, attempt, ..
    } = record;
    let tries = delivery.deliveries.saturating_sub(*attempt);
    warn!(%job, %kind, attempt, tries, %error, "the job cannot start");
    let remaining = time_remaining(settings, delivery);
    let failure = if remaining == Some(Duration::ZERO) {
        timed_out("the job exceeded its time limit")
    } else if tries >= settings.max_attempts {
        attempts_exhausted(format!("no attempt could start; the last error: {error}"))
    } else {
        let pause = retry_pause(job, tries, settings.pause, Retry::Later);
        let pause = remaining.map_or(pause, |remaining| pause.min(remaining));
        return Ok(AttemptOutcome::Unfinished(pause));
    };
    let ended = end_not_started(log, delivery, record, failure).await?;
    let pause = claim_pause(progress_interval, delivery.deliveries);
    Ok(ended.unwrap_or(AttemptOutcome::Unfinished(pause)))
}

/// Ends a job that cannot start, without its input if the input cannot be stored. `None` if other
/// processes kept writing to its log.
async fn end_not_started(
    log: &Log,
    delivery: &Delivery,
    record: &AttemptRecord,
    failure: JobFailure,
) -> Result<Option<AttemptOutcome>, Unavailable> {
    let AttemptRecord { job, attempt, .. } = record;
    let attempt = *attempt;
    // Another process may write first: a cancel request, or the same events.
    for _ in 0..ENDINGS_MAX {
        let Tip::At { last, .. } = log.tip(job).await? else {
            return Ok(Some(abandoned(record, &Unwritable::Undecodable)));
        };
        let body = match &last {
            None => delivery.submission.queued_without_input(),
            Some(last) if last.event_type.is_end() => return Ok(Some(AttemptOutcome::Ended)),
            Some(last) if last.attempt > attempt => return Ok(Some(AttemptOutcome::Lost)),
            Some(last) if last.event_type == EventType::CancelRequested => Body::Cancelled {},
            Some(_) => Body::Failed(failure.clone()),
        };
        let report = body.is_end().then(|| AttemptReport::of(&body));
        let mut writer = EventWriter::new(log.clone(), job.clone(), attempt, last.as_ref())
            .with_segments(last.as_ref());
        match writer.append(body).await {
            Ok(()) => {
                if let Some(report) = report {
                    record.record(&report);
                    return Ok(Some(AttemptOutcome::Ended));
                }
            }
            Err(AppendError::Superseded | AppendError::CancelRequested) => {}
            Err(AppendError::Unavailable(error)) => return Err(error),
            Err(AppendError::Unwritable(error)) => return Ok(Some(abandoned(record, &error))),
        }
    }
    Ok(None)
}

/// Records that the log can store neither the job nor its final event.
fn abandoned(record: &AttemptRecord, error: &Unwritable) -> AttemptOutcome {
    record.record(&AttemptReport::Removed(error.to_string()));
    AttemptOutcome::Abandoned
}
