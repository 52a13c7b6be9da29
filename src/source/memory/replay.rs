//! One reading of a log in memory. What a page of it holds is the source's.

use std::sync::Arc;

use tokio_util::sync::ReusableBoxFuture;

use super::MemoryLog;
use crate::source::{Chain, Replay, Span, Unavailable};
use crate::wire::{JobId, Stored, StreamSeq};

/// One reading of one job's log. What it can give is fixed when it begins, and may expire while it reads.
#[derive(Debug)]
pub(crate) struct MemoryReplay {
    pub(super) memory: MemoryLog,
    pub(super) job: JobId,
    pub(super) span: Span,
    pub(super) way: Way,
    /// The question that is under way, across waits that are dropped.
    pub(super) asked: Option<ReusableBoxFuture<'static, Result<Answer, Unavailable>>>,
}

/// A page, and how it goes on.
pub(super) type Answer = (Vec<Arc<Stored>>, Way);

#[derive(Clone, Copy, Debug)]
pub(super) enum Way {
    Unbegun,
    Pages {
        from: StreamSeq,
        end: StreamSeq,
        chain: Chain,
    },
    Over,
}

impl Replay for MemoryReplay {
    async fn next(&mut self) -> Option<Result<Vec<Arc<Stored>>, Unavailable>> {
        loop {
            if matches!(self.way, Way::Over) {
                return None;
            }
            let asked = self.asked.get_or_insert_with(|| {
                let (memory, job, span, way) =
                    (self.memory.clone(), self.job.clone(), self.span, self.way);
                ReusableBoxFuture::new(async move {
                    memory
                        .ask(span.replica, |state| state.read(&job, span, way))
                        .await
                })
            });
            let read = asked.get_pin().await;
            self.asked = None;
            self.way = read.as_ref().map_or(Way::Over, |(_, way)| *way);
            match read {
                Ok((page, _)) if page.is_empty() => {}
                Ok((page, _)) => return Some(Ok(page)),
                Err(error) => return Some(Err(error)),
            }
        }
    }
}
