//! One client's WebSocket connection: passes messages to the client's [`ConnectedClient`], and
//! writes what it returns. Events are written straight from the frames that all watchers share.

use std::net::IpAddr;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures_util::future::{BoxFuture, join};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;
use tracing::debug;

use super::socket::{ClientMessage, Disconnect};
use super::timed::TimedSocket;
use crate::config::{CLOSE_WAIT, STEPS_PER_WRITE};
use crate::edge::access::{Access, TokenEvent};
use crate::edge::app::App;
use crate::edge::client::ConnectedClient;
use crate::edge::client_task::{ServedClient, end_of_turn};
use crate::edge::counters::{Connected, Transport};
use crate::edge::error::error_frame;
use crate::edge::watches::Outgoing;
use crate::wire::framing::FrameKind;
use crate::wire::{ClientFrame, Code, Encoding, RequestRef, ServerFrame};

/// A connection and its client.
pub(super) struct Connection<T> {
    encoding: Encoding,
    socket: TimedSocket<T>,
    client: ConnectedClient<()>,
    connected: Connected,
}

impl<T: AsyncRead + AsyncWrite + Unpin> Connection<T> {
    /// A connection that begins with `hello`.
    pub(super) fn new(
        app: Arc<App>,
        socket: TimedSocket<T>,
        encoding: Encoding,
        address: IpAddr,
        access: Option<Access>,
        connected: Connected,
    ) -> Self {
        let client = ConnectedClient::new(app, Transport::WebSocket, address, access);
        let mut connection = Self {
            encoding,
            socket,
            client,
            connected,
        };
        connection.put_hello();
        connection
    }

    fn put_hello(&mut self) {
        let protocol = self.encoding.subprotocol().to_owned();
        let version = env!("CARGO_PKG_VERSION").to_owned();
        self.put(&ServerFrame::Hello { protocol, version });
    }

    fn poll_turn(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Disconnect>> {
        self.socket.begin_turn(cx)?;
        // Once nothing more has arrived, it need not be looked at again in this turn.
        let mut is_idle = false;
        loop {
            if self.poll_flush(cx)?.is_pending() {
                // What the client has requested is done all the same; the answers wait.
                while let Poll::Ready(outgoing) = self.client.poll_next(cx, false) {
                    self.put_outgoing(outgoing)?;
                }
                return Poll::Pending;
            }
            if !is_idle {
                match self.socket.poll_receive(cx)? {
                    Poll::Ready(messages) => self.receive(messages)?,
                    Poll::Pending => is_idle = true,
                }
            }
            let has_more = self.poll_client(cx)?.is_ready();
            if is_idle && !has_more && self.socket.link().output.is_empty() {
                return Poll::Pending;
            }
        }
    }

    /// Writes everything. If the client does not accept it, drops the events that are not begun: a
    /// client that reads nothing must not hold them.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Disconnect>> {
        let flushed = self.socket.poll_flush(cx)?;
        let link = self.socket.link();
        if link.should_release(self.client.reads_memory(), cx) {
            let released = link.release();
            self.client.release(released);
            if link.output.is_empty() {
                // Something must wait, to notice that the client accepts data again, or not in time.
                self.socket.put(FrameKind::Ping, b"");
            }
        }
        flushed.map(Ok)
    }

    fn receive(&mut self, messages: Vec<ClientMessage>) -> Result<(), Disconnect> {
        for message in messages {
            if message.encoding != self.encoding {
                return Err(Disconnect::Close(Code::UnsupportedMediaType));
            }
            let size = message.bytes.len();
            let admit = |input| self.client.admit_submission(input, size);
            let answer = match ClientFrame::parse_admitted(&message.bytes, self.encoding, admit) {
                Ok((frame, reservation)) => self.client.handle(frame, reservation, ()),
                Err(refusal) => Some((error_frame(refusal), ())),
            };
            if let Some((answer, ())) = answer {
                self.put(&answer);
            }
        }
        Ok(())
    }

    /// Adds what the client is sent next to the output: frames, up to the events of one step.
    /// Pending if there is nothing more.
    fn poll_client(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Disconnect>> {
        for _ in 0..STEPS_PER_WRITE {
            let outgoing = ready!(self.client.poll_next(cx, true));
            let is_events = matches!(outgoing, Outgoing::Events(_));
            self.put_outgoing(outgoing)?;
            if is_events {
                break;
            }
        }
        Poll::Ready(Ok(()))
    }

    fn put_outgoing(&mut self, outgoing: Outgoing<()>) -> Result<(), Disconnect> {
        match outgoing {
            Outgoing::Answer(frame, ()) | Outgoing::Frame(_, frame) => self.put(&frame),
            Outgoing::Events(events) => {
                let link = self.socket.link();
                link.is_large = self.client.holds_room();
                link.output.put_events(events);
            }
            Outgoing::Token(TokenEvent::Expiring(expires_in_ms)) => {
                self.put(&ServerFrame::TokenExpiring { expires_in_ms });
            }
            Outgoing::Token(TokenEvent::Ended(code)) => return Err(Disconnect::Close(code)),
        }
        Ok(())
    }

    fn put(&mut self, frame: &ServerFrame) {
        match self.encoding {
            Encoding::Json => self.socket.put(FrameKind::Text, frame.to_json().as_bytes()),
            Encoding::MsgPack => self.socket.put(FrameKind::Binary, &frame.to_msgpack()),
        }
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin + Send + 'static> ServedClient for Connection<T> {
    type End = Disconnect;

    /// Ready when the client disconnects, or when it should reconnect because the edge stops.
    fn poll_serve(&mut self, cx: &mut Context<'_>) -> Poll<Disconnect> {
        end_of_turn(self.poll_turn(cx))
    }

    fn close(mut self, disconnect: Disconnect) -> BoxFuture<'static, ()> {
        debug!(?disconnect, "disconnected");
        if let Disconnect::Close(code) = disconnect
            && code.is_try_again_later()
        {
            // Not every WebSocket library reports the reason of a close.
            let request = RequestRef::default();
            self.put(&ServerFrame::error(code, code.info().text, request));
        }
        let Self {
            socket,
            client,
            connected,
            ..
        } = self;
        Box::pin(async move {
            let finish = timeout(CLOSE_WAIT, client.finish());
            let (_slot, _) = join(socket.close(disconnect), finish).await;
            drop(connected);
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::edge::client_stream::ClientStream;
    use crate::edge::client_task::ClientState;

    #[test]
    fn a_connection_takes_at_most_640_bytes() {
        let bytes = size_of::<ClientState<Connection<ClientStream>>>();
        assert!(bytes <= 640, "{bytes}");
    }
}
