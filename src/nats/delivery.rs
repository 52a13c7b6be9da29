//! A job that the queue has delivered: the submission, and the replies to the queue. It does not
//! read the job's log.

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
use super::queued::QueuedJob;
use crate::config::REQUEST_WAIT;
use crate::source::Unavailable;
use crate::wire::{JobId, StreamSeq, Submission};

/// A job that the queue delivered to this worker, until it is acked or handed back.
#[derive(Debug)]
pub struct Delivery {
    nats: Nats,
    ack_handle: Mutex<AckHandle>,
    /// The job.
    pub job: JobId,
    /// What was submitted.
    pub submission: Submission,
    /// When it was submitted, by the broker's clock.
    pub submitted: SystemTime,
    /// How often the queue has delivered the job, this delivery included.
    pub deliveries: u32,
    /// The stream sequence of the job in the queue; `None` if the broker did not report it.
    pub(super) stream_seq: Option<StreamSeq>,
}

/// How to reply to the newest delivery of the job to this worker.
#[derive(Debug)]
struct AckHandle {
    /// The reply subject.
    reply: Subject,
    lease: Lease,
}

impl Delivery {
    /// Decodes a message of the queue. A message that is not a valid job is removed.
    pub(super) async fn decode(
        nats: Nats,
        message: jetstream::Message,
        ack_wait: Duration,
    ) -> Option<Self> {
        let reply = message.reply.clone()?;
        match serde_json::from_slice(&message.payload) {
            Ok(queued @ QueuedJob { .. }) if queued.belongs_at(&message.subject, &nats.names) => {
                let info = message.info().ok();
                let info = info.as_ref();
                let ack_handle = Mutex::new(AckHandle {
                    reply,
                    lease: Lease::new(ack_wait),
                });
                Some(Self {
                    nats,
                    ack_handle,
                    job: queued.job().clone(),
                    submission: queued.into_submission(),
                    submitted: info.map_or_else(SystemTime::now, |info| info.published.into()),
                    deliveries: info
                        .map_or(1, |info| u32::try_from(info.delivered).unwrap_or(u32::MAX)),
                    stream_seq: info.map(|info| info.stream_sequence),
                })
            }
            _ => {
                warn!(subject = %message.subject, "removed a message from the queue that is not a job");
                send(&nats, reply, AckKind::Term, &message.subject).await;
                None
            }
        }
    }

    /// Adopts a newer delivery of the same job: from now on, replies go to that delivery.
    pub fn adopt(&self, newer: Self) {
        *self.ack_handle() = newer
            .ack_handle
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
    }

    /// Reports to the queue that the job is being worked on, and waits for its confirmation. Does
    /// nothing while the connection is down.
    pub async fn report_progress(&self) {
        if !self.nats.is_work_connected() {
            return;
        }
        let sent = Instant::now();
        let reply = self.reply();
        match self.answer(reply.clone(), AckKind::Progress).await {
            Ok(()) => {
                let mut ack_handle = self.ack_handle();
                // A newer delivery has a newer lease.
                if ack_handle.reply == reply {
                    ack_handle.lease.renew(sent);
                }
            }
            Err(error) => {
                debug!(job = %self.job, %error, "the queue did not confirm a progress report")
            }
        }
    }

    /// Hands the job back, so that the queue delivers it again after `delay`. Sends nothing while
    /// disconnected, or when the queue may have delivered the job again already: the queue then
    /// redelivers it an ack wait after the last progress report.
    pub async fn hand_back(&self, delay: Option<Duration>) {
        // A message published while disconnected would be sent after the reconnect.
        if self.nats.is_work_connected() && self.is_newest() {
            send(
                &self.nats,
                self.reply(),
                AckKind::Nak(delay),
                self.job.as_str(),
            )
            .await;
        } else {
            info!(job = %self.job, "not handed back: the queue did not hear from this worker in time, and delivers the job again");
        }
    }

    /// Whether the queue has certainly not delivered the job again since.
    pub fn is_newest(&self) -> bool {
        self.ack_handle().lease.holds()
    }

    /// Removes the job from the queue although its log has no final event.
    pub async fn terminate(&self) {
        if let Err(error) = self.answer(self.reply(), AckKind::Term).await {
            debug!(job = %self.job, %error, "not removed from the queue, which will deliver it again");
        }
    }

    /// Removes the job from the queue. Call it only once the job's final event is stored, or the job
    /// was purged.
    ///
    /// # Errors
    /// [`Unavailable`]: the queue delivers the job again, and the next claim finds that it has
    /// ended.
    pub async fn ack(&self) -> Result<(), Unavailable> {
        self.answer(self.reply(), AckKind::Ack).await
    }

    /// Subscribes to the job's control subject.
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

    /// Replies to the queue and waits for its confirmation.
    async fn answer(&self, reply: Subject, kind: AckKind) -> Result<(), Unavailable> {
        api::request(&self.nats.work, reply.to_string(), None, kind.into())
            .await
            .map(|_| ())
    }
}

/// Replies to the queue without waiting for a confirmation.
async fn send(nats: &Nats, reply: Subject, kind: AckKind, what: &str) {
    // While the connection is down the library may wait without a limit.
    match timeout(REQUEST_WAIT, nats.work.publish(reply, kind.into())).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => debug!(what, %error, "could not reply to the queue"),
        Err(_) => debug!(what, "could not reply to the queue in time"),
    }
}
