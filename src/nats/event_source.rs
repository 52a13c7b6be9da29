//! [`EventSource`] over NATS: delegates each method to the file that does the work.

use std::sync::Arc;

use super::follow::LiveTail;
use super::read::Reader;
use super::replay::LogReplay;
use super::submit_signals::LiveSubmitSignals;
use crate::source::{At, EventSource, Replica, Span, Unavailable};
use crate::wire::{DecodeError, JobId, Stored, StreamSeq};

impl EventSource for Reader {
    type Tail = LiveTail;
    type Replay = LogReplay;
    type SubmitSignals = LiveSubmitSignals;

    async fn follow(&self, job: &JobId) -> Result<(LiveTail, Option<Arc<Stored>>), Unavailable> {
        self.follow_live(job).await
    }

    async fn last(&self, job: &JobId, from: Replica) -> Result<Option<Arc<Stored>>, Unavailable> {
        let last = match from {
            Replica::Any => self.log.last_of_any(&self.log.nats.replay, job).await?,
            Replica::Leader => self.log.last(job).await?,
        };
        Ok(last.map(Arc::new))
    }

    async fn at(
        &self,
        job: &JobId,
        stream_seq: StreamSeq,
        from: Replica,
    ) -> Result<At, Unavailable> {
        self.log.at_replica(job, stream_seq, from).await
    }

    async fn at_claimed(
        &self,
        job: &JobId,
        stream_seq: StreamSeq,
        from: Replica,
    ) -> Result<At, Unavailable> {
        self.look_up(job, stream_seq, from).await
    }

    fn replay(&self, job: &JobId, span: Span) -> LogReplay {
        LogReplay::new(self.clone(), job.clone(), span)
    }

    async fn submit_signals(&self) -> Result<LiveSubmitSignals, Unavailable> {
        self.queue.submit_signals().await
    }

    async fn is_queued(&self, job: &JobId) -> Result<bool, Unavailable> {
        self.queue.is_queued(job).await
    }

    fn undecodable(&self, job: &JobId, stream_seq: StreamSeq, why: &DecodeError) {
        self.log.note_undecodable(job, stream_seq, why);
    }
}
