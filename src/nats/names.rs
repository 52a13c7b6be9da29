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

    /// The key-value bucket of revoked tokens.
    pub fn auth_bucket(&self) -> String {
        format!("{}_AUTH", self.stream_prefix())
    }

    /// The stream of that bucket.
    pub fn auth_stream(&self) -> String {
        format!("KV_{}", self.auth_bucket())
    }

    /// The key-value bucket of tickets.
    pub fn tickets_bucket(&self) -> String {
        format!("{}_TICKETS", self.stream_prefix())
    }

    /// The stream of that bucket.
    pub fn tickets_stream(&self) -> String {
        format!("KV_{}", self.tickets_bucket())
    }

    /// Where a job waits for a worker.
    pub fn queued(&self, kind: &Kind, job: &JobId) -> String {
        format!("{}.jobs.{kind}.{job}", self.prefix)
    }

    /// Where all jobs of a kind wait.
    pub fn queued_jobs(&self, kind: &Kind) -> String {
        format!("{}.jobs.{kind}.*", self.prefix)
    }

    /// Where a job waits, whatever its kind. A qualified id names the only one.
    pub fn queued_of_any_kind(&self, job: &JobId) -> String {
        format!("{}.jobs.{}.{job}", self.prefix, job.kind().unwrap_or("*"))
    }

    /// The job that waits at a subject; `None` if no job does.
    pub(super) fn job_of_queued(&self, subject: &str) -> Option<JobId> {
        let (kind, job) = self.below("jobs", subject)?.split_once('.')?;
        let kind: Kind = kind.parse().ok()?;
        let job: JobId = job.parse().ok()?;
        job.may_be_of(&kind).then_some(job)
    }

    /// Where all jobs are submitted.
    pub fn submitted(&self) -> String {
        format!("{}.jobs.*.*", self.prefix)
    }

    /// Where a job's events are stored.
    pub fn chunks(&self, shard: u32, job: &JobId) -> String {
        format!("{}.chunks.{shard}.{}", self.prefix, tokens(job))
    }

    /// The job whose events are stored at a subject of a shard; `None` if no job's are. A colon
    /// within a token names no job: permissions for plain ids allow such a subject.
    pub(super) fn job_of_chunks(&self, subject: &str) -> Option<JobId> {
        let (_, tokens) = self.below("chunks", subject)?.split_once('.')?;
        if tokens.contains(':') {
            return None;
        }
        tokens.replacen('.', ":", 1).parse().ok()
    }

    /// Where a segment of a job's events is stored.
    pub fn segment(&self, shard: u32, job: &JobId, number: u64) -> String {
        format!("{}.segments.{shard}.{}.{number}", self.prefix, tokens(job))
    }

    /// Where all segments of a job are stored.
    pub(super) fn segments_of(&self, shard: u32, job: &JobId) -> String {
        format!("{}.segments.{shard}.{}.*", self.prefix, tokens(job))
    }

    /// Where the broker sends a live copy of each of a job's events. No client may publish there.
    pub fn live(&self, shard: u32, job: &JobId) -> String {
        format!("{}.live.{shard}.{}", self.prefix, tokens(job))
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

    /// The job whose purge a subject reports; `None` if it reports none.
    pub(super) fn job_of_purged(&self, subject: &str) -> Option<JobId> {
        self.below("purged", subject)?.parse().ok()
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

    /// Where an edge asks a recorder.
    pub(super) fn record(&self, recording: &str) -> String {
        format!("{}.record.{recording}", self.prefix)
    }

    /// Where recorders are asked.
    pub(super) fn records(&self) -> String {
        self.record("*")
    }

    /// What a subject asks a recorder for; `None` if it asks for nothing.
    pub(super) fn recording_of<'a>(&self, subject: &'a str) -> Option<&'a str> {
        self.below("record", subject)
    }

    /// Where a recorder answers one request.
    pub(super) fn recorded(&self, request: &str) -> String {
        format!("{}.recorded.{request}", self.prefix)
    }

    /// Whether a recorder may answer at a subject.
    pub(super) fn is_recorded(&self, subject: &str) -> bool {
        let request = self.below("recorded", subject);
        request.is_some_and(|request| !request.contains('.'))
    }

    /// What follows `<prefix>.<group>.` in a subject.
    fn below<'a>(&self, group: &str, subject: &'a str) -> Option<&'a str> {
        let subject = subject.strip_prefix(self.prefix.as_str())?;
        let subject = subject.strip_prefix('.')?.strip_prefix(group)?;
        subject.strip_prefix('.')
    }
}

/// A job's id in the subjects of its shard. A qualified id becomes two tokens, so that permissions
/// can name the kind.
fn tokens(job: &JobId) -> String {
    job.as_str().replace(':', ".")
}

/// Where the broker reports that a stream has a new leader.
pub(super) fn leader_elected(stream: &str) -> String {
    format!("$JS.EVENT.ADVISORY.STREAM.LEADER_ELECTED.{stream}")
}

/// The subject of an API request.
pub(super) fn api(request: &str) -> String {
    format!("$JS.API.{request}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> Names {
        Names::new("tw".parse().unwrap())
    }

    fn job(id: &str) -> JobId {
        id.parse().unwrap()
    }

    #[test]
    fn the_subjects_of_a_shard_name_the_kind_of_a_qualified_id_as_a_token() {
        let names = names();
        for (id, tokens) in [("j", "j"), ("demo:j", "demo.j")] {
            let job = job(id);
            assert_eq!(names.chunks(3, &job), format!("tw.chunks.3.{tokens}"));
            assert_eq!(names.live(3, &job), format!("tw.live.3.{tokens}"));
            assert_eq!(
                names.segment(3, &job, 7),
                format!("tw.segments.3.{tokens}.7")
            );
            assert_eq!(
                names.segments_of(3, &job),
                format!("tw.segments.3.{tokens}.*")
            );
            assert_eq!(names.control(&job), format!("tw.control.{id}"));
            assert_eq!(names.alive(&job), format!("tw.alive.{id}"));
        }
        assert_eq!(names.queued_of_any_kind(&job("j")), "tw.jobs.*.j");
        assert_eq!(
            names.queued_of_any_kind(&job("demo:j")),
            "tw.jobs.demo.demo:j"
        );
    }

    #[test]
    fn the_job_of_a_subject_is_the_one_that_has_this_subject() {
        let names = names();
        let kind = "demo".parse().unwrap();
        for id in ["j", "demo:j"] {
            let job = job(id);
            let subject = names.chunks(3, &job);
            assert_eq!(names.job_of_chunks(&subject), Some(job.clone()));
            let subject = names.queued(&kind, &job);
            assert_eq!(names.job_of_queued(&subject), Some(job.clone()));
            let subject = names.purged(&job);
            assert_eq!(names.job_of_purged(&subject), Some(job));
        }
    }

    #[test]
    fn a_subject_of_another_form_is_of_no_job() {
        let names = names();
        for subject in [
            "",
            "tw",
            "tw.chunks",
            "tw.chunks.3",
            "tw.chunks.3.",
            "tw.chunks.3.demo:j",
            "tw.chunks.3.demo.",
            "tw.chunks.3..j",
            "tw.chunks.3.demo.a:j",
            "tw.chunks.3.a:demo.j",
            "tw.chunks.3.demo.j.k",
            "tw.chunks.3.ä",
            "tw.live.3.demo.j",
            "tx.chunks.3.demo.j",
            "twx.chunks.3.demo.j",
        ] {
            assert_eq!(names.job_of_chunks(subject), None, "{subject}");
        }
        for subject in [
            "tw.jobs.j",
            "tw.jobs.demo.demo.j",
            "tw.jobs.other.demo:j",
            "tw.jobs.demo:a.j",
            "tw.jobs..j",
            "tw.jobs.demo.",
            "tw.chunks.demo.j",
        ] {
            assert_eq!(names.job_of_queued(subject), None, "{subject}");
        }
        for subject in ["tw.purged.", "tw.purged.demo.j", "tw.control.j"] {
            assert_eq!(names.job_of_purged(subject), None, "{subject}");
        }
    }
}
