//! One job's log on the broker: append under the fence, and single reads. What a refused append means is the writer's;
//! reading many events is the reader's.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_nats::{Client, HeaderMap, Message, StatusCode};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};
use tracing::warn;

use super::api::{self, Published};
use super::batch::{batch, number};
use super::connect::Nats;
use super::error::{Error, code};
use super::names;
use super::setup;
use crate::config::{
    EVENT_MAX, FOREIGN_MAX, LOOK_BACK, MESSAGE_HEADERS_MAX, PAGE, PAGE_BYTES, REQUEST_WAIT, REREAD_FIRST,
};
use crate::source::{At, Unavailable};
use crate::wire::{JobId, Pos, Stored};

/// The logs of all jobs.
#[derive(Clone, Debug)]
pub struct Log {
    pub(super) nats: Arc<Nats>,
    pub(super) shards: u32,
}

/// How an append ended.
#[derive(Debug)]
pub enum Appended {
    /// Stored at this place.
    Stored(Pos),
    /// The log's last event is another than expected.
    Refused,
    /// Another append is in flight; the same may do in a moment.
    InFlight,
    /// It can never be stored, for this reason.
    Never(String),
    /// It was not stored, for a reason that may pass or not.
    Rejected(Unavailable),
    /// Nobody knows whether it was, or will be, stored.
    Unsure(Unavailable),
}

/// Where a job's log ends.
#[derive(Debug)]
pub enum Tip {
    /// Here.
    At {
        /// The last event; `None` while there is none.
        last: Option<Stored>,
        /// The place of what stands last, be it an event or not: what an append must expect. 0 when nothing does.
        fence: Pos,
    },
    /// Behind more than [`FOREIGN_MAX`] messages that are no events: nobody looks further.
    Buried,
}

/// A message of a job's log.
struct Found {
    pos: Pos,
    /// `None` when it is no event.
    event: Option<Stored>,
}

impl Log {
    /// The logs that `setup` made.
    ///
    /// # Errors
    /// [`Error::NotSetUp`].
    pub async fn open(nats: &Nats) -> Result<Self, Error> {
        Ok(Self { nats: Arc::new(nats.clone()), shards: nats.shards().await? })
    }

    /// How many shards there are.
    pub fn shards(&self) -> u32 {
        self.shards
    }

    /// How many bytes an event, or a job in the queue, may have as it is stored. It follows the server that this process is
    /// connected to.
    pub fn event_max(&self) -> usize {
        EVENT_MAX.min(self.nats.work.max_payload().saturating_sub(MESSAGE_HEADERS_MAX))
    }

    /// How long ago an event was stored, by the clock of the stream's leader alone. `None` when it is gone.
    ///
    /// # Errors
    /// [`Unavailable`].
    pub async fn age(&self, job: &JobId, pos: Pos) -> Result<Option<Duration>, Unavailable> {
        let (stream, body) = (self.stream(job), json!({"seq": pos}));
        let get = format!("STREAM.MSG.GET.{stream}");
        let message = api::find(&self.nats.work, &get, &body, &[code::NO_MESSAGE]).await;
        let Some(message) = message.map_err(unavailable)? else { return Ok(None) };
        let info = setup::stream_info(&self.nats.work, &stream).await.map_err(unavailable)?;
        let time = |text: &Value| -> Option<SystemTime> { humantime::parse_rfc3339(text.as_str()?).ok() };
        let (stored, now) = (time(&message["message"]["time"]), info.and_then(|info| time(&info["ts"])));
        // After an election another clock answers, which may be behind.
        Ok(stored.zip(now).map(|(stored, now)| now.duration_since(stored).unwrap_or(Duration::ZERO)))
    }

    /// Appends an event, if the last event of the job stands at `expected`; 0 for an empty log.
    pub async fn append(&self, job: &JobId, expected: Pos, payload: Bytes) -> Appended {
        assert!(!payload.is_empty(), "an empty payload would end a batched get");
        let mut headers = HeaderMap::new();
        headers.insert(names::EXPECTED_LAST, expected.to_string().as_str());
        match api::publish(&self.nats.work, self.subject(job), headers, payload).await {
            Published::Stored(pos) => Appended::Stored(pos),
            Published::Refused => Appended::Refused,
            Published::InFlight | Published::Duplicate => Appended::InFlight,
            Published::Full | Published::Taken => Appended::Unsure(Unavailable("the stream is full".into())),
            Published::Never(reason) => Appended::Never(reason),
            Published::Rejected(error) => Appended::Rejected(error),
            Published::Unsure(error) => Appended::Unsure(error),
        }
    }

    /// The last event, as the leader knows it.
    ///
    /// # Errors
    /// [`Unavailable`].
    pub async fn last(&self, job: &JobId) -> Result<Option<Stored>, Unavailable> {
        match self.tip(job).await? {
            Tip::At { last, .. } => Ok(last),
            Tip::Buried => Err(buried()),
        }
    }

    /// Where the log ends, as the leader knows it.
    ///
    /// # Errors
    /// [`Unavailable`].
    pub async fn tip(&self, job: &JobId) -> Result<Tip, Unavailable> {
        let (deadline, mut pause) = (Instant::now() + REQUEST_WAIT, REREAD_FIRST);
        loop {
            let fence = match self.ask_leader(job, &json!({"last_by_subj": self.subject(job)})).await? {
                None => return Ok(Tip::At { last: None, fence: 0 }),
                Some(Found { pos, event: Some(event) }) => {
                    return Ok(Tip::At { last: Some(event), fence: pos });
                }
                Some(Found { pos, event: None }) => pos,
            };
            if let Some(tip) = self.look_back(job, fence).await? {
                return Ok(tip);
            }
            if Instant::now() >= deadline {
                return Err(Unavailable("a replica of the log stays behind".into()));
            }
            sleep(pause).await;
            pause *= 2;
        }
    }

    /// Looks for the last event before `fence`, further and further back; `None` when a replica had not all of it.
    async fn look_back(&self, job: &JobId, fence: Pos) -> Result<Option<Tip>, Unavailable> {
        let mut reach = LOOK_BACK;
        loop {
            let from = fence.saturating_sub(reach).max(1);
            let (mut pos, mut last, mut foreign) = (from, None, 0);
            while pos <= fence {
                let ask = json!({"seq": pos, "next_by_subj": self.subject(job), "batch": PAGE, "max_bytes": PAGE_BYTES});
                let page = batch(&self.nats.replay, &self.stream(job), &ask).await?;
                // A replica may lack the end of what the leader has, and nothing in between.
                let Some(end) = page.messages.last().and_then(|message| number(message, names::SEQUENCE))
                else {
                    return Ok(None);
                };
                for message in &page.messages {
                    match stored(job, message) {
                        Some(event) if event.pos < fence => (last, foreign) = (Some(event), 0),
                        Some(_) => {}
                        None => foreign += 1,
                    }
                }
                if foreign > FOREIGN_MAX {
                    return Ok(Some(Tip::Buried));
                }
                pos = end + 1;
            }
            if last.is_some() || from == 1 {
                return Ok(Some(Tip::At { last, fence }));
            }
            reach = reach.saturating_mul(8);
        }
    }

    /// The first event at or after `pos`, from the leader.
    pub(super) async fn next(&self, job: &JobId, pos: Pos) -> Result<Option<Stored>, Unavailable> {
        let mut from = pos;
        for _ in 0..FOREIGN_MAX {
            let ask = json!({"seq": from, "next_by_subj": self.subject(job)});
            match self.ask_leader(job, &ask).await? {
                Some(Found { pos, event: None }) => from = pos + 1,
                found => return Ok(found.and_then(|found| found.event)),
            }
        }
        Err(buried())
    }

    /// The first event that the log still has, from the leader.
    ///
    /// # Errors
    /// [`Unavailable`].
    pub async fn first(&self, job: &JobId) -> Result<Option<Stored>, Unavailable> {
        self.next(job, 1).await
    }

    /// The last event, from any replica over `client`'s connection.
    pub(super) async fn last_of_any(
        &self,
        client: &Client,
        job: &JobId,
    ) -> Result<Option<Stored>, Unavailable> {
        let subject = names::api(&format!("DIRECT.GET.{}.{}", self.stream(job), self.subject(job)));
        match self.direct(client, job, subject, Bytes::new()).await? {
            Some(Found { event: None, .. }) => self.last(job).await,
            found => Ok(found.and_then(|found| found.event)),
        }
    }

    /// Where the log begins, as any replica sees it.
    pub(super) async fn begin_of_any(&self, job: &JobId) -> Result<Option<Pos>, Unavailable> {
        let body = json!({"seq": 1, "next_by_subj": self.subject(job)});
        let subject = names::api(&format!("DIRECT.GET.{}", self.stream(job)));
        let first = self.direct(&self.nats.replay, job, subject, body.to_string().into()).await?;
        Ok(first.map(|first| first.pos))
    }

    /// What stands at a place of the job's shard.
    pub(super) async fn at(&self, job: &JobId, pos: Pos) -> Result<At, Unavailable> {
        let subject = names::api(&format!("DIRECT.GET.{}", self.stream(job)));
        let body = json!({"seq": pos}).to_string();
        let answer = api::request(&self.nats.replay, subject, None, body.into()).await?;
        if answer.status.is_none() {
            return Ok(match stored(job, &answer) {
                Some(event) if header(&answer, names::SUBJECT) == Some(&self.subject(job)) => {
                    At::Event(event.into())
                }
                _ => At::Other,
            });
        }
        // A replica may be behind: only the leader knows that nothing stands there.
        let stream = self.stream(job);
        let get = format!("STREAM.MSG.GET.{stream}");
        let answer = api::find(&self.nats.replay, &get, &json!({"seq": pos}), &[code::NO_MESSAGE]).await;
        match answer.map_err(unavailable)? {
            Some(answer) if answer["message"]["subject"] == self.subject(job).as_str() => {
                let event = found(job, &answer)?.event;
                Ok(event.map_or(At::Other, |event| At::Event(event.into())))
            }
            Some(_) => Ok(At::Other),
            None => {
                let (_, last) = self.bounds(job).await?;
                Ok(if pos > last { At::NotYet } else { At::Removed })
            }
        }
    }

    /// The first and the last place of the job's shard, from the leader.
    pub(super) async fn bounds(&self, job: &JobId) -> Result<(Pos, Pos), Unavailable> {
        self.bounds_of(&self.stream(job)).await
    }

    pub(super) async fn bounds_of(&self, stream: &str) -> Result<(Pos, Pos), Unavailable> {
        let info = setup::stream_info(&self.nats.replay, stream).await.map_err(unavailable)?;
        let state = info.ok_or_else(|| Unavailable(format!("stream {stream} is gone")))?;
        let number = |key: &str| state["state"][key].as_u64().unwrap_or(0);
        Ok((number("first_seq"), number("last_seq")))
    }

    pub(super) fn stream(&self, job: &JobId) -> String {
        self.nats.names.chunks_stream(job.shard(self.shards))
    }

    pub(super) fn subject(&self, job: &JobId) -> String {
        self.nats.names.chunks(job.shard(self.shards), job)
    }

    async fn ask_leader(&self, job: &JobId, body: &Value) -> Result<Option<Found>, Unavailable> {
        let subject = format!("STREAM.MSG.GET.{}", self.stream(job));
        let answer =
            api::find(&self.nats.work, &subject, body, &[code::NO_MESSAGE]).await.map_err(unavailable)?;
        answer.map(|answer| found(job, &answer)).transpose()
    }

    async fn direct(
        &self,
        client: &Client,
        job: &JobId,
        subject: String,
        body: Bytes,
    ) -> Result<Option<Found>, Unavailable> {
        let answer = api::request(client, subject, None, body).await?;
        match answer.status {
            None => {
                let pos = number(&answer, names::SEQUENCE).ok_or_else(nowhere)?;
                Ok(Some(Found { pos, event: decode(job, pos, answer.payload) }))
            }
            Some(StatusCode::NOT_FOUND) => Ok(None),
            Some(status) => Err(Unavailable(format!("a direct get was answered with status {status}"))),
        }
    }
}

/// The stored event of a direct get or a live copy; `None`, with a warning, for what is no event of this job.
pub(super) fn stored(job: &JobId, message: &Message) -> Option<Stored> {
    let pos = header(message, names::SEQUENCE)?.parse().ok()?;
    decode(job, pos, message.payload.clone())
}

/// The value of a header that the broker sets: the last one, as the publisher's own come before.
pub(super) fn header<'a>(message: &'a Message, name: &'static str) -> Option<&'a str> {
    message.headers.as_ref()?.get_last(name).map(async_nats::HeaderValue::as_str)
}

pub(super) fn decode(job: &JobId, pos: Pos, payload: Bytes) -> Option<Stored> {
    match Stored::decode(job, pos, payload) {
        Ok(event) => Some(event),
        Err(error) => {
            warn!(%job, pos, %error, "the log holds something that is no event; it is passed over");
            None
        }
    }
}

/// What a leader answered. An empty payload has no `data`.
fn found(job: &JobId, answer: &Value) -> Result<Found, Unavailable> {
    let message = &answer["message"];
    let pos = message["seq"].as_u64().ok_or_else(nowhere)?;
    let payload = BASE64.decode(message["data"].as_str().unwrap_or_default()).unwrap_or_default();
    Ok(Found { pos, event: decode(job, pos, payload.into()) })
}

fn nowhere() -> Unavailable {
    Unavailable("a message without a sequence".into())
}

fn buried() -> Unavailable {
    Unavailable(format!("it holds more than {FOREIGN_MAX} messages in a row that are no events"))
}

pub(super) fn unavailable(error: Error) -> Unavailable {
    if let Error::Unavailable(error) = error { error } else { Unavailable(error.to_string()) }
}
