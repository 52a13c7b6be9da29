//! Checks requests to open a WebSocket (RFC 6455, section 4.2.1), for each transport that uses one,
//! and accepts them.

use axum::body::Body;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version, header};
use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use crate::edge::error::Problem;
use crate::wire::Code;

/// Checks the request, and reduces the two list headers to the one token that the libraries expect.
/// Returns the client's key.
pub(in crate::edge) fn check(request: &mut Parts) -> Result<HeaderValue, Problem> {
    let headers = &mut request.headers;
    let upgrades = has_token(headers, header::CONNECTION, "upgrade")
        && has_token(headers, header::UPGRADE, "websocket");
    if !upgrades || request.method != Method::GET || request.version < Version::HTTP_11 {
        return Err(bad(
            "Not a WebSocket upgrade. Send `Connection: Upgrade` and `Upgrade: websocket`.",
        ));
    }
    if one(headers, header::SEC_WEBSOCKET_VERSION).is_none_or(|version| version.as_bytes() != b"13")
    {
        return Err(Code::UpgradeRequired.into());
    }
    let is_key = |key: &&HeaderValue| BASE64.decode(key).is_ok_and(|key| key.len() == 16);
    let key = one(headers, header::SEC_WEBSOCKET_KEY).filter(is_key);
    let key = key.ok_or_else(|| bad("`Sec-WebSocket-Key` is not 16 bytes in base64."))?;
    let key = key.clone();
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    Ok(key)
}

/// Accepts a request with this key, and selects a subprotocol.
pub(super) fn accept(key: &HeaderValue, selected: Option<&'static str>) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    let accept = HeaderValue::try_from(derive_accept_key(key.as_bytes()));
    if let Ok(accept) = accept {
        headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    }
    if let Some(name) = selected {
        let subprotocol = HeaderValue::from_static(name);
        headers.insert(header::SEC_WEBSOCKET_PROTOCOL, subprotocol);
    }
    response
}

fn bad(message: &str) -> Problem {
    Problem::new(Code::BadRequest, message)
}

/// The value of a header that must occur once.
fn one(headers: &HeaderMap, name: HeaderName) -> Option<&HeaderValue> {
    let mut values = headers.get_all(name).iter();
    values.next().filter(|_| values.next().is_none())
}

/// Whether a list header, which may occur several times, contains a token.
fn has_token(headers: &HeaderMap, name: HeaderName, token: &str) -> bool {
    let lines = headers
        .get_all(name)
        .iter()
        .filter_map(|line| line.to_str().ok());
    lines
        .flat_map(|line| line.split(','))
        .any(|named| named.trim().eq_ignore_ascii_case(token))
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::Request;

    const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

    /// The code for a valid request with these headers replaced.
    fn checked(changes: &[(&str, &[&str])]) -> Option<Code> {
        let mut request = Request::new(()).into_parts().0;
        let good: [(&str, &[&str]); 4] = [
            ("connection", &["Upgrade"]),
            ("upgrade", &["websocket"]),
            ("sec-websocket-version", &["13"]),
            ("sec-websocket-key", &[KEY]),
        ];
        for (name, values) in good {
            let change = changes.iter().find(|(changed, _)| *changed == name);
            for value in change.map_or(values, |(_, values)| *values) {
                request.headers.append(
                    HeaderName::from_bytes(name.as_bytes()).unwrap(),
                    value.parse().unwrap(),
                );
            }
        }
        check(&mut request).err().map(|problem| problem.code())
    }

    #[test]
    fn list_headers_may_have_other_tokens_in_any_case_over_several_lines() {
        assert_eq!(checked(&[]), None);
        let cases: [(&str, &[&str]); 6] = [
            ("connection", &["keep-alive, Upgrade"]),
            ("connection", &["UPGRADE"]),
            ("connection", &["keep-alive", "x, ,upgrade"]),
            ("upgrade", &["WebSocket"]),
            ("upgrade", &["h2c, websocket"]),
            ("upgrade", &["h2c", "websocket"]),
        ];
        for case in cases {
            assert_eq!(checked(&[case]), None, "{case:?}");
        }
    }

    #[test]
    fn a_missing_or_invalid_header_is_refused() {
        let cases: [(&str, &[&[&str]], Code); 4] = [
            (
                "connection",
                &[&[], &["keep-alive"], &["upgraded"]],
                Code::BadRequest,
            ),
            (
                "upgrade",
                &[&[], &["h2c"], &["websocket/13"]],
                Code::BadRequest,
            ),
            (
                "sec-websocket-version",
                &[
                    &[],
                    &["8"],
                    &["14"],
                    &["013"],
                    &["13, 8"],
                    &["13", "13"],
                    &[""],
                ],
                Code::UpgradeRequired,
            ),
            (
                "sec-websocket-key",
                &[
                    &[],
                    &[""],
                    &["x"],
                    &["dGhlIHNhbXBsZSBub25jZQ"],
                    &["dGhlIHNhbXBsZSBub25j"],
                    &["dGhlIHNhbXBsZSBub25jZSE="],
                    &["dGhlIHNhbXBsZSBub25jZQ=!"],
                    &["dGhlIHNhbXBsZSBub25jZR=="],
                    &["dGhl IHNhbXBsZSBub25jZQ=="],
                    &[KEY, KEY],
                ],
                Code::BadRequest,
            ),
        ];
        for (name, values, code) in cases {
            for value in values {
                assert_eq!(checked(&[(name, value)]), Some(code), "{name}: {value:?}");
            }
        }
    }
}
