//! A client's WebSocket after the handshake: reads messages, answers pings, and closes. It does not
//! handle messages.

use std::future::poll_fn;
use std::mem::MaybeUninit;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::timeout;

use super::reader::{ClientInput, FrameError, FrameReader};
use crate::budget::LimitReached;
use crate::config::{BODY_WAIT, CLOSE_WAIT, MESSAGES_PER_READ, READ_CHUNK, TINY_BYTES};
use crate::edge::alarm::AlarmTime;
use crate::edge::error::count_refusal;
use crate::edge::link::{Broken, Link};
use crate::edge::memory::{SplitBudget, SplitReservation};
use crate::wire::framing::{FrameKind, websocket_frame};
use crate::wire::limits::BODY_MAX;
use crate::wire::{Code, Encoding};

/// A client's WebSocket.
#[derive(Debug)]
pub(in crate::edge) struct FrameSocket<T> {
    pub(in crate::edge) link: Link<T>,
    bodies: SplitBudget,
    /// Present while a message or a control frame is not complete.
    partial: Option<Box<PartialInput>>,
    /// Whether the close frame was put: nothing may follow it.
    is_closing: bool,
    /// Why nothing more is read.
    ended: Option<Disconnect>,
}

/// A message or a control frame of which a part has arrived.
#[derive(Debug)]
struct PartialInput {
    reader: FrameReader,
    /// The memory of the message.
    reservation: Option<SplitReservation>,
    /// When the message must be complete.
    message_by: Option<AlarmTime>,
}

/// A complete message, and the encoding that its type stands for.
pub(in crate::edge) struct ClientMessage {
    pub(in crate::edge) bytes: Vec<u8>,
    pub(in crate::edge) encoding: Encoding,
}

/// Why a connection ends.
#[derive(Debug)]
pub(in crate::edge) enum Disconnect {
    /// The client has disconnected, or nothing can be written to it.
    Gone,
    /// The client closed, with this code.
    Closed(Option<u16>),
    /// The edge closes.
    Close(Code),
}

impl From<Broken> for Disconnect {
    fn from(Broken: Broken) -> Self {
        Self::Gone
    }
}

impl From<FrameError> for Disconnect {
    fn from(error: FrameError) -> Self {
        Self::Close(match error {
            FrameError::Violation => Code::ProtocolError,
            FrameError::BadUtf8 => Code::BadUtf8,
            FrameError::TooLarge => Code::TooLarge,
        })
    }
}

impl PartialInput {
    /// Nothing has arrived.
    fn new() -> Self {
        Self {
            reader: FrameReader::new(),
            reservation: None,
            message_by: None,
        }
    }

    /// Reserves memory for the part of a message that has arrived.
    fn hold(&mut self, bodies: &SplitBudget, now: AlarmTime) -> Result<(), LimitReached> {
        let bytes = self.reader.held();
        if bytes <= TINY_BYTES {
            self.reservation = None;
            self.message_by = None;
            return Ok(());
        }
        self.message_by.get_or_insert(now + BODY_WAIT);
        self.reservation
            .get_or_insert_with(|| bodies.empty(BODY_MAX))
            .resize(bytes)
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> FrameSocket<T> {
    pub(in crate::edge) fn new(link: Link<T>, bodies: &SplitBudget) -> Self {
        Self {
            link,
            bodies: bodies.clone(),
            partial: None,
            is_closing: false,
            ended: None,
        }
    }

    /// Adds a frame to what is written.
    pub(in crate::edge) fn put(&mut self, kind: FrameKind, payload: &[u8]) {
        self.link.output.put(websocket_frame(kind, payload));
    }

    /// Reads what has arrived, and answers pings. Returns the messages that are complete now,
    /// perhaps none.
    pub(in crate::edge) fn poll_receive(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Vec<ClientMessage>, Disconnect>> {
        if let Some(ended) = self.ended.take() {
            return Poll::Ready(Err(ended));
        }
        let mut buffer = [MaybeUninit::uninit(); READ_CHUNK];
        let mut buffer = ReadBuf::uninit(&mut buffer);
        ready!(self.link.poll_read(cx, &mut buffer))?;
        if buffer.filled().is_empty() {
            return Poll::Ready(Err(Disconnect::Gone));
        }
        let mut input = buffer.filled();
        let mut messages = Vec::new();
        // Most messages arrive as a whole.
        let partial = self.partial.take();
        let mut partial = partial.map_or_else(PartialInput::new, |partial| *partial);
        for _ in 0..MESSAGES_PER_READ {
            let received = match partial.reader.read(&mut input) {
                Ok(Some(received)) => received,
                Ok(None) => break,
                Err(error) => {
                    self.ended = Some(error.into());
                    break;
                }
            };
            match received {
                ClientInput::Text(bytes) => messages.push(ClientMessage {
                    bytes,
                    encoding: Encoding::Json,
                }),
                ClientInput::Binary(bytes) => messages.push(ClientMessage {
                    bytes,
                    encoding: Encoding::MsgPack,
                }),
                ClientInput::Ping(payload) if !self.is_closing => {
                    self.put(FrameKind::Pong, &payload);
                }
                ClientInput::Ping(_) | ClientInput::Pong => {}
                ClientInput::Close(code) => {
                    self.ended = Some(Disconnect::Closed(code));
                    break;
                }
            }
        }
        if self.ended.is_none() {
            self.link.unread(input);
        }
        if partial.hold(&self.bodies, self.link.alarm.now()).is_err() {
            self.ended = Some(Disconnect::Close(Code::Overloaded));
        }
        if let Some(by) = partial.message_by {
            self.link.alarm.set_by(by, cx.waker());
        }
        if !partial.reader.is_between_messages() {
            self.partial = Some(Box::new(partial));
        }
        Poll::Ready(Ok(messages))
    }

    /// When the message must be complete that has begun.
    pub(in crate::edge) fn message_by(&self) -> Option<AlarmTime> {
        self.partial.as_ref()?.message_by
    }

    /// Performs the closing handshake (RFC 6455, section 7), for a limited time: the client may
    /// have stopped reading.
    pub(in crate::edge) async fn close(mut self, disconnect: Disconnect) {
        let (payload, waits) = match disconnect {
            Disconnect::Gone => return,
            Disconnect::Closed(code) => {
                let payload = code.map_or_else(Vec::new, |code| code.to_be_bytes().to_vec());
                (payload, false)
            }
            Disconnect::Close(code) => {
                count_refusal(code);
                let info = code.info();
                let mut payload = info.close.unwrap_or(1011).to_be_bytes().to_vec();
                payload.extend_from_slice(code.close_reason().as_bytes());
                // What follows a violation cannot be read.
                let is_readable = !matches!(
                    code,
                    Code::ProtocolError | Code::BadUtf8 | Code::TooLarge | Code::Overloaded
                );
                (payload, is_readable)
            }
        };
        self.link.release();
        self.put(FrameKind::Close, &payload);
        self.is_closing = true;
        let _ = timeout(CLOSE_WAIT, self.finish(waits)).await;
    }

    /// Writes the close frame, waits for the client's if it can be read, and then reads until the
    /// client disconnects: closing a socket with unread input would discard the last writes.
    async fn finish(&mut self, waits: bool) -> Result<(), Disconnect> {
        poll_fn(|cx| self.link.poll_flush(cx)).await?;
        while waits && poll_fn(|cx| self.poll_receive(cx)).await.is_ok() {}
        poll_fn(|cx| self.link.poll_shutdown(cx)).await?;
        poll_fn(|cx| self.link.poll_discard(cx)).await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::budget::Budget;
    use crate::config::BODIES_BYTES;
    use crate::edge::alarm::Alarms;
    use crate::edge::memory::Memory;
    use crate::wire::Stored;
    use std::time::Duration;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};

    fn socket(memory: &Memory) -> (DuplexStream, FrameSocket<DuplexStream>) {
        let (client, edge) = duplex(BODY_MAX * 2);
        let alarm = Alarms::new().alarm();
        let link = Link::new(edge, Stored::websocket_text, alarm);
        (client, FrameSocket::new(link, &memory.bodies))
    }

    /// The messages in what has arrived.
    async fn receive(socket: &mut FrameSocket<DuplexStream>) -> Result<usize, Disconnect> {
        let mut messages = 0;
        let moment = Duration::from_millis(1);
        while let Ok(received) = timeout(moment, poll_fn(|cx| socket.poll_receive(cx))).await {
            messages += received?.len();
        }
        Ok(messages)
    }

    #[tokio::test(start_paused = true)]
    async fn incomplete_messages_hold_limited_memory() {
        let memory = Memory::new(Budget::unlimited());
        let mut message = vec![0x82, 0xFF];
        message.extend((BODY_MAX as u64).to_be_bytes());
        message.resize(message.len() + 4 + BODY_MAX - 1, 0);
        let mut sockets = Vec::new();
        let mut refused = 0;
        for _ in 0..50 {
            let (mut client, mut socket) = socket(&memory);
            client.write_all(&message).await.unwrap();
            match receive(&mut socket).await {
                Ok(0) => sockets.push((client, socket)),
                Err(Disconnect::Close(Code::Overloaded)) => refused += 1,
                other => panic!("{other:?}"),
            }
        }
        assert_eq!((sockets.len(), refused), (16, 34));
        assert_eq!(memory.whole.used(), BODIES_BYTES);
        let (client, socket) = &mut sockets[0];
        assert!(socket.message_by().is_some());
        client.write_all(&[0]).await.unwrap();
        assert_eq!(receive(socket).await.unwrap(), 1);
        assert_eq!(socket.message_by(), None);
        assert_eq!(memory.whole.used(), BODIES_BYTES - BODY_MAX);
    }

    #[tokio::test(start_paused = true)]
    async fn a_few_messages_are_handled_at_a_time() {
        let (mut client, mut socket) = socket(&Memory::new(Budget::unlimited()));
        let empty = [0x82, 0x80, 0, 0, 0, 0];
        client.write_all(&empty.repeat(100)).await.unwrap();
        let mut counts = Vec::new();
        let moment = Duration::from_millis(1);
        while let Ok(received) = timeout(moment, poll_fn(|cx| socket.poll_receive(cx))).await {
            counts.push(received.unwrap().len());
        }
        assert_eq!(counts, [32, 32, 32, 4]);
    }

    #[tokio::test(start_paused = true)]
    async fn pings_are_answered_and_do_not_count_as_a_message() {
        let memory = Memory::new(Budget::unlimited());
        let (mut client, mut socket) = socket(&memory);
        let mut ping = vec![0x89, 0x80 | 125, 0, 0, 0, 0];
        ping.resize(ping.len() + 125, b'p');
        for _ in 0..1000 {
            client.write_all(&ping).await.unwrap();
            assert_eq!(receive(&mut socket).await.unwrap(), 0);
            poll_fn(|cx| socket.link.poll_flush(cx)).await.unwrap();
            let mut pong = [0; 127];
            client.read_exact(&mut pong).await.unwrap();
            assert_eq!(
                (&pong[..2], &pong[2..]),
                (&[0x8A, 125][..], &[b'p'; 125][..])
            );
        }
        assert!(memory.whole.used() == 0 && socket.partial.is_none());
    }
}
