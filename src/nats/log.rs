//! The logs of the jobs on the broker: appends under the fence, and single reads. `writer`
//! interprets a refused append; `read` reads many events.

use std::future::Future;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use async_nats::{Client, HeaderMap, HeaderValue, Message, StatusCode, Subject};
use bytes::Bytes;

use super::connect::Nats;
use super::error::NatsError;
use super::message::{
    GetMessage, LeaderMessage, ask_leader, confirmed, digest_text, header, number, segment_digest,
};
use super::publish::{Published, publish};
use super::quorum::{Leaders, StreamId};
use super::undecodable::Undecodable;
use super::{api, info, names};
use crate::config::UNDECODABLE_MAX;
use crate::metrics::{Histogram, HistogramValues};
use crate::runtime::LazyTimer;
use crate::source::{At, Replica, Unavailable};
use crate::wire::limits::{EVENT_MAX, MESSAGE_HEADERS_MAX};
use crate::wire::{DecodeError, JobId, SegmentDigest, Stored, StreamSeq};

/// The logs of all jobs.
#[derive(Clone, Debug)]
pub struct Log {
    pub(super) nats: Arc<Nats>,
    pub(super) shards: u32,
    pub(super) leaders: Arc<Leaders>,
    undecodable: Arc<Undecodable>,
    /// How many appends the broker refused because another process had written.
    fenced: Arc<AtomicU64>,
    live_delay: Arc<Histogram>,
}

/// A message of a job's log.
pub(super) struct FoundMessage {
    pub(super) stream_seq: StreamSeq,
    /// `None` when it cannot be decoded. Its sequence number has not been checked.
    pub(super) event: Option<Stored>,
}

/// The subject of a job's log, computed once for all of its appends.
#[derive(Debug)]
pub(super) struct LogSubject {
    subject: Subject,
    shard: u32,
}

impl Log {
    /// Opens the logs that `setup` created.
    ///
    /// # Errors
    /// [`NatsError::NotSetUp`].
    pub async fn open(nats: &Nats) -> Result<Self, NatsError> {
        let shards = nats.shards().await?;
        let leaders = Arc::new(Leaders::new(shards));
        Ok(Self {
            nats: Arc::new(nats.clone()),
            shards,
            leaders,
            undecodable: Arc::default(),
            fenced: Arc::default(),
            live_delay: Arc::default(),
        })
    }

    /// How many shards there are.
    pub fn shards(&self) -> u32 {
        self.shards
    }

    /// How many bytes an event, or a job in the queue, may have as stored. Depends on the server
    /// that this process is connected to.
    pub fn event_max(&self) -> usize {
        EVENT_MAX.min(
            self.nats
                .work
                .max_payload()
                .saturating_sub(MESSAGE_HEADERS_MAX),
        )
    }

    /// How long ago an event was stored, by the clock of the stream's leader. `None` when it is not
    /// stored any more.
    ///
    /// # Errors
    /// [`Unavailable`].
    pub async fn age(
        &self,
        job: &JobId,
        stream_seq: StreamSeq,
    ) -> Result<Option<Duration>, Unavailable> {
        let stream = self.stream(job);
        let get = GetMessage::at(stream_seq);
        let Some(message) = ask_leader(&self.nats.work, &stream, &get).await? else {
            return Ok(None);
        };
        let now = info::stream(&self.nats.work, &stream).await?.time();
        // After an election this is another server's clock, which may be slow.
        Ok(message
            .time
            .zip(now)
            .map(|(stored, now)| now.duration_since(stored).unwrap_or(Duration::ZERO)))
    }

    /// Appends an event if the last message of the job's subject has the stream sequence
    /// `expected`; 0 for an empty log.
    pub async fn append(&self, job: &JobId, expected: StreamSeq, payload: Bytes) -> Published {
        let mut timer = LazyTimer::default();
        self.append_next(&self.append_to(job), expected, payload, None, &mut timer)
            .await
    }

    /// [`Self::append`] to a subject that is known. An event that completes a segment carries its
    /// digest. The timer is for one append at a time.
    pub(super) async fn append_next(
        &self,
        to: &LogSubject,
        expected: StreamSeq,
        payload: Bytes,
        digest: Option<SegmentDigest>,
        timer: &mut LazyTimer,
    ) -> Published {
        assert!(
            !payload.is_empty(),
            "an empty payload would end a batched get"
        );
        let mut headers = HeaderMap::new();
        headers.insert(names::EXPECTED_LAST, HeaderValue::from(expected));
        if let Some(digest) = digest {
            headers.insert(names::SEGMENT_DIGEST, digest_text(digest).as_str());
        }
        let subject = to.subject.clone();
        let published = publish(&self.nats.work, subject, headers, payload, timer).await;
        if let Published::Stored(stream_seq) = published {
            self.leaders
                .record_seen(StreamId::Shard(to.shard), stream_seq);
        }
        published
    }

    /// The event at a stream sequence of the job's shard, and the digest in its header, from any
    /// replica.
    pub(super) async fn proof_at(
        &self,
        job: &JobId,
        stream_seq: StreamSeq,
    ) -> Result<Option<(Stored, Option<SegmentDigest>)>, Unavailable> {
        let subject = names::api(&format!("DIRECT.GET.{}", self.stream(job)));
        let body = GetMessage::at(stream_seq).body();
        let answer = api::request(&self.nats.replay, subject, None, body).await?;
        if answer.status.is_some() || header(&answer, names::SUBJECT) != Some(&self.subject(job)) {
            return Ok(None);
        }
        let digest = segment_digest(&answer);
        let event = self.decode_message(job, &answer);
        Ok(event.map(|event| (event, digest)))
    }

    /// Where the events of a job are appended.
    pub(super) fn append_to(&self, job: &JobId) -> LogSubject {
        let shard = job.shard(self.shards);
        LogSubject {
            subject: self.nats.names.chunks(shard, job).into(),
            shard,
        }
    }

    /// Makes a read over the work connection that a leader with a quorum answers.
    ///
    /// # Errors
    /// As [`Leaders::proven`].
    pub(super) async fn proven<T, W>(
        &self,
        stream: StreamId,
        read: impl Fn() -> W,
    ) -> Result<T, Unavailable>
    where
        W: Future<Output = Result<T, Unavailable>>,
    {
        self.leaders.proven(&self.nats, stream, read).await
    }

    /// Records the stream sequence of an event.
    pub(super) fn record_seen(&self, stream_seq: StreamSeq, job: &JobId) {
        self.leaders
            .record_seen(StreamId::Shard(job.shard(self.shards)), stream_seq);
    }

    /// The first message at or after `stream_seq` that can be decoded, from a server that leads the
    /// shard or believes that it does.
    pub(super) async fn next(
        &self,
        job: &JobId,
        stream_seq: StreamSeq,
    ) -> Result<Option<Stored>, Unavailable> {
        let subject = self.subject(job);
        let mut from = stream_seq;
        for _ in 0..UNDECODABLE_MAX {
            let get = GetMessage::next_of(&subject, from);
            match self.ask_leader(job, &get).await? {
                Some(FoundMessage {
                    stream_seq,
                    event: None,
                }) => from = stream_seq + 1,
                found => return Ok(found.and_then(|found| found.event)),
            }
        }
        Err(too_many_undecodable())
    }

    /// The last event, from any replica over `client`'s connection.
    pub(super) async fn last_of_any(
        &self,
        client: &Client,
        job: &JobId,
    ) -> Result<Option<Stored>, Unavailable> {
        let request = format!("DIRECT.GET.{}.{}", self.stream(job), self.subject(job));
        match self.direct(client, job, &request, Bytes::new()).await? {
            None => Ok(None),
            Some(FoundMessage {
                event: Some(event), ..
            }) if self.is_proven(job, &event).await? => Ok(Some(event)),
            Some(_) => self.last(job).await,
        }
    }

    /// The first message of a job's log at or after `stream_seq`, from any replica.
    pub(super) async fn next_of_any(
        &self,
        job: &JobId,
        stream_seq: StreamSeq,
    ) -> Result<Option<FoundMessage>, Unavailable> {
        let request = format!("DIRECT.GET.{}", self.stream(job));
        let body = GetMessage::next_of(&self.subject(job), stream_seq).body();
        self.direct(&self.nats.replay, job, &request, body).await
    }

    /// What is stored at a stream sequence of the job's shard. If a replica has nothing there, a
    /// leader with a quorum decides.
    pub(super) async fn at(&self, job: &JobId, stream_seq: StreamSeq) -> Result<At, Unavailable> {
        match self.at_any(job, stream_seq).await? {
            At::NotYet | At::Removed => self.at_leader(job, stream_seq).await,
            there @ (At::Event(_) | At::Other) => Ok(there),
        }
    }

    /// What is stored at a stream sequence of the job's shard, from this replica.
    pub(super) async fn at_replica(
        &self,
        job: &JobId,
        stream_seq: StreamSeq,
        from: Replica,
    ) -> Result<At, Unavailable> {
        match from {
            Replica::Any => self.at_any(job, stream_seq).await,
            Replica::Leader => self.at_leader(job, stream_seq).await,
        }
    }

    /// What is stored at a stream sequence of the job's shard, from any replica.
    pub(super) async fn at_any(
        &self,
        job: &JobId,
        stream_seq: StreamSeq,
    ) -> Result<At, Unavailable> {
        let subject = names::api(&format!("DIRECT.GET.{}", self.stream(job)));
        let body = GetMessage::at(stream_seq).body();
        let answer = api::request(&self.nats.replay, subject, None, body).await?;
        if answer.status.is_some() {
            return Ok(At::NotYet);
        }
        let of_job = header(&answer, names::SUBJECT) == Some(&self.subject(job));
        let event = of_job.then(|| self.decode_message(job, &answer)).flatten();
        Ok(event.map_or(At::Other, |event| At::Event(event.into())))
    }

    /// What is stored at a stream sequence of the job's shard, from a leader with a quorum.
    pub(super) async fn at_leader(
        &self,
        job: &JobId,
        stream_seq: StreamSeq,
    ) -> Result<At, Unavailable> {
        self.proven(StreamId::Shard(job.shard(self.shards)), || {
            self.at_now(job, stream_seq)
        })
        .await
    }

    async fn at_now(&self, job: &JobId, stream_seq: StreamSeq) -> Result<At, Unavailable> {
        let stream = self.stream(job);
        let get = GetMessage::at(stream_seq);
        let mut message = ask_leader(&self.nats.work, &stream, &get).await?;
        if message.is_none() {
            let state = info::stream(&self.nats.work, &stream).await?.state;
            if stream_seq > state.last_seq {
                return Ok(At::NotYet);
            }
            // It may have been stored between the two requests.
            message = ask_leader(&self.nats.work, &stream, &get).await?;
        }
        let Some(message) = message else {
            return Ok(At::Removed);
        };
        if message.subject != self.subject(job) {
            return Ok(At::Other);
        }
        let event = self.decode_answer(job, &message).event;
        Ok(event.map_or(At::Other, |event| At::Event(event.into())))
    }

    pub(super) fn stream(&self, job: &JobId) -> String {
        self.nats.names.chunks_stream(job.shard(self.shards))
    }

    pub(super) fn subject(&self, job: &JobId) -> String {
        self.nats.names.chunks(job.shard(self.shards), job)
    }

    pub(super) async fn ask_leader(
        &self,
        job: &JobId,
        get: &GetMessage<'_>,
    ) -> Result<Option<FoundMessage>, Unavailable> {
        let message = ask_leader(&self.nats.work, &self.stream(job), get).await?;
        Ok(message.map(|message| self.decode_answer(job, &message)))
    }

    async fn direct(
        &self,
        client: &Client,
        job: &JobId,
        request: &str,
        body: Bytes,
    ) -> Result<Option<FoundMessage>, Unavailable> {
        let answer = api::request(client, names::api(request), None, body).await?;
        match answer.status {
            None => {
                let stream_seq = number(&answer, names::SEQUENCE)
                    .ok_or_else(|| Unavailable("a message has no stream sequence".into()))?;
                Ok(Some(FoundMessage {
                    stream_seq,
                    event: self.decode_message(job, &answer),
                }))
            }
            Some(StatusCode::NOT_FOUND) => Ok(None),
            Some(status) => Err(Unavailable(format!(
                "a direct get failed with status {status}"
            ))),
        }
    }

    /// How many undecodable messages were skipped. A message that two readers skip counts twice.
    pub fn undecodable(&self) -> u64 {
        self.undecodable.skipped()
    }

    /// How many appends the broker refused because another process had written to the log.
    pub fn fence_refusals(&self) -> u64 {
        self.fenced.load(Ordering::Relaxed)
    }

    /// How long after they were stored events were received as live copies.
    pub fn live_delay(&self) -> HistogramValues {
        self.live_delay.values()
    }

    /// Counts how long ago an event was stored, by the time that the broker sent with its copy.
    /// Returns that time, in milliseconds since the Unix epoch.
    pub(super) fn note_delay(&self, stored: &str) -> Option<NonZeroU64> {
        let stored = humantime::parse_rfc3339(stored).ok()?;
        // A broker whose clock is ahead has stored it just now.
        self.live_delay
            .observe(stored.elapsed().unwrap_or_default());
        let since = stored.duration_since(SystemTime::UNIX_EPOCH).ok()?;
        u64::try_from(since.as_millis())
            .ok()
            .and_then(NonZeroU64::new)
    }

    /// Counts such a refusal.
    pub(super) fn note_fenced(&self) {
        self.fenced.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a message that a reader skips.
    pub(super) fn note_undecodable(&self, job: &JobId, stream_seq: StreamSeq, why: &DecodeError) {
        self.undecodable.note(job, stream_seq, why);
    }

    /// Decodes a message of a direct get. An undecodable one is counted, and `None` is returned.
    pub(super) fn decode_message(&self, job: &JobId, message: &Message) -> Option<Stored> {
        let stream_seq = number(message, names::SEQUENCE)?;
        let prev = confirmed(message.headers.as_ref());
        self.decode_slice(job, stream_seq, &message.payload, prev)
    }

    /// As [`Self::decode`], for a payload that the client library has. It is a slice of the
    /// library's read buffer, which lives as long as any slice of it: one small event could keep a
    /// hundred others in memory.
    pub(super) fn decode_slice(
        &self,
        job: &JobId,
        stream_seq: StreamSeq,
        payload: &[u8],
        prev: Option<StreamSeq>,
    ) -> Option<Stored> {
        self.decode(job, stream_seq, Bytes::copy_from_slice(payload), prev)
    }

    /// Decodes a stored message. An undecodable one is counted, and `None` is returned.
    pub(super) fn decode(
        &self,
        job: &JobId,
        stream_seq: StreamSeq,
        payload: Bytes,
        prev: Option<StreamSeq>,
    ) -> Option<Stored> {
        let decoded = Stored::decode(job, stream_seq, payload);
        decoded
            .map(|event| event.after(prev))
            .inspect_err(|why| self.note_undecodable(job, stream_seq, why))
            .ok()
    }

    fn decode_answer(&self, job: &JobId, message: &LeaderMessage) -> FoundMessage {
        let stream_seq = message.stream_seq;
        FoundMessage {
            stream_seq,
            event: self.decode(job, stream_seq, message.payload.clone(), message.prev),
        }
    }
}

pub(super) fn too_many_undecodable() -> Unavailable {
    Unavailable(format!(
        "the log has more than {UNDECODABLE_MAX} undecodable messages in a row"
    ))
}
