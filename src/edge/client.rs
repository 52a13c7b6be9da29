//! One connected client: its requests and what it is sent, for every transport that has frames. The
//! transport reads and writes the frames.

use std::future::poll_fn;
use std::net::IpAddr;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::future::{BoxFuture, join_all};

use super::app::App;
use super::counters::Transport;
use super::error::Problem;
use super::memory::SplitReservation;
use super::watches::{Outgoing, Watches};
use crate::config::REQUESTS_MAX;
use crate::nats::Reader;
use crate::session::Position;
use crate::wire::{ClientFrame, Code, Refusal, RequestRef, ServerFrame};

/// A client. `R` says where the answer to a request goes.
pub(super) struct ConnectedClient<R> {
    app: Arc<App>,
    address: IpAddr,
    watches: Watches<Reader, R>,
    /// Submits and cancels in progress.
    requests: Vec<BoxFuture<'static, (ServerFrame, R)>>,
}

impl<R: Send + 'static> ConnectedClient<R> {
    /// A client at this address, without requests.
    pub(super) fn new(app: Arc<App>, transport: Transport, address: IpAddr) -> Self {
        let hub = Arc::clone(&app.hub);
        let counters = Arc::clone(&app.thread.counters);
        let budget = app.shared.memory().streams.clone();
        Self {
            app,
            address,
            watches: Watches::new(hub, counters, transport, address, budget),
            requests: Vec::new(),
        }
    }

    /// Handles a frame; `reservation` comes from [`reservation_for`]. Returns an immediate answer;
    /// [`Self::next`] returns a later one.
    pub(super) fn handle(
        &mut self,
        frame: ClientFrame,
        reservation: SplitReservation,
        reply_to: R,
    ) -> Option<(ServerFrame, R)> {
        match frame {
            // This version has no authentication: every client may do everything.
            ClientFrame::Auth { token: _ } => None,
            ClientFrame::Ping => Some((ServerFrame::Pong, reply_to)),
            ClientFrame::Watch {
                job,
                start,
                compact,
            } => {
                let request = RequestRef::of_job(&job);
                let refused = self.watches.watch(job, start, compact, reply_to).err();
                refused.map(|(code, reply_to)| (Problem::from(code).into_frame(request), reply_to))
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
                submission,
            } => {
                let request = RequestRef {
                    reference: reference.clone(),
                    job: None,
                };
                let app = Arc::clone(&self.app);
                let address = self.address;
                let submit = async move {
                    let accepted = app
                        .submit(address, submission, key.as_deref(), reservation)
                        .await?;
                    Ok(ServerFrame::Submitted {
                        reference,
                        job: accepted.id,
                        status: accepted.status,
                    })
                };
                self.add_request(submit, request, reply_to)
            }
            ClientFrame::Cancel { reference, job } => {
                let request = RequestRef {
                    reference: reference.clone(),
                    job: Some(job.to_string()),
                };
                let app = Arc::clone(&self.app);
                let address = self.address;
                let cancel = async move {
                    let receipt = app.cancel(address, job, None).await?;
                    Ok(ServerFrame::Cancelling {
                        reference,
                        job: receipt.id,
                        seq: receipt.seq,
                    })
                };
                self.add_request(cancel, request, reply_to)
            }
        }
    }

    /// What to send next: answers, and events if `wants_events`. Safe to drop at any await.
    pub(super) async fn next(&mut self, wants_events: bool) -> Outgoing<R> {
        poll_fn(|cx| self.poll_next(cx, wants_events)).await
    }

    /// See [`Self::next`].
    pub(super) fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
        wants_events: bool,
    ) -> Poll<Outgoing<R>> {
        for index in 0..self.requests.len() {
            if let Poll::Ready((answer, reply_to)) = self.requests[index].as_mut().poll(cx) {
                drop(self.requests.swap_remove(index));
                return Poll::Ready(Outgoing::Answer(answer, reply_to));
            }
        }
        if wants_events {
            return self.watches.poll_next(cx);
        }
        Poll::Pending
    }

    /// See [`Watches::release`].
    pub(super) fn release(&mut self, written: usize, position: Option<Position>) {
        self.watches.release(written, position);
    }

    /// See [`Watches::reads_memory`].
    pub(super) fn reads_memory(&mut self) -> bool {
        self.watches.reads_memory()
    }

    /// See [`Watches::holds_room`].
    pub(super) fn holds_room(&self) -> bool {
        self.watches.holds_room()
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

/// The memory that a frame takes until it is handled; a submission, until it is queued.
pub(super) fn reservation_for(app: &App, frame: &ClientFrame) -> Result<SplitReservation, Refusal> {
    let ClientFrame::Submit {
        submission,
        reference,
        ..
    } = frame
    else {
        return Ok(app.shared.memory().submits.empty(0));
    };
    app.reservation_for(submission).map_err(|problem| Refusal {
        code: problem.code(),
        message: problem.message().to_owned(),
        request: RequestRef {
            reference: reference.clone(),
            job: None,
        },
    })
}
