//! One connected client: its requests and what it is sent, for every transport that has frames. The
//! transport reads and writes the frames.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::net::IpAddr;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::{BoxFuture, join_all};
use futures_util::{FutureExt as _, StreamExt as _, stream};
use tokio::time::sleep;

use super::access::{Access, TokenEvent, TokenEvents};
use super::app::App;
use super::counters::Transport;
use super::error::Problem;
use super::jobs::SubmitRequest;
use super::memory::SplitReservation;
use super::quota::SubjectConnection;
use super::watches::{Outgoing, Released, Watches};
use crate::auth::Operation;
use crate::config::REQUESTS_MAX;
use crate::nats::Reader;
use crate::wire::limits::AUTH_WAIT_MS;
use crate::wire::{BearerToken, ClientFrame, Code, JobId, Refusal, RequestRef, ServerFrame};

/// A client. `R` says where the answer to a request goes.
pub(super) struct ConnectedClient<R> {
    app: Arc<App>,
    /// What the client may do; `None` until it has sent a valid token.
    access: Option<Access>,
    /// Counts it among the streams of its subject.
    connection: Option<SubjectConnection>,
    /// What happens to the client's token, or to a client that sends none.
    token_events: TokenEvents,
    /// A token whose key must be read first.
    authentication: Option<Box<Authentication<R>>>,
    /// What is sent next.
    answers: VecDeque<Outgoing<R>>,
    /// Why the client must disconnect.
    ended: Option<Code>,
    watches: Watches<Reader, R>,
    /// Submits and cancels in progress.
    requests: Vec<BoxFuture<'static, (ServerFrame, R)>>,
}

/// A token that is being verified, and where the answer goes.
struct Authentication<R> {
    verified: BoxFuture<'static, Result<Access, Problem>>,
    reply_to: R,
    /// Frames that arrived meanwhile, from a client without access.
    held: VecDeque<(ClientFrame, Option<SplitReservation>, R)>,
}

impl<R: Send + 'static> ConnectedClient<R> {
    /// A client at this address, without requests. One without access must send a token first.
    pub(super) fn new(
        app: Arc<App>,
        transport: Transport,
        address: IpAddr,
        access: Option<Access>,
    ) -> Self {
        let hub = Arc::clone(&app.hub);
        let counters = Arc::clone(&app.thread.counters);
        let budget = app.shared.memory().events(transport).clone();
        let mut client = Self {
            app,
            connection: None,
            token_events: access.as_ref().map_or_else(no_token, Access::events),
            access,
            authentication: None,
            answers: VecDeque::new(),
            ended: None,
            watches: Watches::new(hub, counters, transport, address, budget),
            requests: Vec::new(),
        };
        client.count_connection();
        client
    }

    /// Counts the client among the streams of its subject. One too many must disconnect.
    fn count_connection(&mut self) {
        let access = self.access.as_ref().filter(|_| self.connection.is_none());
        match access.map(Access::connect) {
            None => {}
            Some(Ok(connection)) => self.connection = connection,
            Some(Err(_)) => self.ended = Some(Code::RateLimited),
        }
    }

    /// See [`App::admit_submission`].
    pub(super) fn admit_submission(
        &self,
        input: usize,
        frame: usize,
    ) -> Result<SplitReservation, Refusal> {
        self.app.admit_submission(input, frame)
    }

    /// Handles a frame; a submission holds the reservation until it is queued. Returns an immediate
    /// answer; [`Self::next`] returns a later one. A client that must disconnect gets none.
    pub(super) fn handle(
        &mut self,
        frame: ClientFrame,
        reservation: Option<SplitReservation>,
        reply_to: R,
    ) -> Option<(ServerFrame, R)> {
        if self.ended.is_some() {
            // Why it ended is reported, and not what followed.
            return None;
        }
        let access = match (&self.access, &frame) {
            (_, ClientFrame::Auth { token }) => return self.authenticate(token, reply_to),
            (Some(access), _) => access.clone(),
            (None, _) => {
                match &mut self.authentication {
                    Some(authentication) if authentication.held.len() < REQUESTS_MAX => {
                        authentication
                            .held
                            .push_back((frame, reservation, reply_to));
                    }
                    Some(_) | None => self.ended = Some(Code::Unauthorized),
                }
                return None;
            }
        };
        match frame {
            ClientFrame::Auth { .. } => None,
            ClientFrame::Ping => Some((ServerFrame::Pong, reply_to)),
            ClientFrame::Watch {
                job,
                start,
                compact,
            } => {
                let request = RequestRef::of_job(&job);
                let memory = self.app.shared.memory();
                let watched = match access.require(Operation::Watch(&job)) {
                    Ok(()) => self.watches.watch(job, start, compact, memory, reply_to),
                    Err(code) => Err((code, reply_to)),
                };
                let (code, reply_to) = watched.err()?;
                Some((Problem::from(code).into_frame(request), reply_to))
            }
            ClientFrame::Unwatch { job } => {
                let answer = match self.watches.unwatch(&job) {
                    Ok(()) => ServerFrame::Unwatched { job },
                    Err(code) => Problem::from(code).into_frame(RequestRef::of_job(&job)),
                };
                Some((answer, reply_to))
            }
            ClientFrame::Submit {
                reference,
                key,
                watch_token,
                submission,
            } => {
                let request = SubmitRequest {
                    submission,
                    key,
                    watch_token,
                    _reservation: reservation,
                };
                self.submit(access, request, reference, reply_to)
            }
            ClientFrame::Cancel { reference, job } => self.cancel(access, job, reference, reply_to),
        }
    }

    fn submit(
        &mut self,
        access: Access,
        submit: SubmitRequest,
        reference: Option<String>,
        reply_to: R,
    ) -> Option<(ServerFrame, R)> {
        let request = RequestRef {
            reference: reference.clone(),
            job: None,
        };
        let app = Arc::clone(&self.app);
        let address = self.watches.client();
        let work = async move {
            let accepted = app.submit(&access, address, submit).await?;
            Ok(ServerFrame::Submitted {
                reference,
                job: accepted.id,
                status: accepted.status,
                watch_token: accepted.watch_token,
            })
        };
        self.add_request(work, request, reply_to)
    }

    fn cancel(
        &mut self,
        access: Access,
        job: JobId,
        reference: Option<String>,
        reply_to: R,
    ) -> Option<(ServerFrame, R)> {
        let request = RequestRef {
            reference: reference.clone(),
            job: Some(job.to_string()),
        };
        let app = Arc::clone(&self.app);
        let address = self.watches.client();
        let work = async move {
            let receipt = app.cancel(&access, address, job).await?;
            Ok(ServerFrame::Cancelling {
                reference,
                job: receipt.id,
                seq: receipt.seq,
            })
        };
        self.add_request(work, request, reply_to)
    }

    /// Verifies a token. Usually that needs no waiting.
    fn authenticate(&mut self, token: &BearerToken, reply_to: R) -> Option<(ServerFrame, R)> {
        if self.authentication.is_some() {
            let refusal = Problem::from(Code::TooManyRequests);
            return Some((refusal.into_frame(RequestRef::default()), reply_to));
        }
        let app = Arc::clone(&self.app);
        let token = token.clone();
        let mut verified =
            async move { app.settings.gate.authenticate(token.expose()).await }.boxed();
        match verified.as_mut().now_or_never() {
            Some(verified) => Some((self.apply_token(verified)?, reply_to)),
            None => {
                self.authentication = Some(Box::new(Authentication {
                    verified,
                    reply_to,
                    held: VecDeque::new(),
                }));
                None
            }
        }
    }

    /// Admits the client, or replaces its token by a new one of the same subject. The watches that
    /// it allows go on where they are.
    fn apply_token(&mut self, verified: Result<Access, Problem>) -> Option<ServerFrame> {
        let access = match verified {
            Ok(access) => access,
            Err(problem) => {
                if self.access.is_none() {
                    self.ended = Some(problem.code());
                    return None;
                }
                return Some(problem.into_frame(RequestRef::default()));
            }
        };
        let name = |access: &Access| access.subject().map(|subject| subject.name.clone());
        if self
            .access
            .as_ref()
            .is_some_and(|old| name(old) != name(&access))
        {
            self.ended = Some(Code::Forbidden);
            let refusal = Problem::from(Code::Forbidden);
            return Some(refusal.into_frame(RequestRef::default()));
        }
        self.token_events = access.events();
        for job in self.watches.jobs() {
            let is_refused = access.require(Operation::Watch(&job)).is_err();
            if is_refused && self.watches.unwatch(&job).is_ok() {
                let request = RequestRef::of_job(&job);
                let refusal = Problem::from(Code::JobNotFound).into_frame(request);
                self.answers.push_back(Outgoing::Frame(job, refusal));
            }
        }
        let expires_in_ms = access.expires_in_ms();
        self.access = Some(access);
        self.count_connection();
        Some(ServerFrame::Authenticated { expires_in_ms })
    }

    /// Handles what waited for a token, once it is verified.
    fn poll_authentication(&mut self, cx: &mut Context<'_>) {
        let Some(authentication) = &mut self.authentication else {
            return;
        };
        let Poll::Ready(verified) = authentication.verified.as_mut().poll(cx) else {
            return;
        };
        let Some(authentication) = self.authentication.take() else {
            return;
        };
        let Authentication { reply_to, held, .. } = *authentication;
        if let Some(answer) = self.apply_token(verified) {
            let answer = Outgoing::Answer(answer, reply_to);
            self.answers.push_front(answer);
        }
        for (frame, reservation, reply_to) in held {
            if let Some((answer, reply_to)) = self.handle(frame, reservation, reply_to) {
                self.answers.push_back(Outgoing::Answer(answer, reply_to));
            }
        }
    }

    /// What to send next, if `wants_answers`; see [`Self::poll_next`]. Safe to drop at any await.
    pub(super) async fn next(&mut self, wants_answers: bool, wants_events: bool) -> Outgoing<R> {
        poll_fn(|cx| {
            if wants_answers {
                return self.poll_next(cx, wants_events);
            }
            self.watches.poll_openings(cx);
            Poll::Pending
        })
        .await
    }

    /// What to send next: answers, and events if `wants_events`. Opens sessions in any case; without
    /// events, what comes of that waits.
    pub(super) fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
        wants_events: bool,
    ) -> Poll<Outgoing<R>> {
        self.poll_authentication(cx);
        if let Some(answer) = self.answers.pop_front() {
            return Poll::Ready(answer);
        }
        if let Some(code) = self.ended {
            return Poll::Ready(Outgoing::Token(TokenEvent::Ended(code)));
        }
        if let Poll::Ready(Some(event)) = self.token_events.poll_next_unpin(cx) {
            return Poll::Ready(Outgoing::Token(event));
        }
        for index in 0..self.requests.len() {
            if let Poll::Ready((answer, reply_to)) = self.requests[index].as_mut().poll(cx) {
                drop(self.requests.swap_remove(index));
                return Poll::Ready(Outgoing::Answer(answer, reply_to));
            }
        }
        if wants_events {
            return self.watches.poll_next(cx);
        }
        self.watches.poll_openings(cx);
        Poll::Pending
    }

    /// See [`Watches::release`].
    pub(super) fn release(&mut self, released: Released) {
        self.watches.release(released);
    }

    /// See [`Watches::reads_memory`].
    pub(super) fn reads_memory(&mut self) -> bool {
        self.watches.reads_memory()
    }

    /// See [`Watches::holds_room`].
    pub(super) fn holds_room(&self) -> bool {
        self.watches.holds_room()
    }

    /// See [`Watches::holds_large`].
    pub(super) fn holds_large(&self) -> bool {
        self.watches.holds_large()
    }

    /// Ends all watches, and completes the submits and cancels: a client that disconnects still
    /// wants its requests done.
    pub(super) async fn finish(self) {
        drop(self.watches);
        join_all(self.requests).await;
    }

    /// Adds a request to those in progress, unless there are too many.
    fn add_request(
        &mut self,
        work: impl Future<Output = Result<ServerFrame, Problem>> + Send + 'static,
        request: RequestRef,
        reply_to: R,
    ) -> Option<(ServerFrame, R)> {
        if self.requests.len() >= REQUESTS_MAX {
            let refusal = Problem::from(Code::TooManyRequests);
            return Some((refusal.into_frame(request), reply_to));
        }
        self.requests.push(Box::pin(async move {
            let answer = work
                .await
                .unwrap_or_else(|problem| problem.into_frame(request));
            (answer, reply_to)
        }));
        None
    }
}

/// What happens to a client that sends no token in time.
fn no_token() -> TokenEvents {
    TokenEvents::of(stream::once(async {
        sleep(Duration::from_millis(AUTH_WAIT_MS)).await;
        TokenEvent::Ended(Code::Unauthorized)
    }))
}
