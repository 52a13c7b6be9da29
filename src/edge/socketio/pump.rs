//! The pump of one Socket.IO client: takes its requests, drives its sessions, and fills its outbox as that empties. What
//! a client gets next is decided by the session; how much may be on the way, by the outbox.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use socketioxide::extract::{AckSender, SocketRef};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::engine_session::{EngineSession, QueuedRequest};
use super::outbox::{Broken, Outbox};
use super::request::{Asked, Auth, Refused, Reply, Request, To};
use crate::config::{FULL_PAUSE, REQUESTS_MAX, WATCHES_MAX, WRITE_WAIT};
use crate::edge::App;
use crate::edge::drain::Place;
use crate::edge::error::Problem;
use crate::edge::memory::Held;
use crate::edge::counters::{RoomMember, Transport};
use crate::nats::Reader;
use crate::runtime::unless_ended;
use crate::session::{Error, Session, Step};
use crate::wire::{Code, GapReason, JobId, ServerFrame, Start};

/// One client and the jobs that it watches.
pub(super) struct Pump {
    app: Arc<App>,
    place: Place,
    socket: SocketRef,
    session: Arc<EngineSession>,
    asks: mpsc::Receiver<QueuedRequest>,
    outbox: Outbox,
    watches: HashMap<JobId, Watched>,
    /// One future for each watch: its session's opening, or its next step.
    steps: FuturesUnordered<Pin<Box<dyn Future<Output = Happened> + Send>>>,
    /// One future for each submission and cancellation under way.
    answers: FuturesUnordered<Answering>,
}

type Answering = Pin<Box<dyn Future<Output = (To, Reply)> + Send>>;

/// A job that is watched.
struct Watched {
    /// Ends the watch.
    end: CancellationToken,
    _room: Room,
}

/// What came of a watch.
enum Happened {
    Opened(Result<Session<Reader>, Error>, JobId, To),
    Stepped(Session<Reader>, Step),
    Unwatched,
}

/// Why a client is served no longer.
#[derive(Debug)]
enum Ending {
    /// The library has ended its socket.
    Gone,
    /// Nothing can be queued for it.
    Broken,
    /// It takes nothing.
    Stalled,
    /// The edge stops.
    Stopping,
    /// It asked for more than is kept for it.
    Flooding,
}

impl From<Broken> for Ending {
    fn from(Broken: Broken) -> Self {
        Self::Broken
    }
}

impl Pump {
    pub(super) fn new(
        app: Arc<App>,
        socket: SocketRef,
        session: Arc<EngineSession>,
        asks: mpsc::Receiver<QueuedRequest>,
    ) -> Self {
        let (watches, steps, answers) = Default::default();
        let place = app.clients.enter();
        Self {
            app,
            place,
            socket,
            session,
            asks,
            outbox: Outbox::new(),
            watches,
            steps,
            answers,
        }
    }

    /// Serves the client until one of both ends.
    pub(super) async fn run(mut self, auth: Auth) {
        let counted = self.app.counts.connected(Transport::SocketIo);
        debug!("connected");
        self.outbox.reply(To::Event, Reply::connected());
        for watch in auth.watches {
            match watch {
                Ok((job, start)) => self.watch(job, start, To::Event),
                Err(refused) => self.outbox.reply(To::Event, Reply::refused(&refused)),
            }
        }
        let ending = loop {
            if let Err(ending) = self.turn().await {
                break ending;
            }
        };
        debug!(?ending, "disconnected");
        // The library tells the client to stay away when it is asked to end a socket. It should come back.
        self.session.traffic.cut();
        drop(counted);
    }

    /// Queues what there is room for, and takes in the next thing that happens.
    async fn turn(&mut self) -> Result<(), Ending> {
        let events = self.outbox.send(&self.socket, &self.session)?;
        if events > 0 {
            self.app.counts.delivered(events);
        }
        if self.outbox.pause().await {
            return Ok(());
        }
        if self.session.traffic.is_cut() {
            return Err(Ending::Flooding);
        }
        let (replies, events) = (self.outbox.wants_replies(), self.outbox.wants_events());
        let stalled = self.outbox.stalled();
        tokio::select! {
            () = self.place.moment(&self.app) => return Err(Ending::Stopping),
            () = self.session.disconnected.cancelled() => return Err(Ending::Gone),
            Some(QueuedRequest { asked, ack, room }) = self.asks.recv(), if replies => self.asked(asked, ack, room),
            Some((to, reply)) = self.answers.next(), if replies && !self.answers.is_empty() => {
                self.outbox.reply(to, reply);
            }
            Some(happened) = self.steps.next(), if events && !self.steps.is_empty() => self.happen(happened),
            () = self.session.traffic.progress(), if self.outbox.waits() || stalled.is_some() => {}
            () = sleep(FULL_PAUSE), if self.outbox.is_full() => {}
            () = sleep_until(stalled.unwrap_or_else(Instant::now) + WRITE_WAIT), if stalled.is_some() => {
                return Err(Ending::Stalled);
            }
        }
        Ok(())
    }

    fn asked(&mut self, asked: Asked, ack: AckSender, room: Held) {
        self.session.dequeued(asked.size);
        let to = asked.ack.map_or(To::Event, |number| To::Ack(ack, number));
        let is_full = self.answers.len() >= REQUESTS_MAX;
        match asked.request {
            Ok(Request::Submit { reference, .. }) if is_full => {
                let problem = Code::TooManyRequests.into();
                self.outbox.reply(
                    to,
                    Reply::refused(&Refused {
                        problem,
                        job: None,
                        reference,
                    }),
                );
            }
            Ok(Request::Cancel { job }) if is_full => {
                self.outbox.reply(
                    to,
                    Reply::refused(&Refused::of(Code::TooManyRequests, &job)),
                );
            }
            Ok(Request::Watch { job, start }) => self.watch(job, start, to),
            Ok(Request::Unwatch { job }) => self.unwatch(&job, to),
            Ok(Request::Submit {
                submission,
                key,
                reference,
            }) => {
                let (app, from) = (Arc::clone(&self.app), self.session.client);
                self.answers.push(Box::pin(async move {
                    let reply = match app.submit(from, *submission, key.as_deref(), room).await {
                        Ok(accepted) => {
                            Reply::submitted(&accepted.id, &accepted.status, reference.as_deref())
                        }
                        Err(problem) => Reply::refused(&Refused {
                            problem,
                            job: None,
                            reference,
                        }),
                    };
                    (to, reply)
                }));
            }
            Ok(Request::Cancel { job }) => {
                let (app, from) = (Arc::clone(&self.app), self.session.client);
                self.answers.push(Box::pin(async move {
                    let reply = match app.cancel(from, job.clone(), None).await {
                        Ok(receipt) => Reply::cancelling(&receipt.id, &receipt.seq),
                        Err(problem) => Reply::refused(&Refused::of(problem, &job)),
                    };
                    (to, reply)
                }));
            }
            Err(refused) => self.outbox.reply(to, Reply::refused(&refused)),
        }
    }

    fn watch(&mut self, job: JobId, start: Start, to: To) {
        let refusal = if self.watches.contains_key(&job) {
            Some(Code::AlreadyWatching)
        } else if self.watches.len() >= WATCHES_MAX {
            Some(Code::TooManyWatches)
        } else {
            None
        };
        if let Some(code) = refusal {
            return self
                .outbox
                .reply(to, Reply::refused(&Refused::of(code, &job)));
        }
        let (end, room) = (CancellationToken::new(), self.app.counts.room(&job));
        self.watches.insert(
            job.clone(),
            Watched {
                end: end.clone(),
                _room: room,
            },
        );
        let (hub, from) = (Arc::clone(&self.app.hub), self.session.client);
        self.steps.push(Box::pin(async move {
            match unless_ended(&end, Session::open_for(from, &hub, &job, start)).await {
                Some(opened) => Happened::Opened(opened, job, to),
                None => Happened::Unwatched,
            }
        }));
    }

    fn unwatch(&mut self, job: &JobId, to: To) {
        let reply = match self.watches.remove(job) {
            Some(watched) => {
                watched.end.cancel();
                self.outbox.forget(job);
                Reply::frame("unwatched", &ServerFrame::Unwatched { job: job.clone() })
            }
            None => Reply::refused(&Refused::of(Code::NotWatching, job)),
        };
        self.outbox.reply(to, reply);
    }

    fn happen(&mut self, happened: Happened) {
        match happened {
            Happened::Opened(Ok(session), job, to) => {
                if self.watches.contains_key(&job) {
                    let status = session.status();
                    self.outbox.reply(
                        to,
                        Reply::frame("watching", &ServerFrame::Watching { job, status }),
                    );
                    self.step(session);
                }
            }
            Happened::Opened(Err(error), job, to) => {
                if self.watches.remove(&job).is_some() {
                    let problem = Problem::new(error.code(), error.to_string());
                    self.outbox
                        .reply(to, Reply::refused(&Refused::of(problem, &job)));
                }
            }
            Happened::Stepped(session, step) => self.stepped(session, step),
            Happened::Unwatched => {}
        }
    }

    fn stepped(&mut self, session: Session<Reader>, step: Step) {
        let job = session.job().clone();
        if !self.watches.contains_key(&job) {
            return;
        }
        let (event, frame) = match step {
            Step::Events(events) => {
                self.outbox.events(events);
                return self.step(session);
            }
            Step::Gap { from, to } => (
                "missing",
                ServerFrame::Missing {
                    job: job.clone(),
                    from,
                    to,
                    reason: GapReason::Expired,
                },
            ),
            Step::Live => ("live", ServerFrame::Live { job: job.clone() }),
            Step::End => {
                self.watches.remove(&job);
                ("end", ServerFrame::End { job: job.clone() })
            }
            Step::Rebuilt => {
                self.watches.remove(&job);
                let error = Error::CursorNotInLog;
                let refused = Refused::of(Problem::new(error.code(), error.to_string()), &job);
                return self.outbox.about(job, Reply::refused(&refused));
            }
        };
        self.outbox.about(job, Reply::frame(event, &frame));
        self.step(session);
    }

    /// Waits for the next step of a session, beside all others; of none that is watched no longer.
    fn step(&mut self, mut session: Session<Reader>) {
        let Some(end) = self
            .watches
            .get(session.job())
            .map(|watched| watched.end.clone())
        else {
            return;
        };
        self.steps.push(Box::pin(async move {
            match unless_ended(&end, session.next()).await {
                Some(step) => Happened::Stepped(session, step),
                None => Happened::Unwatched,
            }
        }));
    }
}
