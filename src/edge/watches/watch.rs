//! One watch of a client: opens its session, reads it, and waits for room for large events.

use std::mem::replace;
use std::num::NonZeroU64;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, MaybeDone, maybe_done};
use tokio::sync::{Mutex, OwnedMutexGuard};

use crate::budget::{Budget, LimitReached, Reservation};
use crate::config::STEP_BYTES;
use crate::edge::counters::RoomMember;
use crate::runtime::Tasks;
use crate::session::{Position, Session, SessionError, Step};
use crate::source::EventSource;
use crate::wire::{JobId, Status, Stored};

/// The turn to wait for room, which the watches of one client share. A client that accepts nothing takes
/// no room, but keeps it for a moment from those that wait after it: that is once for a client, and not
/// once for each of its watches.
pub(in crate::edge) type RoomTurn = Arc<Mutex<()>>;

/// A watch of one job. `R` says where the answer to its request goes.
pub(super) struct Watch<S: EventSource, R> {
    state: WatchState<S, R>,
    /// Reserved before the events for which there was no room are read again.
    room: Option<Box<WatchRoom>>,
    /// Since when the client has everything that was stored before.
    pub(super) live_since_ms: Option<NonZeroU64>,
    /// Boxed, because the only watch of a client usually holds nothing.
    _held: Option<Box<WatchHeld>>,
}

/// What a watch holds until it ends.
#[derive(Debug)]
pub(super) struct WatchHeld {
    /// Counts it in the room of its job.
    pub(super) member: Option<RoomMember>,
    /// The memory that it takes, unless it is the first of its client.
    pub(super) room: Option<Reservation>,
}

impl WatchHeld {
    const fn is_empty(&self) -> bool {
        self.member.is_none() && self.room.is_none()
    }
}

/// ```text
///   Opening ──▶ Open ◀──▶ Full
///      └── refused ──▶ Over
/// ```
///
/// The large states that are not usual are boxed, because every idle client has a watch.
enum WatchState<S: EventSource, R> {
    Opening(Box<OpeningWatch<S, R>>),
    Open(Session<S>),
    /// Waits for room for the next events.
    Full(Box<FullWatch<S>>),
    /// The job cannot be watched.
    Over(JobId),
}

/// A watch whose session is being opened.
struct OpeningWatch<S: EventSource, R> {
    job: JobId,
    /// The opening, or its result.
    session: MaybeDone<Opening<S>>,
    reply_to: R,
}

/// A watch without room for the next events.
struct FullWatch<S: EventSource> {
    session: Session<S>,
    room: BoxFuture<'static, WatchRoom>,
}

/// Room for the next events.
struct WatchRoom {
    reservation: Reservation,
    /// The other watches of the client wait until these events are read.
    _turn: OwnedMutexGuard<()>,
}

/// A session that is being opened.
pub(super) type Opening<S> = BoxFuture<'static, Result<Session<S>, SessionError>>;

/// What a watch has done.
pub(super) enum Progress<R> {
    Opened(Option<Status>, R),
    Refused(SessionError, R),
    /// A step, and where the session stood before it.
    Step(Step, Position),
}

impl<S: EventSource, R> Watch<S, R> {
    /// A watch whose session is being opened.
    pub(super) fn new(job: JobId, opening: Opening<S>, reply_to: R, held: WatchHeld) -> Self {
        let opening = OpeningWatch {
            job,
            session: maybe_done(opening),
            reply_to,
        };
        Self {
            state: WatchState::Opening(Box::new(opening)),
            room: None,
            live_since_ms: None,
            _held: (!held.is_empty()).then(|| Box::new(held)),
        }
    }

    /// A watch with an open session.
    pub(super) fn of(session: Session<S>) -> Self {
        Self {
            state: WatchState::Open(session),
            room: None,
            live_since_ms: None,
            _held: None,
        }
    }

    pub(super) fn job(&self) -> &JobId {
        match &self.state {
            WatchState::Opening(opening) => &opening.job,
            WatchState::Open(session) => session.job(),
            WatchState::Full(full) => full.session.job(),
            WatchState::Over(job) => job,
        }
    }

    /// When one of these events was stored, if that is known and the client was live then.
    pub(super) fn measured(&self, events: &[Arc<Stored>]) -> Option<NonZeroU64> {
        let live_since_ms = self.live_since_ms?;
        let mut stored = events.iter().filter_map(|event| event.stored_ms);
        stored
            .next_back()
            .filter(|stored_ms| *stored_ms >= live_since_ms)
    }

    /// What happens next.
    pub(super) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Progress<R>> {
        loop {
            match &mut self.state {
                WatchState::Open(session) => {
                    let before = session.position();
                    let polled = session.poll_next(cx);
                    if self.room.is_some() && polled.is_pending() && session.reads_memory() {
                        // The events that needed the room are gone.
                        self.room = None;
                    }
                    return polled.map(|step| Progress::Step(step, before));
                }
                WatchState::Opening(opening) => {
                    ready!(opening.session.poll_unpin(cx));
                    return Poll::Ready(self.opened());
                }
                WatchState::Full(full) => {
                    let room = ready!(full.room.as_mut().poll(cx));
                    self.found_room(room);
                }
                WatchState::Over(_) => return Poll::Pending,
            }
        }
    }

    /// Goes on with opening the session, if it is not open yet. [`Self::poll_next`] returns the result.
    pub(super) fn poll_opening(&mut self, cx: &mut Context<'_>) {
        if let WatchState::Opening(opening) = &mut self.state {
            // Pending, or the result is kept.
            let _ = opening.session.poll_unpin(cx);
        }
    }

    fn opened(&mut self) -> Progress<R> {
        let WatchState::Opening(mut opening) = self.take_state() else {
            unreachable!("only an opening session is opened")
        };
        let opened = Pin::new(&mut opening.session).take_output();
        match opened.unwrap_or_else(|| unreachable!("its result was not taken before")) {
            Ok(session) => {
                let status = session.status();
                self.state = WatchState::Open(session);
                Progress::Opened(status, opening.reply_to)
            }
            Err(error) => Progress::Refused(error, opening.reply_to),
        }
    }

    fn found_room(&mut self, room: WatchRoom) {
        self.room = Some(Box::new(room));
        if let WatchState::Full(full) = self.take_state() {
            self.state = WatchState::Open(full.session);
        }
    }

    /// Takes the state. The watch is over unless another one follows.
    fn take_state(&mut self) -> WatchState<S, R> {
        let over = WatchState::Over(self.job().clone());
        replace(&mut self.state, over)
    }

    /// Room for events that need this many bytes.
    ///
    /// # Errors
    /// When there is none, or others wait for it. The session then goes back to where it stood `before`
    /// them, and reads them again once there is, and those that came earlier have theirs. One of
    /// `tasks` waits for that once it is this watch's turn. Makes the client's `turn` if it has none.
    pub(super) fn room_for(
        &mut self,
        bytes: usize,
        budget: &Budget,
        tasks: &Tasks,
        turn: &mut Option<RoomTurn>,
        before: Position,
    ) -> Result<Option<Box<Reservation>>, LimitReached> {
        let room = self.room.take();
        if bytes == 0 {
            return Ok(None);
        }
        let mut enough = bytes;
        if let Some(mut room) = room {
            if room.reservation.bytes() >= bytes {
                // Shrinking cannot fail.
                let _ = room.reservation.resize(bytes);
                return Ok(Some(Box::new(room.reservation)));
            }
            // Events that arrived meanwhile are part of the step. More of them must not make it wait again.
            enough = bytes.max(STEP_BYTES);
        }
        let reserved = budget.reserve_if_first(bytes);
        if reserved.is_err()
            && let WatchState::Open(mut session) = self.take_state()
        {
            session.rewind(before);
            let turn = Arc::clone(turn.get_or_insert_default());
            let budget = budget.clone();
            let tasks = tasks.clone();
            let room = async move {
                let turn = turn.lock_owned().await;
                let reservation = budget.reserve_by_task(enough, tasks).await;
                WatchRoom {
                    reservation,
                    _turn: turn,
                }
            };
            self.state = WatchState::Full(Box::new(FullWatch {
                session,
                room: Box::pin(room),
            }));
        }
        reserved.map(|room| Some(Box::new(room)))
    }

    /// The open session.
    pub(super) fn session(&mut self) -> Option<&mut Session<S>> {
        match &mut self.state {
            WatchState::Open(session) => Some(session),
            WatchState::Opening(_) | WatchState::Full(_) | WatchState::Over(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::Hub;
    use crate::source::memory::{MemoryLog, chunk, job};
    use crate::wire::{Seq, Start};
    use std::future::poll_fn;

    #[tokio::test(start_paused = true)]
    async fn room_is_released_once_the_events_that_needed_it_are_gone() {
        let log = MemoryLog::default();
        log.append(&job(), chunk("x"));
        let hub = Hub::new(log, Tasks::default());
        let start = Start::After(Seq(1));
        let session = Session::open(&hub, &job(), start).await.unwrap();
        let mut watch: Watch<MemoryLog, ()> = Watch::of(session);
        let budget = Budget::new(1);
        watch.room = Some(Box::new(WatchRoom {
            reservation: budget.reserve(1).unwrap(),
            _turn: RoomTurn::default().lock_owned().await,
        }));
        let live = poll_fn(|cx| watch.poll_next(cx)).await;
        assert!(matches!(live, Progress::Step(Step::Live, _)));
        let next = poll_fn(|cx| watch.poll_next(cx)).now_or_never();
        assert!(next.is_none() && budget.used() == 0);
    }
}
