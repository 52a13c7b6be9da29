//! A job that the queue has delivered: what was submitted, and the answers to the queue until the
//! job is acked or given back. It does not read the job's log.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use async_nats::Subject;
use async_nats::jetstream::{self, AckKind};
use tokio::time::{Instant, timeout};
use tracing::{debug, info, warn};

use super::api;
use super::connect::Nats;
use super::control::Control;
use super::lease::Lease;
use super::names;
use super::queued::QueuedJob;
use crate::config::REQUEST_WAIT;
use crate::source::Unavailable;
use crate::wire::{JobId, Submission};

/// A job that the queue delivered to this worker, until it is acked or given back.
#[derive(Debug)]
pub struct Delivery {
    nats: Nats,
    ack_handle: Mutex<AckHandle>,
    /// The job.
    pub job: JobId,
    /// What was submitted.
    pub submission: Submission,
    /// When, by the broker's clock.
    pub submitted: SystemTime,
    /// How often the queue has delivered the job, this delivery included.
    pub deliveries: u32,
}

/// How to answer the newest delivery of the job to this worker.
#[derive(Debug)]
struct AckHandle {
    /// Where the queue is answered.
    reply: Subject,
    lease: Lease,
}

impl Delivery {
    /// Reads a message of the queue. One that is not a job is removed.
    pub(super) async fn read(
        nats: Nats,
        message: jetstream::Message,
        ack_wait: Duration,
    ) -> Option<Self> {
        let reply = message.reply.clone()?;
        match serde_json::from_slice(&message.payload) {
            Ok(queued @ QueuedJob { .. })
                if names::job_of(&message.subject) == queued.job().as_str() =>
            {
                let (submitted, deliveries) = match message.info() {
                    Ok(info) => (
                        info.published.into(),
                        u32::try_from(info.delivered).unwrap_or(u32::MAX),
                    ),
                    Err(_) => (SystemTime::now(), 1),
                };
                let ack_handle = Mutex::new(AckHandle {
                    reply,
                    lease: Lease::new(ack_wait),
                });
                Some(Self {
                    nats,
                    ack_handle,
                    job: queued.job().clone(),
                    submission: queued.into_submission(),
                    submitted,
                    deliveries,
                })
            }
            _ => {
                warn!(subject = %message.subject, "removed a message from the queue that is not a job");
                send(&nats, reply, AckKind::Term, &message.subject).await;
                None
            }
        }
    }

    /// Adopts a newer delivery of the same job: the queue is answered there from now on.
    pub fn adopt(&self, newer: Self) {
        *self.ack_handle() = newer
            .ack_handle
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
    }

    /// Reports to the queue that the job is being worked on, and waits for its confirmation. Does
    /// nothing while the connection is down.
    pub async fn keep(&self) {
        if !self.nats.works() {
            return;
        }
        let sent = Instant::now();
        let reply = self.reply();
        match self.answer(reply.clone(), AckKind::Progress).await {
            Ok(()) => {
                let mut ack_handle = self.ack_handle();
                // The lease of a newer delivery is as new as that delivery.
                if ack_handle.reply == reply {
                    ack_handle.lease.renew(sent);
                }
            }
            Err(error) => {
                debug!(job = %self.job, %error, "the queue did not hear that the job is being worked on")
            }
        }
    }

    /// Gives the job back: another worker gets it after `delay`. Nothing is sent when the queue may
    /// have delivered it again already, or would hear of it only later: it delivers the job by
    /// itself, an ack wait after the last sign of life.
    pub async fn give_back(&self, delay: Option<Duration>) {
        // A message that is published while the connection is down is sent over the next one.
        if self.nats.works() && self.ack_handle().lease.holds() {
            send(
                &self.nats,
                self.reply(),
                AckKind::Nak(delay),
                self.job.as_str(),
            )
            .await;
        } else {
            info!(job = %self.job, "not given back: the queue has not heard from this worker in time, and delivers the job again by itself");
        }
    }

    /// Takes the job out of the queue although its log does not say how it ended.
    pub async fn terminate(&self) {
        if let Err(error) = self.answer(self.reply(), AckKind::Term).await {
            debug!(job = %self.job, %error, "not removed from the queue, which will deliver it again");
        }
    }

    /// Takes the job out of the queue. Call it only when its end is in the log.
    ///
    /// # Errors
    /// [`Unavailable`]: the queue will deliver it again, and it will be found to have ended.
    pub async fn done(&self) -> Result<(), Unavailable> {
        self.answer(self.reply(), AckKind::Ack).await
    }

    /// The signals of the job's control subject.
    ///
    /// # Errors
    /// [`Unavailable`].
    pub async fn control(&self) -> Result<Control, Unavailable> {
        Control::open(&self.nats, &self.job).await
    }

    fn ack_handle(&self) -> MutexGuard<'_, AckHandle> {
        self.ack_handle
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn reply(&self) -> Subject {
        self.ack_handle().reply.clone()
    }

    /// Answers the queue and waits for its confirmation.
    async fn answer(&self, reply: Subject, kind: AckKind) -> Result<(), Unavailable> {
        api::request(&self.nats.work, reply.to_string(), None, kind.into())
            .await
            .map(|_| ())
    }
}

/// Answers the queue without waiting for a confirmation.
async fn send(nats: &Nats, reply: Subject, kind: AckKind, what: &str) {
    // While the connection is down the library may wait without a limit.
    match timeout(REQUEST_WAIT, nats.work.publish(reply, kind.into())).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => debug!(what, %error, "the queue was not answered"),
        Err(_) => debug!(what, "the queue was not answered in time"),
    }
}
