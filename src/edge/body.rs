//! Reads request bodies, with limits on size, time and memory. It does not interpret them.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::FromRef;
use futures_util::StreamExt as _;
use tokio::time::{Instant, timeout_at};

use super::app::App;
use super::error::Problem;
use super::memory::{SplitBudget, SplitReservation};
use crate::config::{BODY_STALL, BODY_WAIT, TINY_BYTES};
use crate::wire::Code;
use crate::wire::limits::BODY_MAX;

/// The room for bodies.
#[derive(Clone, Debug)]
pub(super) struct Bodies(pub(super) SplitBudget);

impl FromRef<Arc<App>> for Bodies {
    fn from_ref(app: &Arc<App>) -> Self {
        Self(app.shared.memory().bodies.clone())
    }
}

impl Bodies {
    /// Reads a body to its end. `head` has already refused one whose announced length is too large.
    pub(super) async fn read(&self, body: Body) -> Result<(Vec<u8>, SplitReservation), Problem> {
        let deadline = Instant::now() + BODY_WAIT;
        let mut reservation = self.0.empty(BODY_MAX);
        let mut bytes = Vec::new();
        let mut pieces = body.into_data_stream();
        loop {
            let piece = timeout_at(deadline.min(Instant::now() + BODY_STALL), pieces.next()).await;
            let Some(piece) = piece.map_err(|_| Code::Timeout)? else {
                break;
            };
            let piece = piece.map_err(|error| Problem::new(Code::BadRequest, error.to_string()))?;
            let size = bytes.len() + piece.len();
            if size > BODY_MAX {
                return Err(Code::TooLarge.into());
            }
            if size > bytes.capacity() {
                let capacity = size.max(bytes.capacity() * 2).min(BODY_MAX);
                reservation.resize(if capacity > TINY_BYTES { capacity } else { 0 })?;
                bytes.reserve_exact(capacity - bytes.len());
            }
            bytes.extend_from_slice(&piece);
        }
        reservation.settle(bytes.capacity());
        Ok((bytes, reservation))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::budget::Budget;
    use crate::edge::memory::Memory;
    use bytes::Bytes;
    use futures_util::stream::{self, pending};
    use std::convert::Infallible;
    use std::time::Duration;
    use tokio::time::sleep;

    fn bodies() -> Bodies {
        Bodies(Memory::new(Budget::unlimited()).bodies)
    }

    async fn read(bodies: &Bodies, body: Body) -> Result<usize, Code> {
        let read = bodies.read(body).await;
        read.map(|(bytes, _)| bytes.len())
            .map_err(|problem| problem.code())
    }

    /// A body of pieces with a pause before each.
    fn dripped(pieces: usize, size: usize, pause: Duration) -> Body {
        Body::from_stream(stream::iter(0..pieces).then(move |_| async move {
            sleep(pause).await;
            Ok::<_, Infallible>(Bytes::from(vec![b'x'; size]))
        }))
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_stalls_or_drips_times_out() {
        let bodies = bodies();
        let begun = Instant::now();
        let stalled = Body::from_stream(pending::<Result<Bytes, Infallible>>());
        assert_eq!(read(&bodies, stalled).await, Err(Code::Timeout));
        assert_eq!(begun.elapsed(), BODY_STALL);
        let begun = Instant::now();
        let drips = dripped(1000, 1, BODY_STALL / 2);
        assert_eq!(read(&bodies, drips).await, Err(Code::Timeout));
        assert_eq!(begun.elapsed(), BODY_WAIT);
        let slow = dripped(64, BODY_MAX / 64, BODY_WAIT / 65);
        assert_eq!(read(&bodies, slow).await, Ok(BODY_MAX));
    }

    #[tokio::test]
    async fn a_body_is_refused_once_it_is_too_large() {
        let bodies = bodies();
        assert_eq!(
            read(&bodies, Body::from(vec![b'x'; BODY_MAX])).await,
            Ok(BODY_MAX)
        );
        assert_eq!(
            read(&bodies, Body::from(vec![b'x'; BODY_MAX + 1])).await,
            Err(Code::TooLarge)
        );
    }

    #[tokio::test(start_paused = true)]
    async fn incomplete_large_bodies_hold_limited_memory_and_do_not_block_small_ones() {
        let memory = Memory::new(Budget::unlimited());
        let bodies = Bodies(memory.bodies.clone());
        // One byte less than the limit, then nothing.
        let short = || {
            let most = Ok::<_, Infallible>(Bytes::from(vec![b'x'; BODY_MAX - 1]));
            Body::from_stream(stream::once(async { most }).chain(pending()))
        };
        let readings: Vec<_> = (0..300).map(|_| read(&bodies, short())).collect();
        let flood = futures_util::future::join_all(readings);
        let small = async {
            sleep(Duration::from_secs(1)).await;
            let used = memory.whole.used();
            (used, read(&bodies, Body::from("{}")).await)
        };
        let (flood, (used, small)) = tokio::join!(flood, small);
        assert!(used <= crate::config::BODIES_BYTES, "{used}");
        assert_eq!(small, Ok(2));
        let count = |code| flood.iter().filter(|read| **read == Err(code)).count();
        assert_eq!((count(Code::Overloaded), count(Code::Timeout)), (284, 16));
        assert_eq!(memory.whole.used(), 0);
    }
}
