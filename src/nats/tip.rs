//! Finds the end of a job's log: its last event, and the proof that it is one. Any publisher may
//! store messages under a job's subject, so the last message may not be an event.

use tokio::time::{Instant, sleep};

use super::batch::batch;
use super::log::{FoundMessage, Log, too_many_undecodable};
use super::message::{GetMessage, number};
use super::names;
use super::quorum::StreamId;
use crate::backoff::Backoff;
use crate::config::{LOOK_BACK, REQUEST_WAIT, REREAD_FIRST, REREAD_MAX, UNDECODABLE_MAX};
use crate::source::{At, Chain, MessageClass, Unavailable};
use crate::wire::{DecodeError, JobId, Seq, Stored, StreamSeq};

/// Where a job's log ends.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "returned once, never stored")]
pub enum Tip {
    /// At this event and message.
    At {
        /// The last event; `None` while there is none.
        last: Option<Stored>,
        /// The stream sequence of the last message, which may be undecodable: an append must expect
        /// it. 0 when there is none.
        fence: StreamSeq,
    },
    /// After more than [`UNDECODABLE_MAX`] undecodable messages, where readers stop.
    Undecodable,
}

/// The state of a search through a part of a job's log.
struct TipSearch {
    /// The chain of events; `None` until two messages confirm each other.
    chain: Option<Chain>,
    /// The chain after the previous message, if it is an event.
    before: Option<Chain>,
    last: Option<Stored>,
    /// How many undecodable messages followed the last one that may be an event.
    undecodable: usize,
}

impl Log {
    /// The last event, from a leader with a quorum.
    ///
    /// # Errors
    /// [`Unavailable`].
    pub async fn last(&self, job: &JobId) -> Result<Option<Stored>, Unavailable> {
        match self.proven_tip(job).await? {
            Tip::At { last, .. } => Ok(last),
            Tip::Undecodable => Err(too_many_undecodable()),
        }
    }

    /// The end of the log, from a leader with a quorum.
    pub(super) async fn proven_tip(&self, job: &JobId) -> Result<Tip, Unavailable> {
        self.proven(StreamId::Shard(job.shard(self.shards)), || self.tip(job))
            .await
    }

    /// The end of the log, from a server that leads the shard or believes that it does. If the log
    /// has later messages, an append there is refused.
    ///
    /// # Errors
    /// [`Unavailable`].
    pub async fn tip(&self, job: &JobId) -> Result<Tip, Unavailable> {
        let deadline = Instant::now() + REQUEST_WAIT;
        let mut backoff = Backoff::new(REREAD_FIRST, REREAD_MAX);
        let subject = self.subject(job);
        loop {
            let last = self.ask_leader(job, &GetMessage::last_of(&subject)).await?;
            let Some(FoundMessage {
                stream_seq: fence,
                event,
            }) = last
            else {
                return Ok(Tip::At {
                    last: None,
                    fence: 0,
                });
            };
            if let Some(event) = event
                && self.is_proven(job, &event).await?
            {
                return Ok(Tip::At {
                    last: Some(event),
                    fence,
                });
            }
            if let Some(tip) = self.search_back(job, fence).await? {
                return Ok(tip);
            }
            if Instant::now() >= deadline {
                return Err(Unavailable("a replica of the log keeps lagging".into()));
            }
            sleep(backoff.next_pause()).await;
        }
    }

    /// Whether a message is proven to be an event: the broker confirmed the stream sequence of the
    /// previous message, and that is the previous event, or has expired. Messages of fenced writers
    /// are proven by one read; other messages need a search back.
    pub(super) async fn is_proven(&self, job: &JobId, event: &Stored) -> Result<bool, Unavailable> {
        match event.prev {
            None => Ok(false),
            Some(0) => Ok(event.seq == Seq::FIRST),
            Some(prev) => Ok(match self.at(job, prev).await? {
                At::Event(before) => Chain::after(&before).is_followed_by(event),
                At::Removed => event.seq > Seq::FIRST,
                At::Other | At::NotYet => false,
            }),
        }
    }

    /// Whether the message at `stream_seq` of the job's shard has expired.
    async fn is_removed(&self, job: &JobId, stream_seq: StreamSeq) -> Result<bool, Unavailable> {
        Ok(matches!(self.at(job, stream_seq).await?, At::Removed))
    }

    /// Whether a message of this class is the next event.
    pub(super) async fn decide(
        &self,
        job: &JobId,
        class: MessageClass,
    ) -> Result<bool, Unavailable> {
        match class {
            MessageClass::Next => Ok(true),
            MessageClass::Undecodable => Ok(false),
            MessageClass::IfStored(stream_seq) => Ok(!self.is_removed(job, stream_seq).await?),
            MessageClass::IfExpired([one, other]) => Ok(self.is_removed(job, one).await?
                || one != other && self.is_removed(job, other).await?),
        }
    }

    /// Whether the next message of a log is its next event. Counts one that is not.
    pub(super) async fn is_next(
        &self,
        job: &JobId,
        chain: &Chain,
        event: &Stored,
    ) -> Result<bool, Unavailable> {
        let is_next = self.decide(job, chain.classify(event)).await?;
        if !is_next {
            self.note_undecodable(job, event.stream_seq, &DecodeError::OutOfOrder);
        }
        Ok(is_next)
    }

    /// The next event, from the leader. Advances the chain to it.
    pub(super) async fn next_event(
        &self,
        job: &JobId,
        chain: &mut Chain,
    ) -> Result<Option<Stored>, Unavailable> {
        for _ in 0..UNDECODABLE_MAX {
            let Some(event) = self.next(job, chain.read() + 1).await? else {
                return Ok(None);
            };
            if self.is_next(job, chain, &event).await? {
                chain.accept(&event);
                return Ok(Some(event));
            }
            chain.skip(event.stream_seq);
        }
        Err(too_many_undecodable())
    }

    /// The first event that the log still has, from a leader with a quorum.
    ///
    /// # Errors
    /// [`Unavailable`].
    pub async fn first(&self, job: &JobId) -> Result<Option<Stored>, Unavailable> {
        let first = || async { self.next_event(job, &mut Chain::new(Seq::FIRST, 0)).await };
        self.proven(StreamId::Shard(job.shard(self.shards)), first)
            .await
    }

    /// Searches for the last event up to `fence`, starting further and further back; `None` when a
    /// replica did not have all messages.
    async fn search_back(&self, job: &JobId, fence: StreamSeq) -> Result<Option<Tip>, Unavailable> {
        let subject = self.subject(job);
        let mut reach = LOOK_BACK;
        loop {
            let from = fence.saturating_sub(reach).max(1);
            let chain = (from == 1).then(|| Chain::new(Seq::FIRST, 0));
            let mut search = TipSearch {
                chain,
                before: None,
                last: None,
                undecodable: 0,
            };
            let mut stream_seq = from;
            while stream_seq <= fence {
                let get = GetMessage::page_of(&subject, stream_seq);
                let page = batch(&self.nats.replay, &self.stream(job), get.body()).await?;
                // A replica may lack the last messages, but none in between.
                let Some(end) = page
                    .messages
                    .last()
                    .and_then(|message| number(message, names::SEQUENCE))
                else {
                    return Ok(None);
                };
                for message in &page.messages {
                    let at = number(message, names::SEQUENCE).filter(|at| *at <= fence);
                    let Some(at) = at else { continue };
                    let event = self.decode_message(job, message);
                    self.search_step(job, &mut search, at, event).await?;
                }
                if search.undecodable > UNDECODABLE_MAX {
                    return Ok(Some(Tip::Undecodable));
                }
                stream_seq = end + 1;
            }
            if search.last.is_some() || from == 1 {
                return Ok(Some(Tip::At {
                    last: search.last,
                    fence,
                }));
            }
            reach = reach.saturating_mul(8);
        }
    }

    async fn search_step(
        &self,
        job: &JobId,
        search: &mut TipSearch,
        stream_seq: StreamSeq,
        event: Option<Stored>,
    ) -> Result<(), Unavailable> {
        let Some(event) = event else {
            search.skip(stream_seq);
            search.before = None;
            return Ok(());
        };
        let before = search.before.replace(Chain::after(&event));
        let is_event = match search.chain {
            Some(chain) => self.is_next(job, &chain, &event).await?,
            None => {
                event.prev == Some(0) && event.seq == Seq::FIRST
                    || before.is_some_and(|before| before.is_followed_by(&event))
            }
        };
        if is_event {
            search.chain = search.before;
            search.last = Some(event);
            search.undecodable = 0;
        } else if search.chain.is_some() {
            search.skip(stream_seq);
        } else {
            // It may be an event: earlier messages decide.
            search.undecodable = 0;
        }
        Ok(())
    }
}

impl TipSearch {
    fn skip(&mut self, stream_seq: StreamSeq) {
        self.undecodable += 1;
        if let Some(chain) = &mut self.chain {
            chain.skip(stream_seq);
        }
    }
}
