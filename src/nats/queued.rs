//! A job as it is stored in the queue, and the look-up of one.

use std::borrow::Cow;
use std::collections::HashMap;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Value, json};

use super::api;
use super::log::Log;
use super::message::{GetMessage, ask_leader};
use super::names::Names;
use super::quorum::StreamId;
use crate::source::Unavailable;
use crate::wire::{JobId, Kind, Limits, StreamSeq, Submission, codec};

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

    /// Whether this subject of the queue is the job's, and its id does not name another kind.
    pub(super) fn belongs_at(&self, subject: &str, names: &Names) -> bool {
        self.job.may_be_of(&self.kind) && names.queued(&self.kind, &self.job) == subject
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

/// What identifies a job in the queue. Its input, which takes up to 16 MiB and 40 ms, is not built.
#[derive(Deserialize)]
struct QueuedHead {
    #[serde(rename = "job")]
    _job: JobId,
    kind: Kind,
}

/// Whether the queue holds a job, and how far its stream reaches. Both are in one answer: two could
/// come from two servers, or from before and after a server stored the job.
#[derive(Deserialize)]
struct JobPresence {
    state: PresenceState,
}

#[derive(Deserialize)]
struct PresenceState {
    last_seq: StreamSeq,
    /// The job's message by its subject; absent when there is none.
    #[serde(default)]
    subjects: HashMap<String, u64>,
}

impl JobPresence {
    /// Whether the job that was stored at `stream_seq` is gone. `None` if this server may not have
    /// stored it yet: followers may be ahead of a slow leader, and deliver jobs before it has them.
    fn is_removed(&self, stream_seq: Option<StreamSeq>) -> Option<bool> {
        let is_absent = self.state.subjects.is_empty();
        match stream_seq {
            Some(stored) => (self.state.last_seq >= stored).then_some(is_absent),
            // Whether this server has stored a job that it does not hold is unknown.
            None => (!is_absent).then_some(false),
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
        self.proven(StreamId::Queue, || {
            self.queued_as::<QueuedJob<'static>>(job)
        })
        .await
    }

    /// The kind of the job that [`Self::queued`] finds.
    pub(super) async fn queued_kind(&self, job: &JobId) -> Result<Option<Kind>, Unavailable> {
        self.proven(StreamId::Queue, || self.queued_kind_now(job))
            .await
    }

    /// As [`Self::queued_kind`], from a server that leads the queue, or believes that it does.
    pub(super) async fn queued_kind_now(&self, job: &JobId) -> Result<Option<Kind>, Unavailable> {
        let head = self.queued_as::<QueuedHead>(job).await?;
        Ok(head.map(|head| head.kind))
    }

    async fn queued_as<T: DeserializeOwned>(&self, job: &JobId) -> Result<Option<T>, Unavailable> {
        let subject = self.nats.names.queued_of_any_kind(job);
        let get = GetMessage::last_of(&subject);
        let message = ask_leader(&self.nats.work, &self.nats.names.jobs_stream(), &get).await?;
        Ok(message.and_then(|message| serde_json::from_slice(&message.payload).ok()))
    }

    /// Whether the queue has removed the job that it stored at `stream_seq`, if that is known. From
    /// a leader with a quorum.
    ///
    /// # Errors
    /// [`Unavailable`], also when the leader may not have stored the job yet.
    pub(super) async fn left_queue(
        &self,
        job: &JobId,
        stream_seq: Option<StreamSeq>,
    ) -> Result<bool, Unavailable> {
        self.proven(StreamId::Queue, || self.left_queue_now(job, stream_seq))
            .await
    }

    async fn left_queue_now(
        &self,
        job: &JobId,
        stream_seq: Option<StreamSeq>,
    ) -> Result<bool, Unavailable> {
        let names = &self.nats.names;
        let request = format!("STREAM.INFO.{}", names.jobs_stream());
        let filter = json!({"subjects_filter": names.queued_of_any_kind(job)}).to_string();
        let presence: JobPresence = api::call(&self.nats.work, &request, filter).await?;
        presence.is_removed(stream_seq).ok_or_else(|| {
            Unavailable("the leader of the queue lacks a job that was delivered".into())
        })
    }
}

/// How many bytes a job has as stored, in the queue or in the first event of its log, whichever is
/// larger.
pub(super) fn stored_len(job: &JobId, submission: &Submission) -> Result<usize, codec::Error> {
    let in_queue = codec::json_len(&QueuedJob::new(job, submission))?;
    Ok(submission.event_len()?.max(in_queue))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_server_that_has_stored_a_job_can_report_that_it_was_removed() {
        let held = json!({"tw.jobs.k.j": 1});
        for (stream_seq, state, expected) in [
            (Some(7), json!({"last_seq": 6}), None),
            (Some(7), json!({"last_seq": 7}), Some(true)),
            (Some(7), json!({"last_seq": 9, "subjects": {}}), Some(true)),
            (
                Some(7),
                json!({"last_seq": 7, "subjects": held}),
                Some(false),
            ),
            // It may be any job that this server has not stored yet.
            (None, json!({"last_seq": 9}), None),
            (None, json!({"last_seq": 9, "subjects": held}), Some(false)),
        ] {
            let presence = serde_json::from_value::<JobPresence>(json!({"state": state})).unwrap();
            assert_eq!(presence.is_removed(stream_seq), expected, "{state}");
        }
    }

    #[test]
    fn the_kind_of_a_queued_job_is_read_without_its_input() {
        // Building a value that is nested this deep fails.
        let deep = "[".repeat(100_000) + &"]".repeat(100_000);
        let payload = format!(r#"{{"job":"j","kind":"k","input":{deep},"timeout_ms":5}}"#);
        assert!(serde_json::from_str::<QueuedJob<'static>>(&payload).is_err());
        let head: QueuedHead = serde_json::from_str(&payload).unwrap();
        assert_eq!(head.kind.as_str(), "k");
        assert!(serde_json::from_str::<QueuedHead>(r#"{"kind":"k"}"#).is_err());
    }
}
