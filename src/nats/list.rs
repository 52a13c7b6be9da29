//! Lists jobs from the log itself: makes the reads that a [`Listing`] requests. The listing decides
//! the order, the pages and their cost.

use std::time::{Duration, UNIX_EPOCH};

use async_nats::Message;
use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use tokio::time::{Instant, sleep};

use super::info::{self, StreamInfo};
use super::listing::{Candidate, Listing, ListingLimits, ListingStep, ShardMessage, Window};
use super::listing_slots::Busy;
use super::message::{GetMessage, LeaderMessage, ask_leader, header, number};
use super::read::Reader;
use super::{api, names};
use crate::auth::NamePattern;
use crate::backoff::Backoff;
use crate::config::{
    LIST_BYTES, LIST_LOOKUPS, LIST_REQUESTS, LIST_UNDECODABLE, LIST_WINDOW, LIST_WINDOWS,
    REQUEST_WAIT, REREAD_FIRST, REREAD_MAX,
};
use crate::source::Unavailable;
use crate::wire::{
    BadPage, JobId, JobPage, JobRow, Kind, PageToken, RESERVED_KIND, ShardPosition, Status, Stored,
    StreamSeq,
};

/// Which jobs to list.
#[derive(Clone, Debug)]
pub struct JobQuery {
    /// Only jobs with this status.
    pub status: Option<Status>,
    /// Only jobs of this kind.
    pub kind: Option<Kind>,
    /// At most this many.
    pub limit: usize,
    /// Where to continue. Filters may differ from those of earlier pages; they apply from here on.
    pub page: Option<PageToken>,
    /// Only jobs with such an id, if there is a list.
    pub visible: Option<Vec<NamePattern>>,
}

impl JobQuery {
    fn shows(&self, job: &JobId) -> bool {
        self.visible
            .as_ref()
            .is_none_or(|patterns| patterns.iter().any(|pattern| pattern.matches(job.as_str())))
    }
}

/// Why a listing failed.
#[derive(Debug, thiserror::Error)]
pub enum ListError {
    /// The page token was not issued by a listing of this log.
    #[error(transparent)]
    BadPage(#[from] BadPage),
    /// The log cannot be read at the moment.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    /// Too many listings are waiting.
    #[error(transparent)]
    Busy(#[from] Busy),
}

/// The state of the shards when a page starts.
struct Streams {
    /// The first and the last stream sequence of each shard.
    bounds: Vec<(StreamSeq, StreamSeq)>,
    /// A checksum of the streams' names and creation times.
    tag: u32,
}

/// The result of reading a window.
enum WindowRead {
    /// All its messages.
    All(Vec<ShardMessage>),
    /// Only this many messages, because the window has too many bytes.
    Part(usize),
}

impl Streams {
    /// The positions of a page token that a listing of these streams issued.
    fn positions(&self, page: &PageToken) -> Result<Vec<ShardPosition>, BadPage> {
        let is_own = page.streams == self.tag && page.positions.len() == self.bounds.len();
        let are_stored = page
            .positions
            .iter()
            .zip(&self.bounds)
            .all(|(position, &(_, last))| position.top <= last);
        if is_own && are_stored {
            Ok(page.positions.clone())
        } else {
            Err(BadPage)
        }
    }
}

impl Reader {
    /// One page of the jobs in the log, each with its last event, newest first. All pages of a
    /// listing show the jobs as they were when the first page was made.
    ///
    /// # Errors
    /// [`ListError`].
    pub async fn list(&self, query: &JobQuery) -> Result<JobPage, ListError> {
        let _listing = self.listing_slots.acquire().await?;
        let streams = self.streams().await?;
        let positions = match &query.page {
            Some(page) => streams.positions(page)?,
            None => streams
                .bounds
                .iter()
                .map(|&(_, last)| ShardPosition {
                    top: last,
                    next: last,
                })
                .collect(),
        };
        let firsts: Vec<StreamSeq> = streams.bounds.iter().map(|&(first, _)| first).collect();
        let limits = ListingLimits {
            rows: query.limit,
            window: LIST_WINDOW,
            windows: LIST_WINDOWS,
            lookups: LIST_LOOKUPS,
        };
        let mut listing = Listing::new(&positions, &firsts, query.status, limits);
        loop {
            match listing.step() {
                ListingStep::Read(windows) => {
                    let reads = stream::iter(windows).map(|window| self.window(window));
                    let mut reads = reads.buffer_unordered(LIST_REQUESTS);
                    while let Some((window, read)) = reads.try_next().await? {
                        match read {
                            WindowRead::All(mut messages) => {
                                messages.retain(|message| query.shows(&message.job));
                                listing.read(window, &messages);
                            }
                            WindowRead::Part(count) => listing.read_partly(window, count),
                        }
                    }
                }
                ListingStep::Resolve(candidates) => {
                    let rows = stream::iter(candidates).map(|candidate| {
                        let top = positions[candidate.shard as usize].top;
                        self.row(candidate, top, query.kind.as_ref())
                    });
                    listing.resolve(rows.buffered(LIST_REQUESTS).try_collect().await?);
                }
                ListingStep::Done => break,
            }
        }
        let (jobs, positions) = listing.finish();
        let next = positions.map(|positions| PageToken {
            streams: streams.tag,
            positions,
        });
        Ok(JobPage { jobs, next })
    }

    /// The state of the shards, from their leaders.
    async fn streams(&self) -> Result<Streams, Unavailable> {
        let names = (0..self.log.shards).map(|shard| self.log.nats.names.chunks_stream(shard));
        let infos = stream::iter(names).map(async |name| {
            let info = info::stream(&self.log.nats.replay, &name).await?;
            Ok::<_, Unavailable>((name, info))
        });
        let infos: Vec<(String, StreamInfo)> = infos.buffered(LIST_REQUESTS).try_collect().await?;
        let mut bounds = Vec::new();
        let mut tag = crc32fast::Hasher::new();
        for (name, info) in infos {
            bounds.push((info.state.first_seq, info.state.last_seq));
            tag.update(format!("{name} {:?}\n", info.created).as_bytes());
        }
        Ok(Streams {
            bounds,
            tag: tag.finalize(),
        })
    }

    /// Reads a window without a filter: with any filter, the broker would count all later messages.
    async fn window(&self, window: Window) -> Result<(Window, WindowRead), Unavailable> {
        let Window { shard, from, to } = window;
        let stream = self.log.nats.names.chunks_stream(shard);
        let get = GetMessage::range(from, to, LIST_BYTES);
        let deadline = Instant::now() + REQUEST_WAIT;
        let mut backoff = Backoff::new(REREAD_FIRST, REREAD_MAX);
        loop {
            let page = self.batch(shard, &get).await?;
            let last = page
                .messages
                .last()
                .and_then(|last| number(last, names::SEQUENCE));
            let reached = last.is_some_and(|last| last >= to);
            if !reached && page.more {
                return Ok((window, WindowRead::Part(page.messages.len())));
            }
            // A replica that ends before the window's end may lag, and its missing messages would
            // be skipped forever. Therefore the leader is asked whether there are any.
            let beyond = last.map_or(from, |last| last + 1);
            let get_beyond = GetMessage::next_of(">", beyond);
            if reached
                || self
                    .leader(&stream, &get_beyond)
                    .await?
                    .is_none_or(|next| next.stream_seq > to)
            {
                let messages = page
                    .messages
                    .iter()
                    .filter_map(|message| self.shard_message(shard, message));
                return Ok((window, WindowRead::All(messages.collect())));
            }
            if Instant::now() >= deadline {
                return Err(Unavailable("a replica of the log keeps lagging".into()));
            }
            sleep(backoff.next_pause()).await;
        }
    }

    /// A message of a shard; `None` for a subject of no valid job, and for callback jobs: they are
    /// internal, and could fill half of a listing.
    fn shard_message(&self, shard: u32, message: &Message) -> Option<ShardMessage> {
        let subject = header(message, names::SUBJECT)?;
        let job = self.log.nats.names.job_of_chunks(subject)?;
        let stream_seq = number(message, names::SEQUENCE)?;
        let time = humantime::parse_rfc3339(header(message, names::TIME)?).ok()?;
        let time = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        let time = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let is_own_shard = job.shard(self.log.shards) == shard;
        let listed = is_own_shard && job.kind() != Some(RESERVED_KIND);
        listed.then(|| ShardMessage {
            job,
            stream_seq,
            time,
            payload: message.payload.clone(),
        })
    }

    /// The row of a candidate. `None` when its event is not the job's last one up to `top`, or the
    /// job has another kind.
    async fn row(
        &self,
        candidate: Candidate,
        top: StreamSeq,
        kind: Option<&Kind>,
    ) -> Result<Option<JobRow>, Unavailable> {
        if !candidate.is_last
            && !self
                .is_last(&candidate.row.id, candidate.stream_seq, top)
                .await?
        {
            return Ok(None);
        }
        let mut row = candidate.row;
        if !candidate.is_complete
            && let Some(first) = self.first_payload(&row.id).await?
        {
            row.apply_first(&first);
        }
        let wanted = kind.is_none_or(|kind| row.kind.as_ref() == Some(kind));
        Ok(wanted.then_some(row))
    }

    /// Whether a job has no event after `stream_seq` up to `top`. Asks the leader: with a lagging
    /// replica, a job could be listed twice.
    async fn is_last(
        &self,
        job: &JobId,
        stream_seq: StreamSeq,
        top: StreamSeq,
    ) -> Result<bool, Unavailable> {
        let stream = self.log.stream(job);
        let subject = self.log.subject(job);
        // The job's last message is cheap to find, and nearly always decides.
        match self.leader(&stream, &GetMessage::last_of(&subject)).await? {
            Some(last) if last.stream_seq <= stream_seq => return Ok(true),
            Some(last) if last.stream_seq <= top && is_event_of(&last, job) => return Ok(false),
            Some(_) => {}
            None => return Ok(true),
        }
        let mut from = stream_seq + 1;
        for _ in 0..LIST_UNDECODABLE {
            match self
                .leader(&stream, &GetMessage::next_of(&subject, from))
                .await?
            {
                Some(next) if next.stream_seq <= top && !is_event_of(&next, job) => {
                    from = next.stream_seq + 1
                }
                Some(next) => return Ok(next.stream_seq > top),
                None => return Ok(true),
            }
        }
        Ok(true)
    }

    /// The payload of the first message that the log still has of a job.
    async fn first_payload(&self, job: &JobId) -> Result<Option<Bytes>, Unavailable> {
        let job_subject = self.log.subject(job);
        let get = GetMessage::next_of(&job_subject, 1);
        let stream = self.log.stream(job);
        let subject = names::api(&format!("DIRECT.GET.{stream}"));
        let answer = api::request(&self.log.nats.replay, subject, None, get.body()).await?;
        if answer.status.is_none() {
            return Ok(Some(answer.payload));
        }
        // A replica may not have the events of a new job yet.
        Ok(self.leader(&stream, &get).await?.map(|first| first.payload))
    }

    /// One message, from the leader of a stream.
    async fn leader(
        &self,
        stream: &str,
        get: &GetMessage<'_>,
    ) -> Result<Option<LeaderMessage>, Unavailable> {
        Ok(ask_leader(&self.log.nats.replay, stream, get).await?)
    }
}

fn is_event_of(message: &LeaderMessage, job: &JobId) -> bool {
    Stored::decode(job, message.stream_seq, message.payload.clone()).is_ok()
}
