//! Where events come from: the log and its live copies, as readers need them. Knows neither NATS nor clients. `nats`
//! implements it, and so does `memory` for unit tests; [`hub`](crate::hub) and [`session`](crate::session) use it.

mod chain;
mod fold;
#[cfg(test)]
pub(crate) mod memory;
mod refill;

use std::fmt;
use std::future::Future;
use std::sync::Arc;

pub use chain::{Chain, LiveChain, LiveCopy, MessageClass};
pub use fold::{FoldError, fold, fold_within};
pub use refill::{Refill, Refilled};

use crate::wire::{JobId, Seq, Stored, StreamSeq, Unreadable};

/// A job's log, and live copies of what is stored in it.
pub trait EventSource: Send + Sync + 'static {
    /// Live copies of one job.
    type Tail: Tail;
    /// One reading of one job's log.
    type Replay: Replay;
    /// Signals of what is submitted.
    type SubmitSignals: SubmitSignals;

    /// Subscribes to the live copies, makes sure that the subscription stands, and only then reads the last event.
    /// The answer of a replica may be stale.
    fn follow(
        &self,
        job: &JobId,
    ) -> impl Future<Output = Result<(Self::Tail, Option<Arc<Stored>>), Unavailable>> + Send;

    /// The last event of the log, with what stands before it checked: from any replica, which may be stale, or from a
    /// leader with a quorum, which is not.
    fn last(
        &self,
        job: &JobId,
        from: Replica,
    ) -> impl Future<Output = Result<Option<Arc<Stored>>, Unavailable>> + Send;

    /// What stands at a place of the job's shard: as any replica sees it, which may say [`At::NotYet`] of what is stored
    /// or was, or as a leader with a quorum knows it.
    fn at(
        &self,
        job: &JobId,
        stream_seq: StreamSeq,
        from: Replica,
    ) -> impl Future<Output = Result<At, Unavailable>> + Send;

    /// Reads the log. Nothing happens before the first [`Replay::next`].
    fn replay(&self, job: &JobId, span: Span) -> Self::Replay;

    /// Subscribes to what is submitted, and makes sure that the subscription stands.
    fn submit_signals(
        &self,
    ) -> impl Future<Output = Result<Self::SubmitSignals, Unavailable>> + Send;

    /// Whether the job waits in the queue or runs, as a server that leads the queue, or believes that it does, knows it.
    fn is_queued(&self, job: &JobId) -> impl Future<Output = Result<bool, Unavailable>> + Send;

    /// Takes note of a live copy that turned out not to be an event of its job: what is skipped is counted, and reported
    /// once for each job.
    fn undecodable(&self, job: &JobId, stream_seq: StreamSeq, why: &Unreadable);
}

/// Live copies of one job's events; they may be lost, doubled or out of order.
pub trait Tail: fmt::Debug + Send {
    /// The next thing that happens. Safe to drop at any await.
    fn next(&mut self) -> impl Future<Output = Signal> + Send;

    /// What has happened already, without waiting.
    fn ready(&mut self) -> Option<Signal>;

    /// Ends the subscription: no copy comes any more, but disturbances are told as before.
    fn unsubscribe(&mut self);
}

/// Signals of what is submitted: at most once, and also of what is refused.
pub trait SubmitSignals: fmt::Debug + Send {
    /// The next thing that happens. Safe to drop at any await.
    fn next(&mut self) -> impl Future<Output = SubmitSignal> + Send;
}

/// What a subscription to submissions tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SubmitSignal {
    /// This job is being submitted: its first event is stored, or will be.
    Job(JobId),
    /// The broker was away: signals may have been lost.
    Disturbed,
    /// The subscription has ended.
    Closed,
}

/// What a live subscription tells.
#[derive(Clone, Debug)]
pub enum Signal {
    /// A copy of a stored event, with the place of the message before it.
    Event(Arc<Stored>),
    /// A copy of an undecodable message.
    Undecodable {
        /// Its place.
        stream_seq: StreamSeq,
        /// The place of the message before it in the job's log.
        prev: Option<StreamSeq>,
    },
    /// The broker was away, or has another leader: copies may have been lost, and the log may be another one than before.
    /// It comes before all copies from after that.
    Disturbed,
    /// The subscription has ended.
    Closed,
}

/// One reading of a log: gives items in order, from [`Span::from`] on. Dropping it ends it.
pub trait Replay: fmt::Debug + Send {
    /// The next items, never none; `None` when everything was given that the log held when the reading began, as far
    /// as its reader could see, or when a slow reader must begin again. Safe to drop at any await: what it has asked is
    /// not asked again, and the next call waits for the same answer.
    fn next(
        &mut self,
    ) -> impl Future<Output = Option<Result<Vec<Arc<Stored>>, Unavailable>>> + Send;
}

/// What to read of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// The first event that is wanted.
    pub from: Seq,
    /// A place after the event before that one, when it is known: what lies before it is not walked. The first event from
    /// there on is the one that is wanted, or a later one when some have expired.
    pub stream_seq: Option<StreamSeq>,
    /// An event after which no more is wanted; it is given itself.
    pub until: Option<Seq>,
    /// Who is to be asked.
    pub replica: Replica,
}

/// Who answers a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replica {
    /// Whoever is nearest; what was stored last may be missing.
    Any,
    /// The leader of the shard, while it is proven to have a quorum: it has everything, and what it lacks is not there.
    Leader,
}

/// What stands at a place of a shard.
#[derive(Clone, Debug)]
pub enum At {
    /// This event of the job.
    Event(Arc<Stored>),
    /// An event of another job, or an undecodable message.
    Other,
    /// Nothing any more.
    Removed,
    /// Nothing yet.
    NotYet,
}

/// The first event of a job behind a place whose event has expired, as a leader with a quorum knows it. One that expired
/// with what was before it is followed by a higher number, if by any: a log that expired as a whole may have begun anew.
///
/// # Errors
/// [`Unavailable`].
pub async fn first_after<S: EventSource>(
    source: &S,
    job: &JobId,
    stream_seq: StreamSeq,
) -> Result<Option<Arc<Stored>>, Unavailable> {
    let span = Span {
        from: Seq::FIRST,
        stream_seq: Some(stream_seq),
        until: None,
        replica: Replica::Leader,
    };
    let events = source.replay(job, span).next().await.transpose()?;
    Ok(events.and_then(|events| events.first().cloned()))
}

/// The log cannot be read for the moment.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the log is out of reach: {0}")]
pub struct Unavailable(pub String);
