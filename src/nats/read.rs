//! Reads the log for many readers at once, each the cheapest way: batched direct gets while they
//! are few, one shared scan of the shard when they are many. It does not decide which messages are
//! events.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use futures_util::StreamExt as _;
use tokio::sync::Semaphore;
use tracing::info;

use super::batch::{MessageBatch, batch};
use super::disturbances::Disturbances;
use super::listing_slots::ListingSlots;
use super::live_reader::LiveReader;
use super::log::Log;
use super::message::{GetMessage, number};
use super::queue::Queue;
use super::read_slots::ReadSlots;
use super::replay_counts::ReplayCounts;
use super::scan::SharedScan;
use super::segments_absence::SegmentsAbsence;
use super::{api, names};
use crate::budget::Budget;
use crate::config::{
    LEADER_READS_PER_SHARD, LOOK_UPS_PER_SHARD, OPENINGS_PER_SHARD, PAGE_BYTES, READ_BYTES,
    READS_PER_SHARD, SCANS_AT_ONCE, SEGMENT_READS,
};
use crate::runtime::Tasks;
use crate::source::{At, Replica, Unavailable};
use crate::wire::{JobId, Stored, StreamSeq};

/// The reading side of the log; one per edge thread.
#[derive(Clone, Debug)]
pub struct Reader {
    pub(super) log: Log,
    pub(super) live_reader: LiveReader,
    pub(super) queue: Queue,
    shards: Arc<[Shard]>,
    pub(super) listing_slots: Arc<ListingSlots>,
    /// Permission to read segments.
    pub(super) segment_slots: Arc<ReadSlots>,
    pub(super) replay_counts: Arc<ReplayCounts>,
}

/// What the readers of one shard share.
#[derive(Debug)]
pub(super) struct Shard {
    /// How many replays wait or read.
    pub(super) replays: AtomicUsize,
    /// Permission to make a direct get.
    slots: ReadSlots,
    /// Permission to start a replay from the leader.
    pub(super) leader_slots: ReadSlots,
    /// Permission to look up an event that a client claims in a replica, and in the leader. Feeds need
    /// none: one that checks its log delivers nothing meanwhile, and must not wait for clients.
    look_up_slots: ReadSlots,
    leader_look_up_slots: ReadSlots,
    pub(super) scan: SharedScan,
    /// Limits how many feeds are opened at a time.
    pub(super) openings: Semaphore,
    pub(super) segments_absence: SegmentsAbsence,
    pub(super) disturbances: Disturbances,
}

impl Reader {
    /// A reader of all shards; `tasks` owns its reads and scans. It holds at most [`READ_BYTES`].
    ///
    /// # Errors
    /// [`Unavailable`].
    pub async fn open(log: Log, tasks: &Tasks) -> Result<Self, Unavailable> {
        Self::within(log, tasks, Budget::new(READ_BYTES)).await
    }

    /// A reader of all shards that shares `budget` with others: together they hold at most this much
    /// of the log that was read for them, and that they have not taken.
    ///
    /// # Errors
    /// [`Unavailable`].
    pub async fn within(log: Log, tasks: &Tasks, budget: Budget) -> Result<Self, Unavailable> {
        let look_up_slots =
            || ReadSlots::new(LOOK_UPS_PER_SHARD, tasks.clone(), Budget::unlimited());
        let live_reader = log.nats.live_readers.create();
        tasks.spawn_until_stop(live_reader.clone().run(log.nats.live.clone()));
        let scan_passes = Arc::new(Semaphore::new(SCANS_AT_ONCE));
        let mut shards = Vec::new();
        for shard in 0..log.shards {
            let stream = log.nats.names.chunks_stream(shard);
            shards.push(Shard {
                replays: AtomicUsize::new(0),
                slots: ReadSlots::new(READS_PER_SHARD, tasks.clone(), budget.clone()),
                leader_slots: ReadSlots::new(LEADER_READS_PER_SHARD, tasks.clone(), budget.clone()),
                look_up_slots: look_up_slots(),
                leader_look_up_slots: look_up_slots(),
                disturbances: disturbances(&log, &stream, tasks).await?,
                scan: SharedScan::new(
                    log.clone(),
                    stream,
                    tasks.clone(),
                    budget.clone(),
                    Arc::clone(&scan_passes),
                ),
                segments_absence: SegmentsAbsence::default(),
                openings: Semaphore::new(OPENINGS_PER_SHARD),
            });
        }
        Ok(Self {
            live_reader,
            queue: Queue::new(log.clone()),
            log,
            shards: shards.into(),
            listing_slots: Arc::new(ListingSlots::new()),
            segment_slots: Arc::new(ReadSlots::new(SEGMENT_READS, tasks.clone(), budget)),
            replay_counts: Arc::default(),
        })
    }

    /// The log itself.
    pub fn log(&self) -> &Log {
        &self.log
    }

    /// How many reads of replays wait for others to end.
    pub fn waiting_replays(&self) -> usize {
        let slots =
            |shard: &Shard| shard.slots.waiting.count() + shard.leader_slots.waiting.count();
        let of_shards = self.shards.iter().map(slots);
        of_shards.sum::<usize>() + self.segment_slots.waiting.count()
    }

    /// How many listings wait for others to end, or for the pause after them.
    pub fn waiting_listings(&self) -> usize {
        self.listing_slots.waiting.count()
    }

    /// What the replays of this reader took.
    pub fn replay_counts(&self) -> &ReplayCounts {
        &self.replay_counts
    }

    pub(super) fn shard(&self, job: &JobId) -> &Shard {
        &self.shards[job.shard(self.log.shards) as usize]
    }

    /// What is stored at a stream sequence of the job's shard, once there is a slot for the read.
    pub(super) async fn look_up(
        &self,
        job: &JobId,
        stream_seq: StreamSeq,
        from: Replica,
    ) -> Result<At, Unavailable> {
        let read = || {
            let log = self.log.clone();
            let job = job.clone();
            async move { log.at_replica(&job, stream_seq, from).await }
        };
        let shard = self.shard(job);
        let slots = match from {
            Replica::Any => &shard.look_up_slots,
            Replica::Leader => &shard.leader_look_up_slots,
        };
        slots.run(1, 0, read).await
    }

    /// Makes a batched direct get on a shard, once it has a slot.
    pub(super) async fn batch(
        &self,
        shard: u32,
        get: &GetMessage<'_>,
    ) -> Result<MessageBatch, Unavailable> {
        let body = get.body();
        let read = || {
            let nats = Arc::clone(&self.log.nats);
            let body = body.clone();
            async move { batch(&nats.replay, &nats.names.chunks_stream(shard), body).await }
        };
        self.shards[shard as usize]
            .slots
            .run(1, PAGE_BYTES, read)
            .await
    }

    /// One page of a job's log from `stream_seq` on, from any replica.
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
            .filter_map(|message| self.log.decode_message(job, message));
        // Of the last message, not the last event: a page may hold none.
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
    /// The messages that can be decoded.
    pub(super) events: Vec<Arc<Stored>>,
    /// The stream sequence of the last message.
    pub(super) last: Option<StreamSeq>,
    /// Whether the replica has more.
    pub(super) more: bool,
}

/// What may disturb the live copies of a stream. Copies may be lost while it has no leader.
async fn disturbances(log: &Log, stream: &str, tasks: &Tasks) -> Result<Disturbances, Unavailable> {
    let subject = names::leader_elected(stream);
    let mut advisories = api::subscribe(&log.nats.live, subject).await?;
    let disturbances = Disturbances::new(log.nats.reconnected.clone());
    tasks.spawn_until_stop(disturbances.clone().wake_after_reconnects());
    let stream = stream.to_owned();
    let elections = disturbances.clone();
    tasks.spawn_until_stop(async move {
        while advisories.next().await.is_some() {
            info!(%stream, "the stream has a new leader");
            elections.note_election();
        }
    });
    Ok(disturbances)
}
