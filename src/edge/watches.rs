//! What a client watches, for every transport: opens sessions, polls them, and returns what to send
//! next. It writes nothing.

mod watch;

use std::net::IpAddr;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

pub(super) use self::watch::RoomTurn;
use self::watch::{Progress, Watch, WatchHeld};
use super::access::{TokenEvent, unix_ms};
use super::counters::{Counters, Transport};
use super::error::Problem;
use super::memory::Memory;
use crate::budget::{Budget, Reservation};
use crate::config::{FLIGHT_BYTES, LARGE_EVENT, WATCHES_MAX};
use crate::hub::Hub;
use crate::session::{Position, Session, SessionError, Step};
use crate::short_list::ShortList;
use crate::source::EventSource;
use crate::wire::{Code, GapReason, JobId, RequestRef, ServerFrame, Start, Stored};

/// What to send to a client. `R` says where the answer to a request goes.
pub(super) enum Outgoing<R> {
    /// The answer to a request.
    Answer(ServerFrame, R),
    /// Events of one job, in order.
    Events(Vec<Arc<Stored>>),
    /// Something between the events of this job.
    Frame(JobId, ServerFrame),
    /// What happens to the client's token.
    Token(TokenEvent),
}

/// What a transport has of the events of [`Watches::poll_next`] after it dropped the others.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Released {
    /// How many of them are written, or still held.
    pub(super) events: usize,
    /// The position after those; `None` if there are none.
    pub(super) position: Option<Position>,
    /// Whether one that is held is large.
    pub(super) holds_large: bool,
}

/// The jobs that one client watches.
pub(super) struct Watches<S: EventSource, R> {
    hub: Arc<Hub<S>>,
    counters: Arc<Counters>,
    transport: Transport,
    client: IpAddr,
    /// The room of events that are so large that a client must not hold them for long.
    room: Budget,
    /// `None` until one of them waits for room.
    room_turn: Option<RoomTurn>,
    /// Usually one.
    list: ShortList<Watch<S, R>>,
    /// The watch that is polled first, so that each gets its turn.
    turn: u16,
    /// The events that the transport writes now.
    delivery: Option<PendingDelivery>,
}

/// Events on their way to the client.
struct PendingDelivery {
    /// The watch that they are from; `None` once it has ended.
    watch: Option<u16>,
    /// Where its session stood before.
    position: Position,
    events: usize,
    /// When the broker stored one of them, if its delay is measured.
    stored_ms: Option<NonZeroU64>,
    room: Option<Box<Reservation>>,
    /// Whether one of them is large.
    is_large: bool,
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
            hub,
            counters,
            transport,
            client,
            room,
            room_turn: None,
            list: ShortList::default(),
            turn: 0,
            delivery: None,
        }
    }

    /// The same watches; they share the turn to wait for room with others of their client.
    pub(super) fn sharing(mut self, turn: RoomTurn) -> Self {
        self.room_turn = Some(turn);
        self
    }

    /// Watches a job; `compact` merges the text that is stored now. `memory` has the room for that, and
    /// for all but the first watch. Unless the watch is refused at once, [`Self::poll_next`] returns
    /// the answer for `reply_to`.
    pub(super) fn watch(
        &mut self,
        job: JobId,
        start: Start,
        compact: bool,
        memory: &Memory,
        reply_to: R,
    ) -> Result<(), (Code, R)> {
        if self.find(&job).is_some() {
            return Err((Code::AlreadyWatching, reply_to));
        }
        if self.list.len() >= WATCHES_MAX {
            return Err((Code::TooManyWatches, reply_to));
        }
        let Ok(room) = memory.reserve_watch(self.list.len()) else {
            return Err((Code::Overloaded, reply_to));
        };
        let member = self.counters.enter_room(self.transport, &job);
        let held = WatchHeld { member, room };
        let merged = compact.then(|| memory.merged.clone());
        let hub = Arc::clone(&self.hub);
        let client = self.client;
        let id = job.clone();
        let opening = async move {
            let mut opened = Session::open_for(client, &hub, &id, start).await;
            if let Ok(session) = &mut opened
                && let Some(room) = merged
            {
                session.compact_stored(&room);
            }
            opened
        };
        let watch = Watch::new(job, Box::pin(opening), reply_to, held);
        self.list.push_back(watch);
        Ok(())
    }

    /// Watches the job of an open session.
    pub(super) fn watch_session(&mut self, session: Session<S>) {
        self.list.push_back(Watch::of(session));
    }

    /// The address of the client.
    pub(super) const fn client(&self) -> IpAddr {
        self.client
    }

    /// The jobs that are watched.
    pub(super) fn jobs(&self) -> Vec<JobId> {
        self.list.iter().map(|watch| watch.job().clone()).collect()
    }

    /// Ends the watch of a job, if there is one.
    pub(super) fn unwatch(&mut self, job: &JobId) -> Result<(), Code> {
        let index = self.find(job).ok_or(Code::NotWatching)?;
        self.remove(index);
        Ok(())
    }

    fn find(&self, job: &JobId) -> Option<usize> {
        self.list.iter().position(|watch| watch.job() == job)
    }

    /// Ends a watch. Returns its job.
    fn remove(&mut self, index: usize) -> JobId {
        let job = self.list[index].job().clone();
        drop(self.list.remove(index));
        if let Some(delivery) = &mut self.delivery {
            let remains = |of: &u16| usize::from(*of) != index;
            let moved = |of: u16| of - u16::from(usize::from(of) > index);
            delivery.watch = delivery.watch.filter(remains).map(moved);
        }
        job
    }

    /// What to send next; pending while nothing is watched. The call says that what was sent before
    /// is written.
    pub(super) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Outgoing<R>> {
        if let Some(delivery) = self.delivery.take() {
            self.counters
                .count_delivered(self.transport, delivery.events);
            if let Some(stored_ms) = delivery.stored_ms {
                let delay = unix_ms().saturating_sub(stored_ms.get());
                let delays = &self.counters.delivery_delay;
                delays.observe(Duration::from_millis(delay));
            }
        }
        let mut idle = 0;
        while idle < self.list.len() {
            let index = usize::from(self.turn) % self.list.len();
            match self.list[index].poll_next(cx) {
                Poll::Ready(progress) => {
                    if let Some(outgoing) = self.advance(index, progress) {
                        self.turn = number(index + 1);
                        return Poll::Ready(outgoing);
                    }
                }
                Poll::Pending => {
                    self.turn = number(index + 1);
                    idle += 1;
                }
            }
        }
        Poll::Pending
    }

    /// Goes on with opening sessions while the client accepts nothing: an answer of the broker that
    /// nobody takes is in no budget. [`Self::poll_next`] returns the results.
    pub(super) fn poll_openings(&mut self, cx: &mut Context<'_>) {
        for index in 0..self.list.len() {
            self.list[index].poll_opening(cx);
        }
    }

    /// Turns the progress of a watch into what is sent; `None` if there is no room for what was
    /// read.
    fn advance(&mut self, index: usize, progress: Progress<R>) -> Option<Outgoing<R>> {
        Some(match progress {
            Progress::Opened(status, reply_to) => {
                let job = self.list[index].job().clone();
                Outgoing::Answer(ServerFrame::Watching { job, status }, reply_to)
            }
            Progress::Refused(error, reply_to) => {
                let job = self.remove(index);
                Outgoing::Answer(refusal(&error, &job), reply_to)
            }
            Progress::Step(Step::Events(events), before) => {
                let largest = events.iter().map(|event| event.size()).max().unwrap_or(0);
                let bytes = room_of(&events, largest, self.transport).min(self.room.limit());
                let tasks = self.hub.tasks();
                let turn = &mut self.room_turn;
                let watch = &mut self.list[index];
                let room = watch.room_for(bytes, &self.room, tasks, turn, before);
                let room = room.ok()?;
                self.delivery = Some(PendingDelivery {
                    watch: Some(number(index)),
                    position: before,
                    events: events.len(),
                    stored_ms: self.list[index].measured(&events),
                    room,
                    is_large: largest > LARGE_EVENT,
                });
                Outgoing::Events(events)
            }
            Progress::Step(Step::Gap { from, to }, _) => {
                let reason = GapReason::Expired;
                let job = self.list[index].job().clone();
                let id = job.clone();
                Outgoing::Frame(
                    job,
                    ServerFrame::Missing {
                        job: id,
                        from,
                        to,
                        reason,
                    },
                )
            }
            Progress::Step(Step::Live, _) => {
                let watch = &mut self.list[index];
                watch.live_since_ms = NonZeroU64::new(unix_ms());
                let job = watch.job().clone();
                let frame = ServerFrame::Live { job: job.clone() };
                Outgoing::Frame(job, frame)
            }
            Progress::Step(Step::End, _) => {
                let job = self.remove(index);
                let frame = ServerFrame::End { job: job.clone() };
                Outgoing::Frame(job, frame)
            }
            Progress::Step(Step::Rebuilt, _) => {
                let job = self.remove(index);
                let frame = refusal(&SessionError::CursorNotInLog, &job);
                Outgoing::Frame(job, frame)
            }
        })
    }

    /// The client accepts no more of the events that [`Self::poll_next`] returned: the transport has
    /// dropped the others. The next call reads those again.
    pub(super) fn release(&mut self, released: Released) {
        let Some(delivery) = &mut self.delivery else {
            return;
        };
        delivery.events = released.events;
        delivery.stored_ms = None;
        if !released.holds_large {
            delivery.room = None;
        }
        let position = released.position.unwrap_or(delivery.position);
        let session = delivery
            .watch
            .and_then(|index| self.list[usize::from(index)].session());
        if let Some(session) = session {
            session.rewind(position);
        }
    }

    /// Whether the events being written can be dropped and read again without reading the log.
    pub(super) fn reads_memory(&mut self) -> bool {
        let watch = self.delivery.as_ref().and_then(|delivery| delivery.watch);
        let session = watch.and_then(|index| self.list[usize::from(index)].session());
        session.is_some_and(|session| session.reads_memory())
    }

    /// Whether the events being written hold room in the memory budget.
    pub(super) fn holds_room(&self) -> bool {
        let delivery = self.delivery.as_ref();
        delivery.is_some_and(|delivery| delivery.room.is_some())
    }

    /// Whether they are also so large that few clients may hold such at a time: once half of the room
    /// is used, all are.
    pub(super) fn holds_large(&self) -> bool {
        let is_scarce = || self.room.used() > self.room.limit() / 2;
        let delivery = self.delivery.as_ref();
        delivery
            .is_some_and(|delivery| delivery.room.is_some() && (delivery.is_large || is_scarce()))
    }
}

const _: () = assert!(
    WATCHES_MAX < u16::MAX as usize,
    "an index of a watch takes two bytes"
);

/// An index of one of [`WATCHES_MAX`] watches. In two bytes, because an idle client holds two such
/// numbers.
fn number(index: usize) -> u16 {
    u16::try_from(index).unwrap_or_default()
}

/// How many bytes to reserve for events of which the largest has this size: nothing, unless it is
/// large. Small ones are dropped when their client does not accept them, but a frame that was begun
/// must be kept. The Socket.IO library keeps a copy of each event that it was given: at most
/// [`FLIGHT_BYTES`], and one more event.
fn room_of(events: &[Arc<Stored>], largest: usize, transport: Transport) -> usize {
    match transport {
        Transport::SocketIo if largest > FLIGHT_BYTES => largest + FLIGHT_BYTES,
        Transport::WebSocket | Transport::Sse if largest > LARGE_EVENT => {
            events.iter().map(|event| event.size()).sum()
        }
        Transport::SocketIo | Transport::WebSocket | Transport::Sse => 0,
    }
}

fn refusal(error: &SessionError, job: &JobId) -> ServerFrame {
    Problem::new(error.code(), error.to_string()).into_frame(RequestRef::of_job(job))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{
        MEMORY_MIN, READ_BUDGET_PAUSE, READ_TAKE_WAIT, STEP_BYTES, WATCH_BYTES, WATCHES_PART,
    };
    use crate::runtime::Tasks;
    use crate::source::memory::{MemoryLog, chunk, job};
    use crate::wire::{Body, Seq};
    use futures_util::FutureExt as _;
    use std::future::poll_fn;
    use std::net::Ipv4Addr;
    use tokio::time::{sleep, timeout};

    fn memory() -> Memory {
        Memory::new(Budget::unlimited())
    }

    #[tokio::test]
    async fn all_watches_but_the_first_of_each_client_share_a_part_of_the_memory() {
        let memory = Memory::new(Budget::new(MEMORY_MIN));
        let mut clients: Vec<_> = (0..4).map(|_| watches(&MemoryLog::default())).collect();
        let start = Start::After(Seq(0));
        let mut watched = 0;
        for client in &mut clients {
            for number in 0..WATCHES_MAX {
                let job = format!("job-{number}").parse().unwrap();
                match client.watch(job, start, false, &memory, 1) {
                    Ok(()) => watched += 1,
                    Err((code, _)) => assert_eq!(code, Code::Overloaded),
                }
            }
            assert!(!client.list.is_empty());
        }
        assert_eq!(watched, 4 + MEMORY_MIN / WATCHES_PART / WATCH_BYTES);
        clients.remove(0);
        assert!(clients[2].watch(job(), start, false, &memory, 1).is_ok());
    }

    async fn next(watches: &mut Watches<MemoryLog, u32>) -> Outgoing<u32> {
        poll_fn(|cx| watches.poll_next(cx)).await
    }

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
        watches
            .watch(job(), Start::After(Seq(0)), false, &memory(), 7)
            .unwrap();
        let answer = next(&mut watches).await;
        assert!(matches!(
            answer,
            Outgoing::Answer(ServerFrame::Watching { .. }, 7)
        ));
        assert!(matches!(next(&mut watches).await, Outgoing::Events(events) if events.len() == 1));
        let end = next(&mut watches).await;
        assert!(matches!(end, Outgoing::Frame(_, ServerFrame::End { .. })));
        assert_eq!(watches.counters.delivered(), 1);
        assert!(watches.counters.rooms().is_empty() && next(&mut watches).now_or_never().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_job_is_watched_once_and_not_followed_after_it_was_unwatched() {
        let log = MemoryLog::default();
        let mut watches = watches(&log);
        let start = Start::After(Seq(0));
        watches.watch(job(), start, false, &memory(), 1).unwrap();
        let refused = watches.watch(job(), start, false, &memory(), 2);
        assert_eq!(refused, Err((Code::AlreadyWatching, 2)));
        watches.unwatch(&job()).unwrap();
        assert_eq!(watches.unwatch(&job()), Err(Code::NotWatching));
        assert!(next(&mut watches).now_or_never().is_none());
        watches.watch(job(), start, false, &memory(), 3).unwrap();
        assert!(matches!(next(&mut watches).await, Outgoing::Answer(_, 3)));
    }

    /// Does everything that is done while the client accepts nothing for a minute.
    async fn stall(watches: &mut Watches<MemoryLog, u32>) {
        let openings = poll_fn(|cx| {
            watches.poll_openings(cx);
            Poll::<()>::Pending
        });
        assert!(timeout(Duration::from_secs(60), openings).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn sessions_are_opened_or_refused_while_the_client_accepts_nothing() {
        let log = MemoryLog::default();
        let other: JobId = "other".parse().unwrap();
        let first = log.append(&job(), chunk("x"));
        log.append(&other, chunk("x"));
        let mut watches = watches(&log);
        let cursor = Start::Cursor(first.cursor());
        watches.watch(job(), cursor, false, &memory(), 1).unwrap();
        let too_late = Start::After(Seq(9));
        watches.watch(other, too_late, false, &memory(), 2).unwrap();
        stall(&mut watches).await;
        // The log has been asked already.
        log.reachable(false);
        let mut answers = [0; 2];
        for _ in 0..2 {
            let answer = next(&mut watches).now_or_never();
            match answer.expect("the result is kept") {
                Outgoing::Answer(ServerFrame::Watching { .. }, 1) => answers[0] += 1,
                Outgoing::Answer(ServerFrame::Error { .. }, 2) => answers[1] += 1,
                Outgoing::Answer(..)
                | Outgoing::Events(_)
                | Outgoing::Frame(..)
                | Outgoing::Token(_) => panic!("not an answer"),
            }
        }
        assert_eq!(answers, [1, 1]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_accepts_nothing_is_sent_no_events_of_the_sessions_that_were_opened() {
        let log = MemoryLog::default();
        log.append(&job(), chunk("x"));
        let mut watches = watches(&log);
        let start = Start::After(Seq(0));
        watches.watch(job(), start, false, &memory(), 1).unwrap();
        stall(&mut watches).await;
        let answer = next(&mut watches).await;
        assert!(matches!(answer, Outgoing::Answer(_, 1)));
        assert_eq!(events_of(&mut watches).await, [1]);
        watches.release(Released::default());
        stall(&mut watches).await;
        assert_eq!(events_of(&mut watches).await, [1]);
    }

    async fn events_of(watches: &mut Watches<MemoryLog, u32>) -> Vec<u64> {
        match next(watches).await {
            Outgoing::Events(events) => events.iter().map(|event| event.seq.0).collect(),
            Outgoing::Answer(..) | Outgoing::Frame(..) | Outgoing::Token(_) => panic!("not events"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn events_that_a_client_did_not_take_are_read_again() {
        let log = MemoryLog::default();
        let first = log.append(&job(), chunk("x"));
        log.append(&job(), chunk("x"));
        log.append(&job(), Body::Cancelled {});
        let mut watches = watches(&log);
        watches
            .watch(job(), Start::After(Seq(0)), false, &memory(), 1)
            .unwrap();
        next(&mut watches).await;
        assert_eq!(events_of(&mut watches).await, [1, 2, 3]);
        watches.release(Released::default());
        assert_eq!(events_of(&mut watches).await, [1, 2, 3]);
        watches.release(Released {
            events: 1,
            position: Some(Position::after(&first)),
            holds_large: false,
        });
        assert_eq!(events_of(&mut watches).await, [2, 3]);
        assert!(matches!(next(&mut watches).await, Outgoing::Frame(..)));
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
            watches
                .watch(job(), Start::After(Seq(0)), false, &memory(), 1)
                .unwrap();
            next(watches).await;
        }
        assert_eq!(events_of(&mut first).await, [1]);
        assert!(first.holds_room() && first.holds_large());
        let waiting = timeout(Duration::from_secs(60), next(&mut second)).await;
        assert!(waiting.is_err(), "there is room for one of them");
        assert!(matches!(
            next(&mut first).await,
            Outgoing::Frame(_, ServerFrame::Live { .. })
        ));
        assert!(!first.holds_room());
        assert_eq!(events_of(&mut second).await, [1]);
    }

    /// Three clients that share the room, of which the first gets a large event, and the others wait:
    /// the second one for an event as large, the third one for one of this size.
    async fn three_that_share_room(third: usize) -> [Watches<MemoryLog, u32>; 3] {
        let log = MemoryLog::default();
        let other: JobId = "other".parse().unwrap();
        log.append(&job(), chunk("x".repeat(LARGE_EVENT)));
        log.append(&other, chunk("x".repeat(third)));
        let room = Budget::new(LARGE_EVENT * 4);
        let mut clients = [(); 3].map(|()| Watches {
            room: room.clone(),
            ..watches(&log)
        });
        for (client, job) in clients.iter_mut().zip([job(), job(), other]) {
            client
                .watch(job, Start::After(Seq(0)), false, &memory(), 1)
                .unwrap();
            next(client).await;
        }
        assert_eq!(events_of(&mut clients[0]).await, [1]);
        for client in &mut clients[1..] {
            let waiting = timeout(Duration::from_secs(60), next(client)).await;
            assert!(waiting.is_err(), "the first has the room");
        }
        clients
    }

    #[tokio::test(start_paused = true)]
    async fn watches_get_room_in_the_order_in_which_they_began_to_wait() {
        // There is room for the third one's event all the time.
        let [mut first, mut second, mut third] = three_that_share_room(FLIGHT_BYTES).await;
        // The first one's event is written.
        next(&mut first).await;
        assert_eq!(events_of(&mut second).await, [1]);
        assert_eq!(events_of(&mut third).await, [1]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_accepts_nothing_keeps_no_room_from_others() {
        let [mut first, mut second, mut third] = three_that_share_room(LARGE_EVENT).await;
        next(&mut first).await;
        // It is the second one's turn, and that client is not served.
        let events = timeout(Duration::from_secs(60), events_of(&mut third)).await;
        assert_eq!(events.expect("the room is not kept"), [1]);
        next(&mut third).await;
        assert_eq!(events_of(&mut second).await, [1]);
    }

    #[tokio::test(start_paused = true)]
    async fn events_that_have_become_more_wait_for_room_for_all_of_their_step() {
        let log = MemoryLog::default();
        log.append(&job(), chunk("x".repeat(LARGE_EVENT / 2)));
        let mut watches = Watches {
            transport: Transport::WebSocket,
            ..watches(&log)
        };
        let room = watches.room.clone();
        let held = room.reserve(room.limit()).unwrap();
        let start = Start::After(Seq(0));
        watches.watch(job(), start, false, &memory(), 1).unwrap();
        next(&mut watches).await;
        let waiting = timeout(READ_TAKE_WAIT, next(&mut watches)).await;
        assert!(waiting.is_err(), "there is no room");
        log.append(&job(), chunk("x"));
        drop(held);
        sleep(READ_BUDGET_PAUSE * 2).await;
        let of_first = room.used();
        assert!((LARGE_EVENT..STEP_BYTES).contains(&of_first), "{of_first}");
        let held = room.reserve(room.limit() - of_first).unwrap();
        let waiting = timeout(READ_TAKE_WAIT, next(&mut watches)).await;
        assert!(waiting.is_err(), "there is room for the first one only");
        drop(held);
        sleep(READ_BUDGET_PAUSE * 2).await;
        assert_eq!(room.used(), STEP_BYTES);
        assert_eq!(events_of(&mut watches).await, [1, 2]);
        assert!(room.used() < STEP_BYTES, "what is not needed is released");
    }

    /// Lets one client, which these watches are of, wait for room for four events, and accept nothing then.
    /// Another client gets its event after the time of one of them, and the first one gets all of its own later.
    async fn wait_as_one(log: &MemoryLog, mut idle: Vec<Watches<MemoryLog, u32>>) {
        let room = idle[0].room.clone();
        let mut other = Watches {
            room: room.clone(),
            ..watches(log)
        };
        let held = room.reserve(room.limit()).unwrap();
        let jobs = ["a", "b", "c", "d"].map(|id| id.parse::<JobId>().unwrap());
        let start = Start::After(Seq(0));
        for (number, job) in jobs.iter().enumerate() {
            log.append(job, chunk("x".repeat(LARGE_EVENT)));
            let part = number % idle.len();
            idle[part]
                .watch(job.clone(), start, false, &memory(), 1)
                .unwrap();
            let answer = next(&mut idle[part]).await;
            assert!(matches!(answer, Outgoing::Answer(..)));
        }
        other
            .watch(jobs[0].clone(), start, false, &memory(), 1)
            .unwrap();
        next(&mut other).await;
        for waiting in idle.iter_mut().chain([&mut other]) {
            let waiting = timeout(Duration::from_secs(60), next(waiting)).await;
            assert!(waiting.is_err(), "there is no room");
        }
        // There is room for one event at a time.
        drop(held);
        let events = timeout(READ_TAKE_WAIT * 3 / 2, events_of(&mut other)).await;
        assert_eq!(events.expect("the room is kept once"), [1]);
        next(&mut other).await;
        let all_delivered = poll_fn(|cx| {
            let mut delivered = 0;
            for part in &mut idle {
                while part.poll_next(cx).is_ready() {}
                delivered += part.counters.delivered();
            }
            if delivered < 4 {
                return Poll::Pending;
            }
            Poll::Ready(())
        });
        let all_delivered = timeout(Duration::from_secs(60), all_delivered).await;
        assert!(all_delivered.is_ok(), "each gets its room");
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_waits_for_room_for_one_of_its_watches_at_a_time() {
        let log = MemoryLog::default();
        wait_as_one(&log, vec![watches(&log)]).await;
    }

    #[tokio::test(start_paused = true)]
    async fn watches_that_share_a_turn_wait_for_room_as_one_client() {
        let log = MemoryLog::default();
        let turn = RoomTurn::default();
        let first = watches(&log).sharing(Arc::clone(&turn));
        let second = Watches {
            room: first.room.clone(),
            ..watches(&log)
        };
        wait_as_one(&log, vec![first, second.sharing(turn)]).await;
    }

    #[tokio::test(start_paused = true)]
    async fn an_event_that_other_transports_hold_without_room_needs_some_over_socketio() {
        let log = MemoryLog::default();
        log.append(&job(), chunk("x".repeat(FLIGHT_BYTES)));
        for (transport, needs_room) in [
            (Transport::SocketIo, true),
            (Transport::WebSocket, false),
            (Transport::Sse, false),
        ] {
            let mut watches = Watches {
                transport,
                ..watches(&log)
            };
            watches
                .watch(job(), Start::After(Seq(0)), false, &memory(), 1)
                .unwrap();
            next(&mut watches).await;
            assert_eq!(events_of(&mut watches).await, [1]);
            assert_eq!(watches.holds_room(), needs_room, "{transport:?}");
            assert!(!watches.holds_large(), "{transport:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn few_clients_may_hold_an_event_that_needs_room_once_half_of_it_is_used() {
        let log = MemoryLog::default();
        log.append(&job(), chunk("x".repeat(FLIGHT_BYTES)));
        let mut watches = watches(&log);
        watches
            .watch(job(), Start::After(Seq(0)), false, &memory(), 1)
            .unwrap();
        next(&mut watches).await;
        assert_eq!(events_of(&mut watches).await, [1]);
        assert!(watches.holds_room() && !watches.holds_large());
        let others = watches.room.reserve(watches.room.limit() / 2).unwrap();
        assert!(watches.holds_large());
        drop(others);
        assert!(!watches.holds_large());
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
        watches
            .watch(job(), Start::After(Seq(0)), false, &memory(), 1)
            .unwrap();
        next(&mut watches).await;
        let gap = next(&mut watches).await;
        let Outgoing::Frame(_, ServerFrame::Missing { from, to, .. }) = gap else {
            panic!("no gap");
        };
        assert_eq!((from, to), (Seq(1), Seq(2)));
        assert_eq!(events_of(&mut watches).await, [3, 4]);
        watches.release(Released::default());
        assert_eq!(events_of(&mut watches).await, [3, 4]);
        let end = next(&mut watches).await;
        assert!(matches!(end, Outgoing::Frame(_, ServerFrame::End { .. })));
    }
}
