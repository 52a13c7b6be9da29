//! One client's WebSocket connection: passes frames to the client's [`ConnectedClient`], and writes
//! what it returns.

use std::convert::Infallible;
use std::sync::Arc;

use futures_util::future::join;
use tokio::time::{Instant, interval, sleep_until, timeout};
use tracing::debug;

use super::socket::{ClientInput, Disconnect, FrameSocket};
use crate::config::{CLOSE_WAIT, PING_EVERY, STEPS_PER_WRITE, TINY_BYTES};
use crate::edge::app::App;
use crate::edge::client::{ConnectedClient, reservation_for};
use crate::edge::counters::Transport;
use crate::edge::drain::DrainSlot;
use crate::edge::error::error_frame;
use crate::edge::watches::Outgoing;
use crate::session::Position;
use crate::wire::{ClientFrame, Code, ServerFrame, Stored};

/// A connection and its client.
pub(super) struct Connection {
    app: Arc<App>,
    socket: FrameSocket,
    client: ConnectedClient<()>,
}

impl Connection {
    pub(super) fn new(app: Arc<App>, socket: FrameSocket) -> Self {
        let client = ConnectedClient::new(Arc::clone(&app), Transport::WebSocket, socket.peer());
        Self {
            app,
            socket,
            client,
        }
    }

    /// Serves the client until it disconnects, or until it should reconnect because the edge stops.
    pub(super) async fn run(mut self, slot: DrainSlot) {
        debug!("connected");
        let disconnect = tokio::select! {
            Err(disconnect) = self.serve() => disconnect,
            () = slot.due() => Disconnect::Close(Code::Restarting),
        };
        debug!(?disconnect, "disconnected");
        let finish = timeout(CLOSE_WAIT, self.client.finish());
        let ((), _) = join(self.socket.close(disconnect), finish).await;
    }

    async fn serve(&mut self) -> Result<Infallible, Disconnect> {
        self.send_hello().await?;
        let mut ping = interval(PING_EVERY);
        ping.reset();
        loop {
            let pong_deadline = self.socket.pong_deadline();
            let overdue = sleep_until(pong_deadline.unwrap_or_else(Instant::now));
            tokio::select! {
                received = self.socket.receive() => self.handle(received?).await?,
                outgoing = self.client.next(true) => self.deliver(outgoing).await?,
                _ = ping.tick() => self.socket.ping().await?,
                () = overdue, if pong_deadline.is_some() => {
                    return Err(Disconnect::Close(Code::Timeout));
                }
            }
        }
    }

    async fn send_hello(&mut self) -> Result<(), Disconnect> {
        let protocol = self.socket.encoding().subprotocol().to_owned();
        let version = env!("CARGO_PKG_VERSION").to_owned();
        let hello = ServerFrame::Hello { protocol, version };
        self.socket.put(&hello).await?;
        self.socket.flush().await
    }

    async fn handle(&mut self, received: ClientInput) -> Result<(), Disconnect> {
        let answer = match received {
            ClientInput::Frame(frame) => self.answer(frame),
            ClientInput::Refused(refusal) => Some(error_frame(refusal)),
            ClientInput::Control => return Ok(()),
        };
        if let Some(answer) = answer {
            self.socket.put(&answer).await?;
        }
        self.socket.flush().await
    }

    /// Handles a frame. Returns an immediate answer.
    fn answer(&mut self, frame: ClientFrame) -> Option<ServerFrame> {
        let reservation = match reservation_for(&self.app, &frame) {
            Ok(reservation) => reservation,
            Err(refusal) => return Some(error_frame(refusal)),
        };
        let answer = self.client.handle(frame, reservation, ());
        answer.map(|(answer, ())| answer)
    }

    /// Writes `outgoing` and what else is ready.
    async fn deliver(&mut self, mut outgoing: Outgoing<()>) -> Result<(), Disconnect> {
        // A session that replays always has more, but the client's frames must be read as well.
        for _ in 0..STEPS_PER_WRITE {
            self.put(outgoing).await?;
            match self.client.try_next() {
                Some(next) => outgoing = next,
                None => return self.socket.flush().await,
            }
        }
        self.put(outgoing).await?;
        self.socket.flush().await
    }

    async fn put(&mut self, outgoing: Outgoing<()>) -> Result<(), Disconnect> {
        match outgoing {
            Outgoing::Answer(frame, ()) | Outgoing::Frame(_, frame) => {
                self.socket.put(&frame).await
            }
            Outgoing::Events(events) => self.put_events(events).await,
        }
    }

    /// Writes events of one job. Those that a client does not accept are dropped, and read again
    /// once it accepts more: a client that reads nothing must not hold them.
    async fn put_events(&mut self, events: Vec<Arc<Stored>>) -> Result<(), Disconnect> {
        let is_tiny = events.iter().map(|event| event.size()).sum::<usize>() <= TINY_BYTES;
        let is_large = self.client.holds_room();
        let all = events.len();
        let mut written = 0;
        let mut position = None;
        for event in &events {
            if !is_tiny && !self.socket.is_ready_soon().await? {
                drop(events);
                self.client.release(written, position);
                break;
            }
            self.socket.set_large(is_large);
            self.socket.put_event(event).await?;
            written += 1;
            position = Some(Position::after(event));
        }
        if is_large || written < all {
            // Nothing more is read before the client accepts what is buffered.
            self.socket.flush().await?;
            self.socket.set_large(false);
        }
        Ok(())
    }
}
