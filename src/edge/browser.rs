//! What protects the users of browsers: which host names an edge serves, and which pages may use
//! it. Pure.

use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use url::Url;

use crate::wire::Code;

/// What a browser says about the page that made it send a request (Fetch Metadata).
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Which host names and which pages are served.
#[derive(Clone, Debug, Default)]
pub struct BrowserPolicy {
    /// Host names that are served besides addresses and the names of this machine. `*` is any.
    pub public_hosts: Vec<String>,
    /// Which pages may use the edge.
    pub origins: AllowedOrigins,
}

/// Which pages may use an edge.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum AllowedOrigins {
    /// Pages of the edge's own origin.
    #[default]
    SameOrigin,
    /// These as well, each `scheme://host[:port]`.
    Listed(Vec<String>),
    /// All pages. They can do no more than any program: a token is never sent by the browser itself.
    Any,
}

impl BrowserPolicy {
    /// Checks the host that a request names.
    pub(super) fn check_host(&self, headers: &HeaderMap) -> Result<(), Code> {
        let is_served = host(headers).is_some_and(|host| self.serves(host));
        is_served.then_some(()).ok_or(Code::HostNotAllowed)
    }

    /// Checks the origin of the page that sent a request.
    pub(super) fn check_origin(&self, headers: &HeaderMap) -> Result<(), Code> {
        let host = host(headers).ok_or(Code::HostNotAllowed)?;
        let mut origins = headers.get_all(header::ORIGIN).iter();
        match (origins.next(), origins.next()) {
            (None, _) => Ok(()),
            (Some(origin), None) if origin.to_str().is_ok_and(|it| self.allows(it, host)) => Ok(()),
            (Some(_), _) => Err(Code::OriginNotAllowed),
        }
    }

    /// Whether a request may name this host. A page of another site can make a browser send its own
    /// site's name to this address (DNS rebinding), but neither an address nor a name of this
    /// machine.
    fn serves(&self, host: &str) -> bool {
        if host.is_empty() {
            // No browser omits it.
            return true;
        }
        let Ok(authority) = host.parse::<Authority>() else {
            return false;
        };
        let name = authority.host().trim_end_matches('.').to_ascii_lowercase();
        let is_address = name.parse::<std::net::Ipv4Addr>().is_ok() || name.starts_with('[');
        is_address
            || name == "localhost"
            || name.ends_with(".localhost")
            || self.public_hosts.iter().any(|public| {
                public == "*"
                    || public.eq_ignore_ascii_case(&name)
                    || public.eq_ignore_ascii_case(host)
            })
    }

    /// Whether a page of this origin may use the edge, which it reached as `host`.
    fn allows(&self, origin: &str, host: &str) -> bool {
        let is_listed = |list: &[String]| {
            list.iter()
                .any(|allowed| allowed.trim_end_matches('/').eq_ignore_ascii_case(origin))
        };
        match &self.origins {
            AllowedOrigins::Any => true,
            AllowedOrigins::SameOrigin => is_same(origin, host),
            AllowedOrigins::Listed(list) => is_listed(list) || is_same(origin, host),
        }
    }
}

/// Whether a page of the edge's own origin sent a request, or a program that is not a browser. A
/// page of another site, or of another port, that makes a browser send a cookie did not.
pub(super) fn is_of_same_origin(headers: &HeaderMap) -> bool {
    let Some(host) = host(headers) else {
        return false;
    };
    let text = |value: &HeaderValue| value.to_str().map(str::to_owned).unwrap_or_default();
    let origin = headers.get(header::ORIGIN).map(text);
    let site = headers.get(SEC_FETCH_SITE).map(text);
    origin.is_none_or(|origin| is_same(&origin, host))
        && site.is_none_or(|site| site == "same-origin")
}

/// The host that a request names, or an empty text; `None` if it is not a text.
fn host(headers: &HeaderMap) -> Option<&str> {
    let host = headers.get(header::HOST);
    host.map_or(Some(""), |host| host.to_str().ok())
}

/// Whether an origin is the one of a host. A proxy may have removed TLS, so both schemes are
/// possible.
fn is_same(origin: &str, host: &str) -> bool {
    let Ok(origin) = Url::parse(origin) else {
        return false;
    };
    if !matches!(origin.scheme(), "http" | "https") {
        return false;
    }
    let Ok(own) = Url::parse(&format!("{}://{host}", origin.scheme())) else {
        return false;
    };
    origin.host().is_some()
        && origin.host() == own.host()
        && origin.port_or_known_default() == own.port_or_known_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(policy: &BrowserPolicy, host: &str, origin: Option<&str>) -> Result<(), Code> {
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, HeaderValue::from_str(host).unwrap());
        if let Some(origin) = origin {
            headers.insert(header::ORIGIN, HeaderValue::from_str(origin).unwrap());
        }
        policy.check_host(&headers)?;
        policy.check_origin(&headers)
    }

    #[test]
    fn only_addresses_names_of_this_machine_and_public_names_are_served() {
        let policy = BrowserPolicy {
            public_hosts: vec!["tail.example".into(), "edge".into()],
            ..BrowserPolicy::default()
        };
        for host in [
            "",
            "127.0.0.1:4000",
            "10.0.0.7",
            "[::1]:4000",
            "localhost",
            "LocalHost:4000",
            "app.localhost:1",
            "localhost.",
            "tail.example",
            "TAIL.example:443",
            "edge:4000",
        ] {
            assert_eq!(check(&policy, host, None), Ok(()), "{host}");
        }
        for host in [
            "evil.example",
            "evil.example:4000",
            "127.0.0.1.evil.example",
            "localhost.evil.example",
            "xlocalhost",
            "tail.example.evil.example",
            "1.2.3",
            "0x7f000001",
        ] {
            let refused = check(&policy, host, None);
            assert_eq!(refused, Err(Code::HostNotAllowed), "{host}");
        }
        let any = BrowserPolicy {
            public_hosts: vec!["*".into()],
            ..BrowserPolicy::default()
        };
        assert_eq!(check(&any, "evil.example", None), Ok(()));
    }

    #[test]
    fn a_page_of_another_origin_is_refused_unless_it_is_listed() {
        let same = BrowserPolicy::default();
        let listed = BrowserPolicy {
            origins: AllowedOrigins::Listed(vec!["https://app.example".into()]),
            ..BrowserPolicy::default()
        };
        let any = BrowserPolicy {
            origins: AllowedOrigins::Any,
            ..BrowserPolicy::default()
        };
        let no = Err(Code::OriginNotAllowed);
        for (origin, host, expected) in [
            ("http://127.0.0.1:4000", "127.0.0.1:4000", [Ok(()); 3]),
            ("http://localhost", "localhost:80", [Ok(()); 3]),
            ("https://localhost", "localhost", [Ok(()); 3]),
            ("https://localhost", "localhost:443", [Ok(()); 3]),
            ("http://localhost:4001", "localhost:4000", [no, no, Ok(())]),
            ("http://localhost", "localhost:443", [no, no, Ok(())]),
            ("http://127.0.0.1:4000", "localhost:4000", [no, no, Ok(())]),
            (
                "https://app.example",
                "localhost:4000",
                [no, Ok(()), Ok(())],
            ),
            (
                "https://APP.example",
                "localhost:4000",
                [no, Ok(()), Ok(())],
            ),
            ("http://app.example", "localhost:4000", [no, no, Ok(())]),
            (
                "https://app.example.evil",
                "localhost:4000",
                [no, no, Ok(())],
            ),
            (
                "https://app.example:444",
                "localhost:4000",
                [no, no, Ok(())],
            ),
            ("null", "localhost:4000", [no, no, Ok(())]),
            ("file://", "localhost:4000", [no, no, Ok(())]),
            ("", "localhost:4000", [no, no, Ok(())]),
            ("ws://localhost:4000", "localhost:4000", [no, no, Ok(())]),
        ] {
            let checked = [&same, &listed, &any].map(|policy| check(policy, host, Some(origin)));
            assert_eq!(checked, expected, "{origin} {host}");
        }
    }

    #[test]
    fn a_cookie_counts_only_for_pages_of_the_same_origin() {
        let sent = |origin: Option<&str>, site: Option<&str>| {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, HeaderValue::from_static("localhost:4000"));
            for (name, value) in [(header::ORIGIN, origin), (SEC_FETCH_SITE, site)] {
                if let Some(value) = value {
                    headers.insert(name, HeaderValue::from_str(value).unwrap());
                }
            }
            is_of_same_origin(&headers)
        };
        let own = Some("http://localhost:4000");
        for (origin, site, expected) in [
            (None, None, true),
            (own, None, true),
            (own, Some("same-origin"), true),
            (None, Some("same-origin"), true),
            (None, Some("same-site"), false),
            (None, Some("cross-site"), false),
            (Some("http://localhost:4001"), Some("same-site"), false),
            (Some("http://localhost:4001"), None, false),
            (Some("null"), None, false),
        ] {
            assert_eq!(sent(origin, site), expected, "{origin:?} {site:?}");
        }
    }
}
