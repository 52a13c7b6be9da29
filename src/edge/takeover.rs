//! Takes a connection away from the HTTP library once the head of a long response is known: the
//! library's buffers and its state would cost ten times as much as the stream itself.

use std::fmt;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::SystemTime;

use axum::http::{Version, header};
use axum::response::Response;
use bytes::Bytes;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tracing::debug;

use super::client_stream::ClientStream;
use super::metered::Metered;
use crate::fair_slots::FairSlot;

/// A connection that the HTTP library has until it is taken away. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct LentStream(Arc<Mutex<Lent>>);

#[derive(Debug)]
struct Lent {
    /// `None` once it is taken away.
    stream: Option<Metered<ClientStream>>,
    /// Whether the library has written everything that it had.
    is_flushed: bool,
    takeover: Option<(Takeover, ResponseHead)>,
}

/// A connection without the HTTP library.
#[derive(Debug)]
pub(super) struct TakenStream {
    pub(super) stream: ClientStream,
    /// Its slot among the connections.
    pub(super) slot: Option<FairSlot>,
    /// What the client sent early.
    pub(super) early: Bytes,
}

/// The head of a response, which is not written yet.
#[derive(Debug)]
pub(super) struct ResponseHead {
    pub(super) bytes: Vec<u8>,
    /// Whether the body is sent in chunks; otherwise, the end of the connection ends it.
    pub(super) is_chunked: bool,
}

/// An extension of a response: what writes its head and its body.
#[derive(Clone)]
pub(super) struct Takeover(Arc<Mutex<Option<Writer>>>);

type Writer = Box<dyn FnOnce(TakenStream, ResponseHead) + Send>;

impl Takeover {
    pub(super) fn new(writer: impl FnOnce(TakenStream, ResponseHead) + Send + 'static) -> Self {
        Self(Arc::new(Mutex::new(Some(Box::new(writer)))))
    }

    /// Writes the head and the body to this stream.
    pub(super) fn start(&self, stream: TakenStream, head: ResponseHead) {
        let writer = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(writer) = writer {
            writer(stream, head);
        }
    }
}

impl fmt::Debug for Takeover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Takeover")
    }
}

impl ResponseHead {
    /// No head: the HTTP library writes it.
    pub(super) const NONE: Self = Self {
        bytes: Vec::new(),
        is_chunked: false,
    };

    /// The head of a response over this version of HTTP/1, after which the connection ends.
    pub(super) fn of(response: &Response, version: Version) -> Self {
        let is_chunked = version == Version::HTTP_11;
        let status = response.status();
        let reason = status.canonical_reason().unwrap_or_default();
        let mut bytes = format!("{version:?} {} {reason}\r\n", status.as_str()).into_bytes();
        let mut put = |name: &str, value: &[u8]| {
            bytes.extend_from_slice(name.as_bytes());
            bytes.extend_from_slice(b": ");
            bytes.extend_from_slice(value);
            bytes.extend_from_slice(b"\r\n");
        };
        for (name, value) in response.headers() {
            put(name.as_str(), value.as_bytes());
        }
        if is_chunked {
            put(header::TRANSFER_ENCODING.as_str(), b"chunked");
        }
        put(header::CONNECTION.as_str(), b"close");
        let date = httpdate::fmt_http_date(SystemTime::now());
        put(header::DATE.as_str(), date.as_bytes());
        bytes.extend_from_slice(b"\r\n");
        Self { bytes, is_chunked }
    }
}

impl LentStream {
    pub(super) fn new(stream: Metered<ClientStream>) -> Self {
        Self(Arc::new(Mutex::new(Lent {
            stream: Some(stream),
            is_flushed: true,
            takeover: None,
        })))
    }

    /// Asks for the connection, to write a response with this head.
    pub(super) fn request(&self, takeover: Takeover, head: ResponseHead) {
        self.lock().takeover = Some((takeover, head));
    }

    /// Hands the connection over, if that was requested and earlier responses are written. Returns
    /// whether it did.
    pub(super) fn hand_over(&self) -> bool {
        let mut lent = self.lock();
        if lent.is_flushed
            && let Some((takeover, head)) = lent.takeover.take()
            && let Some(stream) = lent.stream.take()
        {
            drop(lent);
            takeover.start(TakenStream::of(stream, Bytes::new()), head);
            return true;
        }
        false
    }

    fn lock(&self) -> MutexGuard<'_, Lent> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl TakenStream {
    /// Holds this slot among the connections instead of its own, if there is one.
    pub(super) fn holding(self, slot: Option<FairSlot>) -> Self {
        Self {
            slot: slot.or(self.slot),
            ..self
        }
    }

    /// The body of one response.
    pub(super) fn of_response(body: DuplexStream) -> Self {
        Self {
            stream: ClientStream::Response(body),
            slot: None,
            early: Bytes::new(),
        }
    }

    fn of(stream: Metered<ClientStream>, early: Bytes) -> Self {
        let (stream, slot) = stream.into_parts();
        Self {
            stream,
            slot,
            early,
        }
    }

    /// A connection that was upgraded; `None` if the client has disconnected.
    pub(super) async fn upgraded(upgrade: OnUpgrade) -> Option<Self> {
        let upgraded = upgrade.await;
        let upgraded = upgraded.inspect_err(|error| debug!(%error, "a client left too early"));
        let parts = upgraded.ok()?.downcast::<TokioIo<LentStream>>().ok()?;
        let stream = parts.io.into_inner().lock().stream.take()?;
        Some(Self::of(stream, parts.read_buf))
    }
}

impl Lent {
    fn stream(&mut self) -> io::Result<Pin<&mut Metered<ClientStream>>> {
        let stream = self.stream.as_mut();
        stream
            .map(Pin::new)
            .ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}

impl AsyncRead for LentStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.lock().stream()?.poll_read(cx, buffer)
    }
}

impl AsyncWrite for LentStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut lent = self.lock();
        lent.is_flushed = false;
        lent.stream()?.poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut lent = self.lock();
        lent.is_flushed = false;
        lent.stream()?.poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut lent = self.lock();
        let flushed = lent.stream()?.poll_flush(cx);
        lent.is_flushed = flushed.is_ready();
        flushed
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.lock().stream()?.poll_shutdown(cx)
    }
}
