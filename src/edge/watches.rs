//! What a client watches, over whichever transport it comes: opens sessions, drives them, and says what
//! to send next. It is the one place that does so. It writes nothing.

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
use crate::session::{Error, Session, Step};
use crate::source::EventSource;
use crate::wire::{Code, GapReason, JobId, RequestRef, ServerFrame, Start, Status, Stored};

/// What a client is sent about a job that it watches.
pub(super) enum JobUpdate {
    /// Events, in order.
    Events(Vec<Arc<Stored>>),
    /// Something between the events.
    Frame(ServerFrame),
    /// The last thing about the job: its end, or why it cannot go on.
    Last(ServerFrame),
}

/// One watched job.
pub(super) struct JobWatch<S: EventSource> {
    session: Session<S>,
    counters: Arc<Counters>,
}

impl<S: EventSource> JobWatch<S> {
    /// Drives this session.
    pub(super) const fn new(session: Session<S>, counters: Arc<Counters>) -> Self {
        Self { session, counters }
    }

    pub(super) fn job(&self) -> &JobId {
        self.session.job()
    }

    /// What the job is doing; `None` while it has no event.
    pub(super) fn status(&self) -> Option<Status> {
        self.session.status()
    }

    /// What to send next. After [`JobUpdate::Last`] it waits forever. Safe to drop at any await.
    pub(super) async fn next(&mut self) -> JobUpdate {
        let step = self.session.next().await;
        let job = self.session.job().clone();
        match step {
            Step::Events(events) => {
                self.counters.count_delivered(events.len());
                JobUpdate::Events(events)
            }
            Step::Gap { from, to } => JobUpdate::Frame(ServerFrame::Missing {
                job,
                from,
                to,
                reason: GapReason::Expired,
            }),
            Step::Live => JobUpdate::Frame(ServerFrame::Live { job }),
            Step::End => JobUpdate::Last(ServerFrame::End { job }),
            Step::Rebuilt => JobUpdate::Last(refusal(&Error::CursorNotInLog, &job)),
        }
    }
}

/// What to send to a client, whose requests are answered at an `R`.
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

/// What a watch has come to.
enum WatchProgress<S: EventSource, R> {
    Opened(Result<Session<S>, Error>, JobId, R),
    Updated(JobWatch<S>, JobUpdate),
}

impl<S: EventSource, R: Send + 'static> Watches<S, R> {
    /// None yet, for a client at this address.
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

    /// Watches a job. The answer, to be sent to `reply_to`, comes out of [`Self::next`], unless the
    /// watch is refused at once.
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

    /// Turns progress into what is sent, and goes on with the watch; `None` when it has ended
    /// meanwhile.
    fn advance(&mut self, progress: WatchProgress<S, R>) -> Option<Outgoing<R>> {
        match progress {
            WatchProgress::Opened(Ok(session), job, reply_to) => {
                self.watched.get(&job)?;
                let watch = JobWatch::new(session, Arc::clone(&self.counters));
                let status = watch.status();
                self.drive(watch);
                Some(Outgoing::Answer(
                    ServerFrame::Watching { job, status },
                    reply_to,
                ))
            }
            WatchProgress::Opened(Err(error), job, reply_to) => {
                self.watched.remove(&job)?;
                Some(Outgoing::Answer(refusal(&error, &job), reply_to))
            }
            WatchProgress::Updated(watch, update) => {
                let job = watch.job().clone();
                self.watched.get(&job)?;
                match update {
                    JobUpdate::Events(events) => {
                        self.drive(watch);
                        Some(Outgoing::Events(events))
                    }
                    JobUpdate::Frame(frame) => {
                        self.drive(watch);
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

    /// Waits for the next update of a watch, beside all others.
    fn drive(&mut self, mut watch: JobWatch<S>) {
        let Some(watched) = self.watched.get(watch.job()) else {
            return;
        };
        let end = watched.end.clone();
        self.work.push(Box::pin(async move {
            let update = unless_ended(&end, watch.next()).await?;
            Some(WatchProgress::Updated(watch, update))
        }));
    }
}

fn refusal(error: &Error, job: &JobId) -> ServerFrame {
    Problem::new(error.code(), error.to_string()).into_frame(RequestRef::of_job(job))
}
