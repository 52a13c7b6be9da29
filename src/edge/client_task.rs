//! The task of one connected client. It is a task of its own, begun after the handshake, and holds one
//! pointer: with what the runtime adds, that is 128 bytes. It knows no protocol.

use std::mem::replace;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures_util::future::BoxFuture;

/// What serves one client.
pub(super) trait ServedClient {
    /// Why the client is disconnected.
    type End;

    /// Does everything that can be done now; ready when the client should be disconnected.
    fn poll_serve(&mut self, cx: &mut Context<'_>) -> Poll<Self::End>;

    /// Disconnects the client.
    fn close(self, end: Self::End) -> BoxFuture<'static, ()>;
}

/// What [`ServedClient::poll_serve`] returns after a turn, which fails when the client should be disconnected.
pub(super) fn end_of_turn<E>(turn: Poll<Result<(), E>>) -> Poll<E> {
    match turn {
        Poll::Ready(Ok(())) | Poll::Pending => Poll::Pending,
        Poll::Ready(Err(end)) => Poll::Ready(end),
    }
}

/// Serves a client until it is disconnected.
pub(super) struct ClientTask<C>(Box<ClientState<C>>);

/// What becomes of a client.
///
/// ```text
///   Served ── the client should be disconnected ──▶ Closing ──▶ Closed
/// ```
pub(super) enum ClientState<C> {
    Served(C),
    Closing(BoxFuture<'static, ()>),
    Closed,
}

impl<C: ServedClient> ClientTask<C> {
    pub(super) fn new(client: C) -> Self {
        Self(Box::new(ClientState::Served(client)))
    }
}

impl<C: ServedClient> Future for ClientTask<C> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if let ClientState::Served(client) = &mut *self.0 {
            let end = ready!(client.poll_serve(cx));
            if let ClientState::Served(client) = replace(&mut *self.0, ClientState::Closed) {
                *self.0 = ClientState::Closing(client.close(end));
            }
        }
        if let ClientState::Closing(closing) = &mut *self.0 {
            ready!(closing.as_mut().poll(cx));
            *self.0 = ClientState::Closed;
        }
        Poll::Ready(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::poll;
    use std::sync::{Arc, Mutex};
    use tokio::sync::oneshot;
    use tokio::task::yield_now;

    /// Disconnects with the number that it receives.
    struct NumberedClient {
        number: oneshot::Receiver<u8>,
        closed: Arc<Mutex<Vec<u8>>>,
    }

    impl ServedClient for NumberedClient {
        type End = u8;

        fn poll_serve(&mut self, cx: &mut Context<'_>) -> Poll<u8> {
            Pin::new(&mut self.number).poll(cx).map(Result::unwrap)
        }

        fn close(self, end: u8) -> BoxFuture<'static, ()> {
            Box::pin(async move {
                yield_now().await;
                self.closed.lock().unwrap().push(end);
            })
        }
    }

    #[tokio::test]
    async fn a_client_is_served_until_it_is_disconnected_and_then_closed() {
        let (sender, number) = oneshot::channel();
        let closed = Arc::<Mutex<Vec<u8>>>::default();
        let mut task = ClientTask::new(NumberedClient {
            number,
            closed: Arc::clone(&closed),
        });
        for _ in 0..2 {
            assert!(poll!(&mut task).is_pending());
        }
        sender.send(7).unwrap();
        task.await;
        assert_eq!(*closed.lock().unwrap(), [7]);
    }

    #[test]
    fn a_task_holds_one_pointer() {
        let pointer = size_of::<usize>();
        assert_eq!(size_of::<ClientTask<NumberedClient>>(), pointer);
    }
}
