//! The cookie that holds a token, for an `EventSource` of the edge's own pages.

use axum::http::{HeaderMap, HeaderValue, header};

use super::browser::is_of_same_origin;
use super::error::Problem;
use crate::config::COOKIE_TOKEN_MAX;
use crate::wire::Code;

const COOKIE: &str = "tailwater_token";

/// The value of `Set-Cookie` that keeps a token for a number of seconds, or until the browser ends.
pub(super) fn set(
    token: &str,
    is_secure: bool,
    lifetime_s: Option<u64>,
) -> Result<HeaderValue, Problem> {
    if token.len() > COOKIE_TOKEN_MAX || !token.bytes().all(is_cookie_byte) {
        let message =
            "The token is too long for a cookie, or has characters that a cookie cannot have.";
        return Err(Problem::new(Code::BadRequest, message));
    }
    let mut cookie = format!("{COOKIE}={token}; Path=/api/jobs; HttpOnly; SameSite=Strict");
    if is_secure {
        cookie.push_str("; Secure");
    }
    if let Some(seconds) = lifetime_s {
        cookie.push_str(&format!("; Max-Age={seconds}"));
    }
    let mut cookie = HeaderValue::try_from(cookie).map_err(|_| Code::BadRequest)?;
    cookie.set_sensitive(true);
    Ok(cookie)
}

/// The token in the cookie of a request.
pub(super) fn token(headers: &HeaderMap) -> Result<Option<&str>, Problem> {
    let lines = headers.get_all(header::COOKIE).iter();
    let pairs = lines
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| line.split(';'))
        .filter_map(|pair| pair.trim().split_once('='));
    let mut tokens = pairs.filter(|(name, _)| *name == COOKIE);
    let Some((_, token)) = tokens.next() else {
        return Ok(None);
    };
    if tokens.next().is_some() {
        // Another page of this host, or of a parent domain, has set one of them.
        let message = format!("The cookie {COOKIE} was sent twice.");
        return Err(Problem::new(Code::Unauthorized, message));
    }
    if !is_of_same_origin(headers) {
        return Err(Code::OriginNotAllowed.into());
    }
    Ok(Some(token))
}

/// Whether a cookie's value may have this byte (RFC 6265, section 4.1.1).
fn is_cookie_byte(byte: u8) -> bool {
    byte.is_ascii_graphic() && !matches!(byte, b'"' | b',' | b';' | b'\\')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(lines: &[&str]) -> Result<Option<String>, Code> {
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, HeaderValue::from_static("localhost"));
        for line in lines {
            headers.append(header::COOKIE, HeaderValue::from_str(line).unwrap());
        }
        let token = token(&headers).map_err(|problem| problem.code());
        token.map(|token| token.map(str::to_owned))
    }

    #[test]
    fn the_cookie_is_found_among_others_and_only_once() {
        let found = |text: &str| Ok(Some(text.to_owned()));
        assert_eq!(read(&[]), Ok(None));
        assert_eq!(read(&["a=b; tailwater=x"]), Ok(None));
        assert_eq!(read(&["tailwater_token=t.o-k_="]), found("t.o-k_="));
        assert_eq!(read(&["a=b; tailwater_token=t;c"]), found("t"));
        assert_eq!(read(&["a=b", "tailwater_token=t"]), found("t"));
        for twice in [
            &["tailwater_token=a; tailwater_token=b"][..],
            &["tailwater_token=a", "tailwater_token=a"],
        ] {
            assert_eq!(read(twice), Err(Code::Unauthorized));
        }
    }
}
