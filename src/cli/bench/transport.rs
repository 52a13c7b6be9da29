//! How a client connects: the request, the first frame, and what refuses it.

use std::io;
use std::net::SocketAddr;

use clap::ValueEnum;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::net::TcpStream;

use super::frames::{self, BINARY, Chunked, Framing, TEXT};
use crate::wire::{JSON_PROTOCOL, JobId, MSGPACK_PROTOCOL};

/// How a client reaches the edge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum ClientTransport {
    /// WebSocket, JSON frames.
    Ws,
    /// WebSocket, MessagePack frames.
    WsMsgpack,
    /// Server-Sent Events.
    Sse,
    /// Socket.IO over its WebSocket transport.
    Socketio,
    /// The Durable Streams protocol, live as Server-Sent Events. The edge is such a server, and the
    /// benchmark also appends to it.
    #[value(hide = true)]
    DurableStreams,
}

impl ClientTransport {
    /// The head of the request that connects.
    pub(super) fn request(self, edge: SocketAddr, job: &JobId, cursor: Option<&str>) -> String {
        let upgrade = |path: &str, protocol: &str| {
            format!(
                "GET {path} HTTP/1.1\r\nHost: {edge}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                 Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{protocol}\r\n"
            )
        };
        let protocol = |name: &str| format!("Sec-WebSocket-Protocol: {name}\r\n");
        let stream = |path: &str, resume: &str| {
            format!(
                "GET {path} HTTP/1.1\r\nHost: {edge}\r\nAccept: text/event-stream\r\n{resume}\r\n"
            )
        };
        let job = job.as_str();
        match self {
            Self::Ws => upgrade("/ws", &protocol(JSON_PROTOCOL)),
            Self::WsMsgpack => upgrade("/ws", &protocol(MSGPACK_PROTOCOL)),
            Self::Socketio => upgrade("/socket.io/?EIO=4&transport=websocket", ""),
            Self::Sse => stream(
                &format!("/api/jobs/{job}/events"),
                &cursor.map_or(String::new(), |cursor| {
                    format!("Last-Event-ID: {cursor}\r\n")
                }),
            ),
            Self::DurableStreams => {
                let offset = cursor.unwrap_or("-1");
                stream(&format!("/{job}?offset={offset}&live=sse"), "")
            }
        }
    }

    /// The status of a response that accepts the request.
    pub(super) fn status(self) -> &'static str {
        match self {
            Self::Sse | Self::DurableStreams => "200",
            Self::Ws | Self::WsMsgpack | Self::Socketio => "101",
        }
    }

    /// How the server separates its messages.
    pub(super) fn framing(self) -> Framing {
        match self {
            Self::Sse | Self::DurableStreams => Framing::EventStream(Chunked::default()),
            Self::Ws | Self::WsMsgpack | Self::Socketio => Framing::WebSocket(Vec::new()),
        }
    }

    /// The frame that watches a job, if the request did not name it. Socket.IO must join its
    /// namespace first.
    pub(super) fn watch(self, mut watch: Value) -> io::Result<Option<Vec<u8>>> {
        watch["op"] = json!("watch");
        Ok(match self {
            Self::Sse | Self::Socketio | Self::DurableStreams => None,
            Self::Ws => Some(frames::client_frame(TEXT, watch.to_string().as_bytes())),
            Self::WsMsgpack => {
                let watch = rmp_serde::to_vec_named(&watch).map_err(io::Error::other)?;
                Some(frames::client_frame(BINARY, &watch))
            }
        })
    }
}

/// Whether a message is an error from the edge.
pub(super) fn is_error(message: &[u8]) -> bool {
    memchr::memmem::find(message, b"\"op\":\"error\"").is_some()
        || memchr::memmem::find(message, b"tailwater:error").is_some()
        || memchr::memmem::find(message, b"\xa2op\xa5error").is_some()
        || message.starts_with(b"44")
}

/// Reads the head of the response, and returns the bytes after it.
pub(super) async fn response(stream: &mut TcpStream, expected: &str) -> io::Result<Vec<u8>> {
    let mut head = Vec::new();
    let mut buffer = [0; 1024];
    loop {
        stream.readable().await?;
        match stream.try_read(&mut buffer) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => head.extend_from_slice(&buffer[..read]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(error) => return Err(error),
        }
        let Some(end) = memchr::memmem::find(&head, b"\r\n\r\n") else {
            continue;
        };
        let text = String::from_utf8_lossy(&head);
        let status = text.split(' ').nth(1).unwrap_or_default();
        if status != expected {
            return Err(io::Error::other(text.into_owned()));
        }
        return Ok(head.split_off(end + 4));
    }
}
