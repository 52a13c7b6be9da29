//! Where events come from: the log and its live copies, as readers need them. `nats` implements it,
//! and `memory` for unit tests; [`hub`](crate::hub) and [`session`](crate::session) use it.

mod chain;
mod fold;
mod lookup;
#[cfg(test)]
pub(crate) mod memory;
mod reading;
mod refill;

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::task::{Context, Poll};

pub use chain::{Chain, LiveChain, LiveCopy, MessageClass};
pub use fold::{LogFold, fold, fold_until};
pub use lookup::{KnownJob, find_job};
pub use reading::LogReading;
pub use refill::{Refill, Refilled};

use crate::wire::{DecodeError, JobId, Seq, Stored, StreamSeq};

/// The logs of jobs, and live copies of stored events.
pub trait EventSource: Send + Sync + 'static {
    /// Live copies of one job.
    type Tail: Tail;
    /// One reading of one job's log.
    type Replay: Replay;
    /// Signals of submitted jobs.
    type SubmitSignals: SubmitSignals;

    /// Subscribes to the live copies, waits until the subscription is established, and then reads
    /// the last event from any replica, which may be stale.
    fn follow(
        &self,
        job: &JobId,
    ) -> impl Future<Output = Result<(Self::Tail, Option<Arc<Stored>>), Unavailable>> + Send;

    /// The last event of the log; undecodable messages after it are skipped. [`Replica::Any`] may
    /// be stale.
    fn last(
        &self,
        job: &JobId,
        from: Replica,
    ) -> impl Future<Output = Result<Option<Arc<Stored>>, Unavailable>> + Send;

    /// The message at a stream sequence of the job's shard. A lagging replica returns
    /// [`At::NotYet`] for messages that it does not have yet.
    fn at(
        &self,
        job: &JobId,
        stream_seq: StreamSeq,
        from: Replica,
    ) -> impl Future<Output = Result<At, Unavailable>> + Send;

    /// [`Self::at`] for a position that a client claims: it waits for those of other clients, so that
    /// many of them do not make the broker send as many large events at once.
    fn at_claimed(
        &self,
        job: &JobId,
        stream_seq: StreamSeq,
        from: Replica,
    ) -> impl Future<Output = Result<At, Unavailable>> + Send {
        self.at(job, stream_seq, from)
    }

    /// Reads the log, starting with the first call of [`Replay::next`].
    fn replay(&self, job: &JobId, span: Span) -> Self::Replay;

    /// Subscribes to submissions, and waits until the subscription is established.
    fn submit_signals(
        &self,
    ) -> impl Future<Output = Result<Self::SubmitSignals, Unavailable>> + Send;

    /// Whether the job waits in the queue or runs, according to a server that leads the queue or
    /// believes that it does.
    fn is_queued(&self, job: &JobId) -> impl Future<Output = Result<bool, Unavailable>> + Send;

    /// Counts a live copy that is not an event of its job, and logs the first one of each job.
    fn undecodable(&self, job: &JobId, stream_seq: StreamSeq, why: &DecodeError);
}

/// Live copies of one job's events. They may be lost, repeated or out of order.
pub trait Tail: fmt::Debug + Send {
    /// The next signal.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<TailSignal>;

    /// Ends the subscription: copies stop, but disturbances are still reported.
    fn unsubscribe(&mut self);
}

/// Signals of submissions. A signal may be lost, and a refused submission also causes one.
pub trait SubmitSignals: fmt::Debug + Send {
    /// The next signal. Cancel safe.
    fn next(&mut self) -> impl Future<Output = SubmitSignal> + Send;
}

/// A signal of a subscription to submissions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SubmitSignal {
    /// This job is being submitted: its first event is stored, or will be.
    Job(JobId),
    /// The connection was interrupted: signals may have been lost.
    Disturbed,
    /// The subscription has ended.
    Closed,
}

/// A signal of a live subscription.
#[derive(Clone, Debug)]
pub enum TailSignal {
    /// A copy of a stored event, with the stream sequence of the message before it.
    Event(Arc<Stored>),
    /// A copy of an undecodable message.
    Undecodable {
        /// Its stream sequence.
        stream_seq: StreamSeq,
        /// The stream sequence of the message before it in the job's log.
        prev: Option<StreamSeq>,
    },
    /// The connection was interrupted, or the leader changed: copies may have been lost, and the
    /// log may have been rebuilt. Sent before all later copies.
    Disturbed,
    /// The subscription has ended.
    Closed,
}

/// One reading of a log, in order. Dropping it ends it.
pub trait Replay: fmt::Debug + Send {
    /// The next events, at least one. `None` after the last event that the replica had when the
    /// reading began, or if a slow reader must start again. Cancel safe: the next call waits for
    /// the same request.
    fn next(
        &mut self,
    ) -> impl Future<Output = Option<Result<Vec<Arc<Stored>>, Unavailable>>> + Send;
}

/// Which part of a log to read, and from where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// The first event to read.
    pub from: Seq,
    /// Where the reading starts, if known: right after the event before `from`, or after an earlier
    /// event if those between have expired. A later position makes `from` undecodable, see
    /// [`Chain::new`]. The first event from there on is `from`, or a later one if that has expired.
    pub stream_seq: Option<StreamSeq>,
    /// The last event to read.
    pub until: Option<Seq>,
    /// Which replica to read.
    pub replica: Replica,
}

/// Which replica answers a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replica {
    /// The nearest one, which may lag.
    Any,
    /// The leader of the shard, if it has proven that it has a quorum: it has every stored event.
    Leader,
}

/// The message at a stream sequence of a shard.
#[derive(Clone, Debug)]
pub enum At {
    /// This event of the job.
    Event(Arc<Stored>),
    /// An event of another job, or an undecodable message.
    Other,
    /// It was removed.
    Removed,
    /// It was not stored yet.
    NotYet,
}

/// The first event of a job after the stream sequence of an expired event, read from the leader. If
/// its number is not higher than that of the expired event, the whole log has expired and started
/// again.
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
#[error("the log cannot be read: {0}")]
pub struct Unavailable(pub String);
