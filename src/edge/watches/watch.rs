//! One watch of a client: opens its session, reads it, and waits for room for large events.

use std::mem::replace;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures_util::future::BoxFuture;

use crate::budget::{Budget, LimitReached, Reservation};
use crate::edge::counters::RoomMember;
use crate::runtime::Tasks;
use crate::session::{Position, Session, SessionError, Step};
use crate::source::EventSource;
use crate::wire::{JobId, Status, Stored};

/// A watch of one job. `R` says where the answer to its request goes.
pub(super) struct Watch<S: EventSource, R> {
    state: WatchState<S, R>,
    /// Reserved before the events for which there was no room are read again.
    room: Option<Box<Reservation>>,
    /// Since when the client has everything that was stored before.
    pub(super) live_since_ms: Option<NonZeroU64>,
    /// Boxed, because only one transport has rooms.
    _member: Option<Box<RoomMember>>,
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
    session: Opening<S>,
    reply_to: R,
}

/// A watch without room for the next events.
struct FullWatch<S: EventSource> {
    session: Session<S>,
    room: BoxFuture<'static, Reservation>,
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
    pub(super) fn new(
        job: JobId,
        opening: Opening<S>,
        reply_to: R,
        member: Option<RoomMember>,
    ) -> Self {
        let opening = OpeningWatch {
            job,
            session: opening,
            reply_to,
        };
        Self {
            state: WatchState::Opening(Box::new(opening)),
            room: None,
            live_since_ms: None,
            _member: member.map(Box::new),
        }
    }

    /// A watch with an open session.
    pub(super) fn of(session: Session<S>) -> Self {
        Self {
            state: WatchState::Open(session),
            room: None,
            live_since_ms: None,
            _member: None,
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
                    let step = ready!(session.poll_next(cx));
                    return Poll::Ready(Progress::Step(step, before));
                }
                WatchState::Opening(opening) => {
                    let opened = ready!(opening.session.as_mut().poll(cx));
                    return Poll::Ready(self.opened(opened));
                }
                WatchState::Full(full) => {
                    let room = ready!(full.room.as_mut().poll(cx));
                    self.found_room(room);
                }
                WatchState::Over(_) => return Poll::Pending,
            }
        }
    }

    fn opened(&mut self, opened: Result<Session<S>, SessionError>) -> Progress<R> {
        let WatchState::Opening(opening) = self.take_state() else {
            unreachable!("only an opening session is opened")
        };
        match opened {
            Ok(session) => {
                let status = session.status();
                self.state = WatchState::Open(session);
                Progress::Opened(status, opening.reply_to)
            }
            Err(error) => Progress::Refused(error, opening.reply_to),
        }
    }

    fn found_room(&mut self, room: Reservation) {
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
    /// `tasks` waits for that.
    pub(super) fn room_for(
        &mut self,
        bytes: usize,
        budget: &Budget,
        tasks: &Tasks,
        before: Position,
    ) -> Result<Option<Box<Reservation>>, LimitReached> {
        let room = self.room.take().filter(|room| room.bytes() >= bytes);
        if bytes == 0 || room.is_some() {
            return Ok(room.filter(|_| bytes > 0));
        }
        let reserved = budget.reserve_if_first(bytes);
        if reserved.is_err()
            && let WatchState::Open(mut session) = self.take_state()
        {
            session.rewind(before);
            let room = budget.clone().reserve_by_task(bytes, tasks.clone());
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
