//! Reads the log for many readers at once, each the cheapest way: batched direct gets while they are few, one shared scan
//! of the shard when they are many. What a reader makes of it is the stitcher's.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::StreamExt as _;
use serde_json::{Value, json};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_util::sync::ReusableBoxFuture;
use tracing::{debug, info};

use super::batch::{Batch, batch, number};
use super::follow::LiveTail;
use super::lease::Of;
use super::log::{self, Log};
use super::names;
use super::scan::{Scan, Want};
use super::turns::Turns;
use crate::config::{LISTINGS, PAGE, PAGE_BYTES, READS_PER_SHARD, SCAN_FROM};
use crate::runtime::Tasks;
use crate::source::{At, EventSource, Replay, Replica, Span, Unavailable};
use crate::wire::{JobId, Pos, Seq, Stored};

/// The reading side of the log; one per edge thread.
#[derive(Clone, Debug)]
pub struct Reader {
    pub(super) log: Log,
    shards: Arc<[Shard]>,
    /// The right to make a listing.
    pub(super) listings: Arc<Semaphore>,
}

/// What the readers of one shard share.
#[derive(Debug)]
struct Shard {
    /// How many replays wait or read.
    waiting: AtomicUsize,
    /// The right to have a direct get under way.
    turns: Turns,
    scan: Scan,
    elections: watch::Receiver<u64>,
}

impl Reader {
    /// A reader of all shards; `tasks` owns its reads and scans.
    ///
    /// # Errors
    /// [`Unavailable`].
    pub async fn open(log: Log, tasks: &Tasks) -> Result<Self, Unavailable> {
        let mut shards = Vec::new();
        for shard in 0..log.shards {
            let stream = log.nats.names.chunks_stream(shard);
            shards.push(Shard {
                waiting: AtomicUsize::new(0),
                turns: Turns::new(READS_PER_SHARD, tasks.clone()),
                elections: elections(&log, &stream, tasks).await?,
                scan: Scan::new(log.clone(), stream, tasks.clone()),
            });
        }
        Ok(Self { log, shards: shards.into(), listings: Arc::new(Semaphore::new(LISTINGS)) })
    }

    /// The log itself.
    pub fn log(&self) -> &Log {
        &self.log
    }

    fn shard(&self, job: &JobId) -> &Shard {
        &self.shards[job.shard(self.log.shards) as usize]
    }

    /// A batched direct get on a shard, at its turn.
    pub(super) async fn batch(&self, shard: u32, ask: Value) -> Result<Batch, Unavailable> {
        let nats = Arc::clone(&self.log.nats);
        let read = async move { batch(&nats.replay, &nats.names.chunks_stream(shard), &ask).await };
        self.shards[shard as usize].turns.take(read).await
    }

    /// Chooses how to read: by pages, or, when many wait on the shard, by its scan. Gives what it has learned of the log
    /// already.
    async fn begin(&self, job: &JobId, span: Span, many: bool) -> Result<Answer, Unavailable> {
        if span.replica == Replica::Leader {
            // A replica that is behind gives nothing, which must not look as if the leader had nothing: what the leader
            // has is given itself, and pages go on from there as far as they can.
            let shard = Of::Shard(job.shard(self.log.shards));
            let next = self.log.proven(shard, || self.leader_next(job, span)).await?;
            let way = next.as_ref().map_or(Way::Over, |event| Way::Pages { pos: event.pos + 1 });
            return Ok((next.into_iter().collect(), way));
        }
        let pos = match span.pos {
            Some(pos) => Some(pos),
            None if many => self.log.begin_of_any(job).await?,
            None => Some(1),
        };
        let way = match pos {
            None => Way::Over,
            Some(pos) if many => {
                debug!(%job, "waits for the shard's scan");
                let want = Want { job: job.clone(), pos, until: span.until };
                Way::Scan(self.shard(job).scan.join(want))
            }
            Some(pos) => Way::Pages { pos },
        };
        Ok((Vec::new(), way))
    }

    /// The first event of a span, as the leader knows it.
    async fn leader_next(&self, job: &JobId, span: Span) -> Result<Option<Arc<Stored>>, Unavailable> {
        let mut pos = span.pos.unwrap_or(1);
        loop {
            match self.log.next(job, pos).await? {
                Some(event) if event.seq >= span.from => return Ok(Some(Arc::new(event))),
                Some(event) => pos = event.pos + 1,
                None => return Ok(None),
            }
        }
    }

    /// One page of a job's events from `pos` on, as far as this replica sees.
    async fn page(&self, job: &JobId, pos: Pos) -> Result<Answer, Unavailable> {
        let ask = json!({"seq": pos, "next_by_subj": self.log.subject(job), "batch": PAGE, "max_bytes": PAGE_BYTES});
        let page = self.batch(job.shard(self.log.shards), ask).await?;
        let events =
            page.messages.iter().filter_map(|message| log::stored(job, message)).map(Arc::new).collect();
        // By the last message, not the last event: a page may hold none.
        let last = page.messages.last().filter(|_| page.more);
        let next = last.and_then(|last| number(last, names::SEQUENCE)).map(|last| last + 1);
        let way = next.map_or(Way::Over, |pos| Way::Pages { pos });
        Ok((events, way))
    }
}

/// Counts the elections of a stream's leader, in which live copies may be lost.
async fn elections(log: &Log, stream: &str, tasks: &Tasks) -> Result<watch::Receiver<u64>, Unavailable> {
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

    async fn follow(&self, job: &JobId) -> Result<(LiveTail, Option<Arc<Stored>>), Unavailable> {
        self.log.follow_live(job, self.shard(job).elections.clone()).await
    }

    async fn last(&self, job: &JobId, from: Replica) -> Result<Option<Arc<Stored>>, Unavailable> {
        let last = match from {
            Replica::Any => self.log.last_of_any(&self.log.nats.replay, job).await?,
            Replica::Leader => self.log.last(job).await?,
        };
        Ok(last.map(Arc::new))
    }

    async fn at(&self, job: &JobId, pos: Pos, from: Replica) -> Result<At, Unavailable> {
        match from {
            Replica::Any => self.log.at_any(job, pos).await,
            Replica::Leader => self.log.at(job, pos).await,
        }
    }

    fn replay(&self, job: &JobId, span: Span) -> LogReplay {
        LogReplay { reader: self.clone(), job: job.clone(), span, way: Way::Unbegun }
    }
}

/// One reading of one job's log.
#[derive(Debug)]
pub struct LogReplay {
    reader: Reader,
    job: JobId,
    span: Span,
    way: Way,
}

#[derive(Debug)]
enum Way {
    Unbegun,
    /// The broker is asked. The question is kept here, so that whoever drops a wait for the answer waits for the same one
    /// the next time.
    Asked(ReusableBoxFuture<'static, Result<Answer, Unavailable>>),
    Pages {
        pos: Pos,
    },
    Scan(mpsc::Receiver<Vec<Arc<Stored>>>),
    Over,
}

/// Events, and the way on from them.
type Answer = (Vec<Arc<Stored>>, Way);

impl Replay for LogReplay {
    async fn next(&mut self) -> Option<Result<Vec<Arc<Stored>>, Unavailable>> {
        loop {
            let items = match &mut self.way {
                Way::Unbegun => {
                    self.begin();
                    continue;
                }
                Way::Pages { pos } => {
                    let pos = *pos;
                    self.ask(move |reader, job| async move { reader.page(&job, pos).await });
                    continue;
                }
                Way::Asked(answer) => match answer.get_pin().await {
                    Ok((items, way)) => {
                        self.way = way;
                        items
                    }
                    Err(error) => {
                        self.way = Way::Over;
                        return Some(Err(error));
                    }
                },
                Way::Scan(items) => match items.recv().await {
                    Some(items) => items,
                    None => {
                        self.way = Way::Over;
                        return None;
                    }
                },
                Way::Over => return None,
            };
            let items = self.wanted(items);
            if !items.is_empty() {
                return Some(Ok(items));
            }
        }
    }
}

impl LogReplay {
    /// Counts among those that wait on the shard, from now until it is dropped.
    fn begin(&mut self) {
        let before = self.reader.shard(&self.job).waiting.fetch_add(1, Ordering::Relaxed);
        let (span, many) = (self.span, before >= SCAN_FROM);
        self.ask(move |reader, job| async move { reader.begin(&job, span, many).await });
    }

    fn ask<A>(&mut self, question: impl FnOnce(Reader, JobId) -> A)
    where
        A: Future<Output = Result<Answer, Unavailable>> + Send + 'static,
    {
        self.way = Way::Asked(ReusableBoxFuture::new(question(self.reader.clone(), self.job.clone())));
    }

    /// Leaves out what lies before the span, and ends behind it.
    fn wanted(&mut self, mut items: Vec<Arc<Stored>>) -> Vec<Arc<Stored>> {
        let (from, until) = (self.span.from, self.span.until.unwrap_or(Seq(u64::MAX)));
        items.retain(|item| item.seq >= from);
        if items.last().is_some_and(|item| item.seq >= until) {
            self.way = Way::Over;
        }
        items
    }
}

impl Drop for LogReplay {
    fn drop(&mut self) {
        if !matches!(self.way, Way::Unbegun) {
            self.reader.shard(&self.job).waiting.fetch_sub(1, Ordering::Relaxed);
        }
    }
}
