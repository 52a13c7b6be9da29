//! What an edge asks a recorder, and how: requests over NATS. The `recorder` answers them.
//!
//! The subject of an answer is not an inbox: a recorder that may publish to the inboxes of edges
//! could forge what the broker answers them.

use std::borrow::Cow;
use std::sync::LazyLock;

use async_nats::StatusCode;
use bytes::Bytes;
use futures_util::StreamExt as _;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep, timeout_at};

use super::api::subscribe;
use super::connect::Nats;
use super::error::unavailable;
use crate::budget::{Budget, bind};
use crate::config::{
    RECORDER_BACK_WAIT, RECORDER_PAUSE, RECORDER_TRY_WAIT, RECORDER_WAIT, RECORDINGS_BYTES,
};
use crate::source::Unavailable;
use crate::wire::JobId;

/// What the requests of all threads of this process hold, until the client library has sent them.
static IN_FLIGHT: LazyLock<Budget> = LazyLock::new(|| Budget::new(RECORDINGS_BYTES));

/// What a recorder does for an edge. Its name is the last token of the request's subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Recording {
    /// Submits the job in the payload, which is as in the queue.
    Submit,
    /// Requests that the job of a [`JobToCancel`] is cancelled.
    Cancel,
    /// Removes the job of a [`JobToPurge`].
    Purge,
}

/// The payload of a request to cancel, as JSON.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct JobToCancel<'a> {
    pub(super) job: Cow<'a, JobId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) by: Option<String>,
}

/// The payload of a request to purge, as JSON.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct JobToPurge<'a> {
    pub(super) job: Cow<'a, JobId>,
}

/// A recorder's answer, as JSON.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum RecorderAnswer<T> {
    /// The result.
    Outcome(T),
    /// Why it failed, as text. The same request may succeed later.
    Unavailable(String),
}

impl Recording {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Submit => "submit",
            Self::Cancel => "cancel",
            Self::Purge => "purge",
        }
    }

    /// The one with this name.
    pub(super) fn named(name: &str) -> Option<Self> {
        let all = [Self::Submit, Self::Cancel, Self::Purge];
        all.into_iter().find(|recording| recording.name() == name)
    }
}

/// A request that counts in `budget` until the client library has sent it. The library keeps requests that
/// nobody waits for any more: while the broker reads nothing, clients could fill it with them.
fn counted(request: Vec<u8>, budget: &Budget) -> Result<Bytes, Unavailable> {
    let reserved = budget.reserve(request.capacity());
    let full = |_| Unavailable("too many requests wait for the broker".into());
    Ok(bind(request, reserved.map_err(full)?))
}

/// Asks a recorder, and waits for the result, at most [`RECORDER_WAIT`]. While none runs, asks again
/// for [`RECORDER_BACK_WAIT`]. While the broker is down, waits for as long, and asks nothing.
///
/// # Errors
/// [`Unavailable`]: it is not known whether it was done. Repeating it is harmless.
pub(super) async fn ask<T: DeserializeOwned>(
    nats: &Nats,
    recording: Recording,
    payload: &impl Serialize,
) -> Result<T, Unavailable> {
    let payload = serde_json::to_vec(payload).map_err(unavailable)?;
    let payload = counted(payload, &IN_FLIGHT)?;
    let begin = Instant::now();
    let too_late = begin + RECORDER_WAIT;
    // One subject for all tries: whichever is answered first counts.
    let reply = nats.names.recorded(nuid::next().as_str());
    let mut answers = None;
    let mut was_received = false;
    while Instant::now() < too_late {
        // A request that is made while the connection is down is buffered, and would be served once
        // no client waits for it any more, perhaps minutes later.
        let connected = nats.until_work_connected();
        if timeout_at(begin + RECORDER_BACK_WAIT, connected)
            .await
            .is_err()
        {
            return Err(Unavailable("the broker is down".into()));
        }
        let answer = async {
            let answers = match &mut answers {
                Some(answers) => answers,
                none @ None => none.insert(subscribe(&nats.work, reply.clone()).await?),
            };
            let subject = nats.names.record(recording.name());
            let sent = nats
                .work
                .publish_with_reply(subject, reply.clone(), payload.clone());
            sent.await.map_err(unavailable)?;
            let ended = || Unavailable("the connection is closed".into());
            answers.next().await.ok_or_else(ended)
        };
        // A recorder that was killed, or stopped, may have received the request and not served it.
        let again = too_late.min(Instant::now() + RECORDER_TRY_WAIT);
        let Ok(answer) = timeout_at(again, answer).await else {
            was_received = true;
            continue;
        };
        let answer = answer?;
        if answer.status == Some(StatusCode::NO_RESPONDERS) {
            // One that was asked before and stops may still answer.
            if !was_received && begin.elapsed() > RECORDER_BACK_WAIT {
                return Err(Unavailable("no `tailwater recorder` runs".into()));
            }
            sleep(RECORDER_PAUSE).await;
            continue;
        }
        return match serde_json::from_slice(&answer.payload) {
            Ok(RecorderAnswer::Outcome(outcome)) => Ok(outcome),
            Ok(RecorderAnswer::Unavailable(reason)) => Err(Unavailable(reason)),
            Err(error) => Err(Unavailable(format!("invalid answer: {error}"))),
        };
    }
    Err(Unavailable("no recorder answered in time".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_counts_until_the_client_library_has_dropped_it() {
        let budget = Budget::new(100);
        let waits = counted(vec![1; 60], &budget).unwrap();
        // As the library keeps it for a client that is gone.
        let queued = waits.clone();
        drop(waits);
        counted(vec![1; 60], &budget).unwrap_err();
        drop(queued);
        assert_eq!(counted(vec![1; 60], &budget).unwrap().len(), 60);
    }
}
