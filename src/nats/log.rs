//! One job's log on the broker: append under the fence, and single reads. What a refused append means is the writer's;
//! reading many events is the reader's.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_nats::{Client, HeaderMap, Message, StatusCode};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use serde_json::{Value, json};

use super::api::{self, Published};
use super::batch::number;
use super::connect::Nats;
use super::error::{Error, code};
use super::names;
use super::quorum::{Leaders, Of};
use super::setup;
use super::undecodable::Undecodable;
use crate::config::{EVENT_MAX, MESSAGE_HEADERS_MAX, UNDECODABLE_MAX};
use crate::source::{At, Unavailable};
use crate::wire::{JobId, Stored, StreamSeq, Unreadable};

/// The logs of all jobs.
#[derive(Clone, Debug)]
pub struct Log {
    pub(super) nats: Arc<Nats>,
    pub(super) shards: u32,
    pub(super) leaders: Arc<Leaders>,
    undecodable: Arc<Undecodable>,
}

/// How an append ended.
#[derive(Debug)]
pub enum Appended {
    /// Stored at this place.
    Stored(StreamSeq),
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

/// A message of a job's log.
pub(super) struct Found {
    pub(super) stream_seq: StreamSeq,
    /// `None` when it does not have the form of an event. Whether it has the right number is not known.
    pub(super) event: Option<Stored>,
}

impl Log {
    /// The logs that `setup` made.
    ///
    /// # Errors
    /// [`Error::NotSetUp`].
    pub async fn open(nats: &Nats) -> Result<Self, Error> {
        let shards = nats.shards().await?;
        let leaders = Arc::new(Leaders::new(shards));
        Ok(Self {
            nats: Arc::new(nats.clone()),
            shards,
            leaders,
            undecodable: Arc::default(),
        })
    }

    /// How many shards there are.
    pub fn shards(&self) -> u32 {
        self.shards
    }

    /// How many bytes an event, or a job in the queue, may have as it is stored. It follows the server that this process is
    /// connected to.
    pub fn event_max(&self) -> usize {
        EVENT_MAX.min(
            self.nats
                .work
                .max_payload()
                .saturating_sub(MESSAGE_HEADERS_MAX),
        )
    }

    /// How long ago an event was stored, by the clock of the stream's leader alone. `None` when it is gone.
    ///
    /// # Errors
    /// [`Unavailable`].
    pub async fn age(
        &self,
        job: &JobId,
        stream_seq: StreamSeq,
    ) -> Result<Option<Duration>, Unavailable> {
        let (stream, body) = (self.stream(job), json!({"seq": stream_seq}));
        let get = format!("STREAM.MSG.GET.{stream}");
        let message = api::find(&self.nats.work, &get, &body, &[code::NO_MESSAGE]).await;
        let Some(message) = message.map_err(unavailable)? else {
            return Ok(None);
        };
        let info = setup::stream_info(&self.nats.work, &stream)
            .await
            .map_err(unavailable)?;
        let time =
            |text: &Value| -> Option<SystemTime> { humantime::parse_rfc3339(text.as_str()?).ok() };
        let (stored, now) = (
            time(&message["message"]["time"]),
            info.and_then(|info| time(&info["ts"])),
        );
        // After an election another clock answers, which may be behind.
        Ok(stored
            .zip(now)
            .map(|(stored, now)| now.duration_since(stored).unwrap_or(Duration::ZERO)))
    }

    /// Appends an event, if the last event of the job stands at `expected`; 0 for an empty log.
    pub async fn append(&self, job: &JobId, expected: StreamSeq, payload: Bytes) -> Appended {
        assert!(
            !payload.is_empty(),
            "an empty payload would end a batched get"
        );
        let mut headers = HeaderMap::new();
        headers.insert(names::EXPECTED_LAST, expected.to_string().as_str());
        match api::publish(&self.nats.work, self.subject(job), headers, payload).await {
            Published::Stored(stream_seq) => Appended::Stored(stream_seq),
            Published::Refused => Appended::Refused,
            Published::InFlight | Published::Duplicate => Appended::InFlight,
            Published::Full | Published::Taken => {
                Appended::Unsure(Unavailable("the stream is full".into()))
            }
            Published::Never(reason) => Appended::Never(reason),
            Published::Rejected(error) => Appended::Rejected(error),
            Published::Unsure(error) => Appended::Unsure(error),
        }
    }

    /// What has the form of an event and is the first at or after `stream_seq`, from a server that leads the shard or
    /// believes that it does.
    pub(super) async fn next(
        &self,
        job: &JobId,
        stream_seq: StreamSeq,
    ) -> Result<Option<Stored>, Unavailable> {
        let mut from = stream_seq;
        for _ in 0..UNDECODABLE_MAX {
            let ask = json!({"seq": from, "next_by_subj": self.subject(job)});
            match self.ask_leader(job, &ask).await? {
                Some(Found {
                    stream_seq,
                    event: None,
                }) => from = stream_seq + 1,
                found => return Ok(found.and_then(|found| found.event)),
            }
        }
        Err(too_many_undecodable())
    }

    /// The last event, from any replica over `client`'s connection.
    pub(super) async fn last_of_any(
        &self,
        client: &Client,
        job: &JobId,
    ) -> Result<Option<Stored>, Unavailable> {
        let subject = names::api(&format!(
            "DIRECT.GET.{}.{}",
            self.stream(job),
            self.subject(job)
        ));
        match self.direct(client, job, subject, Bytes::new()).await? {
            None => Ok(None),
            Some(Found {
                event: Some(event), ..
            }) if self.is_proven(job, &event).await? => Ok(Some(event)),
            Some(_) => self.last(job).await,
        }
    }

    /// The first message of a job's log at or after `stream_seq`, as any replica sees it.
    pub(super) async fn next_of_any(
        &self,
        job: &JobId,
        stream_seq: StreamSeq,
    ) -> Result<Option<Found>, Unavailable> {
        let body = json!({"seq": stream_seq, "next_by_subj": self.subject(job)});
        let subject = names::api(&format!("DIRECT.GET.{}", self.stream(job)));
        self.direct(&self.nats.replay, job, subject, body.to_string().into())
            .await
    }

    /// What stands at a place of the job's shard. What a replica lacks is the word of a leader with a quorum.
    pub(super) async fn at(&self, job: &JobId, stream_seq: StreamSeq) -> Result<At, Unavailable> {
        match self.at_any(job, stream_seq).await? {
            At::NotYet | At::Removed => self.at_leader(job, stream_seq).await,
            there @ (At::Event(_) | At::Other) => Ok(there),
        }
    }

    /// What stands at a place of the job's shard, as any replica sees it.
    pub(super) async fn at_any(
        &self,
        job: &JobId,
        stream_seq: StreamSeq,
    ) -> Result<At, Unavailable> {
        let subject = names::api(&format!("DIRECT.GET.{}", self.stream(job)));
        let body = json!({"seq": stream_seq}).to_string();
        let answer = api::request(&self.nats.replay, subject, None, body.into()).await?;
        if answer.status.is_some() {
            return Ok(At::NotYet);
        }
        let of_job = header(&answer, names::SUBJECT) == Some(&self.subject(job));
        let event = of_job.then(|| self.stored(job, &answer)).flatten();
        Ok(event.map_or(At::Other, |event| At::Event(event.into())))
    }

    /// What stands at a place of the job's shard, as a leader with a quorum knows it.
    pub(super) async fn at_leader(
        &self,
        job: &JobId,
        stream_seq: StreamSeq,
    ) -> Result<At, Unavailable> {
        self.proven(Of::Shard(job.shard(self.shards)), || {
            self.at_now(job, stream_seq)
        })
        .await
    }

    async fn at_now(&self, job: &JobId, stream_seq: StreamSeq) -> Result<At, Unavailable> {
        let get = format!("STREAM.MSG.GET.{}", self.stream(job));
        let answer = api::find(
            &self.nats.work,
            &get,
            &json!({"seq": stream_seq}),
            &[code::NO_MESSAGE],
        )
        .await;
        match answer.map_err(unavailable)? {
            Some(answer) if answer["message"]["subject"] == self.subject(job).as_str() => {
                let event = self.found(job, &answer)?.event;
                Ok(event.map_or(At::Other, |event| At::Event(event.into())))
            }
            Some(_) => Ok(At::Other),
            None => {
                let (_, last) = self.bounds_of(&self.nats.work, &self.stream(job)).await?;
                Ok(if stream_seq > last {
                    At::NotYet
                } else {
                    At::Removed
                })
            }
        }
    }

    /// The first and the last place of a stream, as a server that leads it, or believes that it does, knows them.
    pub(super) async fn bounds_of(
        &self,
        client: &Client,
        stream: &str,
    ) -> Result<(StreamSeq, StreamSeq), Unavailable> {
        let info = setup::stream_info(client, stream)
            .await
            .map_err(unavailable)?;
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

    pub(super) async fn ask_leader(
        &self,
        job: &JobId,
        body: &Value,
    ) -> Result<Option<Found>, Unavailable> {
        let subject = format!("STREAM.MSG.GET.{}", self.stream(job));
        let answer = api::find(&self.nats.work, &subject, body, &[code::NO_MESSAGE])
            .await
            .map_err(unavailable)?;
        answer.map(|answer| self.found(job, &answer)).transpose()
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
                let stream_seq = number(&answer, names::SEQUENCE).ok_or_else(nowhere)?;
                Ok(Some(Found {
                    stream_seq,
                    event: self.stored(job, &answer),
                }))
            }
            Some(StatusCode::NOT_FOUND) => Ok(None),
            Some(status) => Err(Unavailable(format!(
                "a direct get was answered with status {status}"
            ))),
        }
    }

    /// How many undecodable messages were skipped; one that two readers skip counts twice.
    pub fn undecodable(&self) -> u64 {
        self.undecodable.skipped()
    }

    /// Takes note of a message that a reader skips.
    pub(super) fn note(&self, job: &JobId, stream_seq: StreamSeq, why: &Unreadable) {
        self.undecodable.note(job, stream_seq, why);
    }

    /// The stored event of a direct get; `None`, which is noted, for what does not have the form of one.
    pub(super) fn stored(&self, job: &JobId, message: &Message) -> Option<Stored> {
        let stream_seq = number(message, names::SEQUENCE)?;
        self.decode(
            job,
            stream_seq,
            &message.payload,
            confirmed(message.headers.as_ref()),
        )
    }

    pub(super) fn decode(
        &self,
        job: &JobId,
        stream_seq: StreamSeq,
        payload: &[u8],
        prev: Option<StreamSeq>,
    ) -> Option<Stored> {
        // A payload is a part of the client library's read buffer, all of which lives for as long as a part of it: one small
        // event that is kept would keep a hundred others.
        let decoded = Stored::decode(job, stream_seq, Bytes::copy_from_slice(payload));
        decoded
            .map(|event| event.after(prev))
            .inspect_err(|why| self.note(job, stream_seq, why))
            .ok()
    }

    /// What a leader answered. An empty payload has no `data`.
    fn found(&self, job: &JobId, answer: &Value) -> Result<Found, Unavailable> {
        let message = &answer["message"];
        let stream_seq = message["seq"].as_u64().ok_or_else(nowhere)?;
        let bytes = |key: &str| {
            BASE64
                .decode(message[key].as_str().unwrap_or_default())
                .unwrap_or_default()
        };
        let prev = confirmed_in(&String::from_utf8_lossy(&bytes("hdrs")));
        Ok(Found {
            stream_seq,
            event: self.decode(job, stream_seq, &bytes("data"), prev),
        })
    }
}

/// The place that a stored message was expected to follow in its subject, which the broker has checked; `None` when it was
/// not asked to, or to look at another subject.
pub(super) fn confirmed(headers: Option<&HeaderMap>) -> Option<StreamSeq> {
    let headers = headers?;
    let mut expected = headers.get_all(names::EXPECTED_LAST);
    let only = expected.next().filter(|_| expected.next().is_none())?;
    let of_this_subject = headers.get(names::EXPECTED_LAST_OF).is_none();
    only.as_str().parse().ok().filter(|_| of_this_subject)
}

/// The same for headers as they are on the wire.
fn confirmed_in(headers: &str) -> Option<StreamSeq> {
    let named = |name: &'static str| {
        headers
            .lines()
            .filter_map(|line| line.split_once(':'))
            .filter(move |(key, _)| *key == name)
    };
    let mut expected = named(names::EXPECTED_LAST);
    let (_, only) = expected.next().filter(|_| expected.next().is_none())?;
    only.trim()
        .parse()
        .ok()
        .filter(|_| named(names::EXPECTED_LAST_OF).next().is_none())
}

/// The value of a header that the broker sets: the last one, as the publisher's own come before.
pub(super) fn header<'a>(message: &'a Message, name: &'static str) -> Option<&'a str> {
    message
        .headers
        .as_ref()?
        .get_last(name)
        .map(async_nats::HeaderValue::as_str)
}

fn nowhere() -> Unavailable {
    Unavailable("a message without a sequence".into())
}

pub(super) fn too_many_undecodable() -> Unavailable {
    Unavailable(format!(
        "it holds more than {UNDECODABLE_MAX} undecodable messages in a row"
    ))
}

pub(super) fn unavailable(error: Error) -> Unavailable {
    if let Error::Unavailable(error) = error {
        error
    } else {
        Unavailable(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_broker_confirmed_is_read_alike_from_both_kinds_of_answers() {
        let (last, of) = (names::EXPECTED_LAST, names::EXPECTED_LAST_OF);
        for (given, expected) in [
            (vec![(last, "7")], Some(7)),
            (vec![("X", "1"), (last, "0")], Some(0)),
            (vec![], None),
            (vec![(last, "x")], None),
            (vec![(last, "7"), (last, "8")], None),
            (vec![(last, "7"), (of, "other.subject")], None),
        ] {
            let mut headers = HeaderMap::new();
            let mut wire = String::from("NATS/1.0\r\n");
            for (name, value) in given {
                headers.append(name, value);
                wire.push_str(&format!("{name}: {value}\r\n"));
            }
            assert_eq!(confirmed(Some(&headers)), expected, "{wire}");
            assert_eq!(confirmed_in(&wire), expected, "{wire}");
        }
        assert_eq!(confirmed(None), None);
    }
}
