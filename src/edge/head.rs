//! What the head of every request must contain, whatever the address: one host, and no body that is
//! too long. Of the address it only checks whether it exists.

use axum::extract::{MatchedPath, Request};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderValue, Method, Version, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};

use super::error::Problem;
use crate::wire::Code;
use crate::wire::limits::BODY_MAX;

/// Refuses a request that does not name exactly one host (RFC 9112, section 3.2), since a proxy may
/// interpret it differently, and a preflight of an address that does not exist.
pub(super) async fn checked(request: Request, next: Next) -> Response {
    if let Err(problem) = host(request.version(), request.headers()) {
        return problem.into_response();
    }
    // The layer for other origins answers every OPTIONS. `*` stands for the edge as a whole.
    let exists = request.extensions().get::<MatchedPath>().is_some() || request.uri().path() == "*";
    if request.method() == Method::OPTIONS && !exists {
        return Problem::from(Code::NotFound).into_response();
    }
    next.run(request).await
}

/// Refuses a body by the length that its client announces. A client that sends `Expect:
/// 100-continue` is asked for the body once a handler reads it, which is too late.
pub(super) async fn body_is_short_enough(request: Request, next: Next) -> Response {
    let length = request
        .headers()
        .get(header::CONTENT_LENGTH)
        .and_then(|length| length.to_str().ok()?.parse().ok());
    if length.is_some_and(|length: u64| length > BODY_MAX as u64) {
        return Problem::from(Code::TooLarge).into_response();
    }
    next.run(request).await
}

fn host(version: Version, headers: &HeaderMap) -> Result<(), Problem> {
    let hosts: Vec<_> = headers.get_all(header::HOST).iter().collect();
    let message = match hosts.as_slice() {
        [] if version < Version::HTTP_11 => return Ok(()),
        [host] if is_host(host) => return Ok(()),
        [] => "The request has no `Host` header.",
        [_] => "The `Host` header is not a host with an optional port.",
        [_, _, ..] => "The request has more than one `Host` header.",
    };
    Err(Problem::new(Code::BadRequest, message))
}

/// A client that does not know the host sends an empty one. A comma, which the grammar of hosts
/// allows, joins two.
fn is_host(value: &HeaderValue) -> bool {
    let bytes = value.as_bytes();
    let has_one_part = !bytes.iter().any(|byte| matches!(byte, b'@' | b','));
    bytes.is_empty() || has_one_part && Authority::try_from(bytes).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_names_one_host() {
        let check = |version, hosts: &[&'static str]| {
            let hosts = hosts
                .iter()
                .map(|host| (header::HOST, HeaderValue::from_static(host)));
            host(version, &hosts.collect()).is_ok()
        };
        for good in [
            "x",
            "example.com",
            "127.0.0.1:4000",
            "[::1]:4000",
            "[::1]",
            "a_b.example",
            "",
        ] {
            assert!(check(Version::HTTP_11, &[good]), "{good}");
        }
        for bad in ["a b", "a,b", "a/b", "user@a", "a:b:c", "http://a", "a?b"] {
            assert!(!check(Version::HTTP_11, &[bad]), "{bad}");
        }
        assert!(!check(Version::HTTP_11, &[]) && check(Version::HTTP_10, &[]));
        for version in [Version::HTTP_10, Version::HTTP_11] {
            assert!(!check(version, &["x", "x"]) && !check(version, &["x", "y"]));
        }
    }
}
