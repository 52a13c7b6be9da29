//! One reading of a log in memory.

use std::sync::Arc;

use tokio_util::sync::ReusableBoxFuture;

use super::MemoryLog;
use crate::source::{Chain, Replay, Span, Unavailable};
use crate::wire::{JobId, Stored, StreamSeq};

/// One reading of one job's log. Its end is fixed when it begins; its events may expire meanwhile.
#[derive(Debug)]
pub(crate) struct MemoryReplay {
    pub(super) memory: MemoryLog,
    pub(super) job: JobId,
    pub(super) span: Span,
    pub(super) state: ReplayState,
    /// The running request, which outlives a dropped wait.
    pub(super) reading: Option<ReusableBoxFuture<'static, Result<MemoryPage, Unavailable>>>,
}

/// A page, and the state after it.
pub(super) type MemoryPage = (Vec<Arc<Stored>>, ReplayState);

#[derive(Clone, Copy, Debug)]
pub(super) enum ReplayState {
    NotStarted,
    Pages {
        from: StreamSeq,
        end: StreamSeq,
        chain: Chain,
    },
    Done,
}

impl Replay for MemoryReplay {
    async fn next(&mut self) -> Option<Result<Vec<Arc<Stored>>, Unavailable>> {
        loop {
            if matches!(self.state, ReplayState::Done) {
                return None;
            }
            let reading = self.reading.get_or_insert_with(|| {
                let memory = self.memory.clone();
                let job = self.job.clone();
                let span = self.span;
                let replay = self.state;
                ReusableBoxFuture::new(async move {
                    memory
                        .ask(span.replica, |state| state.read(&job, span, replay))
                        .await
                })
            });
            let read = reading.get_pin().await;
            self.reading = None;
            self.state = read.as_ref().map_or(ReplayState::Done, |(_, state)| *state);
            match read {
                Ok((page, _)) if page.is_empty() => {}
                Ok((page, _)) => return Some(Ok(page)),
                Err(error) => return Some(Err(error)),
            }
        }
    }
}
