//! What happens to the worker: each step gives it jobs, disturbs it, and checks how the jobs ended.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::check_result::CheckResult;
use super::lab::Lab;
use super::rules::RULES;
use crate::cli::guarded::GuardedProcess;
use crate::config::{
    ATTEMPTS_MAX, CONFORMANCE_CANCEL_WAIT, CONFORMANCE_END_WAIT, CONFORMANCE_START_WAIT,
};
use crate::process_group::Signal;
use crate::wire::{Body, EventType, JobId, Stored};

/// What is wrong with the worker. Any other error means that it could not be tested.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct WorkerFault(String);

/// The attempts in which a job ends that another worker took over. A busy machine may need more than
/// one.
const TAKEN_OVER: RangeInclusive<u32> = 2..=ATTEMPTS_MAX;

fn fault<T>(what: impl Display) -> anyhow::Result<T> {
    Err(WorkerFault(what.to_string()).into())
}

/// How long a running job may take to be cancelled. The signal can be lost; a worker then looks at the
/// log after two thirds of the ack wait.
fn cancel_wait(ack_wait: Duration) -> Duration {
    ack_wait + CONFORMANCE_CANCEL_WAIT
}

/// What the steps found so far.
struct Findings<'a> {
    lab: &'a Lab,
    results: Vec<CheckResult>,
    /// The jobs that have ended.
    jobs: Vec<JobId>,
}

/// Runs all steps, and then checks all logs.
pub(super) async fn all(lab: &Lab, count: usize) -> anyhow::Result<Vec<CheckResult>> {
    let mut findings = Findings {
        lab,
        results: Vec::new(),
        jobs: Vec::new(),
    };
    let mut worker = lab.worker()?;
    let step = tokio::select! {
        step = findings.at_a_time(count) => step,
        ended = worker.0.wait() => fault(format!("the worker's program ended: {}", ended?)),
    };
    if !findings.note("several jobs", step)? {
        // The rest would only wait for what this worker does not do.
        return Ok(findings.results);
    }
    let step = findings.heartbeat().await;
    findings.note("heartbeat", step)?;
    let step = findings.cancel().await;
    findings.note("cancel", step)?;
    let step = findings.kill(&mut worker).await;
    findings.note("kill", step)?;
    let step = findings.freeze(worker).await;
    findings.note("freeze", step)?;
    let step = findings.acknowledged().await;
    findings.note("queue", step)?;
    findings.check_logs().await?;
    Ok(findings.results)
}

impl Findings<'_> {
    /// Records the result of a step. Returns whether it passed.
    fn note(&mut self, check: &'static str, step: anyhow::Result<String>) -> anyhow::Result<bool> {
        let found = match step {
            Ok(text) => Ok(text),
            Err(error) => Err(error.downcast::<WorkerFault>()?.0),
        };
        let passed = found.is_ok();
        self.results.push(CheckResult { check, found });
        Ok(passed)
    }

    /// Waits for the end of a job.
    async fn ended(&mut self, job: &JobId, limit: Duration) -> anyhow::Result<Stored> {
        let last = self
            .lab
            .until(job, limit, |last| last.event_type.is_end())
            .await?;
        let Some(last) = last else {
            return fault(format!("{job} has not ended after {limit:?}"));
        };
        self.jobs.push(job.clone());
        Ok(last)
    }

    /// Waits for the end of a job, which is `job:done:v1` in one of these attempts.
    async fn done(&mut self, job: &JobId, attempts: RangeInclusive<u32>) -> anyhow::Result<()> {
        let last = self.ended(job, CONFORMANCE_END_WAIT).await?;
        let body = last.event()?.body;
        if matches!(body, Body::Done { .. }) && attempts.contains(&last.attempt) {
            return Ok(());
        }
        if let Body::Failed(failure) = body {
            return fault(format!(
                "{job} failed: {} ({})",
                failure.message, failure.code
            ));
        }
        fault(format!(
            "{job} ended with {:?} in attempt {}, not as done in attempt {attempts:?}",
            last.event_type, last.attempt
        ))
    }

    /// Submits a job, and waits until it has output.
    async fn running(&self) -> anyhow::Result<JobId> {
        let job = self.lab.submit().await?;
        self.has_output(&job, 1, CONFORMANCE_START_WAIT).await?;
        Ok(job)
    }

    /// Waits until this attempt of a job has output.
    async fn has_output(&self, job: &JobId, attempt: u32, limit: Duration) -> anyhow::Result<()> {
        let has_output = |last: &Stored| {
            last.event_type.is_end()
                || last.attempt == attempt
                    && matches!(last.event_type, EventType::Chunk | EventType::Data)
        };
        match self.lab.until(job, limit, has_output).await? {
            Some(last) if last.event_type.is_end() => fault(format!(
                "{job} ended before it could be disturbed: give an --input that takes longer"
            )),
            Some(_) => Ok(()),
            None => fault(format!(
                "attempt {attempt} of {job} had no output in {limit:?}"
            )),
        }
    }

    /// How long a job whose worker is gone may wait for another one.
    fn takeover_wait(&self) -> Duration {
        self.lab.settings.ack_wait + CONFORMANCE_START_WAIT
    }

    async fn at_a_time(&mut self, count: usize) -> anyhow::Result<String> {
        let mut jobs = Vec::new();
        for _ in 0..count {
            jobs.push(self.lab.submit().await?);
        }
        let started = |last: &Stored| last.event_type != EventType::Queued;
        if self
            .lab
            .until(&jobs[0], CONFORMANCE_START_WAIT, started)
            .await?
            .is_none()
        {
            return fault(format!("no job started within {CONFORMANCE_START_WAIT:?}"));
        }
        for job in &jobs {
            self.done(job, 1..=1).await?;
        }
        Ok(format!("{count} jobs, each done in one attempt"))
    }

    /// The jobs so far took longer than the queue waits for a silent worker.
    async fn heartbeat(&mut self) -> anyhow::Result<String> {
        let mut longest = Duration::ZERO;
        for job in &self.jobs {
            let events = self.lab.events(job).await?;
            let started = events
                .iter()
                .find(|event| event.event_type == EventType::Started);
            let times = started.zip(events.last());
            let Some((started, last)) = times else {
                continue;
            };
            let took = last.event()?.ts.saturating_sub(started.event()?.ts);
            longest = longest.max(Duration::from_millis(took));
        }
        let needed = self.lab.settings.ack_wait * 2;
        if longest < needed {
            return fault(format!(
                "not tested: the jobs took only {longest:?}; give an --input that takes {needed:?}"
            ));
        }
        Ok(format!(
            "a job of {longest:?} kept its worker, at an ack wait of {:?}",
            self.lab.settings.ack_wait
        ))
    }

    async fn cancel(&mut self) -> anyhow::Result<String> {
        let job = self.running().await?;
        let asked = Instant::now();
        self.lab.queue.cancel(&job, None).await?;
        let limit = cancel_wait(self.lab.settings.ack_wait);
        let last = self.ended(&job, limit).await?;
        let took = asked.elapsed();
        if last.event_type == EventType::Cancelled {
            Ok(format!("a running job was cancelled within {took:.1?}"))
        } else {
            fault(format!(
                "{job} was cancelled, and ended with {:?}",
                last.event_type
            ))
        }
    }

    /// Kills the worker, and starts another one.
    async fn kill(&mut self, worker: &mut GuardedProcess) -> anyhow::Result<String> {
        let job = self.running().await?;
        worker.signal(Signal::KILL);
        let killed = Instant::now();
        *worker = self.lab.worker()?;
        self.has_output(&job, 2, self.takeover_wait()).await?;
        let took = killed.elapsed();
        self.done(&job, TAKEN_OVER).await?;
        Ok(format!("another worker took the job over after {took:.1?}"))
    }

    /// Freezes the worker, lets another one take its job over, and lets it go on.
    async fn freeze(&mut self, frozen: GuardedProcess) -> anyhow::Result<String> {
        let job = self.running().await?;
        frozen.signal(Signal::STOP);
        let other = self.lab.worker()?;
        let taken = self.has_output(&job, 2, self.takeover_wait()).await;
        frozen.signal(Signal::CONT);
        taken?;
        self.done(&job, TAKEN_OVER).await?;
        let end = self.lab.end_of_log(&job).await?;
        // As long as the worker may take to look at the log.
        sleep(self.lab.settings.ack_wait).await;
        if self.lab.end_of_log(&job).await? != end {
            return fault("the worker wrote to the log of a job that it had lost");
        }
        other.stop().await;
        let next = self.lab.submit().await?;
        self.done(&next, 1..=1).await?;
        Ok("its job was taken over; it wrote nothing more of it, and then ran another one".into())
    }

    /// Jobs leave the queue once they have ended.
    async fn acknowledged(&mut self) -> anyhow::Result<String> {
        let limit = self.lab.settings.ack_wait;
        for job in &self.jobs {
            if !self.lab.leaves_queue(job, limit).await? {
                return fault(format!("{job} has ended and is still in the queue"));
            }
        }
        Ok(format!("{} jobs were acknowledged", self.jobs.len()))
    }

    /// Checks the events of all jobs.
    async fn check_logs(&mut self) -> anyhow::Result<()> {
        let mut logs = Vec::new();
        for job in &self.jobs {
            logs.push((job, self.lab.events(job).await?));
        }
        let mut results = Vec::new();
        for rule in RULES {
            let mut faults = logs.iter().filter_map(|(job, events)| {
                let fault = (rule.fault)(events)?;
                Some(format!("{job}: {fault}"))
            });
            let found = faults.next().map_or_else(|| Ok(rule.holds.to_owned()), Err);
            results.push(CheckResult {
                check: rule.check,
                found,
            });
        }
        let undecodable = self.lab.undecodable();
        if undecodable > 0 {
            results.push(CheckResult {
                check: "messages",
                found: Err(format!("{undecodable} messages of the logs are not events")),
            });
        }
        self.results.extend(results);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::STOP_WAIT;

    #[test]
    fn a_cancel_whose_signal_was_lost_has_time_to_be_found_and_to_stop_the_work() {
        for ack_wait in [1, 2, 8, 60].map(Duration::from_secs) {
            let found_and_stopped = ack_wait * 2 / 3 + STOP_WAIT;
            assert!(cancel_wait(ack_wait) > found_and_stopped, "{ack_wait:?}");
        }
    }
}
