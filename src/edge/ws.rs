//! The WebSocket transport: the upgrade. `wire/PROTOCOL.md` is the contract. `connection` serves an
//! open connection, `timed` keeps its time limits, `socket` reads its messages, `reader` their
//! frames.

mod connection;
mod echo;
mod liveness;
pub(super) mod opening;
mod reader;
pub(super) mod socket;
pub(super) mod timed;

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, header};
use axum::response::Response;
use hyper::upgrade::OnUpgrade;

pub use self::echo::serve_echo;

use self::connection::Connection;
use self::socket::FrameSocket;
use self::timed::TimedSocket;
use super::access::Access;
use super::admission::ClientAddress;
use super::app::App;
use super::chat::{CHAT_PROTOCOL, ChatSocket};
use super::client_stream::ClientStream;
use super::client_task::ClientTask;
use super::connection_slots::acquire_unless_held;
use super::counters::{Connected, Transport};
use super::credential::BEARER_SUBPROTOCOL;
use super::describe::{JOBS, problems};
use super::drain::DrainSlot;
use super::error::Problem;
use super::link::Link;
use super::quota::SubjectConnection;
use super::takeover::TakenStream;
use crate::fair_slots::FairSlot;
use crate::wire::{Code, Encoding, Stored};

problems!(NotUpgraded: BadRequest, BadSubprotocol, UpgradeRequired, RateLimited, Overloaded, Restarting);

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
    request: Request,
) -> Result<Response, Problem> {
    let mut request = request.into_parts().0;
    let key = opening::check(&mut request)?;
    let access = request.extensions.get::<Access>().cloned();
    let ClientAddress(address) = *request.extensions.get().ok_or(Code::Internal)?;
    let selected = match offered_subprotocols(&request.headers) {
        None => None,
        Some(names) => Some(Subprotocol::of_offer(names).ok_or(Code::BadSubprotocol)?),
    };
    let chat = match selected {
        Some(Subprotocol::Chat) => {
            let no_token = || Problem::new(Code::Unauthorized, NO_LATER_TOKEN);
            let access = access.clone().ok_or_else(no_token)?;
            let counted = access.connect()?;
            Some((access, counted))
        }
        Some(Subprotocol::Own(_)) | None => None,
    };
    let upgrade = request.extensions.remove::<OnUpgrade>();
    let upgrade = upgrade.ok_or_else(|| Problem::new(Code::BadRequest, NOT_UPGRADABLE))?;
    if app.clients.are_leaving() {
        return Err(Code::Restarting.into());
    }
    let own_slot = acquire_unless_held(&request, address, app.shared.connections())?;
    let response = opening::accept(&key, selected.map(Subprotocol::name));
    let tasks = app.tasks.clone();
    let client = AcceptedClient {
        slot: app.clients.enter(),
        connected: app.thread.counters.connect(Transport::WebSocket),
        app,
        own_slot,
        address,
        access,
        chat,
        encoding: match selected {
            Some(Subprotocol::Own(encoding)) => encoding,
            Some(Subprotocol::Chat) | None => Encoding::Json,
        },
    };
    tasks.spawn(client.open(upgrade));
    Ok(response)
}

/// A client whose upgrade was accepted.
struct AcceptedClient {
    app: Arc<App>,
    slot: DrainSlot,
    connected: Connected,
    /// Its slot among the connections, instead of that of its connection.
    own_slot: Option<FairSlot>,
    address: IpAddr,
    access: Option<Access>,
    /// Present if it speaks the protocol of the AI SDK.
    chat: Option<(Access, Option<SubjectConnection>)>,
    encoding: Encoding,
}

impl AcceptedClient {
    /// Takes the connection from the HTTP library, and begins the client's task unless the client has
    /// disconnected.
    async fn open(self, upgrade: OnUpgrade) {
        let Some(taken) = TakenStream::upgraded(upgrade).await else {
            return;
        };
        let Self {
            app,
            slot,
            connected,
            own_slot,
            address,
            access,
            chat,
            encoding,
        } = self;
        let socket = socket_of(&app, taken.holding(own_slot), encoding, slot);
        let tasks = app.tasks.clone();
        match chat {
            Some((access, counted)) => {
                let chat = ChatSocket::new(app, socket, address, access, (connected, counted));
                tasks.spawn(ClientTask::new(chat));
            }
            None => {
                let connection = Connection::new(app, socket, encoding, address, access, connected);
                tasks.spawn(ClientTask::new(connection));
            }
        }
    }
}

/// The socket of a client whose events have this encoding.
fn socket_of(
    app: &App,
    taken: TakenStream,
    encoding: Encoding,
    slot: DrainSlot,
) -> TimedSocket<ClientStream> {
    let mut link = Link::taken(taken, framing(encoding), app.alarms.alarm());
    link.count_sent(&app.thread.counters.sent, Transport::WebSocket);
    let frames = FrameSocket::new(link, &app.shared.memory().bodies);
    TimedSocket::new(frames, slot)
}

/// What is spoken over a WebSocket.
#[derive(Clone, Copy, Debug)]
enum Subprotocol {
    /// The protocol of PROTOCOL.md.
    Own(Encoding),
    /// The protocol of the AI SDK.
    Chat,
}

impl Subprotocol {
    /// The first one that the client offers and the edge speaks.
    fn of_offer<'a>(names: impl IntoIterator<Item = &'a str>) -> Option<Self> {
        names.into_iter().find_map(|name| match name {
            CHAT_PROTOCOL => Some(Self::Chat),
            _ => Encoding::of_offer([name]).map(Self::Own),
        })
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Own(encoding) => encoding.subprotocol(),
            Self::Chat => CHAT_PROTOCOL,
        }
    }
}

const NO_LATER_TOKEN: &str =
    "Send the token with the request: in the header, or as a subprotocol `bearer.TOKEN`.";
const NOT_UPGRADABLE: &str = "The connection cannot be upgraded. Send the request over HTTP/1.1.";

/// The frames of events in this encoding.
fn framing(encoding: Encoding) -> fn(&Stored) -> &[u8] {
    match encoding {
        Encoding::Json => Stored::websocket_text,
        Encoding::MsgPack => Stored::websocket_binary,
    }
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
    let names = lists.flat_map(|list| list.split(',')).map(str::trim);
    Some(names.filter(|name| !name.starts_with(BEARER_SUBPROTOCOL)))
}
