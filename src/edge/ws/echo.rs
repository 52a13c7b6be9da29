//! A WebSocket echo with the edge's own handshake and frames, for a third-party conformance test
//! (`scripts/autobahn.sh`). No command serves it.

use std::future::poll_fn;
use std::io;
use std::net::TcpListener;

use axum::extract::Request;
use axum::response::{IntoResponse as _, Response};
use axum::routing::any;
use axum::{Extension, Router};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;

use super::opening;
use super::socket::{Disconnect, FrameSocket};
use crate::budget::Budget;
use crate::edge::alarm::Alarms;
use crate::edge::link::Link;
use crate::edge::memory::Memory;
use crate::runtime::Tasks;
use crate::wire::framing::FrameKind;
use crate::wire::{Encoding, Stored};

/// Sends every message back, at `/` of `listener`, until it is dropped.
///
/// # Errors
/// When the runtime does not accept the listener.
pub async fn serve_echo(listener: TcpListener) -> io::Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let tasks = Extension(Tasks::default());
    axum::serve(
        listener,
        Router::new().route("/", any(upgrade)).layer(tasks),
    )
    .await
}

async fn upgrade(Extension(tasks): Extension<Tasks>, request: Request) -> Response {
    let mut request = request.into_parts().0;
    let key = match opening::check(&mut request) {
        Ok(key) => key,
        Err(problem) => return problem.into_response(),
    };
    if let Some(upgrade) = request.extensions.remove::<OnUpgrade>() {
        tasks.spawn(async move {
            if let Ok(upgraded) = upgrade.await {
                echo(TokioIo::new(upgraded)).await;
            }
        });
    }
    opening::accept(&key, None)
}

async fn echo(upgraded: TokioIo<hyper::upgrade::Upgraded>) {
    let alarm = Alarms::new().alarm();
    let link = Link::new(upgraded, Stored::websocket_text, alarm);
    let mut socket = FrameSocket::new(link, &Memory::new(Budget::unlimited()).bodies);
    let disconnect = loop {
        if let Err(disconnect) = turn(&mut socket).await {
            break disconnect;
        }
    };
    socket.close(disconnect).await;
}

/// Echoes what has arrived.
async fn turn(
    socket: &mut FrameSocket<TokioIo<hyper::upgrade::Upgraded>>,
) -> Result<(), Disconnect> {
    for message in poll_fn(|cx| socket.poll_receive(cx)).await? {
        let kind = match message.encoding {
            Encoding::Json => FrameKind::Text,
            Encoding::MsgPack => FrameKind::Binary,
        };
        socket.put(kind, &message.bytes);
    }
    poll_fn(|cx| socket.link.poll_flush(cx)).await?;
    Ok(())
}
