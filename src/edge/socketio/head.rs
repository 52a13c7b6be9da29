//! What the library gets of a request's head. It keeps the head for as long as the session, or the
//! session's WebSocket, lasts.

use axum::http::request::Parts;
use axum::http::{HeaderValue, Request, Uri, header};
use hyper::upgrade::OnUpgrade;

use crate::config::QUERY_PAIR_MAX;

/// What the library reads of a head, and `key`, which a request for a WebSocket has. All of it is
/// copied: otherwise it would keep the buffer that the whole head was read into.
pub(super) fn reduced(mut head: Parts, key: Option<HeaderValue>) -> Parts {
    let (mut reduced, ()) = Request::new(()).into_parts();
    reduced.method = head.method;
    reduced.uri = reduced_uri(&head.uri);
    let key = key.and_then(|key| HeaderValue::from_bytes(key.as_bytes()).ok());
    if let Some(key) = key {
        reduced.headers.insert(header::SEC_WEBSOCKET_KEY, key);
        if let Some(upgrade) = head.extensions.remove::<OnUpgrade>() {
            reduced.extensions.insert(upgrade);
        }
    }
    reduced
}

fn reduced_uri(uri: &Uri) -> Uri {
    let Some(query) = uri.query() else {
        return Uri::from_static("/socket.io/");
    };
    let mut reduced = String::from("/socket.io/?");
    for name in ["EIO=", "transport=", "sid="] {
        // The first one, as the library.
        if let Some(pair) = query.split('&').find(|pair| pair.starts_with(name)) {
            reduced.extend(pair.chars().take(QUERY_PAIR_MAX));
            reduced.push('&');
        }
    }
    reduced.parse().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_library_gets_no_more_of_a_head_than_it_reads() {
        let long = "x".repeat(10_000);
        let uri = format!(
            "http://host/socket.io?t={long}&transport=polling&EIO=4&transport=websocket&sid={long}"
        );
        let request = Request::post(uri).header("Cookie", &long).body(());
        let (mut head, ()) = request.unwrap().into_parts();
        head.extensions.insert(7_u8);
        let reduced = reduced(head, None);
        assert_eq!(reduced.method, "POST");
        assert_eq!(reduced.uri.path(), "/socket.io/");
        let query = format!(
            "EIO=4&transport=polling&sid={}&",
            &long[..QUERY_PAIR_MAX - 4]
        );
        assert_eq!(reduced.uri.query(), Some(query.as_str()));
        assert!(reduced.headers.is_empty() && reduced.extensions.is_empty());
    }

    #[test]
    fn the_library_gets_the_key_of_a_websocket() {
        let request = Request::get("/socket.io").header("Cookie", "x").body(());
        let (head, ()) = request.unwrap().into_parts();
        let reduced = reduced(head, Some(HeaderValue::from_static("key")));
        assert_eq!(reduced.uri, "/socket.io/");
        assert_eq!(reduced.headers.len(), 1);
        assert_eq!(reduced.headers[header::SEC_WEBSOCKET_KEY], "key");
    }
}
