//! One client's connection: does what its frames ask for, and pumps its sessions. What a client gets next is decided by
//! the session; how it is written, by the line.

use std::collections::HashMap;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;

use futures_util::future::{join, ready};
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, StreamExt as _};
use tokio::time::{Instant, interval, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::line::{Ending, Heard, Line};
use crate::config::{CLOSE_WAIT, PING_EVERY, REQUESTS_MAX, STEPS_PER_WRITE, WATCHES_MAX};
use crate::edge::App;
use crate::edge::drain::Place;
use crate::edge::error::Problem;
use crate::nats::Reader;
use crate::runtime::unless_ended;
use crate::session::{Error, Session, Step};
use crate::wire::{ClientFrame, Code, GapReason, JobId, RequestRef, ServerFrame, Start};

/// A connection, the jobs that it watches, and what it has asked for.
pub(super) struct Connection {
    app: Arc<App>,
    line: Line,
    /// What ends each watch.
    watches: HashMap<JobId, CancellationToken>,
    /// How many submits and cancels are under way.
    requests: usize,
    /// One future for each watch, its session's opening or its next step, and for each request.
    work: FuturesUnordered<Pin<Box<dyn Future<Output = Happened> + Send>>>,
}

/// What came of a watch or a request.
enum Happened {
    Opened(Result<Session<Reader>, Error>, JobId),
    Stepped(Session<Reader>, Step),
    Unwatched,
    Answered(Result<ServerFrame, Problem>, RequestRef),
}

impl Connection {
    pub(super) fn new(app: Arc<App>, line: Line) -> Self {
        let (watches, work) = (HashMap::new(), FuturesUnordered::new());
        Self {
            app,
            line,
            watches,
            requests: 0,
            work,
        }
    }

    /// Serves the client until it goes, or until its moment comes to be told that the edge stops.
    pub(super) async fn run(mut self, place: Place) {
        debug!("connected");
        let app = Arc::clone(&self.app);
        let ending = tokio::select! {
            Err(ending) = self.serve() => ending,
            () = place.moment(&app) => Ending::Close(Code::Restarting),
        };
        debug!(?ending, "disconnected");
        let Self {
            line,
            watches,
            work,
            ..
        } = self;
        watches.values().for_each(CancellationToken::cancel);
        // Who asks for something and leaves wants it done.
        let done = timeout(CLOSE_WAIT, work.for_each(|_| ready(())));
        let ((), _) = join(line.close(ending), done).await;
    }

    async fn serve(&mut self) -> Result<Infallible, Ending> {
        self.hello().await?;
        let mut ping = interval(PING_EVERY);
        ping.reset();
        loop {
            let overdue = self.line.overdue();
            tokio::select! {
                heard = self.line.hear() => self.heard(heard?).await?,
                Some(happened) = self.work.next(), if !self.work.is_empty() => self.pump(happened).await?,
                _ = ping.tick() => self.line.ping().await?,
                () = sleep_until(overdue.unwrap_or_else(Instant::now)), if overdue.is_some() => {
                    return Err(Ending::Close(Code::Timeout));
                }
            }
        }
    }

    async fn hello(&mut self) -> Result<(), Ending> {
        let protocol = self.line.encoding().subprotocol().to_owned();
        let version = env!("CARGO_PKG_VERSION").to_owned();
        self.line
            .put(&ServerFrame::Hello { protocol, version })
            .await?;
        self.line.flush().await
    }

    async fn heard(&mut self, heard: Heard) -> Result<(), Ending> {
        match heard {
            Heard::Frame(frame) => self.take(frame).await?,
            Heard::Refused(refusal) => {
                self.error(refusal.code, &refusal.message, refusal.request)
                    .await?
            }
            Heard::SignOfLife => return Ok(()),
        }
        self.line.flush().await
    }

    async fn take(&mut self, frame: ClientFrame) -> Result<(), Ending> {
        match frame {
            // Where a token is checked once there is a key to check it by. Without one, every client may do everything.
            ClientFrame::Auth { token: _ } => Ok(()),
            ClientFrame::Watch { job, start } => self.watch(job, start).await,
            ClientFrame::Unwatch { job } => self.unwatch(job).await,
            ClientFrame::Submit {
                reference,
                key,
                submission,
            } => {
                let about = RequestRef {
                    reference: reference.clone(),
                    job: None,
                };
                let room = match self.app.room_for(&submission) {
                    Ok(room) => room,
                    Err(problem) => {
                        return self.error(problem.code(), problem.message(), about).await;
                    }
                };
                let (app, from) = (Arc::clone(&self.app), self.line.peer());
                let submit = async move {
                    let accepted = app.submit(from, submission, key.as_deref(), room).await?;
                    Ok(ServerFrame::Submitted {
                        reference,
                        job: accepted.id,
                        status: accepted.status,
                    })
                };
                self.request(about, submit).await
            }
            ClientFrame::Cancel { reference, job } => {
                let about = RequestRef {
                    reference: reference.clone(),
                    job: Some(job.to_string()),
                };
                let (app, from) = (Arc::clone(&self.app), self.line.peer());
                let cancel = async move {
                    let receipt = app.cancel(from, job, None).await?;
                    Ok(ServerFrame::Cancelling {
                        reference,
                        job: receipt.id,
                        seq: receipt.seq,
                    })
                };
                self.request(about, cancel).await
            }
        }
    }

    async fn watch(&mut self, job: JobId, start: Start) -> Result<(), Ending> {
        if self.watches.contains_key(&job) {
            return self.refuse(Code::AlreadyWatching, &job).await;
        }
        if self.watches.len() >= WATCHES_MAX {
            return self.refuse(Code::TooManyWatches, &job).await;
        }
        let end = CancellationToken::new();
        self.watches.insert(job.clone(), end.clone());
        let (hub, from) = (Arc::clone(&self.app.hub), self.line.peer());
        self.work.push(Box::pin(async move {
            match unless_ended(&end, Session::open_for(from, &hub, &job, start)).await {
                Some(opened) => Happened::Opened(opened, job),
                None => Happened::Unwatched,
            }
        }));
        Ok(())
    }

    async fn unwatch(&mut self, job: JobId) -> Result<(), Ending> {
        match self.watches.remove(&job) {
            Some(end) => {
                end.cancel();
                self.line.put(&ServerFrame::Unwatched { job }).await
            }
            None => self.refuse(Code::NotWatching, &job).await,
        }
    }

    /// Has something done beside the watches; the client is answered whenever that is.
    async fn request(
        &mut self,
        about: RequestRef,
        work: impl Future<Output = Result<ServerFrame, Problem>> + Send + 'static,
    ) -> Result<(), Ending> {
        if self.requests >= REQUESTS_MAX {
            let code = Code::TooManyRequests;
            return self.error(code, code.info().text, about).await;
        }
        self.requests += 1;
        self.work.push(Box::pin(
            async move { Happened::Answered(work.await, about) },
        ));
        Ok(())
    }

    /// Writes what came of watches and requests; what is ready together leaves together.
    async fn pump(&mut self, mut happened: Happened) -> Result<(), Ending> {
        // Sessions that replay always have more, and the client must be heard meanwhile.
        for _ in 0..STEPS_PER_WRITE {
            self.happen(happened).await?;
            match self.work.next().now_or_never() {
                Some(Some(next)) => happened = next,
                Some(None) | None => return self.line.flush().await,
            }
        }
        self.happen(happened).await?;
        self.line.flush().await
    }

    async fn happen(&mut self, happened: Happened) -> Result<(), Ending> {
        match happened {
            Happened::Opened(Ok(session), job) => {
                if self.watches.contains_key(&job) {
                    let status = session.status();
                    self.line
                        .put(&ServerFrame::Watching { job, status })
                        .await?;
                    self.step(session);
                }
            }
            Happened::Opened(Err(error), job) => {
                if self.watches.remove(&job).is_some() {
                    let about = RequestRef {
                        reference: None,
                        job: Some(job.to_string()),
                    };
                    self.error(error.code(), &error.to_string(), about).await?;
                }
            }
            Happened::Stepped(session, step) => self.stepped(session, step).await?,
            Happened::Unwatched => {}
            Happened::Answered(answer, about) => {
                self.requests -= 1;
                match answer {
                    Ok(frame) => self.line.put(&frame).await?,
                    Err(problem) => self.error(problem.code(), problem.message(), about).await?,
                }
            }
        }
        Ok(())
    }

    async fn stepped(&mut self, session: Session<Reader>, step: Step) -> Result<(), Ending> {
        let job = session.job().clone();
        if !self.watches.contains_key(&job) {
            return Ok(());
        }
        match step {
            Step::Events(events) => {
                self.app.counters.count_delivered(events.len());
                for event in events {
                    self.line.put_event(&event).await?;
                }
            }
            Step::Gap { from, to } => {
                self.line
                    .put(&ServerFrame::Missing {
                        job,
                        from,
                        to,
                        reason: GapReason::Expired,
                    })
                    .await?;
            }
            Step::Live => self.line.put(&ServerFrame::Live { job }).await?,
            Step::End => {
                self.watches.remove(&job);
                return self.line.put(&ServerFrame::End { job }).await;
            }
            Step::Rebuilt => {
                self.watches.remove(&job);
                let (error, about) = (
                    Error::CursorNotInLog,
                    RequestRef {
                        reference: None,
                        job: Some(job.to_string()),
                    },
                );
                return self.error(error.code(), &error.to_string(), about).await;
            }
        }
        self.step(session);
        Ok(())
    }

    /// Waits for the next step of a session, beside all others.
    fn step(&mut self, mut session: Session<Reader>) {
        let Some(end) = self.watches.get(session.job()).cloned() else {
            return;
        };
        self.work.push(Box::pin(async move {
            match unless_ended(&end, session.next()).await {
                Some(step) => Happened::Stepped(session, step),
                None => Happened::Unwatched,
            }
        }));
    }

    /// Tells that a watch or unwatch is refused.
    async fn refuse(&mut self, code: Code, job: &JobId) -> Result<(), Ending> {
        let about = RequestRef {
            reference: None,
            job: Some(job.to_string()),
        };
        self.error(code, code.info().text, about).await
    }

    async fn error(&mut self, code: Code, message: &str, about: RequestRef) -> Result<(), Ending> {
        debug!(code = code.as_str(), "refused");
        self.line
            .put(&ServerFrame::error(code, message, about))
            .await
    }
}
