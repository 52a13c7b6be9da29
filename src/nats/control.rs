//! A job's control subject: signals to look at its log, and questions whether its owner is alive.
//! The worker acts on them; only the log is authoritative.

use async_nats::{Client, Request, Subject};
use bytes::Bytes;
use futures_util::StreamExt as _;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tracing::debug;

use super::api;
use super::connect::Nats;
use super::queue::Queue;
use crate::config::{CONTROL_SIGNAL_WAIT, OWNER_ANSWER_WAIT, OWNER_BACK_WAIT};
use crate::source::Unavailable;
use crate::wire::JobId;

/// The control signals of one job.
#[derive(Debug)]
pub struct Control {
    client: Client,
    signals: async_nats::Subscriber,
    /// Where questions are answered.
    alive: String,
    /// Changes when the connection was down: signals may have been lost.
    back: watch::Receiver<Option<Instant>>,
}

/// A control signal.
#[derive(Debug)]
pub enum ControlSignal {
    /// Look at the log: another process may have written to it.
    Look,
    /// A worker that received the job asks whether its owner is alive before it takes the job over,
    /// or an edge before it purges the job.
    Question(Question),
}

/// The question whether a job's owner is alive.
#[derive(Debug)]
pub struct Question {
    client: Client,
    reply: Subject,
}

/// The owner's answer, as JSON.
#[derive(Debug, Serialize, Deserialize)]
struct OwnerAnswer {
    attempt: u32,
}

impl Control {
    pub(super) async fn open(nats: &Nats, job: &JobId) -> Result<Self, Unavailable> {
        let mut back = nats.work_reconnected.clone();
        back.mark_unchanged();
        let signals = api::subscribe(&nats.work, nats.names.control(job)).await?;
        Ok(Self {
            client: nats.work.clone(),
            signals,
            alive: nats.names.alive(job),
            back,
        })
    }

    /// The next signal; waits forever after the subscription has ended.
    pub async fn next(&mut self) -> ControlSignal {
        tokio::select! {
            Some(message) = self.signals.next() => match message.reply {
                // The sender chooses the reply subject, and may not publish everywhere where this
                // worker may: an answer could be stored in the log of the job.
                Some(reply) if reply.as_str() == self.alive => {
                    ControlSignal::Question(Question { client: self.client.clone(), reply })
                }
                Some(_) | None => ControlSignal::Look,
            },
            Ok(()) = self.back.changed() => ControlSignal::Look,
            else => std::future::pending().await,
        }
    }
}

impl Question {
    /// Answers that this attempt is alive. Check the log first: a worker that lost its job may not
    /// have noticed.
    pub async fn answer(self, attempt: u32) {
        let answer = serde_json::to_vec(&OwnerAnswer { attempt }).unwrap_or_default();
        if let Err(error) = self.client.publish(self.reply, answer.into()).await {
            debug!(%error, "a question was not answered");
        }
    }
}

impl Queue {
    /// Makes the job's worker look at the log at once.
    pub async fn send_control_signal(&self, job: &JobId) {
        let nats = &self.log.nats;
        let sent = nats.work.publish(nats.names.control(job), Bytes::new());
        if !timeout(CONTROL_SIGNAL_WAIT, sent)
            .await
            .is_ok_and(|sent| sent.is_ok())
        {
            debug!(%job, "could not send a control signal; the worker finds out at its next publish");
        }
    }

    /// Asks the job's owner whether this attempt is alive. A worker that is dead, frozen,
    /// disconnected, or does not implement the question, does not answer.
    pub async fn is_owner_alive(&self, job: &JobId, attempt: u32) -> bool {
        self.living_attempt(job).await == Some(attempt)
    }

    /// The attempt that is alive according to the job's owner, if it answers.
    pub(super) async fn living_attempt(&self, job: &JobId) -> Option<u32> {
        let nats = &self.log.nats;
        let question = Request::new().inbox(nats.names.alive(job));
        let answer = nats.work.send_request(nats.names.control(job), question);
        // Without a subscriber the broker reports that at once.
        let Ok(Ok(message)) = timeout(OWNER_ANSWER_WAIT, answer).await else {
            return None;
        };
        let answer: OwnerAnswer = serde_json::from_slice(&message.payload).ok()?;
        Some(answer.attempt)
    }

    /// Whether this process reconnected to the broker a moment ago. Other processes may still be
    /// disconnected.
    pub fn has_just_reconnected(&self) -> bool {
        self.log
            .nats
            .work_reconnected
            .borrow()
            .is_some_and(|at| at.elapsed() < OWNER_BACK_WAIT)
    }
}
