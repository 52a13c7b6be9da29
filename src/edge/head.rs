//! Checks the head of every request: it names one host, its body is not too long, and a preflight
//! is for an address that exists.

use axum::extract::{MatchedPath, Request};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Version, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};

use super::error::Problem;
use crate::config::HTTP_FIELDS_MAX;
use crate::wire::Code;
use crate::wire::limits::BODY_MAX;

/// Refuses a request that does not name exactly one host (RFC 9112, section 3.2), since a proxy may
/// interpret it differently, and a preflight of an address that does not exist.
///
/// Also refuses one with too many headers. The library does so over HTTP/1, and counts no lines over
/// HTTP/2.
pub(super) async fn checked(request: Request, next: Next) -> Response {
    if has_too_many(request.headers()) {
        return StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE.into_response();
    }
    if let Err(problem) = host(request.version(), request.headers()) {
        return problem.into_response();
    }
    // The CORS layer answers every OPTIONS request. `*` means the server as a whole.
    let exists = request.extensions().get::<MatchedPath>().is_some() || request.uri().path() == "*";
    if request.method() == Method::OPTIONS && !exists {
        return Problem::from(Code::NotFound).into_response();
    }
    next.run(request).await
}

/// Refuses a body whose announced length is too large. Reading the body would be too late: it asks
/// a client that sent `Expect: 100-continue` for all of it.
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

/// Counts a name once: over HTTP/2, each cookie may be a field of its own.
fn has_too_many(headers: &HeaderMap) -> bool {
    headers.keys_len() > HTTP_FIELDS_MAX
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

/// Clients that do not know the host send an empty value. A comma is valid in a host, but usually
/// joins two of them.
fn is_host(value: &HeaderValue) -> bool {
    let bytes = value.as_bytes();
    let has_one_part = !bytes.iter().any(|byte| matches!(byte, b'@' | b','));
    bytes.is_empty() || has_one_part && Authority::try_from(bytes).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderName;

    #[test]
    fn a_request_has_a_limited_number_of_headers() {
        let with = |count: usize| {
            let field = |number: usize| {
                let name = HeaderName::try_from(format!("x-{number}")).unwrap();
                (name, HeaderValue::from_static(""))
            };
            (0..count).map(field).collect::<HeaderMap>()
        };
        assert!(!has_too_many(&with(HTTP_FIELDS_MAX)));
        assert!(has_too_many(&with(HTTP_FIELDS_MAX + 1)));
        let mut cookies = HeaderMap::new();
        for _ in 0..2 * HTTP_FIELDS_MAX {
            cookies.append(header::COOKIE, HeaderValue::from_static("a=b"));
        }
        assert!(!has_too_many(&cookies));
    }

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
