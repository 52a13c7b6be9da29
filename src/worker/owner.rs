//! The owner of a job that the queue delivers again while it runs. Another worker asks the owner
//! before it takes the job over. The owner answers while its attempt is alive and the log shows
//! that it owns the job.
//!
//! ```text
//! the queue ──▶ another worker ── "is attempt 2 alive?" on the job's control subject ──▶ owner ─── checks the log
//!                  │ an answer: leaves the job to the owner                                              │
//!                  └ none within a second: takes the job over ◀── no answer if the log has another owner ┘
//! ```

use std::convert::Infallible;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};
use tracing::info;

use super::held::HeldJob;
use crate::config::{OWNER_ANSWERS_MAX, OWNER_ASK_EVERY, OWNER_ASK_WAIT};
use crate::nats::{Control, ControlSignal, Log, Question, Queue, Tip};
use crate::wire::{EventType, JobId, Stored};

/// Whether `last` is of an attempt that is alive in another worker. After an outage that worker
/// may reconnect later than this one, so it is asked repeatedly for a while.
pub(super) async fn is_owned(queue: &Queue, job: &JobId, last: &Stored) -> bool {
    if last.attempt == 0 || last.event_type == EventType::Retrying || last.event_type.is_end() {
        return false;
    }
    let deadline = Instant::now() + OWNER_ASK_WAIT;
    loop {
        if queue.is_owner_alive(job, last.attempt).await {
            info!(%job, attempt = last.attempt, "left to its owner, which is alive");
            return true;
        }
        if !queue.has_just_reconnected() || Instant::now() >= deadline {
            return false;
        }
        sleep(OWNER_ASK_EVERY).await;
    }
}

/// Answers questions whether this attempt is alive, and notifies `look` of all control signals of a
/// job that this worker owns.
pub(super) async fn answer_questions(
    log: &Log,
    mut control: Control,
    held: &HeldJob,
    attempt: u32,
    look: &Notify,
) -> Infallible {
    let mut answers = FuturesUnordered::new();
    loop {
        tokio::select! {
            signal = control.next() => match signal {
                ControlSignal::Question(question) if answers.len() < OWNER_ANSWERS_MAX => {
                    answers.push(answer(log, question, held, attempt, look));
                }
                ControlSignal::Question(_) | ControlSignal::Look => look.notify_one(),
            },
            Some(()) = answers.next() => {}
        }
    }
}

/// Answers if the log shows that this attempt owns the job: a worker that was frozen may have
/// lost it. Then looks at the log, which may end the attempt.
async fn answer(log: &Log, question: Question, held: &HeldJob, attempt: u32, look: &Notify) {
    let is_owner = match log.tip(&held.delivery().job).await {
        Ok(Tip::At {
            last: Some(last), ..
        }) => {
            let is_over = last.event_type == EventType::Retrying || last.event_type.is_end();
            last.attempt == attempt && !is_over
        }
        // The log shows no owner, and this attempt still runs.
        Ok(Tip::Undecodable) => true,
        Ok(Tip::At { last: None, .. }) | Err(_) => false,
    };
    if is_owner {
        question.answer(attempt).await;
        // The queue did not hear from this worker in time.
        held.report_now();
    }
    look.notify_one();
}
