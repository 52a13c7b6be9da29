//! One watch of a client: opens its session, reads it, and waits for room for large events.

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
    job: JobId,
    state: WatchState<S, R>,
    /// Reserved before the events for which there was no room are read again.
    room: Option<Reservation>,
    /// Since when the client has everything that was stored before.
    pub(super) live_since_ms: Option<NonZeroU64>,
    /// Boxed, because only one transport has rooms.
    _member: Option<Box<RoomMember>>,
}

/// ```text
///   Opening ──▶ Open ◀──▶ Full
///      └── refused ──▶ Over
/// ```
enum WatchState<S: EventSource, R> {
    /// The session is being opened.
    Opening(Opening<S>, R),
    Open(Session<S>),
    /// Waits for room for the next events.
    Full(Session<S>, BoxFuture<'static, Reservation>),
    /// The job cannot be watched.
    Over,
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
        Self {
            job,
            state: WatchState::Opening(opening, reply_to),
            room: None,
            live_since_ms: None,
            _member: member.map(Box::new),
        }
    }

    /// A watch with an open session.
    pub(super) fn of(session: Session<S>) -> Self {
        Self {
            job: session.job().clone(),
            state: WatchState::Open(session),
            room: None,
            live_since_ms: None,
            _member: None,
        }
    }

    pub(super) fn job(&self) -> &JobId {
        &self.job
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
                WatchState::Opening(opening, _) => {
                    let opened = ready!(opening.as_mut().poll(cx));
                    return Poll::Ready(self.opened(opened));
                }
                WatchState::Full(_, waiting) => {
                    let room = ready!(waiting.as_mut().poll(cx));
                    self.found_room(room);
                }
                WatchState::Over => return Poll::Pending,
            }
        }
    }

    fn opened(&mut self, opened: Result<Session<S>, SessionError>) -> Progress<R> {
        let state = std::mem::replace(&mut self.state, WatchState::Over);
        let WatchState::Opening(_, reply_to) = state else {
            unreachable!("only an opening session is opened")
        };
        match opened {
            Ok(session) => {
                let status = session.status();
                // All watchers share this one.
                self.job = session.job().clone();
                self.state = WatchState::Open(session);
                Progress::Opened(status, reply_to)
            }
            Err(error) => Progress::Refused(error, reply_to),
        }
    }

    fn found_room(&mut self, room: Reservation) {
        self.room = Some(room);
        let state = std::mem::replace(&mut self.state, WatchState::Over);
        if let WatchState::Full(session, ..) = state {
            self.state = WatchState::Open(session);
        }
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
    ) -> Result<Option<Reservation>, LimitReached> {
        let room = self.room.take().filter(|room| room.bytes() >= bytes);
        if bytes == 0 || room.is_some() {
            return Ok(room.filter(|_| bytes > 0));
        }
        let reserved = budget.reserve_if_first(bytes);
        if reserved.is_err() {
            let state = std::mem::replace(&mut self.state, WatchState::Over);
            if let WatchState::Open(mut session) = state {
                session.rewind(before);
                let room = budget.clone().reserve_by_task(bytes, tasks.clone());
                self.state = WatchState::Full(session, Box::pin(room));
            }
        }
        reserved.map(Some)
    }

    /// The open session.
    pub(super) fn session(&mut self) -> Option<&mut Session<S>> {
        match &mut self.state {
            WatchState::Open(session) => Some(session),
            WatchState::Opening(..) | WatchState::Full(..) | WatchState::Over => None,
        }
    }
}
