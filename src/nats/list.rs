//! Lists jobs out of the log itself: asks the broker what a [`Walk`] wants to know. The order, the pages and what they may
//! cost are the walk's.

use std::time::{Duration, UNIX_EPOCH};

use async_nats::Message;
use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use tokio::time::{Instant, sleep};

use super::info::{self, StreamInfo};
use super::listings::Busy;
use super::message::{GetMessage, LeaderMessage, ask_leader, header, number};
use super::walk::{Bounds, Entry, Found, Step, Walk, Window};
use super::{Reader, api, names};
use crate::config::{
    LIST_BYTES, LIST_LOOKUPS, LIST_REQUESTS, LIST_UNDECODABLE, LIST_WINDOW, LIST_WINDOWS,
    REQUEST_WAIT, REREAD_FIRST,
};
use crate::source::Unavailable;
use crate::wire::{
    BadPage, JobId, JobPage, JobRow, Kind, PageToken, Place, RESERVED_ID, Status, Stored, StreamSeq,
};

/// Which jobs are asked for.
#[derive(Clone, Debug)]
pub struct JobQuery {
    /// Only those that are this.
    pub status: Option<Status>,
    /// Only those of this kind.
    pub kind: Option<Kind>,
    /// How many at the most.
    pub limit: usize,
    /// Where to go on; with other filters than before, they hold from here on.
    pub page: Option<PageToken>,
}

/// Why there is no listing.
#[derive(Debug, thiserror::Error)]
pub enum ListError {
    /// The page is none that a listing of this log gave out.
    #[error(transparent)]
    BadPage(#[from] BadPage),
    /// The log cannot be read for the moment.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    /// Too many listings wait.
    #[error(transparent)]
    Busy(#[from] Busy),
}

/// The shards as they are when a page begins.
struct Streams {
    /// The first and the last place of each.
    bounds: Vec<(StreamSeq, StreamSeq)>,
    /// A checksum of their names and the times when they were made.
    tag: u32,
}

/// What a read of a window brought.
enum Got {
    /// Everything that stands in it.
    All(Vec<Entry>),
    /// Only so many messages: they hold too many bytes.
    Cut(usize),
}

impl Streams {
    /// The places of a page that these streams' listing gave out.
    fn places(&self, page: &PageToken) -> Result<Vec<Place>, BadPage> {
        let ours = page.streams == self.tag && page.places.len() == self.bounds.len();
        let there = page
            .places
            .iter()
            .zip(&self.bounds)
            .all(|(place, &(_, last))| place.top <= last);
        if ours && there {
            Ok(page.places.clone())
        } else {
            Err(BadPage)
        }
    }
}

impl Reader {
    /// One page of the jobs that the log holds, each at its last event, newest first. The pages of one listing show the
    /// jobs as they were when its first page was made.
    ///
    /// # Errors
    /// [`ListError`].
    pub async fn list(&self, query: &JobQuery) -> Result<JobPage, ListError> {
        let _listing = self.listings.begin().await?;
        let streams = self.streams().await?;
        let places = match &query.page {
            Some(page) => streams.places(page)?,
            None => streams
                .bounds
                .iter()
                .map(|&(_, last)| Place {
                    top: last,
                    next: last,
                })
                .collect(),
        };
        let firsts: Vec<StreamSeq> = streams.bounds.iter().map(|&(first, _)| first).collect();
        let bounds = Bounds {
            rows: query.limit,
            window: LIST_WINDOW,
            windows: LIST_WINDOWS,
            lookups: LIST_LOOKUPS,
        };
        let mut walk = Walk::new(&places, &firsts, query.status, bounds);
        loop {
            match walk.step() {
                Step::Read(windows) => {
                    let reads = stream::iter(windows).map(|window| self.window(window));
                    let mut reads = reads.buffer_unordered(LIST_REQUESTS);
                    while let Some((window, got)) = reads.try_next().await? {
                        match got {
                            Got::All(entries) => walk.read(window, &entries),
                            Got::Cut(got) => walk.cut(window, got),
                        }
                    }
                }
                Step::Judge(found) => {
                    let verdicts = stream::iter(found).map(|found| {
                        let top = places[found.shard as usize].top;
                        self.verdict(found, top, query.kind.as_ref())
                    });
                    let verdicts: Vec<Option<JobRow>> =
                        verdicts.buffered(LIST_REQUESTS).try_collect().await?;
                    walk.judge(verdicts);
                }
                Step::Over => break,
            }
        }
        let (jobs, places) = walk.end();
        let next = places.map(|places| PageToken {
            streams: streams.tag,
            places,
        });
        Ok(JobPage { jobs, next })
    }

    /// What the leaders say of their streams.
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

    /// Reads a window, without a filter: with one, even one that every message matches, the broker would count all
    /// messages behind it.
    async fn window(&self, window: Window) -> Result<(Window, Got), Unavailable> {
        let Window { shard, from, to } = window;
        let stream = self.log.nats.names.chunks_stream(shard);
        let get = GetMessage::range(from, to, LIST_BYTES);
        let (deadline, mut pause) = (Instant::now() + REQUEST_WAIT, REREAD_FIRST);
        loop {
            let page = self.batch(shard, &get).await?;
            let last = page
                .messages
                .last()
                .and_then(|last| number(last, names::SEQUENCE));
            let reached = last.is_some_and(|last| last >= to);
            if !reached && page.more {
                return Ok((window, Got::Cut(page.messages.len())));
            }
            // A replica that ends below the window's end may only be behind: what it does not have yet would be passed
            // over for ever. So its leader is asked whether there is anything.
            let beyond = last.map_or(from, |last| last + 1);
            let get_beyond = GetMessage::next_of(">", beyond);
            if reached
                || self
                    .leader(&stream, &get_beyond)
                    .await?
                    .is_none_or(|next| next.stream_seq > to)
            {
                let entries = page
                    .messages
                    .iter()
                    .filter_map(|message| self.entry(shard, message));
                return Ok((window, Got::All(entries.collect())));
            }
            if Instant::now() >= deadline {
                return Err(Unavailable("a replica of the log stays behind".into()));
            }
            sleep(pause).await;
            pause *= 2;
        }
    }

    /// A message of a shard; `None` for what stands under a subject where no reader would look for it, and for the jobs
    /// that deliver callbacks: they are the system's own, and would be half of a listing.
    fn entry(&self, shard: u32, message: &Message) -> Option<Entry> {
        let job: JobId = names::job_of(header(message, names::SUBJECT)?)
            .parse()
            .ok()?;
        let stream_seq = number(message, names::SEQUENCE)?;
        let time = humantime::parse_rfc3339(header(message, names::TIME)?).ok()?;
        let time = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        let time = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let at_home = job.shard(self.log.shards) == shard;
        let listed = at_home && !job.as_str().starts_with(RESERVED_ID);
        listed.then(|| Entry {
            job,
            stream_seq,
            time,
            payload: message.payload.clone(),
        })
    }

    /// The row of a job, unless the event at which it was found is not its last one below `top`, or it is of another
    /// kind.
    async fn verdict(
        &self,
        found: Found,
        top: StreamSeq,
        kind: Option<&Kind>,
    ) -> Result<Option<JobRow>, Unavailable> {
        if !found.sure && !self.is_last(&found.row.id, found.stream_seq, top).await? {
            return Ok(None);
        }
        let mut row = found.row;
        if !found.whole
            && let Some(first) = self.first_payload(&row.id).await?
        {
            row.begun(&first);
        }
        let wanted = kind.is_none_or(|kind| row.kind.as_ref() == Some(kind));
        Ok(wanted.then_some(row))
    }

    /// Whether a job has no event between `stream_seq` and `top`, as the leader knows it: a replica that is behind would have
    /// a job listed twice.
    async fn is_last(
        &self,
        job: &JobId,
        stream_seq: StreamSeq,
        top: StreamSeq,
    ) -> Result<bool, Unavailable> {
        let (stream, subject) = (self.log.stream(job), self.log.subject(job));
        // The last one is cheap to find, and nearly always tells.
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

    /// The payload of the first event that the log still has of a job.
    async fn first_payload(&self, job: &JobId) -> Result<Option<Bytes>, Unavailable> {
        let job_subject = self.log.subject(job);
        let get = GetMessage::next_of(&job_subject, 1);
        let stream = self.log.stream(job);
        let subject = names::api(&format!("DIRECT.GET.{stream}"));
        let answer = api::request(&self.log.nats.replay, subject, None, get.body()).await?;
        if answer.status.is_none() {
            return Ok(Some(answer.payload));
        }
        // Of a new job a replica may have nothing yet.
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
