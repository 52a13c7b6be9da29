//! The pump of one Socket.IO client: passes its requests to the client's [`ConnectedClient`], and
//! fills its outbox as that empties. What the client gets is decided by the one, how much may be in
//! flight by the other.

use std::sync::Arc;

use socketioxide::extract::SocketRef;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{Instrument as _, debug, info_span};

use super::engine_session::{EngineSession, Host, QueuedRequest};
use super::outbox::{Outbox, ReplyTo, SocketBroken};
use super::request::{EmittedRequest, JoinRequest};
use crate::config::{FULL_PAUSE, WRITE_WAIT};
use crate::edge::app::App;
use crate::edge::client::{ConnectedClient, room_for};
use crate::edge::counters::Transport;
use crate::edge::drain::DrainSlot;
use crate::edge::error::error_frame;
use crate::edge::memory::Held;
use crate::wire::{ClientFrame, Refusal};

impl Host for App {
    fn room_to_queue(&self, request: &mut EmittedRequest) -> Option<Held> {
        if let Ok(frame @ ClientFrame::Submit { .. }) = &request.frame {
            match room_for(self, frame) {
                Ok(room) => return Some(room),
                Err(refusal) => request.frame = Err(refusal),
            }
        }
        let submits = &self.shared.memory().submits;
        submits.hold(size_of::<EmittedRequest>()).ok()
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
        let pump = Pump::new(self, socket, session, requests);
        let _thread = runtime.enter();
        tasks.spawn(pump.run(join).instrument(span));
    }
}

/// One client and what waits for it.
pub(super) struct Pump {
    app: Arc<App>,
    slot: DrainSlot,
    socket: SocketRef,
    session: Arc<EngineSession>,
    requests: mpsc::Receiver<QueuedRequest>,
    client: ConnectedClient<ReplyTo>,
    outbox: Outbox,
}

/// Why a pump stops.
#[derive(Debug)]
enum PumpEnd {
    /// The library has ended the client's socket.
    Disconnected,
    /// The client's socket takes nothing any more.
    SocketBroken,
    /// The client takes nothing.
    Stalled,
    /// The edge stops.
    Stopping,
    /// The client has made more requests than may wait.
    Flooding,
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
    ) -> Self {
        Self {
            slot: app.clients.enter(),
            client: ConnectedClient::new(Arc::clone(&app), Transport::SocketIo, session.client),
            outbox: Outbox::new(),
            app,
            socket,
            session,
            requests,
        }
    }

    /// Serves the client until one of both ends.
    pub(super) async fn run(mut self, join: JoinRequest) {
        let connected = self.app.thread.counters.connect(Transport::SocketIo);
        debug!("connected");
        self.outbox.greet();
        for watch in join.watches {
            // A watch that waits for nothing takes no room.
            let room = self.app.shared.memory().submits.empty(0);
            self.answer(watch, room, ReplyTo::Event);
        }
        let end = loop {
            if let Err(end) = self.turn().await {
                break end;
            }
        };
        debug!(?end, "disconnected");
        // When the library is asked to end a socket, it tells the client to stay away. The client
        // should reconnect.
        self.session.traffic.cut();
        drop(connected);
    }

    /// Queues what there is room for, and handles the next thing that happens.
    async fn turn(&mut self) -> Result<(), PumpEnd> {
        let traffic = &self.session.traffic;
        self.outbox.send(&self.socket, traffic)?;
        if self.outbox.pause().await {
            return Ok(());
        }
        if traffic.is_cut() {
            return Err(PumpEnd::Flooding);
        }
        let stalled_since = self.outbox.stalled_since();
        let stalled = sleep_until(stalled_since.unwrap_or_else(Instant::now) + WRITE_WAIT);
        let wants_replies = self.outbox.wants_replies();
        let wants_events = self.outbox.wants_events();
        tokio::select! {
            () = self.slot.due() => return Err(PumpEnd::Stopping),
            () = self.session.disconnected.cancelled() => return Err(PumpEnd::Disconnected),
            Some(request) = self.requests.recv(), if wants_replies => self.handle(request),
            outgoing = self.client.next(wants_events), if wants_replies => {
                self.outbox.deliver(outgoing);
            }
            () = traffic.progress(), if self.outbox.waits() || stalled_since.is_some() => {}
            () = sleep(FULL_PAUSE), if self.outbox.is_full() => {}
            () = stalled, if stalled_since.is_some() => return Err(PumpEnd::Stalled),
        }
        Ok(())
    }

    fn handle(&mut self, request: QueuedRequest) {
        let QueuedRequest { request, ack, room } = request;
        let EmittedRequest {
            frame,
            ack: number,
            size,
        } = request;
        self.session.dequeued(size);
        let reply_to = number.map_or(ReplyTo::Event, |number| ReplyTo::Ack(ack, number));
        self.answer(frame, room, reply_to);
    }

    /// Does what a frame asks for, and sends the answer when there is one at once.
    fn answer(&mut self, frame: Result<ClientFrame, Refusal>, room: Held, reply_to: ReplyTo) {
        let answer = match frame {
            Ok(frame) => self.client.handle(frame, room, reply_to),
            Err(refusal) => Some((error_frame(refusal), reply_to)),
        };
        if let Some((answer, reply_to)) = answer {
            self.outbox.reply(answer, reply_to);
        }
    }
}
