//! Claiming a job that the queue handed over: what its log says decides whether there is anything to run, and the
//! `job:started` event makes this worker its owner. A job that cannot begin is counted, given back and ended here. It runs
//! nothing.

use std::any::Any;
use std::panic::{self, AssertUnwindSafe};
use std::time::Duration;

use tokio::time::timeout;
use tracing::warn;

use super::job::{AttemptOutcome, pause};
use super::report::Report;
use super::{Settings, Shared};
use crate::backend::{self, Backend, Retry};
use crate::config::{APPEND_WAIT, CLAIM_DOUBLINGS, DELIVERIES_MAX, RETRY_AFTER_MAX};
use crate::nats::{Control, Delivery, Refusal, Tip, Unwritable, Writer};
use crate::runtime::report_panic;
use crate::session::fold;
use crate::source::Unavailable;
use crate::wire::{
    Body, Event, EventType, Failure, FailureCode, JobId, JobState, Limits, Stored, StreamSeq,
};

/// What a claim came to.
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
    pub(super) writer: Writer,
    pub(super) attempt: u32,
    /// What the attempts before have put out, when this one goes on from there.
    pub(super) previous_output: Option<String>,
    /// The limits that hold for it.
    pub(super) limits: Limits,
    /// What is left of the time for the whole job.
    pub(super) left: Option<Duration>,
    /// Opened before the job was this worker's, so that no signal since then was missed.
    pub(super) control: Control,
    /// Why the backend is not to be run.
    pub(super) broken: Option<backend::Failure>,
}

/// Why a job was not claimed.
enum Unclaimed {
    /// The log is out of reach: nothing is known of the job.
    Unavailable(Unavailable),
    /// The log, whose last event is of this attempt, can never take what has to be written next.
    Unwritable { attempt: u32, error: Unwritable },
}

impl From<Unavailable> for Unclaimed {
    fn from(error: Unavailable) -> Self {
        Self::Unavailable(error)
    }
}

/// How often ending a job that cannot begin is tried when others write at the same time.
const ENDINGS_MAX: usize = 8;

/// What the next event of a job's log is to be.
struct Next {
    attempt: u32,
    body: Body,
    previous_output: Option<String>,
    broken: Option<backend::Failure>,
}

impl<B: Backend> Shared<B> {
    /// Claims a job, or finds out that there is nothing to run. One that no log takes is an attempt, too.
    pub(super) async fn claim(&self, delivery: &Delivery) -> Result<Claimed, Unavailable> {
        match self.try_claim(delivery).await {
            Ok(claimed) => Ok(claimed),
            Err(Unclaimed::Unavailable(error)) => {
                let pause = self.claim_pause(delivery);
                warn!(job = %delivery.job, %error, ?pause, "given back: the log is out of reach");
                Ok(Claimed::Over(AttemptOutcome::Unfinished(pause)))
            }
            Err(Unclaimed::Unwritable { attempt, error }) => self
                .not_begun(delivery, attempt, &error)
                .await
                .map(Claimed::Over),
        }
    }

    /// Makes this worker the job's owner: appends `job:started` behind whatever the log ends with, so that every publish
    /// of an owner before is refused.
    async fn try_claim(&self, delivery: &Delivery) -> Result<Claimed, Unclaimed> {
        let job = &delivery.job;
        let limits = self.settings.limits.and(delivery.submission.limits);
        let (mut seen, mut control) = (None, None);
        let mut counted = None;
        loop {
            let Tip::At { last, .. } = self.log.tip(job).await? else {
                warn!(%job, "handed back: its log ends with too many undecodable messages; purge the subject");
                return Ok(Claimed::Over(AttemptOutcome::Unfinished(
                    self.claim_pause(delivery),
                )));
            };
            let Some(last) = last else {
                // Faster than the submitter's second publish: the log begins the same way whoever writes it.
                let queued = delivery.submission.queued();
                match Writer::new(self.log.clone(), job.clone(), 0, None)
                    .append(queued)
                    .await
                {
                    Ok(()) | Err(Refusal::Superseded | Refusal::CancelRequested) => continue,
                    Err(Refusal::Unavailable(error)) => return Err(error.into()),
                    // No edge accepts it: another publisher put it there.
                    Err(Refusal::Unwritable(error)) => {
                        return Err(Unclaimed::Unwritable { attempt: 0, error });
                    }
                }
            };
            if last.event_type.is_end() {
                return Ok(Claimed::Over(AttemptOutcome::Ended));
            }
            if goes_on(seen, &last) {
                return Ok(Claimed::Over(AttemptOutcome::Lost));
            }
            // Before it is subscribed to, or this worker would be asked as well.
            if seen.is_none() && self.is_owned(job, &last).await {
                return Ok(Claimed::Over(AttemptOutcome::Lost));
            }
            seen = Some(last.stream_seq);
            let left = self.time_left(delivery);
            if let Some(rest) = self
                .retry_rest(&last)
                .await?
                .filter(|_| left != Some(Duration::ZERO))
            {
                let rest = left.map_or(rest, |left| rest.min(left));
                return Ok(Claimed::Over(AttemptOutcome::Unfinished(rest)));
            }
            let uncounted = delivery.deliveries.saturating_sub(last.attempt);
            if uncounted > DELIVERIES_MAX
                && counted.is_none()
                && last.event_type != EventType::CancelRequested
            {
                counted = self.count_delivery(&last, uncounted).await?;
                continue;
            }
            let Next {
                attempt,
                body,
                previous_output,
                broken,
            } = self.next(&last, counted, left).await?;
            let opened = match control.take() {
                Some(control) => control,
                None => delivery.control().await?,
            };
            let over = !matches!(body, Body::Started { .. });
            let report = Report::of(&body);
            let mut writer = Writer::new(self.log.clone(), job.clone(), attempt, Some(&last));
            match writer.append(body).await {
                Ok(()) if over => {
                    report.into_iter().for_each(|report| report.log(job));
                    return Ok(Claimed::Over(AttemptOutcome::Ended));
                }
                Ok(()) => {
                    if attempt > 1 {
                        // An owner before that is silent would not find out for long.
                        self.log.send_control_signal(job).await;
                    }
                    // Storing the event may have taken an election.
                    let (writer, control, left) =
                        (writer.persistent(), opened, self.time_left(delivery));
                    let owned = OwnedJob {
                        writer,
                        attempt,
                        previous_output,
                        limits,
                        left,
                        control,
                        broken,
                    };
                    return Ok(Claimed::Owned(Box::new(owned)));
                }
                Err(Refusal::Superseded | Refusal::CancelRequested) => control = Some(opened),
                Err(Refusal::Unavailable(error)) => return Err(error.into()),
                Err(Refusal::Unwritable(error)) => {
                    return Err(Unclaimed::Unwritable {
                        attempt: last.attempt,
                        error,
                    });
                }
            }
        }
    }

    /// What is left of the wait before the next attempt. The queue knows it only once the worker has told it, which a dead
    /// or unheard one has not.
    async fn retry_rest(&self, last: &Stored) -> Result<Option<Duration>, Unavailable> {
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
            .filter(|rest| !rest.is_zero()))
    }

    /// Counts, as an attempt in the log, that earlier deliveries of the job came to nothing.
    ///
    /// The queue's own count says little: it grows with each attempt, which the log counts as well, with what workers give
    /// back when they stop or when a retry has time left, and with each try during an outage. None of these may cost a job
    /// its attempts, so many uncounted deliveries are allowed. Past that, something keeps killing workers before they have
    /// written anything (reading an output that is too large for their memory, for example). From then on each delivery
    /// counts before it is tried. The attempt that follows at once is the one that was counted, so that an outage, however
    /// long, costs a job none. Returns its number; `None` when another process wrote at the same time.
    async fn count_delivery(
        &self,
        last: &Stored,
        uncounted: u32,
    ) -> Result<Option<u32>, Unclaimed> {
        let attempt = last.attempt.saturating_add(1);
        let message = format!("{uncounted} deliveries of the job came to nothing");
        let body = Body::Retrying {
            code: FailureCode::NotBegun.into(),
            message,
            delay_ms: 0,
        };
        match Writer::new(self.log.clone(), last.job.clone(), attempt, Some(last))
            .append(body)
            .await
        {
            Ok(()) => Ok(Some(attempt)),
            Err(Refusal::Superseded | Refusal::CancelRequested) => Ok(None),
            Err(Refusal::Unavailable(error)) => Err(error.into()),
            Err(Refusal::Unwritable(error)) => Err(Unclaimed::Unwritable {
                attempt: last.attempt,
                error,
            }),
        }
    }

    /// What becomes of a job whose next event no log takes: it is given back with a growing pause, and ended when as many
    /// deliveries as it may have attempts came to nothing, or when its time is over. A delivery that an outage cost counts
    /// here, too: what is refused now will be refused again.
    async fn not_begun(
        &self,
        delivery: &Delivery,
        attempt: u32,
        error: &Unwritable,
    ) -> Result<AttemptOutcome, Unavailable> {
        let Delivery {
            job, deliveries, ..
        } = delivery;
        let Settings {
            max_attempts,
            pause: first,
            ..
        } = &self.settings;
        let tries = deliveries.saturating_sub(attempt);
        warn!(%job, tries, %error, "the job cannot begin");
        let left = self.time_left(delivery);
        let failure = match left {
            Some(Duration::ZERO) => timed_out("the job was not done in time"),
            _ if tries >= *max_attempts => {
                attempts_exhausted(format!("no attempt could begin; the last one: {error}"))
            }
            _ => {
                let pause = pause(job, tries, *first, Retry::Later);
                return Ok(AttemptOutcome::Unfinished(
                    left.map_or(pause, |left| pause.min(left)),
                ));
            }
        };
        self.end_unbegun(delivery, attempt, failure).await
    }

    /// Ends a job that cannot begin, without its input if that is what no log takes.
    async fn end_unbegun(
        &self,
        delivery: &Delivery,
        attempt: u32,
        failure: Failure,
    ) -> Result<AttemptOutcome, Unavailable> {
        let job = &delivery.job;
        // Another one may write first: a cancel request, or the same events.
        for _ in 0..ENDINGS_MAX {
            let Tip::At { last, .. } = self.log.tip(job).await? else {
                break;
            };
            let body = match &last {
                None => delivery.submission.queued_without_input(),
                Some(last) if last.event_type.is_end() => return Ok(AttemptOutcome::Ended),
                Some(last) if last.attempt > attempt => return Ok(AttemptOutcome::Lost),
                Some(last) if last.event_type == EventType::CancelRequested => Body::Cancelled {},
                Some(_) => Body::Failed(failure.clone()),
            };
            match Writer::new(self.log.clone(), job.clone(), attempt, last.as_ref())
                .append(body)
                .await
            {
                Ok(()) | Err(Refusal::Superseded | Refusal::CancelRequested) => {}
                Err(Refusal::Unavailable(error)) => return Err(error),
                Err(Refusal::Unwritable(error)) => {
                    warn!(%job, %error, "thrown out of the queue: its log takes neither the job nor its end");
                    return Ok(AttemptOutcome::Abandoned);
                }
            }
        }
        Ok(AttemptOutcome::Unfinished(self.claim_pause(delivery)))
    }

    /// What is left of the time for a job. Its submission's time is the broker's, and now is this machine's, so the limit is
    /// as exact as their clocks agree.
    fn time_left(&self, delivery: &Delivery) -> Option<Duration> {
        let limits = self.settings.limits.and(delivery.submission.limits);
        let age = delivery.submitted.elapsed().unwrap_or(Duration::ZERO);
        limits
            .timeout_ms
            .map(|ms| Duration::from_millis(ms).saturating_sub(age))
    }

    /// How long a job whose log is out of reach waits for its next claim: longer with each delivery, so that such jobs leave
    /// the worker to others, and not so long that an outage is felt after its end.
    fn claim_pause(&self, delivery: &Delivery) -> Duration {
        self.keep_every * 2_u32.pow(delivery.deliveries.saturating_sub(1).min(CLAIM_DOUBLINGS))
    }

    /// What follows `last`, which may be the delivery that this claim `counted` as an attempt.
    async fn next(
        &self,
        last: &Stored,
        counted: Option<u32>,
        left: Option<Duration>,
    ) -> Result<Next, Unavailable> {
        let counted = counted
            .filter(|&attempt| last.event_type == EventType::Retrying && attempt == last.attempt);
        let attempt = counted.unwrap_or_else(|| last.attempt.saturating_add(1));
        let end = |body| {
            Ok(Next {
                attempt: last.attempt,
                body,
                previous_output: None,
                broken: None,
            })
        };
        if last.event_type == EventType::CancelRequested {
            return end(Body::Cancelled {});
        }
        if left == Some(Duration::ZERO) {
            return end(Body::Failed(timed_out("the job was not done in time")));
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
        let (kind, worker) = (self.settings.kind.clone(), self.settings.name.clone());
        let body = Body::Started {
            kind,
            worker,
            continues: previous_output.is_some(),
        };
        Ok(Next {
            attempt,
            body,
            previous_output,
            broken,
        })
    }

    /// Whether the attempts of a job are used up with this one. Those that were handed back do not count.
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

    /// The job's log so far, folded.
    async fn past(&self, job: &JobId) -> Result<Option<JobState>, Unavailable> {
        let reader = self.reader().await?;
        let late = |_| Unavailable("the log was not read in time".into());
        timeout(APPEND_WAIT, fold(reader, job))
            .await
            .map_err(late)?
    }
}

/// Whether a worker has begun the job, or gone on with it, since a claim looked at its log and found it ending at `seen`: then
/// it owns the job, and lives.
fn goes_on(seen: Option<StreamSeq>, last: &Stored) -> bool {
    let by_owner = last.attempt > 0
        && !matches!(
            last.event_type,
            EventType::Retrying | EventType::CancelRequested
        );
    by_owner && seen.is_some_and(|seen| seen != last.stream_seq)
}

pub(super) fn timed_out(message: &str) -> Failure {
    Failure {
        code: FailureCode::TimedOut.into(),
        message: message.into(),
        retryable: false,
    }
}

/// Logs and counts a panic of the backend: the attempt has failed, another one may do better, and the worker goes on.
pub(super) fn panicked(job: &JobId, payload: &(dyn Any + Send)) -> backend::Failure {
    let text = report_panic(format_args!("the backend, in job {job}"), payload);
    backend::Failure::retryable(
        FailureCode::BackendPanicked,
        format!("the backend panicked: {text}"),
    )
}

pub(super) fn attempts_exhausted(message: String) -> Failure {
    Failure {
        code: FailureCode::AttemptsExhausted.into(),
        message,
        retryable: false,
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
            // Another claim was faster, and its worker may have put something out by now.
            (8, 1, started(), true),
            (9, 1, chunk(), true),
            // Nobody has written.
            (7, 1, chunk(), false),
            // Nobody owns it, or whoever does is to end it.
            (9, 1, retrying(), false),
            (9, 1, cancel(), false),
            (9, 0, cancel(), false),
        ] {
            let last = stored(stream_seq, attempt, body);
            assert_eq!(goes_on(Some(7), &last), expected, "{last:?}");
            assert!(!goes_on(None, &last), "it has not looked before");
        }
    }
}
