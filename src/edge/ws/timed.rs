//! A client's WebSocket with its time limits: when it is pinged, when it is disconnected because it
//! is silent, and when it should reconnect because the edge stops. It does not handle messages.

use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite};

use super::liveness::{Due, Liveness};
use super::socket::{ClientMessage, Disconnect, FrameSocket};
use crate::edge::alarm::AlarmTime;
use crate::edge::drain::DrainSlot;
use crate::edge::link::Link;
use crate::edge::slow::SlowPart;
use crate::wire::Code;
use crate::wire::framing::FrameKind;

/// A client's WebSocket, whose owner calls [`Self::begin_turn`] whenever it is polled.
#[derive(Debug)]
pub(in crate::edge) struct TimedSocket<T> {
    frames: FrameSocket<T>,
    liveness: Liveness,
    slot: DrainSlot,
}

impl<T: AsyncRead + AsyncWrite + Unpin> TimedSocket<T> {
    /// The socket of a client that connects now.
    pub(in crate::edge) fn new(frames: FrameSocket<T>, slot: DrainSlot) -> Self {
        Self {
            liveness: Liveness::new(frames.link.alarm.now()),
            frames,
            slot,
        }
    }

    /// The connection, and what is being written to it.
    pub(in crate::edge) fn link(&mut self) -> &mut Link<T> {
        &mut self.frames.link
    }

    /// See [`FrameSocket::put`].
    pub(in crate::edge) fn put(&mut self, kind: FrameKind, payload: &[u8]) {
        self.frames.put(kind, payload);
    }

    /// See [`FrameSocket::poll_receive`]. Whatever arrives shows that the client is there.
    pub(in crate::edge) fn poll_receive(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Vec<ClientMessage>, Disconnect>> {
        let messages = ready!(self.frames.poll_receive(cx))?;
        self.liveness.heard();
        Poll::Ready(Ok(messages))
    }

    /// Writes everything. Pending while the client accepts no data, and at the end of its turn.
    pub(in crate::edge) fn poll_flush(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Disconnect>> {
        let link = &mut self.frames.link;
        let was_blocked = link.blocked_for().is_some();
        let flushed = link.poll_flush(cx)?;
        if was_blocked && link.blocked_for().is_none() {
            // It could not answer a ping that it had not received.
            self.liveness.heard();
            link.alarm.set_by(self.liveness.due(), cx.waker());
        }
        flushed.map(Ok)
    }

    /// Begins the client's turn. Does what is due: pings the client, or says why to disconnect it.
    pub(in crate::edge) fn begin_turn(&mut self, cx: &mut Context<'_>) -> Result<(), Disconnect> {
        self.frames.link.begin_turn();
        let link = &self.frames.link;
        if !link.alarm.is_due() {
            return Ok(());
        }
        let now = link.alarm.now();
        if link.alarm.is_stopping() && self.slot.is_due() {
            return Err(Disconnect::Close(Code::Restarting));
        }
        let message_by = self.frames.message_by();
        if message_by.is_some_and(|by| by <= now) {
            SlowPart::Message.count();
            return Err(Disconnect::Gone);
        }
        let mut due = message_by.unwrap_or(AlarmTime::NEVER);
        // A client that accepts no data has its own limit, and is not heard.
        if self.frames.link.blocked_for().is_none() {
            match self.liveness.check(now) {
                None => {}
                Some(Due::Ping) => self.frames.put(FrameKind::Ping, b""),
                Some(Due::Disconnect) => return Err(Disconnect::Close(Code::Timeout)),
            }
            due = due.min(self.liveness.due());
        }
        self.frames.link.alarm.set(due, cx.waker());
        Ok(())
    }

    /// See [`FrameSocket::close`]. Returns the client's slot: it counts as connected until that is
    /// dropped.
    pub(in crate::edge) async fn close(self, disconnect: Disconnect) -> DrainSlot {
        self.frames.close(disconnect).await;
        self.slot
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::budget::Budget;
    use crate::config::{BODY_WAIT, PING_EVERY, PONG_WAIT, TICK, WRITE_WAIT};
    use crate::edge::alarm::Alarms;
    use crate::edge::drain::Clients;
    use crate::edge::memory::Memory;
    use crate::runtime::Tasks;
    use crate::wire::Stored;
    use crate::wire::limits::BODY_MAX;
    use std::future::{pending, poll_fn};
    use std::time::Duration;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
    use tokio::time::timeout;
    use tokio_util::sync::CancellationToken;

    /// What the socket of a client buffers.
    const SOCKET: usize = 100;

    fn connect(tasks: &Tasks) -> (DuplexStream, TimedSocket<DuplexStream>) {
        let stop = CancellationToken::new();
        let alarms = Alarms::new();
        tasks.spawn(alarms.clone().run(stop.clone(), tasks.stop().clone()));
        let clients = Clients::new(stop, Duration::ZERO, tasks.stop().clone());
        let (client, edge) = duplex(SOCKET);
        let link = Link::new(edge, Stored::websocket_text, alarms.alarm());
        let memory = Memory::new(Budget::unlimited());
        let frames = FrameSocket::new(link, &memory.bodies);
        (client, TimedSocket::new(frames, clients.enter()))
    }

    fn poll_serve(
        socket: &mut TimedSocket<DuplexStream>,
        cx: &mut Context<'_>,
    ) -> Poll<Disconnect> {
        if let Err(disconnect) = socket.begin_turn(cx) {
            return Poll::Ready(disconnect);
        }
        if let Poll::Ready(Err(disconnect)) = socket.poll_flush(cx) {
            return Poll::Ready(disconnect);
        }
        match socket.poll_receive(cx) {
            Poll::Ready(Err(disconnect)) => Poll::Ready(disconnect),
            Poll::Ready(Ok(_)) => {
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Poll::Pending => Poll::Pending,
        }
    }

    /// Serves the client for this time. Returns why it was disconnected, if it was.
    async fn serve_for(
        socket: &mut TimedSocket<DuplexStream>,
        time: Duration,
    ) -> Option<Disconnect> {
        let served = poll_fn(|cx| poll_serve(socket, cx));
        timeout(time, served).await.ok()
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_accepts_data_again_in_time_is_pinged_and_not_disconnected() {
        let tasks = Tasks::default();
        let (mut client, mut socket) = connect(&tasks);
        let served = serve_for(&mut socket, PING_EVERY + 2 * TICK).await;
        assert!(served.is_none(), "{served:?}");
        let ping = [0x89, 0];
        let payload = [b'x'; 10 * SOCKET];
        socket.put(FrameKind::Binary, &payload);
        let late = PONG_WAIT * 3 / 2;
        assert!(late < WRITE_WAIT);
        let served = serve_for(&mut socket, late).await;
        assert!(served.is_none(), "{served:?}");
        let mut received = vec![0; ping.len() + 4 + payload.len() + ping.len()];
        let reading = timeout(PONG_WAIT / 2, client.read_exact(&mut received));
        let (read, served) = tokio::join!(reading, serve_for(&mut socket, PONG_WAIT / 2));
        assert!(served.is_none(), "{served:?}");
        read.expect("the client is pinged again").unwrap();
        assert!(received.starts_with(&ping) && received.ends_with(&ping));
        // It is there no longer than it answers.
        let served = serve_for(&mut socket, PONG_WAIT).await;
        assert!(
            matches!(served, Some(Disconnect::Close(Code::Timeout))),
            "{served:?}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_accepts_no_data_for_the_write_wait_is_gone() {
        let tasks = Tasks::default();
        let (_client, mut socket) = connect(&tasks);
        socket.put(FrameKind::Binary, &[b'x'; 10 * SOCKET]);
        let before = SlowPart::Output.ended();
        let served = serve_for(&mut socket, WRITE_WAIT - TICK).await;
        assert!(served.is_none(), "{served:?}");
        let served = serve_for(&mut socket, 4 * TICK).await;
        assert!(matches!(served, Some(Disconnect::Gone)), "{served:?}");
        // Other tests count, too.
        assert!(SlowPart::Output.ended() > before);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_whose_message_does_not_arrive_in_time_is_gone() {
        let tasks = Tasks::default();
        let (mut client, mut socket) = connect(&tasks);
        let mut message = vec![0x82, 0xFF];
        message.extend((BODY_MAX as u64).to_be_bytes());
        message.resize(100 * SOCKET, 0);
        let before = SlowPart::Message.ended();
        let writes = async {
            client.write_all(&message).await.unwrap();
            pending::<()>().await;
        };
        let served = tokio::select! {
            served = serve_for(&mut socket, BODY_WAIT * 2) => served,
            () = writes => None,
        };
        assert!(matches!(served, Some(Disconnect::Gone)), "{served:?}");
        assert!(SlowPart::Message.ended() > before);
    }
}
