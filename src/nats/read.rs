//! Reads the log for many readers at once, each the cheapest way: batched direct gets while they are few, one shared scan
//! of the shard when they are many. What a reader makes of it is the stitcher's.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::StreamExt as _;
use serde_json::{Value, json};
use tokio::sync::{Semaphore, mpsc, watch};
use tracing::{debug, info};

use super::batch::{Batch, batch};
use super::follow::LiveTail;
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

    /// One page of a job's events from `pos` on, and whether it is the last, as this replica sees it.
    async fn page(&self, job: &JobId, pos: Pos) -> Result<(Vec<Stored>, bool), Unavailable> {
        let ask = json!({"seq": pos, "next_by_subj": self.log.subject(job), "batch": PAGE, "max_bytes": PAGE_BYTES});
        let page = self.batch(job.shard(self.log.shards), ask).await?;
        Ok((page.messages.iter().filter_map(|message| log::stored(job, message)).collect(), !page.more))
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

    async fn at(&self, job: &JobId, pos: Pos) -> Result<At, Unavailable> {
        self.log.at(job, pos).await
    }

    fn replay(&self, job: &JobId, span: Span) -> LogReplay {
        LogReplay { reader: self.clone(), job: job.clone(), span, way: Way::Unbegun, counted: false }
    }
}

/// One reading of one job's log.
#[derive(Debug)]
pub struct LogReplay {
    reader: Reader,
    job: JobId,
    span: Span,
    way: Way,
    /// Whether it is counted among those that wait on its shard.
    counted: bool,
}

#[derive(Debug)]
enum Way {
    Unbegun,
    Pages { pos: Pos },
    Scan(mpsc::Receiver<Vec<Arc<Stored>>>),
    Over,
}

impl Replay for LogReplay {
    async fn next(&mut self) -> Option<Result<Vec<Arc<Stored>>, Unavailable>> {
        loop {
            let step = match &mut self.way {
                Way::Unbegun => self.begin().await,
                Way::Pages { pos } => {
                    let pos = *pos;
                    self.next_page(pos).await
                }
                Way::Scan(items) => match items.recv().await {
                    Some(items) => Ok(items),
                    None => {
                        self.way = Way::Over;
                        Ok(Vec::new())
                    }
                },
                Way::Over => return None,
            };
            match step {
                Ok(items) => {
                    let items = self.wanted(items);
                    if !items.is_empty() {
                        return Some(Ok(items));
                    }
                }
                Err(error) => {
                    self.way = Way::Over;
                    return Some(Err(error));
                }
            }
        }
    }
}

impl LogReplay {
    /// Chooses the way: pages while few wait on the shard, else its scan. Gives what it has learned of the log already.
    async fn begin(&mut self) -> Result<Vec<Arc<Stored>>, Unavailable> {
        let shard = self.reader.shard(&self.job);
        if !self.counted {
            shard.waiting.fetch_add(1, Ordering::Relaxed);
            self.counted = true;
        }
        if self.span.replica == Replica::Leader {
            // A replica that is behind gives nothing, which must not look as if the leader had nothing: what the leader
            // has is given itself, and pages go on from there as far as they can.
            let next = self.leader_next().await?;
            self.way = next.as_ref().map_or(Way::Over, |event| Way::Pages { pos: event.pos + 1 });
            return Ok(next.into_iter().collect());
        }
        let many = shard.waiting.load(Ordering::Relaxed) > SCAN_FROM;
        let pos = match self.span.pos {
            Some(pos) => Some(pos),
            None if many => self.reader.log.first_of_any(&self.job).await?.map(|first| first.pos),
            None => Some(1),
        };
        let shard = self.reader.shard(&self.job);
        self.way = match pos {
            None => Way::Over,
            Some(pos) if many => {
                debug!(job = %self.job, "waits for the shard's scan");
                Way::Scan(shard.scan.join(Want { job: self.job.clone(), pos, until: self.span.until }))
            }
            Some(pos) => Way::Pages { pos },
        };
        Ok(Vec::new())
    }

    /// The first wanted event, as the leader knows it.
    async fn leader_next(&self) -> Result<Option<Arc<Stored>>, Unavailable> {
        let mut pos = self.span.pos.unwrap_or(1);
        loop {
            match self.reader.log.next(&self.job, pos).await? {
                Some(event) if event.seq >= self.span.from => return Ok(Some(Arc::new(event))),
                Some(event) => pos = event.pos + 1,
                None => return Ok(None),
            }
        }
    }

    async fn next_page(&mut self, pos: Pos) -> Result<Vec<Arc<Stored>>, Unavailable> {
        let (page, last) = self.reader.page(&self.job, pos).await?;
        self.way = match page.last() {
            Some(event) if !last => Way::Pages { pos: event.pos + 1 },
            _ => Way::Over,
        };
        Ok(page.into_iter().map(Arc::new).collect())
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
        if self.counted {
            self.reader.shard(&self.job).waiting.fetch_sub(1, Ordering::Relaxed);
        }
    }
}
