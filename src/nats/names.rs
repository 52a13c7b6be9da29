//! Every name that Tailwater uses in NATS, as a function of typed values. It does no I/O.

use crate::wire::{JobId, Kind, Prefix};

/// The stream sequence that a publish expects as its subject's last: the fence.
pub(super) const EXPECTED_LAST: &str = "Nats-Expected-Last-Subject-Sequence";
/// The subject of that expectation, when it is not the message's own.
pub(super) const EXPECTED_LAST_OF: &str = "Nats-Expected-Last-Subject-Sequence-Subject";
/// The id by which the broker drops a repeated submission.
pub(super) const MESSAGE_ID: &str = "Nats-Msg-Id";
/// A stored message's sequence in its stream.
pub(super) const SEQUENCE: &str = "Nats-Sequence";
/// A stored message's subject.
pub(super) const SUBJECT: &str = "Nats-Subject";
/// When a message was stored, as RFC 3339.
pub(super) const TIME: &str = "Nats-Time-Stamp";
/// In an answer to a batched get: the sequence of the previous message, 0 for the first. In a live
/// copy: that of the previous message of the subject, 0 when there is none.
pub(super) const LAST_SEQUENCE: &str = "Nats-Last-Sequence";
/// In an answer to a batched get: how many more messages match.
pub(super) const PENDING: &str = "Nats-Num-Pending";
/// The digest of the segment that an event completes: proves the segment.
pub(super) const SEGMENT_DIGEST: &str = "Tailwater-Segment";
/// The key in the metadata of the job stream under which `setup` stores the number of shards.
pub(super) const SHARDS: &str = "tailwater.shards";
/// The key in the metadata of a kind's consumer under which its workers list their optional
/// features.
pub(super) const FEATURES: &str = "tailwater.features";

/// The names under one prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names {
    prefix: Prefix,
}

impl Names {
    /// Names below `prefix`.
    pub fn new(prefix: Prefix) -> Self {
        Self { prefix }
    }

    /// The prefix of subjects.
    pub fn prefix(&self) -> &Prefix {
        &self.prefix
    }

    /// The prefix of streams.
    pub fn stream_prefix(&self) -> String {
        self.prefix.as_str().to_ascii_uppercase()
    }

    /// The work queue.
    pub fn jobs_stream(&self) -> String {
        format!("{}_JOBS", self.stream_prefix())
    }

    /// The log of a shard's jobs.
    pub fn chunks_stream(&self, shard: u32) -> String {
        format!("{}_CHUNKS_{shard}", self.stream_prefix())
    }

    /// Copies of a shard's events in segments.
    pub fn segments_stream(&self, shard: u32) -> String {
        format!("{}_SEGMENTS_{shard}", self.stream_prefix())
    }

    /// The key-value bucket of revoked tokens and tickets.
    pub fn auth_bucket(&self) -> String {
        format!("{}_AUTH", self.stream_prefix())
    }

    /// The stream of that bucket.
    pub fn auth_stream(&self) -> String {
        format!("KV_{}", self.auth_bucket())
    }

    /// Where a job waits for a worker.
    pub fn queued(&self, kind: &Kind, job: &JobId) -> String {
        format!("{}.jobs.{kind}.{job}", self.prefix)
    }

    /// Where all jobs of a kind wait.
    pub fn queued_jobs(&self, kind: &Kind) -> String {
        format!("{}.jobs.{kind}.*", self.prefix)
    }

    /// Where a job waits, whatever its kind.
    pub fn queued_of_any_kind(&self, job: &JobId) -> String {
        format!("{}.jobs.*.{job}", self.prefix)
    }

    /// Where all jobs are submitted.
    pub fn submitted(&self) -> String {
        format!("{}.jobs.*.*", self.prefix)
    }

    /// Where a job's events are stored.
    pub fn chunks(&self, shard: u32, job: &JobId) -> String {
        format!("{}.chunks.{shard}.{job}", self.prefix)
    }

    /// Where a segment of a job's events is stored.
    pub fn segment(&self, shard: u32, job: &JobId, number: u64) -> String {
        format!("{}.segments.{shard}.{job}.{number}", self.prefix)
    }

    /// Where all segments of a job are stored.
    pub(super) fn segments_of(&self, shard: u32, job: &JobId) -> String {
        format!("{}.segments.{shard}.{job}.*", self.prefix)
    }

    /// Where the broker sends a live copy of each of a job's events. No client may publish there.
    pub fn live(&self, shard: u32, job: &JobId) -> String {
        format!("{}.live.{shard}.{job}", self.prefix)
    }

    /// Where a connection is probed. It has no subscriber, which the server itself reports.
    pub fn ready(&self) -> String {
        format!("{}.ready", self.prefix)
    }

    /// Where edges hear that a job was purged.
    pub fn purged(&self, job: &JobId) -> String {
        format!("{}.purged.{job}", self.prefix)
    }

    /// Where they hear of all purges.
    pub(super) fn purged_jobs(&self) -> String {
        format!("{}.purged.*", self.prefix)
    }

    /// Where the owner of a job receives control signals. Only the log is authoritative.
    pub fn control(&self, job: &JobId) -> String {
        format!("{}.control.{job}", self.prefix)
    }

    /// Where the owner of a job answers that it is alive. Not an inbox: a worker that may publish to
    /// the inboxes of others could forge what the broker answers them.
    pub(super) fn alive(&self, job: &JobId) -> String {
        format!("{}.alive.{job}", self.prefix)
    }
}

/// Where the broker reports that a stream has a new leader.
pub(super) fn leader_elected(stream: &str) -> String {
    format!("$JS.EVENT.ADVISORY.STREAM.LEADER_ELECTED.{stream}")
}

/// The subject of an API request.
pub(super) fn api(request: &str) -> String {
    format!("$JS.API.{request}")
}

/// The job that a subject of Tailwater ends with.
pub(super) fn job_of(subject: &str) -> &str {
    subject.rsplit('.').next().unwrap_or(subject)
}
