//! A WebSocket as the edge uses it: reads frames, writes frames and events in the encoding of its
//! subprotocol, pings and closes. It does not handle frames.

use std::future::poll_fn;
use std::net::IpAddr;

use axum::extract::ws::{CloseFrame, Message, Utf8Bytes, WebSocket, WebSocketUpgrade};
use bytes::Bytes;
use futures_util::SinkExt as _;
use tokio::time::{Instant, timeout};
use tokio_tungstenite::tungstenite::Error;
use tokio_tungstenite::tungstenite::error::ProtocolError;
use tracing::debug;

use crate::budget::LimitReached;
use crate::config::{CLOSE_WAIT, PONG_WAIT, READ_BUFFER, STREAM_STALL, WRITE_BUFFER};
use crate::edge::meter::Meter;
use crate::edge::turn::Turn;
use crate::wire::limits::BODY_MAX;
use crate::wire::{ClientFrame, Code, Encoding, Refusal, ServerFrame, Stored};

/// One client's socket.
pub(super) struct FrameSocket {
    socket: WebSocket,
    encoding: Encoding,
    /// Counts complete messages.
    meter: Meter,
    turn: Turn,
    /// When a ping was sent, unless the client has sent something since.
    pinged: Option<Instant>,
}

/// What the client sent.
pub(super) enum ClientInput {
    Frame(ClientFrame),
    /// An invalid frame.
    Refused(Refusal),
    /// A ping or a pong.
    Control,
}

/// Why a connection ends.
#[derive(Debug)]
pub(super) enum Disconnect {
    /// The client has disconnected, or nothing can be written to it.
    Gone,
    /// The client closed.
    Closed,
    /// The edge closes.
    Close(Code),
}

/// Sets the limits of every WebSocket of an edge.
pub(super) fn with_limits(upgrade: WebSocketUpgrade) -> WebSocketUpgrade {
    upgrade
        .read_buffer_size(READ_BUFFER)
        .write_buffer_size(WRITE_BUFFER)
        .max_message_size(BODY_MAX)
        .max_frame_size(BODY_MAX)
}

impl FrameSocket {
    pub(super) fn new(socket: WebSocket, encoding: Encoding, meter: Meter) -> Self {
        Self {
            socket,
            encoding,
            meter,
            turn: Turn::default(),
            pinged: None,
        }
    }

    /// The client's address.
    pub(super) fn peer(&self) -> IpAddr {
        self.meter.peer()
    }

    pub(super) fn encoding(&self) -> Encoding {
        self.encoding
    }

    /// The next input from the client. Safe to drop at any await.
    pub(super) async fn receive(&mut self) -> Result<ClientInput, Disconnect> {
        let message = self.socket.recv().await;
        self.pinged = None;
        let message = message.ok_or(Disconnect::Gone)?.map_err(|error| {
            debug!(%error, "the connection broke");
            Disconnect::of(error)
        })?;
        let (bytes, encoding) = match &message {
            Message::Text(text) => (text.as_bytes(), Encoding::Json),
            Message::Binary(bytes) => (&bytes[..], Encoding::MsgPack),
            Message::Ping(payload) | Message::Pong(payload) => {
                self.meter.count_control(payload.len());
                return Ok(ClientInput::Control);
            }
            Message::Close(_) => return Err(Disconnect::Closed),
        };
        self.meter.count_message();
        if encoding != self.encoding {
            return Err(Disconnect::Close(Code::UnsupportedMediaType));
        }
        let frame = ClientFrame::parse(bytes, encoding);
        Ok(frame.map_or_else(ClientInput::Refused, ClientInput::Frame))
    }

    /// When the client must have sent something after a ping.
    pub(super) fn pong_deadline(&self) -> Option<Instant> {
        self.pinged.map(|at| at + PONG_WAIT)
    }

    /// Pings the client.
    pub(super) async fn ping(&mut self) -> Result<(), Disconnect> {
        self.pinged.get_or_insert_with(Instant::now);
        self.feed(Message::Ping(Bytes::new())).await?;
        self.flush().await
    }

    /// Adds a frame to the write buffer. A full buffer is written first.
    pub(super) async fn put(&mut self, frame: &ServerFrame) -> Result<(), Disconnect> {
        self.feed(match self.encoding {
            Encoding::Json => Message::Text(frame.to_json().into()),
            Encoding::MsgPack => Message::Binary(frame.to_msgpack()),
        })
        .await
    }

    /// Adds an event to the write buffer, as the frame that all its watchers share.
    pub(super) async fn put_event(&mut self, event: &Stored) -> Result<(), Disconnect> {
        self.feed(match self.encoding {
            Encoding::Json => {
                let text = Utf8Bytes::try_from(event.json().to_vec());
                Message::Text(text.map_err(|_| Disconnect::Close(Code::Internal))?)
            }
            Encoding::MsgPack => Message::Binary(event.msgpack().to_vec().into()),
        })
        .await
    }

    /// Whether what is written next holds memory that is scarce: its client is cut off sooner.
    pub(super) fn set_large(&self, is_large: bool) {
        self.meter.set_large(is_large);
    }

    /// Waits until the write buffer has room, which it has while the client reads.
    async fn until_ready(&mut self) -> Result<(), Disconnect> {
        let begun = Instant::now();
        let ready = poll_fn(|cx| self.socket.poll_ready_unpin(cx)).await;
        self.after_write(begun, ready.is_ok())
    }

    /// [`Self::until_ready`] for a short time; returns whether there is room.
    pub(super) async fn is_ready_soon(&mut self) -> Result<bool, Disconnect> {
        let ready = timeout(STREAM_STALL, self.until_ready()).await;
        ready.map_or(Ok(false), |ready| ready.map(|()| true))
    }

    /// Writes the write buffer. [`Metered`](crate::edge::metered::Metered) ends the connection if
    /// the client does not read for too long.
    pub(super) async fn flush(&mut self) -> Result<(), Disconnect> {
        let begun = Instant::now();
        let written = self.socket.flush().await;
        self.after_write(begun, written.is_ok())
    }

    /// Adds a message to the write buffer. At the end of the client's turn, lets others be served
    /// first.
    async fn feed(&mut self, message: Message) -> Result<(), Disconnect> {
        let begun = Instant::now();
        self.turn.count(match &message {
            Message::Text(text) => text.len(),
            Message::Binary(bytes) | Message::Ping(bytes) | Message::Pong(bytes) => bytes.len(),
            Message::Close(_) => 0,
        });
        let written = self.socket.feed(message).await;
        self.after_write(begun, written.is_ok())?;
        self.turn.pause().await;
        Ok(())
    }

    fn after_write(&mut self, begun: Instant, written: bool) -> Result<(), Disconnect> {
        if !written {
            return Err(Disconnect::Gone);
        }
        // If a write had to wait, the client has read something, though its pong was not read yet.
        if begun.elapsed() > PONG_WAIT / 20 {
            self.pinged = None;
        }
        Ok(())
    }

    /// Performs the closing handshake, for a limited time: the client may have stopped reading.
    pub(super) async fn close(mut self, disconnect: Disconnect) {
        let _ = timeout(CLOSE_WAIT, close(&mut self.socket, disconnect)).await;
    }
}

/// The closing handshake, whichever side started it. Reads until the client closes: dropping a
/// socket with unread input would discard the last writes.
pub(super) async fn close(socket: &mut WebSocket, disconnect: Disconnect) {
    match disconnect {
        Disconnect::Gone => return,
        // The library writes the answer before it reads more.
        Disconnect::Closed => {}
        Disconnect::Close(code) => {
            let info = code.info();
            let reason = Utf8Bytes::from_static(info.code);
            let close = CloseFrame {
                code: info.close.unwrap_or(1011),
                reason,
            };
            if socket.send(Message::Close(Some(close))).await.is_err() {
                return;
            }
        }
    }
    while let Some(Ok(_)) = socket.recv().await {}
}

impl Disconnect {
    /// Why reading from a connection failed.
    pub(super) fn of(error: axum::Error) -> Self {
        let error = error.into_inner();
        let code = match error.downcast_ref::<Error>() {
            Some(Error::Capacity(_)) => Code::TooLarge,
            Some(Error::Utf8(_)) => Code::BadUtf8,
            // There was no memory for the rest of a message.
            Some(Error::Io(error))
                if error
                    .get_ref()
                    .is_some_and(|cause| cause.is::<LimitReached>()) =>
            {
                Code::Overloaded
            }
            // A network failure, not a client bug.
            Some(Error::Protocol(ProtocolError::ResetWithoutClosingHandshake)) => {
                return Self::Gone;
            }
            Some(Error::Protocol(_)) => Code::ProtocolError,
            Some(_) | None => return Self::Gone,
        };
        Self::Close(code)
    }
}
