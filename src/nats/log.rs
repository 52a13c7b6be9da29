//! One job's log on the broker: append under the fence, and single reads. What a refused append means is the writer's;
//! reading many events is the reader's.

use std::sync::Arc;

use async_nats::{Client, HeaderMap, Message, StatusCode};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use serde_json::{Value, json};
use tracing::warn;

use super::api::{self, Published};
use super::connect::Nats;
use super::error::{Error, code};
use super::names;
use super::setup;
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
    /// Nobody knows whether it was, or will be, stored.
    Unsure(Unavailable),
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
            Published::Unsure(error) => Appended::Unsure(error),
        }
    }

    /// The last event, from the leader.
    ///
    /// # Errors
    /// [`Unavailable`].
    pub async fn last(&self, job: &JobId) -> Result<Option<Stored>, Unavailable> {
        self.ask_leader(job, &json!({"last_by_subj": self.subject(job)})).await
    }

    /// The first event at or after `pos`, from the leader.
    pub(super) async fn next(&self, job: &JobId, pos: Pos) -> Result<Option<Stored>, Unavailable> {
        self.ask_leader(job, &json!({"seq": pos, "next_by_subj": self.subject(job)})).await
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
        self.direct(client, job, subject, Bytes::new()).await
    }

    /// The first event, from any replica.
    pub(super) async fn first_of_any(&self, job: &JobId) -> Result<Option<Stored>, Unavailable> {
        let body = json!({"seq": 1, "next_by_subj": self.subject(job)});
        let subject = names::api(&format!("DIRECT.GET.{}", self.stream(job)));
        self.direct(&self.nats.replay, job, subject, body.to_string().into()).await
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
        let found = api::find(&self.nats.replay, &get, &json!({"seq": pos}), &[code::NO_MESSAGE]).await;
        match found.map_err(unavailable)? {
            Some(answer) if answer["message"]["subject"] == self.subject(job).as_str() => {
                Ok(event_of(job, &answer).map_or(At::Other, |event| At::Event(event.into())))
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

    async fn ask_leader(&self, job: &JobId, body: &Value) -> Result<Option<Stored>, Unavailable> {
        let subject = format!("STREAM.MSG.GET.{}", self.stream(job));
        let answer =
            api::find(&self.nats.work, &subject, body, &[code::NO_MESSAGE]).await.map_err(unavailable)?;
        match answer {
            None => Ok(None),
            Some(answer) => event_of(job, &answer).map(Some).ok_or_else(unreadable),
        }
    }

    async fn direct(
        &self,
        client: &Client,
        job: &JobId,
        subject: String,
        body: Bytes,
    ) -> Result<Option<Stored>, Unavailable> {
        let answer = api::request(client, subject, None, body).await?;
        match answer.status {
            None => stored(job, &answer).map(Some).ok_or_else(unreadable),
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

fn event_of(job: &JobId, answer: &Value) -> Option<Stored> {
    let message = &answer["message"];
    let payload = BASE64.decode(message["data"].as_str()?).ok()?;
    decode(job, message["seq"].as_u64()?, payload.into())
}

fn unreadable() -> Unavailable {
    Unavailable("the log holds something that is no event".into())
}

pub(super) fn unavailable(error: Error) -> Unavailable {
    if let Error::Unavailable(error) = error { error } else { Unavailable(error.to_string()) }
}
