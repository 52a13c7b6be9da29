//! What a client watches, for every transport: opens sessions, drives them, and returns what to
//! send next. It writes nothing.

use std::collections::HashMap;
use std::future::pending;
use std::net::IpAddr;
use std::sync::Arc;

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use tokio_util::sync::CancellationToken;

use super::counters::{Counters, RoomMember, Transport};
use super::error::Problem;
use crate::config::WATCHES_MAX;
use crate::hub::Hub;
use crate::runtime::unless_ended;
use crate::session::{Session, SessionError, Step};
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
    watched: HashMap<JobId, Watched>,
    /// One future for each watch: its session's opening, or its next update.
    work: FuturesUnordered<BoxFuture<'static, Option<WatchProgress<S, R>>>>,
}

/// The handle of a watch.
struct Watched {
    end: CancellationToken,
    _member: Option<RoomMember>,
}

/// What a watch has done.
enum WatchProgress<S: EventSource, R> {
    Opened(Result<Session<S>, SessionError>, JobId, R),
    Updated(Session<S>, JobUpdate),
}

impl<S: EventSource, R: Send + 'static> Watches<S, R> {
    /// No watches yet, for a client at this address.
    pub(super) fn new(
        hub: Arc<Hub<S>>,
        counters: Arc<Counters>,
        transport: Transport,
        client: IpAddr,
    ) -> Self {
        Self {
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

    /// What to send next; waits forever while nothing is watched. Safe to drop at any await.
    pub(super) async fn next(&mut self) -> Outgoing<R> {
        while let Some(progress) = self.work.next().await {
            if let Some(outgoing) = progress.and_then(|progress| self.advance(progress)) {
                return outgoing;
            }
        }
        pending().await
    }

    /// Turns progress into what is sent, and continues the watch; `None` if the watch has ended
    /// meanwhile.
    fn advance(&mut self, progress: WatchProgress<S, R>) -> Option<Outgoing<R>> {
        match progress {
            WatchProgress::Opened(Ok(session), job, reply_to) => {
                self.watched.get(&job)?;
                let status = session.status();
                self.drive(session);
                Some(Outgoing::Answer(
                    ServerFrame::Watching { job, status },
                    reply_to,
                ))
            }
            WatchProgress::Opened(Err(error), job, reply_to) => {
                self.watched.remove(&job)?;
                Some(Outgoing::Answer(refusal(&error, &job), reply_to))
            }
            WatchProgress::Updated(session, update) => {
                let job = session.job().clone();
                self.watched.get(&job)?;
                match update {
                    JobUpdate::Events(events) => {
                        self.counters.count_delivered(events.len());
                        self.drive(session);
                        Some(Outgoing::Events(events))
                    }
                    JobUpdate::Frame(frame) => {
                        self.drive(session);
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

    /// Adds the watch's next update to the work.
    fn drive(&mut self, mut session: Session<S>) {
        let Some(watched) = self.watched.get(session.job()) else {
            return;
        };
        let end = watched.end.clone();
        self.work.push(Box::pin(async move {
            let update = unless_ended(&end, next_update(&mut session)).await?;
            Some(WatchProgress::Updated(session, update))
        }));
    }
}

fn refusal(error: &SessionError, job: &JobId) -> ServerFrame {
    Problem::new(error.code(), error.to_string()).into_frame(RequestRef::of_job(job))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::Tasks;
    use crate::source::memory::MemoryLog;
    use crate::wire::{Body, Seq};
    use futures_util::FutureExt as _;
    use std::net::Ipv4Addr;

    fn job() -> JobId {
        "j".parse().unwrap()
    }

    fn watches(log: &MemoryLog) -> Watches<MemoryLog, u32> {
        let hub = Hub::new(log.clone(), Tasks::default());
        let client = IpAddr::V4(Ipv4Addr::LOCALHOST);
        Watches::new(hub, Counters::new(), Transport::SocketIo, client)
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
}
