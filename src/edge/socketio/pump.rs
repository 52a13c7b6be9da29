//! The pump of one Socket.IO client: passes its requests to its [`ConnectedClient`], which decides
//! what the client gets, and the answers to its [`Outbox`], which decides how much is in flight.

use std::sync::Arc;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use socketioxide::extract::SocketRef;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::{Instrument as _, debug, info_span};

use super::engine_session::{EngineSession, Host, QueuedRequest};
use super::outbox::{Outbox, ReplyTo, SocketBroken};
use super::request::{EmittedRequest, JoinRequest};
use super::write_buffer::WriteBuffer;
use crate::budget::LimitReached;
use crate::config::{ANSWER_WAIT, CLOSE_WAIT, FULL_PAUSE, STREAM_STALL, TINY_BYTES, WRITE_WAIT};
use crate::edge::access::{Access, TokenEvent};
use crate::edge::app::App;
use crate::edge::client::ConnectedClient;
use crate::edge::counters::Transport;
use crate::edge::drain::DrainSlot;
use crate::edge::error::error_frame;
use crate::edge::memory::SplitReservation;
use crate::edge::slow::SlowPart;
use crate::edge::traffic::Traffic;
use crate::edge::watches::{Outgoing, Released};
use crate::wire::{BearerToken, ClientFrame, Code, Refusal};

impl Host for App {
    fn admit_submission(&self, input: usize, emit: usize) -> Result<SplitReservation, Refusal> {
        Self::admit_submission(self, input, size_of::<QueuedRequest>() + emit)
    }

    fn admit_request(&self, size: usize) -> Option<SplitReservation> {
        let submits = &self.shared.memory().submits;
        submits.reserve(size_of::<QueuedRequest>() + size).ok()
    }

    fn admit(
        &self,
        token: Option<BearerToken>,
        auth: usize,
    ) -> BoxFuture<'_, Result<Access, Code>> {
        async move {
            if !self.settings.gate.is_checked() {
                return Ok(Access::unrestricted());
            }
            let token = token.ok_or(Code::Unauthorized)?;
            // The keys may be slow to come. The packet's buffer is up to twice as large as its text.
            let counted = if auth > TINY_BYTES { 2 * auth } else { 0 };
            let held = self.shared.memory().bodies.reserve(counted);
            let _held = held.map_err(|LimitReached| Code::Overloaded)?;
            let access = self.settings.gate.authenticate(token.expose()).await;
            access.map_err(|problem| problem.code())
        }
        .boxed()
    }

    /// Runs the client's pump on this thread, where its feeds are.
    fn serve(
        self: Arc<Self>,
        socket: SocketRef,
        session: Arc<EngineSession>,
        requests: mpsc::Receiver<QueuedRequest>,
        join: JoinRequest,
    ) {
        let span = info_span!("socketio", id = %socket.id);
        let tasks = self.tasks.clone();
        let runtime = self.runtime.clone();
        let Some(access) = session.access.get().cloned() else {
            return session.traffic.cut();
        };
        let pump = Pump::new(self, socket, session, requests, access);
        let _thread = runtime.enter();
        tasks.spawn(pump.run(join).instrument(span));
    }
}

/// One client, and what waits to be sent to it.
pub(super) struct Pump {
    app: Arc<App>,
    slot: DrainSlot,
    socket: SocketRef,
    session: Arc<EngineSession>,
    requests: mpsc::Receiver<QueuedRequest>,
    client: ConnectedClient<ReplyTo>,
    outbox: Outbox,
    /// Since when the client has an event of which few clients may hold one.
    room_since: Option<Instant>,
}

/// Why a pump stops.
#[derive(Debug)]
enum PumpEnd {
    /// The library has ended the client's socket.
    Disconnected,
    /// The client's socket no longer accepts packets.
    SocketBroken,
    /// The client has stopped reading.
    Stalled,
    /// The library's write buffer has become so large that there is no room for it. It is freed with
    /// the connection; the client connects again, and resumes after the event.
    OverBudget,
    /// The edge stops.
    Stopping,
    /// The client sent more requests than may be queued.
    Flooding,
    /// The client's token is not valid any more, it sent one of another subject, or its subject has
    /// too many streams.
    NotAdmitted(Code),
}

impl From<SocketBroken> for PumpEnd {
    fn from(SocketBroken: SocketBroken) -> Self {
        Self::SocketBroken
    }
}

impl Pump {
    pub(super) fn new(
        app: Arc<App>,
        socket: SocketRef,
        session: Arc<EngineSession>,
        requests: mpsc::Receiver<QueuedRequest>,
        access: Access,
    ) -> Self {
        let transport = Transport::SocketIo;
        let buffer = WriteBuffer::new(&app.shared.memory().write_buffers);
        Self {
            slot: app.clients.enter(),
            client: ConnectedClient::new(Arc::clone(&app), transport, session.client, Some(access)),
            outbox: Outbox::new(buffer),
            room_since: None,
            app,
            socket,
            session,
            requests,
        }
    }

    /// Serves the client until it disconnects or the edge stops.
    pub(super) async fn run(mut self, join: JoinRequest) {
        let connected = self.app.thread.counters.connect(Transport::SocketIo);
        debug!("connected");
        self.outbox.greet();
        for watch in join.watches {
            self.answer(watch, None, ReplyTo::Event);
        }
        let end = loop {
            if let Err(end) = self.turn().await {
                break end;
            }
        };
        debug!(?end, "disconnected");
        match end {
            PumpEnd::NotAdmitted(code) => self.dismiss(code).await,
            PumpEnd::Stalled => SlowPart::Output.count(),
            PumpEnd::OverBudget => linger(&self.session.traffic).await,
            PumpEnd::Disconnected
            | PumpEnd::SocketBroken
            | PumpEnd::Stopping
            | PumpEnd::Flooding => {}
        }
        // If the library closed the socket, the client would not reconnect.
        self.session.traffic.cut();
        drop(connected);
    }

    /// Queues packets while there is room, then waits for the next thing to do and does it.
    async fn turn(&mut self) -> Result<(), PumpEnd> {
        let traffic = &self.session.traffic;
        self.outbox.send(&self.socket, traffic)?;
        if self.outbox.pause().await {
            return Ok(());
        }
        if traffic.is_cut() {
            return Err(PumpEnd::Flooding);
        }
        if self.outbox.is_over_budget() {
            return Err(PumpEnd::OverBudget);
        }
        let stalled_since = self.outbox.stalled_since();
        let taken_at = stalled_since.unwrap_or_else(Instant::now);
        let holds_room = self.client.holds_room();
        if self.client.holds_large() {
            self.room_since.get_or_insert_with(Instant::now);
        } else {
            self.room_since = None;
        }
        let stalled = sleep_until(match self.room_since {
            Some(since) => since.max(taken_at) + ANSWER_WAIT,
            None => taken_at + WRITE_WAIT,
        });
        let is_slow = sleep_until(taken_at + STREAM_STALL);
        let wants_replies = self.outbox.wants_replies();
        let wants_events = self.outbox.wants_events(holds_room);
        tokio::select! {
            () = self.slot.due() => return Err(PumpEnd::Stopping),
            () = self.session.disconnected.cancelled() => return Err(PumpEnd::Disconnected),
            Some(request) = self.requests.recv(), if wants_replies => self.handle(request),
            outgoing = self.client.next(wants_replies, wants_events) => {
                if let Outgoing::Token(TokenEvent::Ended(code)) = outgoing {
                    return Err(PumpEnd::NotAdmitted(code));
                }
                self.outbox.deliver(outgoing);
            }
            () = traffic.progress(), if self.outbox.waits() || stalled_since.is_some() => {}
            () = sleep(FULL_PAUSE), if self.outbox.is_full() => {}
            () = is_slow, if stalled_since.is_some() && self.outbox.holds_events() => {
                let (events, position) = self.outbox.release();
                self.client.release(Released {
                    events,
                    position,
                    // What is queued is still buffered.
                    holds_large: events > 0,
                });
            }
            () = stalled, if stalled_since.is_some() => return Err(PumpEnd::Stalled),
        }
        Ok(())
    }

    /// Tells a client why it is disconnected. With a `disconnect` packet, its library does not connect
    /// again by itself, which would be of no use without another token.
    async fn dismiss(&mut self, code: Code) {
        let error = Refusal::new(code, code.info().text);
        self.outbox.reply(error_frame(error), ReplyTo::Event);
        let is_sent = self
            .outbox
            .send(&self.socket, &self.session.traffic)
            .is_ok();
        if is_sent && !code.info().retry {
            let _ = self.socket.clone().disconnect();
        }
        linger(&self.session.traffic).await;
    }

    fn handle(&mut self, request: QueuedRequest) {
        let QueuedRequest {
            request,
            ack,
            reservation,
        } = request;
        let EmittedRequest {
            frame,
            ack: number,
            size,
        } = request;
        self.session.dequeued(size);
        let reply_to = number.map_or(ReplyTo::Event, |number| ReplyTo::Ack(ack, number));
        self.answer(frame, Some(reservation), reply_to);
    }

    /// Handles a frame, and sends an immediate answer.
    fn answer(
        &mut self,
        frame: Result<ClientFrame, Refusal>,
        reservation: Option<SplitReservation>,
        reply_to: ReplyTo,
    ) {
        let answer = match frame {
            Ok(frame) => self.client.handle(frame, reservation, reply_to),
            Err(refusal) => Some((error_frame(refusal), reply_to)),
        };
        if let Some((answer, reply_to)) = answer {
            self.outbox.reply(answer, reply_to);
        }
    }
}

/// Waits a moment. Cutting the connection at once would lose packets that are on their way.
async fn linger(traffic: &Traffic) {
    let _ = timeout(CLOSE_WAIT, traffic.when_cut()).await;
}
