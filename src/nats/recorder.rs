//! Submits, cancels and purges jobs for edges, so that the user of an edge needs no permission to
//! write to logs or to remove anything.

use std::future::Future;

use async_nats::{Message, Subject, Subscriber};
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use serde::Deserialize;
use serde_json::{Value, to_value};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::connect::Nats;
use super::error::{NatsError, unavailable};
use super::log::Log;
use super::queue::Queue;
use super::queued::QueuedJob;
use super::ready::answers;
use super::recording::{JobToCancel, JobToPurge, RecorderAnswer, Recording};
use crate::budget::{Budget, Reservation};
use crate::config::{RECORDER_BYTES, RECORDER_REQUESTS, RECORDER_WAIT};
use crate::source::Unavailable;
use crate::wire::input_memory;

/// The queue group of the recorders: each request is delivered to one of them.
const GROUP: &str = "recorders";

/// A recorder that is subscribed to the requests of edges.
#[derive(Debug)]
pub struct Recorder {
    queue: Queue,
    requests: Subscriber,
}

/// A request of an edge.
struct RecorderRequest {
    recording: Recording,
    reply: Subject,
    message: Message,
}

impl Recorder {
    /// Subscribes to the requests, and waits until the subscription is established.
    ///
    /// # Errors
    /// [`NatsError`], also if the user has no permission to subscribe.
    pub async fn open(nats: &Nats) -> Result<Self, NatsError> {
        let queue = Queue::new(Log::open(nats).await?);
        let subject = nats.names.records();
        let subscribed = nats.work.queue_subscribe(subject, GROUP.into()).await;
        let requests = subscribed.map_err(unavailable)?;
        // The server answers the requests of a connection in order.
        if !answers(&nats.work, &nats.names.ready()).await {
            let silent = "the connection does not answer".to_owned();
            return Err(Unavailable(silent).into());
        }
        match nats.refusal().await {
            Some(refusal) => Err(Unavailable(refusal).into()),
            None => Ok(Self { queue, requests }),
        }
    }

    /// Answers requests until `stop` is cancelled, then those that it has received already.
    pub async fn run(self, stop: CancellationToken) {
        let too_late = async {
            stop.cancelled().await;
            sleep(RECORDER_WAIT).await;
        };
        tokio::select! {
            () = self.serve(&stop) => {}
            // Also if the library accepts nothing more, because the broker is down.
            () = too_late => warn!("requests of edges were not answered in time"),
        }
    }

    async fn serve(mut self, stop: &CancellationToken) {
        let mut running = FuturesUnordered::new();
        let budget = Budget::new(RECORDER_BYTES);
        let mut is_stopping = false;
        let queue = &self.queue;
        loop {
            tokio::select! {
                () = stop.cancelled(), if !is_stopping => {
                    is_stopping = true;
                    // Later requests go to other recorders.
                    if let Err(error) = self.requests.drain().await {
                        debug!(%error, "the subscription to requests could not be ended");
                    }
                }
                Some(()) = running.next() => {}
                message = self.requests.next() => {
                    let Some(message) = message else { break };
                    let Some(request) = RecorderRequest::of(message, queue) else { continue };
                    match request.admit(running.len(), &budget) {
                        Ok(reservation) => running.push(async move {
                            request.serve(queue).await;
                            drop(reservation);
                        }),
                        Err(refused) => request.answer(queue, Err(refused)).await,
                    }
                }
            }
        }
        while running.next().await.is_some() {}
    }
}

impl RecorderRequest {
    /// The request in a message; `None` if it is not a request, or the answer may not go where its sender
    /// wants it.
    fn of(message: Message, queue: &Queue) -> Option<Self> {
        let names = &queue.log.nats.names;
        let recording = Recording::named(names.recording_of(&message.subject)?)?;
        // The sender chooses the reply subject, and may not publish everywhere where this process
        // may: an answer could be stored in a log.
        let reply = message.reply.clone()?;
        names.is_recorded(&reply).then_some(Self {
            recording,
            reply,
            message,
        })
    }

    /// Reserves the memory that the request holds while it is served, beside `running` others. More than
    /// the whole budget is admitted when it is unused, so that any valid request can be served.
    fn admit(&self, running: usize, budget: &Budget) -> Result<Reservation, Unavailable> {
        let busy = || Unavailable("the recorder is busy".into());
        if running >= RECORDER_REQUESTS {
            return Err(busy());
        }
        let bytes = memory(self.recording, &self.message.payload)?;
        let reserved = budget.reserve(bytes.min(budget.limit()));
        reserved.map_err(|_| busy())
    }

    async fn serve(self, queue: &Queue) {
        let outcome = in_time(Box::pin(self.outcome(queue))).await;
        self.answer(queue, outcome).await;
    }

    async fn outcome(&self, queue: &Queue) -> Result<Value, Unavailable> {
        let payload = &self.message.payload;
        let outcome = match self.recording {
            Recording::Submit => {
                let queued: QueuedJob<'_> = parsed(payload)?;
                let job = queued.job().clone();
                let submission = queued.into_submission();
                to_value(queue.submit(&job, &submission).await?)
            }
            Recording::Cancel => {
                let JobToCancel { job, by } = parsed(payload)?;
                to_value(queue.cancel(&job, by).await?)
            }
            Recording::Purge => {
                let JobToPurge { job } = parsed(payload)?;
                to_value(queue.purge(&job).await?)
            }
        };
        outcome.map_err(unavailable)
    }

    async fn answer(&self, queue: &Queue, outcome: Result<Value, Unavailable>) {
        let answer = match outcome {
            Ok(outcome) => RecorderAnswer::Outcome(outcome),
            Err(Unavailable(reason)) => RecorderAnswer::Unavailable(reason),
        };
        let answer = serde_json::to_vec(&answer).unwrap_or_default();
        let client = &queue.log.nats.work;
        if let Err(error) = client.publish(self.reply.clone(), answer.into()).await {
            debug!(%error, "a request of an edge was not answered");
        }
    }
}

/// About how many bytes a request holds while it is served: as it arrived, parsed, and copied for the
/// log or compared with what the log has.
fn memory(recording: Recording, payload: &[u8]) -> Result<usize, Unavailable> {
    let parsed = match recording {
        // An edge has checked it. A stolen key may send more.
        Recording::Submit => {
            input_memory(payload).map_err(|refusal| Unavailable(refusal.message))?
        }
        // Only text.
        Recording::Cancel | Recording::Purge => payload.len(),
    };
    Ok(payload.len() + 2 * parsed)
}

fn parsed<'a, T: Deserialize<'a>>(payload: &'a [u8]) -> Result<T, Unavailable> {
    serde_json::from_slice(payload).map_err(unavailable)
}

/// Does what an edge asked for, for as long as the edge waits: an append may be retried for longer, and
/// other requests would have less room meanwhile. To stop it early is as harmless as the end of this
/// process.
async fn in_time<T>(work: impl Future<Output = Result<T, Unavailable>>) -> Result<T, Unavailable> {
    timeout(RECORDER_WAIT, work)
        .await
        .map_err(|_| Unavailable("the broker took too long".into()))?
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::limits::INPUT_MEMORY_MAX;

    #[test]
    fn a_request_counts_with_what_its_input_takes_in_memory() {
        let objects = |count: usize| {
            let input = format!("[{}0]", "{\"\":0},".repeat(count));
            format!(r#"{{"job":"k:j","kind":"k","input":{input}}}"#)
        };
        let submit = objects(1000);
        let held = memory(Recording::Submit, submit.as_bytes()).unwrap();
        assert!(held > 100 * submit.len(), "{held}");
        let Unavailable(reason) =
            memory(Recording::Submit, objects(30_000).as_bytes()).unwrap_err();
        assert!(reason.contains(&INPUT_MEMORY_MAX.to_string()), "{reason}");
        memory(Recording::Submit, b"[]").unwrap_err();
        assert_eq!(memory(Recording::Cancel, &[b'x'; 100]).unwrap(), 300);
    }
}
