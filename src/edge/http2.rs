//! HTTP/2: the limits of a connection, the end of a response that its client does not read, and of a
//! connection whose client reads nothing or asks for nothing. WebSockets use HTTP/1.1.

use std::convert::Infallible;
use std::error::Error as _;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, ready};

use axum::Router;
use axum::body::{Body, HttpBody};
use axum::extract::ConnectInfo;
use axum::http::{HeaderValue, Method, Request, Response, header};
use bytes::Bytes;
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::server::conn::http2;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead as _, DuplexStream, ReadBuf, duplex};
use tokio::time::{Instant, interval, timeout};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;
use tracing::debug;

use super::client_stream::ClientStream;
use super::memory::Large;
use super::metered::Metered;
use super::slow::SlowPart;
use super::takeover::{ResponseHead, TakenStream, Takeover};
use crate::budget::bind;
use crate::config::{
    ANSWER_WAIT, DRAIN_WAIT, HEAD_WAIT, HTTP2_CHECK_EVERY, HTTP2_CONNECTION_WINDOW,
    HTTP2_EVENTS_BUFFER, HTTP2_HEADERS_MAX, HTTP2_RESETS_MAX, HTTP2_SEND_BUFFER,
    HTTP2_STREAM_WINDOW, HTTP2_STREAMS_MAX, PING_EVERY, PONG_WAIT, WRITE_WAIT,
};
use crate::runtime::Tasks;

/// How many connections ended because their client only made work. That is rare, so all threads share
/// the counter.
static FLOODS: AtomicU64 = AtomicU64::new(0);

/// How many did since the process started.
pub(super) fn floods() -> u64 {
    FLOODS.load(Ordering::Relaxed)
}

/// How often the requests in progress of a connection reached their limit. The library refuses more
/// without a report.
static FULL: AtomicU64 = AtomicU64::new(0);

/// How often they did since the process started.
pub(super) fn full() -> u64 {
    FULL.load(Ordering::Relaxed)
}

/// Why the edge ends a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum EndReason {
    /// The client does not read a response.
    Unread,
    /// The client asks for nothing.
    Idle,
}

/// The requests of one connection that are not answered completely.
#[derive(Debug)]
struct OpenRequests(Mutex<OpenState>);

#[derive(Debug)]
struct OpenState {
    requests: Vec<Weak<OpenRequest>>,
    /// Ends the last one, until the library has made its task.
    latest: Option<CancellationToken>,
    /// Since when there are none.
    idle_since: Instant,
}

/// One of them.
#[derive(Debug, Default)]
struct OpenRequest {
    unread: Mutex<UnreadResponse>,
    /// Ends the task that answers it, which resets its stream.
    ended: CancellationToken,
}

/// What the client keeps waiting.
#[derive(Debug, Default)]
struct UnreadResponse {
    /// Since when it has not accepted the rest of a response; `None` while there is nothing to
    /// accept.
    since: Option<Instant>,
    /// Whether the response takes scarce memory.
    is_large: bool,
    /// Whether the library has all of it, and there is no task any more.
    is_handed_over: bool,
}

/// A response body that notes whether its client accepts it.
struct WatchedBody {
    body: Body,
    /// What was read of the body and not sent.
    rest: Bytes,
    request: Arc<OpenRequest>,
}

/// The body of an event stream: what its task writes.
struct EventBody(DuplexStream);

/// Runs the requests of a connection as tasks of the edge.
#[derive(Clone)]
struct OnTasks {
    tasks: Tasks,
    open: Arc<OpenRequests>,
}

impl<F> hyper::rt::Executor<F> for OnTasks
where
    F: Future + Send + 'static,
{
    fn execute(&self, request: F) {
        // The library makes the task of a request as soon as the service was called for it.
        let ended = self.open.take_latest().unwrap_or_default();
        // Boxed, because each future around it would hold it several times.
        let request = Box::pin(request);
        self.tasks.spawn(async move {
            ended.run_until_cancelled(request).await;
        });
    }
}

impl OpenRequests {
    fn new() -> Self {
        Self(Mutex::new(OpenState {
            requests: Vec::new(),
            latest: None,
            idle_since: Instant::now(),
        }))
    }

    fn lock(&self) -> MutexGuard<'_, OpenState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open(&self) -> Arc<OpenRequest> {
        let request = Arc::new(OpenRequest::default());
        let mut state = self.lock();
        state.requests.retain(|request| request.strong_count() > 0);
        state.requests.push(Arc::downgrade(&request));
        if state.requests.len() == HTTP2_STREAMS_MAX as usize {
            FULL.fetch_add(1, Ordering::Relaxed);
        }
        state.latest = Some(request.ended.clone());
        request
    }

    /// What ends the request that was opened last, at the first call.
    fn take_latest(&self) -> Option<CancellationToken> {
        self.lock().latest.take()
    }

    /// Why the connection should end now: its client does not accept a response, or has asked for
    /// nothing for a while. If the client still accepts others, only that response ends.
    fn reason_to_end(&self) -> Option<EndReason> {
        let mut state = self.lock();
        let open: Vec<_> = state.requests.iter().filter_map(Weak::upgrade).collect();
        if !open.is_empty() {
            state.idle_since = Instant::now();
        }
        let (stalled, others): (Vec<_>, Vec<_>) =
            open.iter().partition(|request| request.is_stalled());
        if !stalled.is_empty()
            && (others.is_empty() || !stalled.iter().all(|request| request.end()))
        {
            return Some(EndReason::Unread);
        }
        (state.idle_since.elapsed() > HEAD_WAIT).then_some(EndReason::Idle)
    }
}

impl OpenRequest {
    fn lock(&self) -> MutexGuard<'_, UnreadResponse> {
        self.unread.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the response. Returns whether that was possible: the library keeps what it has of one
    /// that was handed over.
    fn end(&self) -> bool {
        if self.lock().is_handed_over {
            return false;
        }
        debug!("a response over HTTP/2 is ended, because its client does not read it");
        self.ended.cancel();
        true
    }

    fn is_stalled(&self) -> bool {
        let waiting = self.lock();
        let limit = if waiting.is_large {
            ANSWER_WAIT
        } else {
            WRITE_WAIT
        };
        waiting.since.is_some_and(|since| since.elapsed() > limit)
    }
}

impl HttpBody for WatchedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        // It is polled once the client accepts some of the part before.
        if self.rest.is_empty() {
            match Pin::new(&mut self.body).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => self.rest = data,
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                },
                Poll::Pending => {
                    self.request.lock().since = None;
                    return Poll::Pending;
                }
                ended @ Poll::Ready(Some(Err(_)) | None) => {
                    // Parts of it may still wait. If not, the request is not open any more.
                    self.request.lock().since.get_or_insert_with(Instant::now);
                    return ended;
                }
            }
        }
        self.request.lock().since = Some(Instant::now());
        // The library accepts a part of any size, and then the body is not asked any more.
        let length = self.rest.len().min(HTTP2_SEND_BUFFER);
        let part = self.rest.split_to(length);
        // The library holds a part until the client accepts it. Until then, the request is open.
        let part = bind(part, Arc::clone(&self.request));
        Poll::Ready(Some(Ok(Frame::data(part))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let rest = self.rest.len() as u64;
        let unread = self.body.size_hint();
        let mut hint = SizeHint::new();
        hint.set_lower(unread.lower() + rest);
        if let Some(upper) = unread.upper() {
            hint.set_upper(upper + rest);
        }
        hint
    }
}

impl Drop for WatchedBody {
    fn drop(&mut self) {
        self.request.lock().is_handed_over = true;
    }
}

impl HttpBody for EventBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        // The library holds a frame until the client accepts it, so it has the size of its content.
        let mut buffer = [MaybeUninit::uninit(); HTTP2_EVENTS_BUFFER];
        let mut buffer = ReadBuf::uninit(&mut buffer);
        ready!(Pin::new(&mut self.0).poll_read(cx, &mut buffer))?;
        let read = buffer.filled();
        Poll::Ready((!read.is_empty()).then(|| Ok(Frame::data(Bytes::copy_from_slice(read)))))
    }
}

/// The protocol with its limits.
fn limited(tasks: OnTasks) -> http2::Builder<OnTasks> {
    let mut protocol = http2::Builder::new(tasks);
    protocol
        .timer(TokioTimer::new())
        .max_concurrent_streams(HTTP2_STREAMS_MAX)
        .max_header_list_size(HTTP2_HEADERS_MAX)
        .max_pending_accept_reset_streams(HTTP2_RESETS_MAX)
        .max_local_error_reset_streams(HTTP2_RESETS_MAX)
        .initial_stream_window_size(HTTP2_STREAM_WINDOW)
        .initial_connection_window_size(HTTP2_CONNECTION_WINDOW)
        .max_send_buf_size(HTTP2_SEND_BUFFER)
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PONG_WAIT);
    protocol
}

/// Serves one connection. When the edge stops, the requests in progress are still answered if that
/// does not take too long.
pub(super) async fn connection(stream: Metered<ClientStream>, router: Router, tasks: Tasks) {
    let open = Arc::new(OpenRequests::new());
    let protocol = limited(OnTasks {
        tasks: tasks.clone(),
        open: Arc::clone(&open),
    });
    let meter = stream.meter();
    let opening = Arc::clone(&open);
    let service = hyper::service::service_fn(move |mut request: Request<Incoming>| {
        let open = opening.open();
        name_host(&mut request);
        request.extensions_mut().insert(ConnectInfo(meter.clone()));
        let has_body = request.method() != Method::HEAD;
        let answer = router.clone().oneshot(request);
        async move {
            let mut response: Response<Body> = answer.await?;
            if let Some(takeover) = response.extensions_mut().remove::<Takeover>()
                && has_body
            {
                let (edge, client) = duplex(HTTP2_EVENTS_BUFFER);
                takeover.start(TakenStream::of_response(edge), ResponseHead::NONE);
                *response.body_mut() = Body::new(EventBody(client));
            }
            open.lock().is_large = response.extensions().get::<Large>().is_some();
            let watched = |body| {
                Body::new(WatchedBody {
                    body,
                    rest: Bytes::new(),
                    request: open,
                })
            };
            Ok::<_, Infallible>(response.map(watched))
        }
    });
    let stop = tasks.stop().clone();
    let mut check = interval(HTTP2_CHECK_EVERY);
    let mut connection = std::pin::pin!(protocol.serve_connection(TokioIo::new(stream), service));
    let ended = loop {
        tokio::select! {
            ended = &mut connection => break Some(ended),
            _ = check.tick() => if let Some(reason) = open.reason_to_end() {
                if reason == EndReason::Unread {
                    SlowPart::Output.count();
                }
                debug!(?reason, "an HTTP/2 connection is ended");
                break None;
            },
            () = stop.cancelled() => {
                connection.as_mut().graceful_shutdown();
                break timeout(DRAIN_WAIT * 3 / 4, connection).await.ok();
            }
        }
    };
    if let Some(Err(error)) = ended {
        if is_flood(&error) {
            FLOODS.fetch_add(1, Ordering::Relaxed);
        }
        debug!(%error, "an HTTP/2 connection broke");
    }
}

/// Whether the library ended a connection because its client only made work.
fn is_flood(error: &hyper::Error) -> bool {
    let cause = error
        .source()
        .and_then(|cause| cause.downcast_ref::<h2::Error>());
    let calm = Some(h2::Reason::ENHANCE_YOUR_CALM);
    cause.is_some_and(|cause| cause.is_library() && cause.reason() == calm)
}

/// HTTP/2 names the host in `:authority`. The rest of the edge reads `Host`.
fn name_host(request: &mut Request<Incoming>) {
    if request.headers().contains_key(header::HOST) {
        return;
    }
    let host = request
        .uri()
        .authority()
        .map(|host| host.as_str().to_owned());
    if let Some(host) = host.and_then(|host| HeaderValue::try_from(host).ok()) {
        request.headers_mut().insert(header::HOST, host);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt as _;
    use std::future::poll_fn;
    use tokio::io::AsyncWriteExt as _;
    use tokio::time::advance;

    #[tokio::test]
    async fn a_connection_with_as_many_requests_as_allowed_is_counted() {
        let open = OpenRequests::new();
        let before = full();
        let mut requests: Vec<_> = (1..HTTP2_STREAMS_MAX).map(|_| open.open()).collect();
        assert_eq!(full(), before);
        for times in 1..3 {
            let last = open.open();
            assert_eq!(full(), before + times);
            drop(last);
        }
        requests.clear();
        drop(open.open());
        assert_eq!(full(), before + 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_is_open_until_the_client_has_accepted_every_part_of_the_response() {
        let open = OpenRequests::new();
        let mut body = WatchedBody {
            body: Body::from(vec![0; 2 * HTTP2_SEND_BUFFER + 1]),
            rest: Bytes::new(),
            request: open.open(),
        };
        let mut parts = Vec::new();
        while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
            assert!(!body.is_end_stream() || parts.len() == 2);
            parts.push(frame.unwrap().into_data().unwrap());
        }
        let sizes: Vec<_> = parts.iter().map(Bytes::len).collect();
        assert_eq!(sizes, [HTTP2_SEND_BUFFER, HTTP2_SEND_BUFFER, 1]);
        drop(body);
        assert_eq!(open.reason_to_end(), None);
        advance(WRITE_WAIT * 2).await;
        assert_eq!(open.reason_to_end(), Some(EndReason::Unread));
        drop(parts);
        assert_eq!(open.reason_to_end(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_ends_before_its_last_part_is_accepted_is_open_for_a_limited_time() {
        let open = OpenRequests::new();
        let (mut edge, client) = duplex(HTTP2_EVENTS_BUFFER);
        let mut body = WatchedBody {
            body: Body::new(EventBody(client)),
            rest: Bytes::new(),
            request: open.open(),
        };
        edge.write_all(b"the last part").await.unwrap();
        let part = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await;
        assert!(part.is_some());
        let more = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx));
        assert!(more.now_or_never().is_none());
        advance(WRITE_WAIT * 2).await;
        assert_eq!(open.reason_to_end(), None, "more may follow");
        drop(edge);
        let end = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await;
        assert!(end.is_none());
        drop(body);
        assert_eq!(open.reason_to_end(), None);
        advance(WRITE_WAIT * 2).await;
        assert_eq!(open.reason_to_end(), Some(EndReason::Unread));
        drop(part);
        assert_eq!(open.reason_to_end(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn only_the_response_that_is_not_read_ends_while_the_client_reads_others() {
        let open = OpenRequests::new();
        let stalled = open.open();
        let ended = open.take_latest().unwrap();
        stalled.lock().since = Some(Instant::now());
        advance(WRITE_WAIT * 2).await;
        let read = open.open();
        read.lock().since = Some(Instant::now());
        assert_eq!(open.reason_to_end(), None);
        assert!(ended.is_cancelled());
        assert!(!open.take_latest().unwrap().is_cancelled());
        // It has ended, and its last parts are still not accepted.
        stalled.lock().is_handed_over = true;
        assert_eq!(open.reason_to_end(), Some(EndReason::Unread));
        drop(stalled);
        assert_eq!(open.reason_to_end(), None);
        advance(WRITE_WAIT * 2).await;
        assert_eq!(
            open.reason_to_end(),
            Some(EndReason::Unread),
            "it reads no other"
        );
    }
}
