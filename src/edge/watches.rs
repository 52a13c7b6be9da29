//! What a client watches, for every transport: opens sessions, drives them, and returns what to
//! send next. It writes nothing.

use std::collections::HashMap;
use std::future::pending;
use std::net::IpAddr;
use std::sync::Arc;

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::counters::{Counters, RoomMember, Transport};
use super::error::Problem;
use crate::budget::{Budget, LimitReached, Reservation};
use crate::config::{FULL_PAUSE, LARGE_EVENT, WATCHES_MAX};
use crate::hub::Hub;
use crate::runtime::unless_ended;
use crate::session::{Position, Session, SessionError, Step};
use crate::source::EventSource;
use crate::wire::{Code, GapReason, JobId, RequestRef, ServerFrame, Start, Stored};

/// What a client is sent about a job that it watches.
pub(super) enum JobUpdate {
    /// Events, in order.
    Events(Vec<Arc<Stored>>),
    /// Something between the events.
    Frame(ServerFrame),
    /// The last frame about the job: its end, or why the watch cannot continue.
    Last(ServerFrame),
}

/// What to send next about the job of a session. After [`JobUpdate::Last`] it waits forever. Safe
/// to drop at any await.
pub(super) async fn next_update<S: EventSource>(session: &mut Session<S>) -> JobUpdate {
    let step = session.next().await;
    let job = session.job().clone();
    match step {
        Step::Events(events) => JobUpdate::Events(events),
        Step::Gap { from, to } => JobUpdate::Frame(ServerFrame::Missing {
            job,
            from,
            to,
            reason: GapReason::Expired,
        }),
        Step::Live => JobUpdate::Frame(ServerFrame::Live { job }),
        Step::End => JobUpdate::Last(ServerFrame::End { job }),
        Step::Rebuilt => JobUpdate::Last(refusal(&SessionError::CursorNotInLog, &job)),
    }
}

/// What to send to a client. `R` says where the answer to a request goes.
pub(super) enum Outgoing<R> {
    /// The answer to a request.
    Answer(ServerFrame, R),
    /// Events of one job, in order.
    Events(Vec<Arc<Stored>>),
    /// Something between the events of this job.
    Frame(JobId, ServerFrame),
}

/// The jobs that one client watches.
pub(super) struct Watches<S: EventSource, R> {
    hub: Arc<Hub<S>>,
    counters: Arc<Counters>,
    transport: Transport,
    client: IpAddr,
    /// The room of events that are so large that a client must not hold them for long.
    room: Budget,
    watched: HashMap<JobId, Watched>,
    /// The events that the transport writes now.
    delivery: Option<PendingDelivery<S>>,
    /// One future for each watch: its session's opening, or its next update.
    work: FuturesUnordered<BoxFuture<'static, Option<WatchProgress<S, R>>>>,
}

/// The handle of a watch.
struct Watched {
    end: CancellationToken,
    _member: Option<RoomMember>,
}

/// Events on their way to the client, and the session that they are from.
struct PendingDelivery<S: EventSource> {
    session: Session<S>,
    end: CancellationToken,
    /// Where the session stood before.
    position: Position,
    events: usize,
    room: Option<Reservation>,
}

/// What a watch has done.
enum WatchProgress<S: EventSource, R> {
    Opened(Result<Session<S>, SessionError>, JobId, R),
    Updated(PendingDelivery<S>, JobUpdate),
}

impl<S: EventSource, R: Send + 'static> Watches<S, R> {
    /// No watches yet, for a client at this address.
    pub(super) fn new(
        hub: Arc<Hub<S>>,
        counters: Arc<Counters>,
        transport: Transport,
        client: IpAddr,
        room: Budget,
    ) -> Self {
        Self {
            room,
            delivery: None,
            hub,
            counters,
            transport,
            client,
            watched: HashMap::new(),
            work: FuturesUnordered::new(),
        }
    }

    /// Watches a job. Unless the watch is refused at once, [`Self::next`] returns the answer for
    /// `reply_to`.
    pub(super) fn watch(&mut self, job: JobId, start: Start, reply_to: R) -> Result<(), (Code, R)> {
        if self.watched.contains_key(&job) {
            return Err((Code::AlreadyWatching, reply_to));
        }
        if self.watched.len() >= WATCHES_MAX {
            return Err((Code::TooManyWatches, reply_to));
        }
        let end = CancellationToken::new();
        let watched = Watched {
            end: end.clone(),
            _member: self.counters.enter_room(self.transport, &job),
        };
        self.watched.insert(job.clone(), watched);
        let hub = Arc::clone(&self.hub);
        let client = self.client;
        self.work.push(Box::pin(async move {
            let opened = unless_ended(&end, Session::open_for(client, &hub, &job, start)).await?;
            Some(WatchProgress::Opened(opened, job, reply_to))
        }));
        Ok(())
    }

    /// Ends the watch of a job, if there is one.
    pub(super) fn unwatch(&mut self, job: &JobId) -> Result<(), Code> {
        let watched = self.watched.remove(job).ok_or(Code::NotWatching)?;
        watched.end.cancel();
        Ok(())
    }

    /// What to send next; waits forever while nothing is watched. The call says that what was sent
    /// before is written. Safe to drop at any await.
    pub(super) async fn next(&mut self) -> Outgoing<R> {
        if let Some(delivery) = self.delivery.take() {
            self.counters.count_delivered(delivery.events);
            self.drive(delivery.session, delivery.end, 0);
        }
        while let Some(progress) = self.work.next().await {
            if let Some(outgoing) = progress.and_then(|progress| self.advance(progress)) {
                return outgoing;
            }
        }
        pending().await
    }

    /// The client accepts no more of the events that [`Self::next`] returned: the transport drops
    /// all but the first `written`, after which the log is at `position`. The next call reads the
    /// others again.
    pub(super) fn release(&mut self, written: usize, position: Option<Position>) {
        if let Some(delivery) = &mut self.delivery {
            let position = position.unwrap_or(delivery.position);
            delivery.session.rewind(position);
            delivery.events = written;
            // The frame of a large event that was written is still buffered.
            if written == 0 {
                delivery.room = None;
            }
        }
    }

    /// Whether the events being written are so large that few clients may hold such at a time.
    pub(super) fn holds_room(&self) -> bool {
        let delivery = self.delivery.as_ref();
        delivery.is_some_and(|delivery| delivery.room.is_some())
    }

    /// Turns progress into what is sent, and continues the watch; `None` if the watch has ended
    /// meanwhile, or if there is no room for what was read.
    fn advance(&mut self, progress: WatchProgress<S, R>) -> Option<Outgoing<R>> {
        match progress {
            WatchProgress::Opened(Ok(session), job, reply_to) => {
                let end = self.watched.get(&job)?.end.clone();
                let status = session.status();
                self.drive(session, end, 0);
                Some(Outgoing::Answer(
                    ServerFrame::Watching { job, status },
                    reply_to,
                ))
            }
            WatchProgress::Opened(Err(error), job, reply_to) => {
                self.watched.remove(&job)?;
                Some(Outgoing::Answer(refusal(&error, &job), reply_to))
            }
            WatchProgress::Updated(delivery, update) => {
                let job = delivery.session.job().clone();
                self.watched.get(&job)?;
                match update {
                    JobUpdate::Events(events) => self.deliver(delivery, events),
                    JobUpdate::Frame(frame) => {
                        self.drive(delivery.session, delivery.end, 0);
                        Some(Outgoing::Frame(job, frame))
                    }
                    JobUpdate::Last(frame) => {
                        self.watched.remove(&job);
                        Some(Outgoing::Frame(job, frame))
                    }
                }
            }
        }
    }

    /// Returns events to be written, unless they are large and have no room yet.
    fn deliver(
        &mut self,
        mut delivery: PendingDelivery<S>,
        events: Vec<Arc<Stored>>,
    ) -> Option<Outgoing<R>> {
        let bytes = room_of(&events).min(self.room.limit());
        let reserved = delivery.room.as_ref().map_or(0, Reservation::bytes);
        if bytes == 0 {
            delivery.room = None;
        } else if bytes > reserved {
            delivery.room = None;
            let Ok(room) = self.room.reserve(bytes) else {
                delivery.session.rewind(delivery.position);
                self.drive(delivery.session, delivery.end, bytes);
                return None;
            };
            delivery.room = Some(room);
        }
        delivery.events = events.len();
        self.delivery = Some(delivery);
        Some(Outgoing::Events(events))
    }

    /// Waits for the next update of a watch, beside all others, and before that for room.
    fn drive(&mut self, mut session: Session<S>, end: CancellationToken, bytes: usize) {
        let budget = self.room.clone();
        self.work.push(Box::pin(async move {
            let room = if bytes == 0 {
                None
            } else {
                Some(unless_ended(&end, reserve(&budget, bytes)).await?)
            };
            let position = session.position();
            let update = unless_ended(&end, next_update(&mut session)).await?;
            let delivery = PendingDelivery {
                session,
                end,
                position,
                events: 0,
                room,
            };
            Some(WatchProgress::Updated(delivery, update))
        }));
    }
}

/// How many bytes to reserve for events: nothing, unless one of them is large. Small ones are
/// dropped when their client does not accept them, but a frame that was begun must be kept.
fn room_of(events: &[Arc<Stored>]) -> usize {
    if events.iter().all(|event| event.size() <= LARGE_EVENT) {
        return 0;
    }
    events.iter().map(|event| event.size()).sum()
}

/// Waits for room.
async fn reserve(budget: &Budget, bytes: usize) -> Reservation {
    loop {
        match budget.reserve(bytes) {
            Ok(room) => return room,
            Err(LimitReached) => sleep(FULL_PAUSE).await,
        }
    }
}

fn refusal(error: &SessionError, job: &JobId) -> ServerFrame {
    Problem::new(error.code(), error.to_string()).into_frame(RequestRef::of_job(job))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::Tasks;
    use crate::source::memory::{MemoryLog, chunk, job};
    use crate::wire::{Body, Seq};
    use futures_util::FutureExt as _;
    use std::net::Ipv4Addr;
    use std::time::Duration;
    use tokio::time::timeout;

    fn watches(log: &MemoryLog) -> Watches<MemoryLog, u32> {
        let hub = Hub::new(log.clone(), Tasks::default());
        let client = IpAddr::V4(Ipv4Addr::LOCALHOST);
        Watches::new(
            hub,
            Counters::new(),
            Transport::SocketIo,
            client,
            Budget::new(LARGE_EVENT * 4),
        )
    }

    #[tokio::test(start_paused = true)]
    async fn a_watch_is_answered_and_followed_to_the_end() {
        let log = MemoryLog::default();
        log.append(&job(), Body::Cancelled {});
        let mut watches = watches(&log);
        watches.watch(job(), Start::After(Seq(0)), 7).unwrap();
        let answer = watches.next().await;
        assert!(matches!(
            answer,
            Outgoing::Answer(ServerFrame::Watching { .. }, 7)
        ));
        assert!(matches!(watches.next().await, Outgoing::Events(events) if events.len() == 1));
        let end = watches.next().await;
        assert!(matches!(end, Outgoing::Frame(_, ServerFrame::End { .. })));
        assert_eq!(watches.counters.delivered(), 1);
        assert!(watches.counters.rooms().is_empty() && watches.next().now_or_never().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_job_is_watched_once_and_not_followed_after_it_was_unwatched() {
        let log = MemoryLog::default();
        let mut watches = watches(&log);
        let start = Start::After(Seq(0));
        watches.watch(job(), start, 1).unwrap();
        let refused = watches.watch(job(), start, 2);
        assert_eq!(refused, Err((Code::AlreadyWatching, 2)));
        watches.unwatch(&job()).unwrap();
        assert_eq!(watches.unwatch(&job()), Err(Code::NotWatching));
        assert!(watches.next().now_or_never().is_none());
        watches.watch(job(), start, 3).unwrap();
        assert!(matches!(watches.next().await, Outgoing::Answer(_, 3)));
    }

    async fn events_of(watches: &mut Watches<MemoryLog, u32>) -> Vec<u64> {
        match watches.next().await {
            Outgoing::Events(events) => events.iter().map(|event| event.seq.0).collect(),
            Outgoing::Answer(..) | Outgoing::Frame(..) => panic!("not events"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn events_that_a_client_did_not_take_are_read_again() {
        let log = MemoryLog::default();
        let first = log.append(&job(), chunk("x"));
        log.append(&job(), chunk("x"));
        log.append(&job(), Body::Cancelled {});
        let mut watches = watches(&log);
        watches.watch(job(), Start::After(Seq(0)), 1).unwrap();
        watches.next().await;
        assert_eq!(events_of(&mut watches).await, [1, 2, 3]);
        watches.release(0, None);
        assert_eq!(events_of(&mut watches).await, [1, 2, 3]);
        watches.release(1, Some(Position::after(&first)));
        assert_eq!(events_of(&mut watches).await, [2, 3]);
        assert!(matches!(watches.next().await, Outgoing::Frame(..)));
        assert_eq!(watches.counters.delivered(), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn large_events_wait_for_room_and_leave_it_once_they_are_written() {
        let log = MemoryLog::default();
        log.append(&job(), chunk("x".repeat(LARGE_EVENT * 3)));
        let mut first = watches(&log);
        let mut second = Watches {
            room: first.room.clone(),
            ..watches(&log)
        };
        for watches in [&mut first, &mut second] {
            watches.watch(job(), Start::After(Seq(0)), 1).unwrap();
            watches.next().await;
        }
        assert_eq!(events_of(&mut first).await, [1]);
        assert!(first.holds_room());
        let waiting = timeout(Duration::from_secs(60), second.next()).await;
        assert!(waiting.is_err(), "there is room for one of them");
        assert!(matches!(
            first.next().await,
            Outgoing::Frame(_, ServerFrame::Live { .. })
        ));
        assert!(!first.holds_room());
        assert_eq!(events_of(&mut second).await, [1]);
    }

    /// The events after a gap are read together with it.
    #[tokio::test(start_paused = true)]
    async fn events_after_a_gap_are_read_again_up_to_the_end() {
        let log = MemoryLog::default();
        for _ in 0..3 {
            log.append(&job(), chunk("x"));
        }
        log.append(&job(), Body::Cancelled {});
        log.expire(&job(), Seq(2));
        let mut watches = watches(&log);
        watches.watch(job(), Start::After(Seq(0)), 1).unwrap();
        watches.next().await;
        let gap = watches.next().await;
        let Outgoing::Frame(_, ServerFrame::Missing { from, to, .. }) = gap else {
            panic!("no gap");
        };
        assert_eq!((from, to), (Seq(1), Seq(2)));
        assert_eq!(events_of(&mut watches).await, [3, 4]);
        watches.release(0, None);
        assert_eq!(events_of(&mut watches).await, [3, 4]);
        let end = watches.next().await;
        assert!(matches!(end, Outgoing::Frame(_, ServerFrame::End { .. })));
    }
}
