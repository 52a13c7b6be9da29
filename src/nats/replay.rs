//! One replay of a job's log: takes segments as long as there are any, then chooses between pages and
//! the shard's scan, and yields the events of a span in order.

use std::collections::VecDeque;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::time::Instant;
use tokio_util::sync::ReusableBoxFuture;
use tracing::debug;

use super::read::Reader;
use super::replay_counts::ReplaySource;
use super::scan::{ScanBatch, ScanRequest};
use crate::config::SEGMENTS_AT_ONCE;
use crate::runtime::{Mailbox, NoMail};
use crate::source::{Chain, MessageClass, Replay, Replica, Span, Unavailable};
use crate::wire::{DecodeError, JobId, Stored, StreamSeq};

/// One replay of one job's log.
#[derive(Debug)]
pub struct LogReplay {
    reader: Reader,
    job: JobId,
    span: Span,
    phase: ReplayPhase,
    /// Decides which messages are events.
    chain: Chain,
    /// Messages that were read and not classified yet.
    read: VecDeque<Arc<Stored>>,
    /// Whether these are known to be events.
    is_proven: bool,
    /// Whether this replay counts among those of the shard.
    is_counted: bool,
    /// A lookup on which the class of the first of them depends. Kept here, as
    /// [`ReplayPhase::Reading`] is.
    lookup: Option<ReusableBoxFuture<'static, Result<bool, Unavailable>>>,
    /// What it reads now; `None` before it starts.
    reading: Option<SourceReading>,
}

/// What a replay reads from one source.
#[derive(Debug)]
struct SourceReading {
    source: ReplaySource,
    since: Instant,
    /// How many events were returned.
    events: u64,
}

#[derive(Debug)]
enum ReplayPhase {
    New,
    /// Consecutive segments, from the next event of the span on, this many at once.
    Segments(u64),
    /// The log itself, from the next event of the span on.
    Log,
    /// A read is in flight. It is kept here, so that a caller that drops [`Replay::next`] and calls
    /// it again waits for the same answer.
    Reading(ReusableBoxFuture<'static, Result<ReplayPart, Unavailable>>),
    Pages {
        stream_seq: StreamSeq,
    },
    Scan(Mailbox<ScanBatch>),
    Over,
}

/// The result of one read.
struct ReplayPart {
    /// The messages that can be decoded.
    events: Vec<Arc<Stored>>,
    /// How the replay continues.
    next: ReplayPhase,
    /// The chain before the first of them, when the replay starts here.
    chain: Option<Chain>,
    /// Whether the messages are known to be events.
    is_proven: bool,
}

impl Reader {
    /// Reads this many segments, as long as there are any.
    async fn segments_part(
        &self,
        job: &JobId,
        span: Span,
        at_once: u64,
    ) -> Result<ReplayPart, Unavailable> {
        let until = span.until.unwrap_or(span.from);
        let read = self.segments(job, span.from, until, at_once).await?;
        let next = read.next.map_or(ReplayPhase::Log, ReplayPhase::Segments);
        Ok(ReplayPart {
            events: read.events,
            next,
            chain: None,
            is_proven: true,
        })
    }

    /// Starts a replay: by pages, or by the shard's scan when `many` replays need the shard.
    async fn start_replay(
        &self,
        job: &JobId,
        span: Span,
        many: bool,
    ) -> Result<ReplayPart, Unavailable> {
        let chain = self.start_of(job, span).await?;
        let starts_at = |chain, next| ReplayPart {
            events: Vec::new(),
            next,
            chain: Some(chain),
            is_proven: false,
        };
        if span.replica == Replica::Leader {
            // The first event comes from the leader itself: a replica that is behind would return
            // nothing, as if the leader had nothing.
            let Some(next) = self.leader_next(job, chain, span.from).await? else {
                return Ok(starts_at(chain, ReplayPhase::Over));
            };
            let stream_seq = next.stream_seq + 1;
            // It was classified after everything before it, which this replay has not read.
            return Ok(ReplayPart {
                events: vec![Arc::new(next)],
                is_proven: true,
                ..starts_at(chain, ReplayPhase::Pages { stream_seq })
            });
        }
        let mut stream_seq = chain.read() + 1;
        if !many {
            return Ok(starts_at(chain, ReplayPhase::Pages { stream_seq }));
        }
        if stream_seq == 1 {
            // The scan need not start before the log's first message.
            let Some(first) = self.log.next_of_any(job, 1).await? else {
                return Ok(starts_at(chain, ReplayPhase::Over));
            };
            stream_seq = first.stream_seq;
        }
        debug!(%job, "waits for the shard's scan");
        let request = ScanRequest {
            job: job.clone(),
            stream_seq,
            until: span.until,
        };
        let batches = self.shard(job).scan.join(request);
        Ok(starts_at(chain, ReplayPhase::Scan(batches)))
    }
}

impl Replay for LogReplay {
    async fn next(&mut self) -> Option<Result<Vec<Arc<Stored>>, Unavailable>> {
        loop {
            let mut events = Vec::new();
            if let Some(lookup) = &mut self.lookup {
                let is_next = lookup.get_pin().await;
                self.lookup = None;
                match is_next {
                    Ok(is_next) => events.extend(self.apply(is_next)),
                    Err(error) => return Some(Err(self.fail(error))),
                }
            }
            self.classify(&mut events);
            if !events.is_empty() {
                return Some(Ok(events));
            }
            if self.lookup.is_some() {
                continue;
            }
            match &mut self.phase {
                ReplayPhase::New if self.reader.wants_segments(&self.job, self.span) => {
                    self.read_from(ReplaySource::Segments);
                    self.phase = ReplayPhase::Segments(SEGMENTS_AT_ONCE);
                }
                ReplayPhase::New | ReplayPhase::Log => self.start(),
                ReplayPhase::Segments(at_once) => {
                    let at_once = *at_once;
                    let span = self.span;
                    self.read(move |reader, job| async move {
                        reader.segments_part(&job, span, at_once).await
                    });
                }
                ReplayPhase::Pages { stream_seq } => {
                    let stream_seq = *stream_seq;
                    self.read_page(stream_seq);
                }
                ReplayPhase::Reading(part) => match part.get_pin().await {
                    Ok(ReplayPart {
                        events,
                        next,
                        chain,
                        is_proven,
                    }) => {
                        self.phase = next;
                        self.is_proven = is_proven;
                        self.chain = chain.unwrap_or(self.chain);
                        self.read = events.into();
                    }
                    Err(error) => return Some(Err(self.fail(error))),
                },
                ReplayPhase::Scan(batches) => match batches.take().await {
                    Ok(batch) => self.read = batch.events.into(),
                    // There was no room for the first event. Pages wait for room. A replay that
                    // ended here would be repeated from the leader, as if a replica lagged.
                    Err(NoMail::Expired) if self.has_no_events() => {
                        self.read_from(ReplaySource::Pages);
                        let stream_seq = self.chain.read() + 1;
                        self.phase = ReplayPhase::Pages { stream_seq };
                    }
                    Err(NoMail::Closed | NoMail::Expired) => self.phase = ReplayPhase::Over,
                },
                ReplayPhase::Over => return None,
            }
        }
    }
}

impl LogReplay {
    pub(super) fn new(reader: Reader, job: JobId, span: Span) -> Self {
        Self {
            reader,
            job,
            span,
            phase: ReplayPhase::New,
            chain: Chain::new(span.from, 0),
            read: VecDeque::new(),
            is_proven: false,
            is_counted: false,
            lookup: None,
            reading: None,
        }
    }

    /// Reads the page of the log at `stream_seq`.
    fn read_page(&mut self, stream_seq: StreamSeq) {
        self.read(move |reader, job| async move {
            let page = reader.page(&job, stream_seq).await?;
            let next = page.last.filter(|_| page.more);
            let next = next.map_or(ReplayPhase::Over, |last| ReplayPhase::Pages {
                stream_seq: last + 1,
            });
            Ok(ReplayPart {
                events: page.events,
                next,
                chain: None,
                is_proven: false,
            })
        });
    }

    /// Starts to read the log itself. The replay counts among those of the shard until it is
    /// dropped.
    fn start(&mut self) {
        self.is_counted = true;
        let after_segments = matches!(self.phase, ReplayPhase::Log);
        let shard = self.reader.shard(&self.job);
        let others = shard.replays.fetch_add(1, Ordering::Relaxed);
        let many = shard.scan.is_worthwhile(others, after_segments);
        let span = self.span;
        let source = if many && span.replica != Replica::Leader {
            ReplaySource::Scan
        } else {
            ReplaySource::Pages
        };
        self.read_from(source);
        self.read(move |reader, job| async move { reader.start_replay(&job, span, many).await });
    }

    /// Counts what was read so far, and reads from this source from now on.
    fn read_from(&mut self, source: ReplaySource) {
        self.count();
        self.reading = Some(SourceReading {
            source,
            since: Instant::now(),
            events: 0,
        });
    }

    fn count(&mut self) {
        if let Some(reading) = self.reading.take()
            // Most jobs have no segments.
            && (reading.events > 0 || reading.source != ReplaySource::Segments)
        {
            let counts = &self.reader.replay_counts;
            counts.count(reading.source, reading.since.elapsed(), reading.events);
        }
    }

    /// Whether nothing of the current source was returned.
    fn has_no_events(&self) -> bool {
        let reading = self.reading.as_ref();
        reading.is_none_or(|reading| reading.events == 0)
    }

    fn read<A>(&mut self, read: impl FnOnce(Reader, JobId) -> A)
    where
        A: Future<Output = Result<ReplayPart, Unavailable>> + Send + 'static,
    {
        let part = read(self.reader.clone(), self.job.clone());
        self.phase = ReplayPhase::Reading(ReusableBoxFuture::new(part));
    }

    fn fail(&mut self, error: Unavailable) -> Unavailable {
        self.end();
        error
    }

    fn end(&mut self) {
        self.phase = ReplayPhase::Over;
        self.read = VecDeque::new();
    }

    /// Classifies the messages that were read, up to one that needs a lookup.
    fn classify(&mut self, events: &mut Vec<Arc<Stored>>) {
        while let Some(event) = self.read.front() {
            if self.is_proven {
                events.extend(self.apply(true));
                continue;
            }
            let is_next = match self.chain.classify(event) {
                MessageClass::Next => true,
                MessageClass::Undecodable => false,
                class @ (MessageClass::IfExpired(_) | MessageClass::IfStored(_)) => {
                    let log = self.reader.log.clone();
                    let job = self.job.clone();
                    self.lookup = Some(ReusableBoxFuture::new(async move {
                        log.decide(&job, class).await
                    }));
                    return;
                }
            };
            events.extend(self.apply(is_next));
        }
    }

    /// Removes the first message that was read, and returns it if it is an event of the span. The
    /// replay ends after the span.
    fn apply(&mut self, is_next: bool) -> Option<Arc<Stored>> {
        let event = self.read.pop_front()?;
        if !is_next {
            let log = &self.reader.log;
            log.note_undecodable(&self.job, event.stream_seq, &DecodeError::OutOfOrder);
            self.chain.skip(event.stream_seq);
            return None;
        }
        self.chain.accept(&event);
        let is_wanted = event.seq >= self.span.from;
        if is_wanted {
            self.span.from = event.seq.successor();
            self.span.stream_seq = Some(event.stream_seq + 1);
        }
        if self.span.until.is_some_and(|until| event.seq >= until) {
            self.end();
        }
        if let Some(reading) = &mut self.reading {
            reading.events += u64::from(is_wanted);
        }
        Some(event).filter(|_| is_wanted)
    }
}

impl Drop for LogReplay {
    fn drop(&mut self) {
        self.count();
        if self.is_counted {
            let replays = &self.reader.shard(&self.job).replays;
            replays.fetch_sub(1, Ordering::Relaxed);
        }
    }
}
