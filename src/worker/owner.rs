//! The owner of a job that the queue handed over although it runs. It is asked before the job is
//! taken over, and answers as long as its attempt lives and the log says that it owns the job.
//!
//! ```text
//! the queue ──▶ another worker ── "does attempt 2 live?" on the job's control subject ──▶ owner ── looks at the log
//!                  │ an answer: leaves the message alone; the owner's reports to the queue keep it             │
//!                  └ none within a second: takes the job over ◀── not when the log has another attempt ────────┘
//! ```

use std::convert::Infallible;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};
use tracing::info;

use super::held::HeldJob;
use super::runner::Runner;
use crate::backend::Backend;
use crate::config::{OWNER_ANSWERS_MAX, OWNER_ASK_EVERY, OWNER_ASK_WAIT};
use crate::nats::{Control, ControlSignal, Question, Tip};
use crate::wire::{EventType, JobId, Stored};

impl<B: Backend> Runner<B> {
    /// Whether `last` is of an attempt that lives in another worker. After an outage that worker
    /// may reconnect later than this one, so it is asked for a while.
    pub(super) async fn is_owned(&self, job: &JobId, last: &Stored) -> bool {
        if last.attempt == 0 || last.event_type == EventType::Retrying || last.event_type.is_end() {
            return false;
        }
        let deadline = Instant::now() + OWNER_ASK_WAIT;
        loop {
            if self.queue.owner_lives(job, last.attempt).await {
                info!(%job, attempt = last.attempt, "left to its owner, which lives");
                return true;
            }
            if !self.queue.was_cut_off() || Instant::now() >= deadline {
                return false;
            }
            sleep(OWNER_ASK_EVERY).await;
        }
    }

    /// Passes on the control signals of a job that this worker owns, and answers questions whether
    /// this attempt lives.
    pub(super) async fn answer_questions(
        &self,
        mut control: Control,
        held: &HeldJob,
        attempt: u32,
        look: &Notify,
    ) -> Infallible {
        let mut answers = FuturesUnordered::new();
        loop {
            tokio::select! {
                signal = control.next() => {
                    look.notify_one();
                    if let ControlSignal::Asked(question) = signal
                        && answers.len() < OWNER_ANSWERS_MAX
                    {
                        answers.push(self.answer(question, held, attempt));
                    }
                }
                Some(()) = answers.next() => {}
            }
        }
    }

    /// Answers if the log says that this attempt owns the job: a worker that was frozen does not
    /// know that it lost it.
    async fn answer(&self, question: Question, held: &HeldJob, attempt: u32) {
        let Ok(Tip::At {
            last: Some(last), ..
        }) = self.log.tip(&held.delivery().job).await
        else {
            return;
        };
        let over = last.event_type == EventType::Retrying || last.event_type.is_end();
        if last.attempt == attempt && !over {
            question.answer(attempt).await;
            // The queue did not hear from this worker in time.
            held.keep_now();
        }
    }
}
