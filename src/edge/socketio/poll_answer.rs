//! The response to a poll, which counts as sent as its client accepts it. It does not decide what is
//! in it.

use std::convert::Infallible;
use std::sync::Arc;

use axum::body::{Body, to_bytes};
use axum::response::{IntoResponse as _, Response};
use futures_util::stream::iter;

use crate::budget::bind;
use crate::config::{LARGE_EVENT, POLL_PART};
use crate::edge::error::Problem;
use crate::edge::memory::Large;
use crate::edge::traffic::Traffic;
use crate::wire::Code;

/// A part of a response. It counts as sent once it is dropped: when the socket has accepted it, or the
/// connection has ended.
struct PollPart {
    traffic: Arc<Traffic>,
    bytes: usize,
}

impl Drop for PollPart {
    fn drop(&mut self) {
        self.traffic.count_sent(self.bytes);
    }
}

/// The same response. Until its client has accepted it, its events are in flight: they keep their room
/// in the memory budget, and few follow, however many polls the client leaves unread.
pub(super) async fn counted(response: Response, traffic: &Arc<Traffic>) -> Response {
    let (mut head, body) = response.into_parts();
    // The library has all of it in memory.
    let Ok(mut rest) = to_bytes(body, usize::MAX).await else {
        traffic.cut();
        return Problem::from(Code::Internal).into_response();
    };
    if rest.len() > LARGE_EVENT {
        head.extensions.insert(Large);
    }
    let mut parts = Vec::new();
    while !rest.is_empty() {
        let bytes = rest.len().min(POLL_PART);
        let part = PollPart {
            traffic: Arc::clone(traffic),
            bytes,
        };
        parts.push(Ok::<_, Infallible>(bind(rest.split_to(bytes), part)));
    }
    Response::from_parts(head, Body::from_stream(iter(parts)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::{Bytes, HttpBody as _};
    use std::future::poll_fn;
    use std::pin::Pin;

    async fn next(body: &mut Body) -> Bytes {
        let frame = poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await;
        frame.unwrap().unwrap().into_data().unwrap()
    }

    #[tokio::test]
    async fn a_response_to_a_poll_counts_as_sent_as_its_client_accepts_it() {
        let traffic = Arc::<Traffic>::default();
        let response = Response::new(Body::from(vec![0; 3 * POLL_PART + 1]));
        let mut body = counted(response, &traffic).await.into_body();
        let first = next(&mut body).await;
        let second = next(&mut body).await;
        assert_eq!((first.len(), second.len()), (POLL_PART, POLL_PART));
        assert_eq!(traffic.sent(), 0, "the client has accepted nothing");
        drop(first);
        assert_eq!(traffic.sent(), POLL_PART as u64);
        // The connection ends.
        drop((second, body));
        assert_eq!(traffic.sent(), 3 * POLL_PART as u64 + 1);
    }

    #[tokio::test]
    async fn only_a_response_with_a_large_event_must_be_accepted_sooner() {
        for (bytes, is_large) in [(0, false), (LARGE_EVENT, false), (LARGE_EVENT + 1, true)] {
            let response = Response::new(Body::from(vec![0; bytes]));
            let response = counted(response, &Arc::default()).await;
            assert_eq!(response.extensions().get::<Large>().is_some(), is_large);
            let body = to_bytes(response.into_body(), usize::MAX).await.unwrap();
            assert_eq!(body.len(), bytes);
        }
    }
}
