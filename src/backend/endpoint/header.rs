//! A header of each request to an endpoint, as an operator writes it: `Name: value`. Pure.

use std::fmt;
use std::str::FromStr;

use reqwest::header::{HeaderName, HeaderValue};
use secrecy::{ExposeSecret as _, SecretString};

/// Headers that the HTTP client sets: another value would break the request.
const OWN: [&str; 5] = [
    "connection",
    "content-length",
    "content-type",
    "host",
    "transfer-encoding",
];

/// A header whose value may be a secret.
#[derive(Clone)]
pub struct RequestHeader {
    pub(super) name: HeaderName,
    pub(super) value: HeaderValue,
    pub(super) secret: SecretString,
}

/// The text is not a header.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadHeader {
    /// It has no colon, or characters that a header cannot have.
    #[error("a header must be `Name: value`, in visible characters")]
    Malformed,
    /// The HTTP client sets it.
    #[error("the header {0} cannot be set")]
    Own(String),
}

impl fmt::Debug for RequestHeader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RequestHeader({}: …)", self.name)
    }
}

impl FromStr for RequestHeader {
    type Err = BadHeader;

    fn from_str(line: &str) -> Result<Self, BadHeader> {
        let (name, value) = line.split_once(':').ok_or(BadHeader::Malformed)?;
        let value = value.trim();
        let name: HeaderName = name.trim().parse().map_err(|_| BadHeader::Malformed)?;
        if OWN.contains(&name.as_str()) {
            return Err(BadHeader::Own(name.to_string()));
        }
        let secret = SecretString::from(value);
        let mut value =
            HeaderValue::from_str(secret.expose_secret()).map_err(|_| BadHeader::Malformed)?;
        value.set_sensitive(true);
        Ok(Self {
            name,
            value,
            secret,
        })
    }
}

impl RequestHeader {
    /// The headers of a file or variable with one on each line. Empty lines, and lines that begin
    /// with `#`, are skipped.
    ///
    /// # Errors
    /// [`BadHeader`].
    pub fn list(lines: &str) -> Result<Vec<Self>, BadHeader> {
        let lines = lines.lines().map(str::trim);
        lines
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
            .map(str::parse)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_a_name_and_a_value_that_is_never_shown() {
        let headers =
            RequestHeader::list("# keys\n\nAuthorization: Bearer abc:def \r\nX-Empty:\n").unwrap();
        let found: Vec<_> = headers
            .iter()
            .map(|header| (header.name.as_str(), header.value.to_str().unwrap()))
            .collect();
        assert_eq!(
            found,
            [("authorization", "Bearer abc:def"), ("x-empty", "")]
        );
        let shown = format!("{headers:?}");
        assert!(!shown.contains("abc"), "{shown}");
        assert!(headers.iter().all(|header| header.value.is_sensitive()));
    }

    #[test]
    fn headers_that_would_break_a_request_are_refused() {
        for bad in ["", "x", ": x", "a b: c", "x: a\u{7}b"] {
            assert_eq!(
                bad.parse::<RequestHeader>().unwrap_err(),
                BadHeader::Malformed,
                "{bad:?}"
            );
        }
        for own in ["Host: h", "content-length: 1", "Content-Type: x/y"] {
            let error = own.parse::<RequestHeader>().unwrap_err();
            assert!(matches!(error, BadHeader::Own(_)), "{own}");
        }
    }
}
