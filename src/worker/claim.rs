//! Claiming a job that the queue handed over: what its log says decides whether there is anything to run, and the
//! `job:started` event makes this worker its owner. It runs nothing.

use std::any::Any;
use std::panic::{self, AssertUnwindSafe};
use std::time::{Duration, SystemTime};

use tokio::time::timeout;
use tracing::warn;

use super::Shared;
use super::job::Parting;
use super::report::Report;
use crate::backend::{self, Backend};
use crate::config::APPEND_WAIT;
use crate::nats::{Control, Delivery, Refusal, Tip, Writer};
use crate::runtime::report_panic;
use crate::session::fold;
use crate::source::Unavailable;
use crate::wire::{Body, Failure, JobId, JobState, Limits, Stored, Type};

/// What a claim came to.
#[derive(Debug)]
pub(super) enum Claimed {
    /// This worker owns the job.
    Mine(Box<Mine>),
    /// There is nothing to run.
    Over(Parting),
}

/// A job that this worker owns.
#[derive(Debug)]
pub(super) struct Mine {
    pub(super) writer: Writer,
    pub(super) attempt: u32,
    /// What the attempts before have put out, when this one goes on from there.
    pub(super) so_far: Option<String>,
    /// The limits that hold for it.
    pub(super) limits: Limits,
    /// What is left of the time for the whole job.
    pub(super) left: Option<Duration>,
    /// Opened before the job was this worker's, so that no signal since then was missed.
    pub(super) control: Control,
    /// Why the backend is not to be run.
    pub(super) broken: Option<backend::Failure>,
}

/// What the next event of a job's log is to be.
struct Next {
    attempt: u32,
    body: Body,
    so_far: Option<String>,
    broken: Option<backend::Failure>,
}

impl<B: Backend> Shared<B> {
    /// Makes this worker the job's owner: appends `job:started` behind whatever the log ends with, so that every publish
    /// of an owner before is refused.
    pub(super) async fn claim(&self, delivery: &Delivery) -> Result<Claimed, Unavailable> {
        let job = &delivery.job;
        let limits = self.settings.limits.and(delivery.submission.limits);
        let (mut seen, mut control) = (None, None);
        loop {
            let Tip::At { last, .. } = self.log.tip(job).await? else {
                warn!(%job, "given back: its log ends with too much that is no event; somebody must purge the subject");
                return Ok(Claimed::Over(Parting::Unfinished(self.keep_every)));
            };
            let Some(last) = last else {
                // Faster than the submitter's second publish: the log begins the same way whoever writes it.
                let queued = delivery.submission.queued();
                match Writer::new(self.log.clone(), job.clone(), 0, None).append(queued).await {
                    Ok(()) | Err(Refusal::Superseded | Refusal::CancelRequested) => continue,
                    Err(Refusal::Unavailable(error)) => return Err(error),
                    Err(Refusal::Unwritable(error)) => {
                        // No edge lets it in: a foreign publisher put it there.
                        warn!(%job, %error, "the queue held what no log can hold; it is thrown away");
                        return Ok(Claimed::Over(Parting::Ended));
                    }
                }
            };
            if last.kind.is_end() {
                return Ok(Claimed::Over(Parting::Ended));
            }
            if seen.is_some_and(|pos| pos != last.pos) && last.kind == Type::Started {
                return Ok(Claimed::Over(Parting::Lost));
            }
            // Before it is subscribed to, or this worker would be asked as well.
            if seen.is_none() && self.is_owned(job, &last).await {
                return Ok(Claimed::Over(Parting::Lost));
            }
            seen = Some(last.pos);
            let opened = match control.take() {
                Some(control) => control,
                None => delivery.control().await?,
            };
            let left = limits.timeout_ms.map(|ms| time_left(delivery.submitted, Duration::from_millis(ms)));
            let Next { attempt, body, so_far, broken } = self.next(&last, left).await?;
            let over = !matches!(body, Body::Started { .. });
            let report = Report::of(&body);
            let mut writer = Writer::new(self.log.clone(), job.clone(), attempt, Some(&last));
            match writer.append(body).await {
                Ok(()) if over => {
                    report.into_iter().for_each(|report| report.log(job));
                    return Ok(Claimed::Over(Parting::Ended));
                }
                Ok(()) => {
                    if attempt > 1 {
                        // An owner before that is silent would not find out for long.
                        self.log.nudge(job).await;
                    }
                    let (writer, control) = (writer.persistent(), opened);
                    let mine = Mine { writer, attempt, so_far, limits, left, control, broken };
                    return Ok(Claimed::Mine(Box::new(mine)));
                }
                Err(Refusal::Superseded | Refusal::CancelRequested) => control = Some(opened),
                Err(Refusal::Unavailable(error)) => return Err(error),
                Err(Refusal::Unwritable(error)) => return Err(Unavailable(error.to_string())),
            }
        }
    }

    async fn next(&self, last: &Stored, left: Option<Duration>) -> Result<Next, Unavailable> {
        let end = |body| Ok(Next { attempt: last.attempt, body, so_far: None, broken: None });
        if last.kind == Type::CancelRequested {
            return end(Body::Cancelled {});
        }
        if left == Some(Duration::ZERO) {
            return end(Body::Failed(timed_out("the job was not done in time")));
        }
        let max = self.settings.max_attempts;
        let (continues, broken) = match panic::catch_unwind(AssertUnwindSafe(|| self.backend.continues())) {
            Ok(continues) => (continues, None),
            Err(payload) => (false, Some(panicked(&last.job, payload.as_ref()))),
        };
        let past = if last.attempt >= max || continues && last.attempt > 0 {
            self.past(&last.job).await?
        } else {
            None
        };
        let handed_back = past.as_ref().map_or(0, |past| past.handed_back);
        if last.attempt.saturating_sub(handed_back) >= max {
            let message = format!("{max} attempts ended without a result");
            return end(Body::Failed(attempts_exhausted(message)));
        }
        let so_far = past
            .filter(|past| continues && !past.truncated && !past.output.is_empty())
            .map(|past| past.output);
        let (kind, worker) = (self.settings.kind.clone(), self.settings.name.clone());
        let body = Body::Started { kind, worker, continues: so_far.is_some() };
        Ok(Next { attempt: last.attempt.saturating_add(1), body, so_far, broken })
    }

    /// Whether the attempts of a job are used up with this one. Those that were handed back do not count.
    pub(super) async fn is_exhausted(&self, job: &JobId, attempt: u32) -> Result<bool, Unavailable> {
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
        timeout(APPEND_WAIT, fold(reader, job)).await.map_err(late)?
    }
}

/// What is left of `timeout` after a submission. The submission's time is the broker's, and now is this machine's, so the
/// limit is as exact as their clocks agree.
fn time_left(submitted: SystemTime, timeout: Duration) -> Duration {
    timeout.saturating_sub(submitted.elapsed().unwrap_or(Duration::ZERO))
}

pub(super) fn timed_out(message: &str) -> Failure {
    Failure { code: "timed_out".into(), message: message.into(), retryable: false }
}

/// Logs and counts a panic of the backend: the attempt has failed, another one may do better, and the worker goes on.
pub(super) fn panicked(job: &JobId, payload: &(dyn Any + Send)) -> backend::Failure {
    let text = report_panic(format_args!("the backend, in job {job}"), payload);
    backend::Failure::retryable("backend_panicked", format!("the backend panicked: {text}"))
}

pub(super) fn attempts_exhausted(message: String) -> Failure {
    Failure { code: "attempts_exhausted".into(), message, retryable: false }
}
