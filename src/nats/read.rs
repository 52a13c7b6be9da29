//! Reads the log for many readers at once, each the cheapest way: batched direct gets while they are few, one shared scan
//! of the shard when they are many. What a reader makes of it is the stitcher's.

use std::collections::VecDeque;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::StreamExt as _;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::ReusableBoxFuture;
use tracing::{debug, info};

use super::batch::{MessageBatch, batch};
use super::follow::LiveTail;
use super::listing_slots::ListingSlots;
use super::log::Log;
use super::message::{GetMessage, number};
use super::names;
use super::queue::Queue;
use super::quorum::StreamId;
use super::read_slots::ReadSlots;
use super::scan::{ScanBatch, ScanRequest, SharedScan};
use super::submit_signals::LiveSubmitSignals;
use crate::budget::Budget;
use crate::config::{READS_PER_SHARD, SCAN_FROM, SCAN_ROOM};
use crate::runtime::Tasks;
use crate::source::{At, Chain, EventSource, MessageClass, Replay, Replica, Span, Unavailable};
use crate::wire::{JobId, Stored, StreamSeq, Unreadable};

/// The reading side of the log; one per edge thread.
#[derive(Clone, Debug)]
pub struct Reader {
    pub(super) log: Log,
    queue: Queue,
    shards: Arc<[Shard]>,
    pub(super) listing_slots: Arc<ListingSlots>,
}

/// What the readers of one shard share.
#[derive(Debug)]
struct Shard {
    /// How many replays wait or read.
    waiting: AtomicUsize,
    /// Permission to have a direct get under way.
    slots: ReadSlots,
    scan: SharedScan,
    elections: watch::Receiver<u64>,
}

impl Reader {
    /// A reader of all shards; `tasks` owns its reads and scans.
    ///
    /// # Errors
    /// [`Unavailable`].
    pub async fn open(log: Log, tasks: &Tasks) -> Result<Self, Unavailable> {
        let mut shards = Vec::new();
        let room = Budget::new(SCAN_ROOM);
        for shard in 0..log.shards {
            let stream = log.nats.names.chunks_stream(shard);
            shards.push(Shard {
                waiting: AtomicUsize::new(0),
                slots: ReadSlots::new(READS_PER_SHARD, tasks.clone()),
                elections: elections(&log, &stream, tasks).await?,
                scan: SharedScan::new(log.clone(), stream, tasks.clone(), room.clone()),
            });
        }
        Ok(Self {
            queue: Queue::new(log.clone()),
            log,
            shards: shards.into(),
            listing_slots: Arc::new(ListingSlots::new()),
        })
    }

    /// The log itself.
    pub fn log(&self) -> &Log {
        &self.log
    }

    fn shard(&self, job: &JobId) -> &Shard {
        &self.shards[job.shard(self.log.shards) as usize]
    }

    /// A batched direct get on a shard, once it has a slot.
    pub(super) async fn batch(
        &self,
        shard: u32,
        get: &GetMessage<'_>,
    ) -> Result<MessageBatch, Unavailable> {
        let nats = Arc::clone(&self.log.nats);
        let body = get.body();
        let read = async move { batch(&nats.replay, &nats.names.chunks_stream(shard), body).await };
        self.shards[shard as usize].slots.run(read).await
    }

    /// Chooses how to read: by pages, or, when many wait on the shard, by its scan. Gives what it has learned of the log
    /// already.
    async fn begin(&self, job: &JobId, span: Span, many: bool) -> Result<Answer, Unavailable> {
        let chain = self.begin_of(job, span).await?;
        if span.replica == Replica::Leader {
            // A replica that is behind gives nothing, which must not look as if the leader had nothing: what the leader
            // has is given itself, and pages go on from there as far as they can.
            let shard = StreamId::Shard(job.shard(self.log.shards));
            let next = self
                .log
                .proven(shard, || self.leader_next(job, chain, span.from))
                .await?;
            let Some(next) = next else {
                return Ok(Answer {
                    events: Vec::new(),
                    way: Way::Over,
                    chain: Some(chain),
                });
            };
            let chain = Some(Chain::new(next.seq, next.stream_seq - 1));
            let way = Way::Pages {
                stream_seq: next.stream_seq + 1,
            };
            return Ok(Answer {
                events: vec![Arc::new(next)],
                way,
                chain,
            });
        }
        let mut stream_seq = chain.read() + 1;
        if many && stream_seq == 1 {
            // What lies before the log's first message is nothing to scan.
            let Some(first) = self.log.next_of_any(job, 1).await? else {
                return Ok(Answer {
                    events: Vec::new(),
                    way: Way::Over,
                    chain: Some(chain),
                });
            };
            stream_seq = first.stream_seq;
        }
        let way = if many {
            debug!(%job, "waits for the shard's scan");
            let request = ScanRequest {
                job: job.clone(),
                stream_seq,
                until: span.until,
            };
            Way::Scan(self.shard(job).scan.join(request))
        } else {
            Way::Pages { stream_seq }
        };
        Ok(Answer {
            events: Vec::new(),
            way,
            chain: Some(chain),
        })
    }

    /// One page of a job's log from `stream_seq` on, as far as this replica sees.
    pub(super) async fn page(
        &self,
        job: &JobId,
        stream_seq: StreamSeq,
    ) -> Result<Page, Unavailable> {
        let subject = self.log.subject(job);
        let get = GetMessage::page_of(&subject, stream_seq);
        let page = self.batch(job.shard(self.log.shards), &get).await?;
        let events = page
            .messages
            .iter()
            .filter_map(|message| self.log.stored(job, message));
        // By the last message, not the last event: a page may hold none.
        let last = page
            .messages
            .last()
            .and_then(|last| number(last, names::SEQUENCE));
        Ok(Page {
            events: events.map(Arc::new).collect(),
            last,
            more: page.more,
        })
    }
}

/// A page of a job's log.
pub(super) struct Page {
    /// What has the form of an event.
    pub(super) events: Vec<Arc<Stored>>,
    /// The place of its last message.
    pub(super) last: Option<StreamSeq>,
    /// Whether the replica has more.
    pub(super) more: bool,
}

/// Counts the elections of a stream's leader, in which live copies may be lost.
async fn elections(
    log: &Log,
    stream: &str,
    tasks: &Tasks,
) -> Result<watch::Receiver<u64>, Unavailable> {
    let subject = names::leader_elected(stream);
    let subscribed = log.nats.live.subscribe(subject).await;
    let mut news = subscribed.map_err(|error| Unavailable(error.to_string()))?;
    let (count, elections) = watch::channel(0);
    let stream = stream.to_owned();
    tasks.spawn_until_stop(async move {
        while news.next().await.is_some() {
            info!(%stream, "the stream has a new leader");
            count.send_modify(|count: &mut u64| *count += 1);
        }
        // Kept until the end, so that nobody mistakes the silence for the end of the connection.
        count.closed().await;
    });
    Ok(elections)
}

impl EventSource for Reader {
    type Tail = LiveTail;
    type Replay = LogReplay;
    type SubmitSignals = LiveSubmitSignals;

    async fn follow(&self, job: &JobId) -> Result<(LiveTail, Option<Arc<Stored>>), Unavailable> {
        self.log
            .follow_live(job, self.shard(job).elections.clone())
            .await
    }

    async fn last(&self, job: &JobId, from: Replica) -> Result<Option<Arc<Stored>>, Unavailable> {
        let last = match from {
            Replica::Any => self.log.last_of_any(&self.log.nats.replay, job).await?,
            Replica::Leader => self.log.last(job).await?,
        };
        Ok(last.map(Arc::new))
    }

    async fn at(
        &self,
        job: &JobId,
        stream_seq: StreamSeq,
        from: Replica,
    ) -> Result<At, Unavailable> {
        match from {
            Replica::Any => self.log.at_any(job, stream_seq).await,
            Replica::Leader => self.log.at_leader(job, stream_seq).await,
        }
    }

    fn replay(&self, job: &JobId, span: Span) -> LogReplay {
        LogReplay {
            reader: self.clone(),
            job: job.clone(),
            span,
            way: Way::Unbegun,
            chain: Chain::new(span.from, 0),
            read: VecDeque::new(),
            question: None,
        }
    }

    async fn submit_signals(&self) -> Result<LiveSubmitSignals, Unavailable> {
        self.queue.submit_signals().await
    }

    async fn is_queued(&self, job: &JobId) -> Result<bool, Unavailable> {
        self.queue.is_queued(job).await
    }

    fn undecodable(&self, job: &JobId, stream_seq: StreamSeq, why: &Unreadable) {
        self.log.note(job, stream_seq, why);
    }
}

/// One reading of one job's log.
#[derive(Debug)]
pub struct LogReplay {
    reader: Reader,
    job: JobId,
    span: Span,
    way: Way,
    /// Which of what was read are events.
    chain: Chain,
    /// Messages that were read and not classified yet.
    read: VecDeque<Arc<Stored>>,
    /// A lookup on which the class of the first of them depends. Kept here as [`Way::Asked`] is.
    question: Option<ReusableBoxFuture<'static, Result<bool, Unavailable>>>,
}

#[derive(Debug)]
enum Way {
    Unbegun,
    /// The broker is asked. The question is kept here, so that whoever drops a wait for the answer waits for the same one
    /// the next time.
    Asked(ReusableBoxFuture<'static, Result<Answer, Unavailable>>),
    Pages {
        stream_seq: StreamSeq,
    },
    Scan(mpsc::Receiver<ScanBatch>),
    Over,
}

/// What has the form of an event, the way on from there, and, when it begins here, what comes before.
struct Answer {
    events: Vec<Arc<Stored>>,
    way: Way,
    chain: Option<Chain>,
}

impl Replay for LogReplay {
    async fn next(&mut self) -> Option<Result<Vec<Arc<Stored>>, Unavailable>> {
        loop {
            let mut events = Vec::new();
            if let Some(question) = &mut self.question {
                let is_next = question.get_pin().await;
                self.question = None;
                match is_next {
                    Ok(is_next) => events.extend(self.classified(is_next)),
                    Err(error) => return Some(Err(self.broken(error))),
                }
            }
            self.classify(&mut events);
            if !events.is_empty() {
                return Some(Ok(events));
            }
            if self.question.is_some() {
                continue;
            }
            match &mut self.way {
                Way::Unbegun => self.begin(),
                Way::Pages { stream_seq } => {
                    let stream_seq = *stream_seq;
                    self.ask(move |reader, job| async move {
                        let page = reader.page(&job, stream_seq).await?;
                        let next = page.last.filter(|_| page.more);
                        let way = next.map_or(Way::Over, |last| Way::Pages {
                            stream_seq: last + 1,
                        });
                        Ok(Answer {
                            events: page.events,
                            way,
                            chain: None,
                        })
                    });
                }
                Way::Asked(answer) => match answer.get_pin().await {
                    Ok(Answer { events, way, chain }) => {
                        self.way = way;
                        self.chain = chain.unwrap_or(self.chain);
                        self.read = events.into();
                    }
                    Err(error) => return Some(Err(self.broken(error))),
                },
                Way::Scan(items) => match items.recv().await {
                    Some(batch) => self.read = batch.events.into(),
                    None => self.way = Way::Over,
                },
                Way::Over => return None,
            }
        }
    }
}

impl LogReplay {
    /// Counts among those that wait on the shard, from now until it is dropped.
    fn begin(&mut self) {
        let before = self
            .reader
            .shard(&self.job)
            .waiting
            .fetch_add(1, Ordering::Relaxed);
        let (span, many) = (self.span, before >= SCAN_FROM);
        self.ask(move |reader, job| async move { reader.begin(&job, span, many).await });
    }

    fn ask<A>(&mut self, question: impl FnOnce(Reader, JobId) -> A)
    where
        A: Future<Output = Result<Answer, Unavailable>> + Send + 'static,
    {
        self.way = Way::Asked(ReusableBoxFuture::new(question(
            self.reader.clone(),
            self.job.clone(),
        )));
    }

    fn broken(&mut self, error: Unavailable) -> Unavailable {
        self.way = Way::Over;
        self.read = VecDeque::new();
        error
    }

    /// Classifies the messages that were read, up to one that needs a lookup; ends after the span.
    fn classify(&mut self, events: &mut Vec<Arc<Stored>>) {
        while let Some(event) = self.read.front() {
            let is_next = match self.chain.classify(event) {
                MessageClass::Next => true,
                MessageClass::Undecodable => false,
                class @ (MessageClass::IfExpired(_) | MessageClass::IfStored(_)) => {
                    let (log, job) = (self.reader.log.clone(), self.job.clone());
                    self.question = Some(ReusableBoxFuture::new(async move {
                        log.decide(&job, class).await
                    }));
                    return;
                }
            };
            events.extend(self.classified(is_next));
        }
    }

    /// Removes the first message that was read. Returns it if it is an event within the span.
    fn classified(&mut self, is_next: bool) -> Option<Arc<Stored>> {
        let event = self.read.pop_front()?;
        if !is_next {
            self.reader
                .log
                .note(&self.job, event.stream_seq, &Unreadable::OutOfOrder);
            self.chain.skip(event.stream_seq);
            return None;
        }
        self.chain.accept(&event);
        if self.span.until.is_some_and(|until| event.seq >= until) {
            self.way = Way::Over;
            self.read = VecDeque::new();
        }
        Some(event).filter(|event| event.seq >= self.span.from)
    }
}

impl Drop for LogReplay {
    fn drop(&mut self) {
        if !matches!(self.way, Way::Unbegun) {
            self.reader
                .shard(&self.job)
                .waiting
                .fetch_sub(1, Ordering::Relaxed);
        }
    }
}
