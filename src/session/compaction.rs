//! Compacts what was stored when a watch began: merges its text into few large events. Later events
//! pass unchanged. It is a layer over a session's steps and reads nothing but the start of the
//! current attempt.

use std::fmt;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures_util::future::BoxFuture;

use super::position::Position;
use super::step::Step;
use crate::budget::{Budget, Reservation};
use crate::config::COMPACT_BYTES;
use crate::hub::Hub;
use crate::source::{EventSource, LogReading};
use crate::wire::{Body, Compactor, EventMeta, EventType, JobId, Seq, Stored};

/// The compaction of one session's steps.
pub(super) struct Compaction {
    /// The last event that was stored when the watch began.
    until: Seq,
    /// Searches for the start of the current attempt.
    search: Option<BoxFuture<'static, Seq>>,
    compactor: Compactor,
    /// The room that the compactor takes. What it holds waits for the next page, and as long as the
    /// client accepts nothing.
    room: Reservation,
    /// The position before the events that the compactor holds.
    held_from: Position,
    /// A step that follows the last one that was returned, and the position before it.
    next: Option<(Position, Step)>,
}

impl Compaction {
    /// Compacts the events of a job from a position up to `last`, in this room.
    pub(super) fn new<S: EventSource>(
        hub: &Arc<Hub<S>>,
        job: &JobId,
        from: Position,
        last: EventMeta,
        room: &Budget,
    ) -> Self {
        let until = last.cursor.seq;
        // A first attempt supersedes nothing.
        let search = (last.attempt > 1).then(|| {
            let hub = Arc::clone(hub);
            Box::pin(current_start(hub, job.clone(), from, until)) as BoxFuture<'static, Seq>
        });
        Self {
            until,
            search,
            compactor: Compactor::new(Seq(0), COMPACT_BYTES),
            room: room.empty(),
            held_from: from,
            next: None,
        }
    }

    /// Finds the start of the current attempt, once. Call this before [`Self::apply`].
    pub(super) fn poll_prepare(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(search) = &mut self.search {
            let current_from = ready!(search.as_mut().poll(cx));
            self.search = None;
            self.compactor = Compactor::new(current_from, COMPACT_BYTES);
        }
        Poll::Ready(())
    }

    /// A step that was held back.
    pub(super) fn next_step(&mut self) -> Option<Step> {
        self.next.take().map(|(_, step)| step)
    }

    /// Applies a step of the session, which was at `before`. Returns the step for the client, if
    /// there is one.
    pub(super) fn apply(&mut self, before: Position, step: Step) -> Option<Step> {
        let mut out = Vec::new();
        match step {
            Step::Events(events) => {
                let mut position = before;
                for event in events {
                    let after = Position::after(&event);
                    self.add(position, event, &mut out);
                    position = after;
                }
            }
            other @ (Step::Gap { .. } | Step::Live | Step::End | Step::Rebuilt) => {
                self.compactor.flush(&mut out);
                if out.is_empty() {
                    return Some(other);
                }
                self.next = Some((before, other));
            }
        }
        self.hold(&mut out);
        (!out.is_empty()).then_some(Step::Events(out))
    }

    /// Takes room for what the compactor holds. If there is none, that is returned although more could
    /// be merged with it.
    fn hold(&mut self, out: &mut Vec<Arc<Stored>>) {
        if self.room.resize(self.compactor.size()).is_err() {
            self.compactor.flush(out);
            self.release();
        }
    }

    /// Releases the room: the compactor holds nothing.
    fn release(&mut self) {
        // Shrinking cannot fail.
        let _ = self.room.resize(0);
    }

    /// Adds the event after `position`.
    fn add(&mut self, position: Position, event: Arc<Stored>, out: &mut Vec<Arc<Stored>>) {
        let seq = event.seq;
        if seq > self.until {
            out.push(event);
            return;
        }
        self.compactor.push(event, out);
        if self.compactor.first_held() == Some(seq) {
            self.held_from = position;
        }
        if seq == self.until {
            self.compactor.flush(out);
        }
    }

    /// Forgets what was not returned: the session goes back.
    pub(super) fn clear(&mut self) {
        self.compactor.clear();
        self.release();
        // Only a gap is found again.
        self.next = self
            .next
            .take()
            .filter(|(_, step)| !matches!(step, Step::Gap { .. }));
    }

    /// The position before what was not returned, if there is anything.
    pub(super) fn held_from(&self) -> Option<Position> {
        match (&self.next, self.compactor.first_held()) {
            (_, Some(_)) => Some(self.held_from),
            (Some((before, _)), None) => Some(*before),
            (None, None) => None,
        }
    }
}

/// The start of the last attempt between a position and the event `until` that continues no earlier
/// one.
async fn current_start<S: EventSource>(
    hub: Arc<Hub<S>>,
    job: JobId,
    from: Position,
    until: Seq,
) -> Seq {
    let stream_seq = from.stream_seq.map(NonZeroU64::get);
    let mut reading = LogReading::<S>::new(from.next_seq, stream_seq, until);
    let mut current_from = Seq(0);
    while let Some(events) = reading.next(hub.source(), &job).await {
        if let Some(start) = events.iter().rev().find(|event| is_new_start(event)) {
            current_from = start.seq;
        }
    }
    current_from
}

impl fmt::Debug for Compaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Compaction")
            .field("until", &self.until)
            .field("compactor", &self.compactor)
            .finish_non_exhaustive()
    }
}

/// Whether an attempt starts here that continues no earlier one.
fn is_new_start(event: &Stored) -> bool {
    event.event_type == EventType::Started
        && event.event().is_ok_and(|event| {
            matches!(
                event.body,
                Body::Started {
                    continues: false,
                    ..
                }
            )
        })
}
