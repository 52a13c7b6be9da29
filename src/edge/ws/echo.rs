//! A WebSocket echo with the edge's own upgrade, for a third-party conformance test
//! (`scripts/autobahn.sh`). No command serves it.

use std::io;
use std::net::TcpListener;

use axum::Router;
use axum::extract::ws::{Message, WebSocketUpgrade};
use axum::routing::any;

use super::socket::{Disconnect, close, with_limits};

/// Sends every message back, at `/` of `listener`, until it is dropped.
///
/// # Errors
/// When the runtime does not accept the listener.
pub async fn serve_echo(listener: TcpListener) -> io::Result<()> {
    let echo = |upgrade: WebSocketUpgrade| async {
        with_limits(upgrade).on_upgrade(|mut socket| async move {
            while let Some(received) = socket.recv().await {
                let sent = match received {
                    Ok(message @ (Message::Text(_) | Message::Binary(_))) => {
                        socket.send(message).await
                    }
                    Ok(Message::Ping(_) | Message::Pong(_) | Message::Close(_)) => Ok(()),
                    Err(error) => return close(&mut socket, Disconnect::of(error)).await,
                };
                if sent.is_err() {
                    return;
                }
            }
        })
    };
    let listener = tokio::net::TcpListener::from_std(listener)?;
    axum::serve(listener, Router::new().route("/", any(echo))).await
}
