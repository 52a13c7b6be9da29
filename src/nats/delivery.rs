//! A job that the queue has handed over: what was submitted, and what the queue is told of it until it is acked or given
//! back. What a job's log says is not looked at.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use async_nats::Subject;
use async_nats::jetstream::{self, AckKind};
use bytes::Bytes;
use tokio::time::timeout;
use tracing::{debug, warn};

use super::api;
use super::connect::Nats;
use super::control::Control;
use super::names;
use super::queue::Queued;
use crate::config::REQUEST_WAIT;
use crate::source::Unavailable;
use crate::wire::{JobId, Submission};

/// A job that this worker was handed, until it is acked or given back.
#[derive(Debug)]
pub struct Delivery {
    nats: Nats,
    /// Where the queue is answered.
    reply: Mutex<Subject>,
    /// The job.
    pub job: JobId,
    /// What was submitted.
    pub submission: Submission,
    /// When, by the broker's clock.
    pub submitted: SystemTime,
}

impl Delivery {
    /// Reads a message of the queue. One that is not a job is thrown away.
    pub(super) async fn read(nats: Nats, message: jetstream::Message) -> Option<Self> {
        let reply = message.reply.clone()?;
        match serde_json::from_slice(&message.payload) {
            Ok(queued @ Queued { .. }) if names::job_of(&message.subject) == queued.job.as_str() => {
                let submitted =
                    message.info().map_or_else(|_| SystemTime::now(), |info| info.published.into());
                let (job, submission) = (queued.job.clone(), queued.into_submission());
                Some(Self { nats, reply: Mutex::new(reply), job, submission, submitted })
            }
            _ => {
                warn!(subject = %message.subject, "the queue held something that is no job; it is thrown away");
                answer(&nats, reply, AckKind::Term, &message.subject).await;
                None
            }
        }
    }

    /// Goes on with a newer delivery of the same job: the queue is answered there from now on.
    pub fn adopt(&self, newer: Self) {
        let reply = newer.reply.into_inner().unwrap_or_else(PoisonError::into_inner);
        *self.reply.lock().unwrap_or_else(PoisonError::into_inner) = reply;
    }

    /// Tells the queue that the job is being worked on; not while the connection is down, when it could not hear it.
    pub async fn keep(&self) {
        if self.nats.works() {
            self.tell(AckKind::Progress).await;
        }
    }

    /// Gives the job back: another worker gets it after `delay`.
    pub async fn give_back(&self, delay: Option<Duration>) {
        self.tell(AckKind::Nak(delay)).await;
    }

    /// Takes the job out of the queue. Call it only when its end is in the log.
    ///
    /// # Errors
    /// [`Unavailable`]: it will be handed out again, and found to have ended.
    pub async fn done(&self) -> Result<(), Unavailable> {
        let ack = Bytes::from(AckKind::Ack);
        api::request(&self.nats.work, self.reply().to_string(), None, ack).await.map(|_| ())
    }

    /// The signals of the job's control subject.
    ///
    /// # Errors
    /// [`Unavailable`].
    pub async fn control(&self) -> Result<Control, Unavailable> {
        Control::open(&self.nats, &self.job).await
    }

    fn reply(&self) -> Subject {
        self.reply.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn tell(&self, kind: AckKind) {
        answer(&self.nats, self.reply(), kind, self.job.as_str()).await;
    }
}

/// Answers the queue, which says nothing to it.
async fn answer(nats: &Nats, reply: Subject, kind: AckKind, what: &str) {
    // While the connection is down the library may wait without a limit.
    match timeout(REQUEST_WAIT, nats.work.publish(reply, kind.into())).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => debug!(what, %error, "the queue was not told"),
        Err(_) => debug!(what, "the queue was not told in time"),
    }
}
