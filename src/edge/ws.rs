//! The WebSocket transport: the upgrade. `wire/PROTOCOL.md` is the contract. `connection` serves an
//! open connection, `socket` reads and writes its messages.

mod connection;
mod echo;
pub(super) mod opening;
mod socket;

use std::sync::Arc;

use axum::extract::ws::WebSocketUpgrade;
use axum::extract::{ConnectInfo, FromRequestParts as _, Request, State};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::Response;
use tracing::{Instrument as _, info_span};

pub use self::echo::serve_echo;

use self::connection::Connection;
use self::socket::{FrameSocket, with_limits};
use super::app::App;
use super::counters::Transport;
use super::describe::{JOBS, problems};
use super::error::Problem;
use super::meter::Meter;
use crate::wire::{Code, Encoding};

problems!(NotUpgraded: BadRequest, BadSubprotocol, UpgradeRequired, Restarting);

/// Follows jobs over a WebSocket.
#[utoipa::path(
    get, path = "/ws", tag = JOBS,
    params(
        ("Connection" = inline(String), Header, pattern = "^[Uu]pgrade$"),
        ("Upgrade" = inline(String), Header, pattern = "^websocket$"),
        ("Sec-WebSocket-Version" = inline(String), Header, pattern = "^13$"),
        ("Sec-WebSocket-Key" = inline(String), Header, pattern = "^[A-Za-z0-9+/]{22}==$"),
    ),
    responses((status = 101, description = "The protocol that PROTOCOL.md describes."), NotUpgraded),
)]
pub(super) async fn upgrade(
    State(app): State<Arc<App>>,
    ConnectInfo(meter): ConnectInfo<Meter>,
    request: Request,
) -> Result<Response, Problem> {
    let mut request = request.into_parts().0;
    opening::check(&mut request)?;
    let upgrade = WebSocketUpgrade::from_request_parts(&mut request, &()).await;
    let upgrade = upgrade.map_err(|error| Problem::new(Code::BadRequest, error.body_text()))?;
    let mut upgrade = with_limits(upgrade);
    let encoding = match offered_subprotocols(&request.headers) {
        None => Encoding::Json,
        Some(names) => {
            let encoding = Encoding::of_offer(names).ok_or(Code::BadSubprotocol)?;
            upgrade.set_selected_protocol(HeaderValue::from_static(encoding.subprotocol()));
            encoding
        }
    };
    if app.clients.are_leaving() {
        return Err(Code::Restarting.into());
    }
    let held = (
        app.tasks.hold(),
        app.thread.counters.connect(Transport::WebSocket),
    );
    let slot = app.clients.enter();
    meter.become_websocket();
    Ok(upgrade.on_upgrade(move |socket| async move {
        let connection = Connection::new(app, FrameSocket::new(socket, encoding, meter));
        connection
            .run(slot)
            .instrument(info_span!("ws", id = %nuid::next()))
            .await;
        drop(held);
    }))
}

/// The subprotocols that a client offers, in its order; `None` without the header. A value that is
/// not text counts as an unknown subprotocol.
fn offered_subprotocols(headers: &HeaderMap) -> Option<impl Iterator<Item = &str>> {
    let mut lists = headers
        .get_all(header::SEC_WEBSOCKET_PROTOCOL)
        .iter()
        .peekable();
    lists.peek()?;
    let lists = lists.map(|list| list.to_str().unwrap_or_default());
    Some(lists.flat_map(|list| list.split(',')).map(str::trim))
}
