//! The writer of a job's log: appends events under the fence, one at a time, and finds out why an
//! append was refused. It does not decide about the job.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use tokio::time::{Instant, sleep, timeout_at};
use tracing::debug;

use super::log::{Log, LogSubject};
use super::publish::Published;
use super::segment_writer::{EventPosition, SegmentWriter};
use super::tip::Tip;
use crate::backoff::Backoff;
use crate::config::{APPEND_WAIT, REJECTIONS_MAX, RETRY_FIRST, RETRY_MAX};
use crate::runtime::LazyTimer;
use crate::source::Unavailable;
use crate::wire::{Body, Event, EventType, JobId, Seq, Stored, StreamSeq, Unfit};

/// Writes one job's log for one attempt.
#[derive(Debug)]
pub struct EventWriter {
    log: Log,
    job: JobId,
    subject: LogSubject,
    attempt: u32,
    /// The last event's sequence number and stream sequence.
    seq: Seq,
    stream_seq: StreamSeq,
    /// The stream sequence of the log's last message: that event, or an undecodable message after
    /// it.
    fence: StreamSeq,
    /// Writes the segments of the log, if this writer does.
    segments: Option<SegmentWriter>,
    /// How long to retry while the broker is down; `None` means forever.
    retry_for: Option<Duration>,
    /// Ends the wait for an ack.
    timer: LazyTimer,
}

/// Why an event was not appended.
#[derive(Debug, thiserror::Error)]
pub enum AppendError {
    /// Another worker owns the job, or it has ended or was purged. Stop at once and ack nothing.
    #[error("the job has another owner, has ended or was purged")]
    Superseded,
    /// The job was cancelled. The writer has moved past that event and may end the job.
    #[error("the job was cancelled")]
    CancelRequested,
    /// The event can never be stored.
    #[error(transparent)]
    Unwritable(#[from] Unwritable),
    /// The broker could not be reached for longer than [`APPEND_WAIT`].
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

/// Why an event can never be stored.
#[derive(Debug, thiserror::Error)]
pub enum Unwritable {
    /// It is too large, too deeply nested, or cannot be encoded.
    #[error(transparent)]
    Unfit(#[from] Unfit),
    /// The broker refuses it.
    #[error("the event cannot be stored: {0}")]
    Refused(String),
    /// Readers would not find it after that many undecodable messages.
    #[error(
        "the log ends with too many undecodable messages; purge its subject and submit the job again"
    )]
    Undecodable,
}

impl EventWriter {
    /// A writer that continues after `last`, the log's last event, for this attempt.
    pub fn new(log: Log, job: JobId, attempt: u32, last: Option<&Stored>) -> Self {
        let (seq, stream_seq) = last.map_or((Seq(0), 0), |last| (last.seq, last.stream_seq));
        Self {
            subject: log.append_to(&job),
            log,
            job,
            attempt,
            seq,
            stream_seq,
            fence: stream_seq,
            segments: None,
            retry_for: Some(APPEND_WAIT),
            timer: LazyTimer::default(),
        }
    }

    /// Makes the writer of a job's owner retry for as long as the broker is down, until the log
    /// shows another owner. Drop the future to stop.
    #[must_use]
    pub fn persistent(self) -> Self {
        Self {
            retry_for: None,
            ..self
        }
    }

    /// Makes the writer of a job's owner write segments. `last` is the log's last event.
    #[must_use]
    pub fn with_segments(self, last: Option<&Stored>) -> Self {
        let segments = Some(SegmentWriter::new(&self.job, last));
        Self { segments, ..self }
    }

    /// The job.
    pub fn job(&self) -> &JobId {
        &self.job
    }

    /// The sequence number of the last event.
    pub fn seq(&self) -> Seq {
        self.seq
    }

    /// Appends an event, or several when a text does not fit into one. Retries during an election.
    /// When it returns `Ok`, each event is stored exactly once.
    ///
    /// # Errors
    /// [`AppendError`].
    pub async fn append(&mut self, body: Body) -> Result<(), AppendError> {
        let mut next = Some(body);
        while let Some(body) = next {
            let seq = self.seq.successor();
            let is_end = body.is_end();
            let event = Event {
                body,
                job: self.job.clone(),
                seq,
                attempt: self.attempt,
                ts: now_ms(),
            };
            let (payload, rest) = event
                .encode_within(self.log.event_max())
                .map_err(Unwritable::from)?;
            self.append_payload(seq, payload, is_end).await?;
            next = rest;
        }
        Ok(())
    }

    /// Appends an event as it was stored before, with its own attempt and time. Its sequence number
    /// must be the next one.
    ///
    /// # Errors
    /// [`AppendError`].
    pub async fn append_stored(&mut self, payload: Bytes, is_end: bool) -> Result<(), AppendError> {
        self.append_payload(self.seq.successor(), payload, is_end)
            .await
    }

    async fn append_payload(
        &mut self,
        seq: Seq,
        payload: Bytes,
        is_end: bool,
    ) -> Result<(), AppendError> {
        let last = self.last();
        let digest = match &mut self.segments {
            Some(segments) => {
                segments
                    .digest_for(&self.log, &self.job, last, &payload, is_end)
                    .await
            }
            None => None,
        };
        let deadline = self.deadline();
        let mut backoff = Backoff::new(RETRY_FIRST, RETRY_MAX);
        let mut rejections = 0;
        loop {
            self.until_connected(deadline).await?;
            let published = self.log.append_next(
                &self.subject,
                self.fence,
                payload.clone(),
                digest,
                &mut self.timer,
            );
            let stored = match published.await {
                Published::Stored(stream_seq) => {
                    self.fence = stream_seq;
                    Ok(Some(stream_seq))
                }
                Published::InFlight | Published::Duplicate(_) => Ok(None),
                Published::WrongLast => {
                    self.log.note_fenced();
                    self.resolve(&payload).await
                }
                Published::Never(reason) => return Err(Unwritable::Refused(reason).into()),
                Published::Rejected(error) => {
                    debug!(job = %self.job, %error, "an append was rejected");
                    rejections += 1;
                    if rejections >= REJECTIONS_MAX {
                        return Err(error.into());
                    }
                    self.resolve(&payload).await
                }
                Published::Full | Published::SubjectTaken => {
                    debug!(job = %self.job, "an append was refused: the stream is full");
                    self.resolve(&payload).await
                }
                Published::Unknown(error) => {
                    debug!(job = %self.job, %error, "an append was not acked");
                    self.resolve(&payload).await
                }
            };
            let is_late = deadline.is_some_and(|deadline| Instant::now() >= deadline);
            match stored {
                Ok(Some(stream_seq)) => {
                    self.stored(seq, stream_seq, &payload, is_end);
                    return Ok(());
                }
                Ok(None) if is_late => {
                    return Err(Unavailable("the broker does not store the event".into()).into());
                }
                Err(AppendError::Unavailable(error)) if is_late => return Err(error.into()),
                Ok(None) | Err(AppendError::Unavailable(_)) => {
                    sleep(backoff.next_pause()).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn last(&self) -> EventPosition {
        EventPosition {
            seq: self.seq,
            stream_seq: self.stream_seq,
        }
    }

    /// An event was stored.
    fn stored(&mut self, seq: Seq, stream_seq: StreamSeq, payload: &Bytes, is_end: bool) {
        (self.seq, self.stream_seq) = (seq, stream_seq);
        let at = self.last();
        if let Some(segments) = &mut self.segments {
            segments.stored(&self.log, &self.job, at, payload, is_end);
        }
    }

    /// Checks whether another process has written. Retries during an election.
    ///
    /// # Errors
    /// [`AppendError`].
    pub async fn check(&mut self) -> Result<(), AppendError> {
        let deadline = self.deadline();
        let mut backoff = Backoff::new(RETRY_FIRST, RETRY_MAX);
        loop {
            self.until_connected(deadline).await?;
            match self.resolve(&Bytes::new()).await {
                Ok(_) => return Ok(()),
                Err(AppendError::Unavailable(error))
                    if deadline.is_some_and(|deadline| Instant::now() >= deadline) =>
                {
                    return Err(error.into());
                }
                Err(AppendError::Unavailable(_)) => {
                    sleep(backoff.next_pause()).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn deadline(&self) -> Option<Instant> {
        self.retry_for.map(|retry_for| Instant::now() + retry_for)
    }

    /// Waits for the connection: requests made while it is down would only be buffered.
    async fn until_connected(&self, deadline: Option<Instant>) -> Result<(), Unavailable> {
        if self.log.nats.is_work_connected() {
            return Ok(());
        }
        // Boxed, here and below: what is rarely needed would be in the future of each append.
        let connected = Box::pin(self.log.nats.until_work_connected());
        let Some(deadline) = deadline else {
            connected.await;
            return Ok(());
        };
        timeout_at(deadline, connected)
            .await
            .map_err(|_| Unavailable("the broker is down".into()))
    }

    /// Asks the leader for the result of an append: the stream sequence of the event, or `None`
    /// when no event was stored. The fence moves past undecodable messages.
    async fn resolve(&mut self, payload: &Bytes) -> Result<Option<StreamSeq>, AppendError> {
        let mut tip = Box::pin(self.log.tip(&self.job)).await?;
        if let Tip::At { last, .. } = &tip
            && last.as_ref().map_or(0, |last| last.stream_seq) < self.stream_seq
        {
            // Either events were removed or the stream was restored, or the server no longer leads
            // and lacks events of this writer. Its answer must not end the attempt.
            tip = Box::pin(self.log.proven_tip(&self.job)).await?;
        }
        let Tip::At { last, fence } = tip else {
            return Err(AppendError::Superseded);
        };
        // The log of a purged job is as empty as one whose events have all expired, but the queue
        // holds a job that still runs.
        let is_emptied = last.is_none() && self.stream_seq > 0;
        if is_emptied && Box::pin(self.log.queued_kind(&self.job)).await?.is_none() {
            return Err(AppendError::Superseded);
        }
        let stored = match last {
            // No other process has written; events of this writer have expired.
            None => None,
            Some(last) if last.stream_seq == self.stream_seq => None,
            Some(last) if last.payload() == payload => Some(last.stream_seq),
            Some(last)
                if last.event_type == EventType::CancelRequested
                    && last.attempt == self.attempt =>
            {
                self.stored(last.seq, last.stream_seq, last.payload(), false);
                self.fence = fence;
                return Err(AppendError::CancelRequested);
            }
            Some(_) => return Err(AppendError::Superseded),
        };
        self.fence = fence;
        Ok(stored)
    }
}

/// Milliseconds since the Unix epoch.
fn now_ms() -> u64 {
    let since = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or(Duration::ZERO);
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
