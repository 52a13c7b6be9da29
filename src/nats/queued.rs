//! A job as it is stored in the queue, and the look-up of one.

use std::borrow::Cow;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use super::log::Log;
use super::message::{GetMessage, ask_leader};
use super::quorum::StreamId;
use crate::source::Unavailable;
use crate::wire::{JobId, Kind, Limits, Submission, codec};

/// A job as it is stored in the queue, as JSON. It borrows what is written, since copying a large
/// input takes some 10 ms.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct QueuedJob<'a> {
    job: Cow<'a, JobId>,
    kind: Cow<'a, Kind>,
    #[serde(default, deserialize_with = "input")]
    input: Cow<'a, Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    timeout_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    silence_timeout_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    callback: Option<Cow<'a, str>>,
}

fn input<'de, 'a, D: Deserializer<'de>>(from: D) -> Result<Cow<'a, Value>, D::Error> {
    codec::value(from).map(Cow::Owned)
}

impl<'a> QueuedJob<'a> {
    pub(super) fn new(job: &'a JobId, submission: &'a Submission) -> Self {
        let Submission {
            kind,
            input,
            id: _,
            limits:
                Limits {
                    timeout_ms,
                    silence_timeout_ms,
                },
            callback,
        } = submission;
        Self {
            job: Cow::Borrowed(job),
            kind: Cow::Borrowed(kind),
            input: Cow::Borrowed(input),
            timeout_ms: *timeout_ms,
            silence_timeout_ms: *silence_timeout_ms,
            callback: callback.as_deref().map(Cow::Borrowed),
        }
    }

    pub(super) fn job(&self) -> &JobId {
        &self.job
    }

    pub(super) fn into_kind(self) -> Kind {
        self.kind.into_owned()
    }

    pub(super) fn into_submission(self) -> Submission {
        Submission {
            kind: self.kind.into_owned(),
            input: self.input.into_owned(),
            id: Some(self.job.into_owned()),
            limits: Limits {
                timeout_ms: self.timeout_ms,
                silence_timeout_ms: self.silence_timeout_ms,
            },
            callback: self.callback.map(Cow::into_owned),
        }
    }
}

impl Log {
    /// The job with this id that waits in the queue or runs: the queue holds a job until it has
    /// ended. From a leader with a quorum.
    pub(super) async fn queued(
        &self,
        job: &JobId,
    ) -> Result<Option<QueuedJob<'static>>, Unavailable> {
        self.proven(StreamId::Queue, || self.queued_now(job)).await
    }

    /// As [`Self::queued`], from a server that leads the queue, or believes that it does.
    pub(super) async fn queued_now(
        &self,
        job: &JobId,
    ) -> Result<Option<QueuedJob<'static>>, Unavailable> {
        let subject = self.nats.names.queued_of_any_kind(job);
        let get = GetMessage::last_of(&subject);
        let message = ask_leader(&self.nats.work, &self.nats.names.jobs_stream(), &get).await?;
        Ok(message.and_then(|message| serde_json::from_slice(&message.payload).ok()))
    }
}

/// How many bytes a job has as stored, in the queue or in the first event of its log, whichever is
/// larger.
pub(super) fn stored_len(job: &JobId, submission: &Submission) -> Result<usize, codec::Error> {
    let in_queue = codec::json_len(&QueuedJob::new(job, submission))?;
    Ok(submission.event_len()?.max(in_queue))
}
