//! The address of a client behind trusted proxies: `X-Forwarded-For` or `Forwarded` (RFC 7239). Pure.

use std::net::{IpAddr, SocketAddr};

use axum::http::{HeaderMap, HeaderName, header};
use ipnet::IpNet;

/// The networks of proxies whose word about a client's address is taken.
#[derive(Clone, Debug, Default)]
pub struct TrustedProxies(pub Vec<IpNet>);

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

impl TrustedProxies {
    /// The address of the client of a request that came from `peer`: the last one in the list that
    /// is not a proxy's. Whatever precedes it may be the client's invention.
    pub(super) fn client(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        if !self.are(peer) {
            return peer;
        }
        let x_forwarded_for = list(headers, X_FORWARDED_FOR);
        let forwarded = list(headers, header::FORWARDED);
        let addresses: Vec<Option<IpAddr>> = match (&x_forwarded_for[..], &forwarded[..]) {
            (names, []) => names.iter().map(|name| address(name)).collect(),
            ([], elements) => elements.iter().map(|element| of_element(element)).collect(),
            // A proxy sets one of them. The other may be the client's.
            _ => return peer,
        };
        let mut nearest = peer;
        for named in addresses.into_iter().rev() {
            let Some(named) = named else { return nearest };
            nearest = named;
            if !self.are(named) {
                return named;
            }
        }
        nearest
    }

    /// Whether this is the address of a proxy.
    pub(super) fn are(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.0.iter().any(|network| network.contains(&address))
    }
}

/// The elements of a list header, which may occur several times.
fn list(headers: &HeaderMap, name: HeaderName) -> Vec<&str> {
    let lines = headers.get_all(name).iter();
    lines
        .flat_map(|line| line.to_str().unwrap_or("?").split(','))
        .map(str::trim)
        .collect()
}

/// The address of `for=` in an element of `Forwarded`.
fn of_element(element: &str) -> Option<IpAddr> {
    let mut pairs = element.split(';').filter_map(|pair| pair.split_once('='));
    let (_, value) = pairs.find(|(name, _)| name.trim().eq_ignore_ascii_case("for"))?;
    address(value.trim().trim_matches('"'))
}

/// An address with or without a port.
fn address(text: &str) -> Option<IpAddr> {
    let address = text
        .parse::<IpAddr>()
        .or_else(|_| text.parse::<SocketAddr>().map(|address| address.ip()))
        .ok();
    let bracketed = || text.strip_prefix('[')?.strip_suffix(']')?.parse().ok();
    address
        .or_else(bracketed)
        .map(|address| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    fn client(peer: &str, headers: &[(HeaderName, &str)]) -> String {
        let proxies = TrustedProxies(vec![
            "10.0.0.0/8".parse().unwrap(),
            "::1/128".parse().unwrap(),
        ]);
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(name, HeaderValue::from_str(value).unwrap());
        }
        proxies.client(peer.parse().unwrap(), &map).to_string()
    }

    #[test]
    fn only_a_trusted_proxy_is_believed() {
        let x = |value| [(X_FORWARDED_FOR, value)];
        for (peer, value, expected) in [
            ("192.0.2.1", "198.51.100.1", "192.0.2.1"),
            ("10.1.1.1", "198.51.100.1", "198.51.100.1"),
            ("::ffff:10.1.1.1", "198.51.100.1", "198.51.100.1"),
            ("::1", "198.51.100.1:4711", "198.51.100.1"),
            ("10.1.1.1", "[2001:db8::1]:4711", "2001:db8::1"),
            // What the client itself sent comes first.
            ("10.1.1.1", "1.1.1.1, 198.51.100.1", "198.51.100.1"),
            (
                "10.1.1.1",
                "1.1.1.1, 198.51.100.1, 10.2.2.2",
                "198.51.100.1",
            ),
            ("10.1.1.1", "10.3.3.3, 10.2.2.2", "10.3.3.3"),
            ("10.1.1.1", "unknown", "10.1.1.1"),
            ("10.1.1.1", "1.1.1.1, what, 10.2.2.2", "10.2.2.2"),
            ("10.1.1.1", "", "10.1.1.1"),
            ("10.1.1.1", "198.51.100.1,", "10.1.1.1"),
            ("10.1.1.1", "2001:db8::1", "2001:db8::1"),
            ("10.1.1.1", "[2001:db8::1]", "2001:db8::1"),
            ("10.1.1.1", "::ffff:198.51.100.1", "198.51.100.1"),
            ("10.1.1.1", "198.51.100.1, ::ffff:10.2.2.2", "198.51.100.1"),
            ("10.1.1.1", "fe80::1%eth0", "10.1.1.1"),
            ("10.1.1.1", "[2001:db8::1", "10.1.1.1"),
            // Neither an octal nor a short address.
            ("10.1.1.1", "0306.51.100.1", "10.1.1.1"),
            ("10.1.1.1", "127.1", "10.1.1.1"),
        ] {
            assert_eq!(client(peer, &x(value)), expected, "{peer} {value}");
        }
        assert_eq!(client("10.1.1.1", &[]), "10.1.1.1");
    }

    #[test]
    fn forwarded_is_read_unless_there_are_both_headers() {
        let forwarded = |value| (header::FORWARDED, value);
        for (value, expected) in [
            ("for=198.51.100.1", "198.51.100.1"),
            ("proto=https;For=\"[2001:db8::1]:4711\"", "2001:db8::1"),
            ("for=1.1.1.1, for=198.51.100.1;by=10.1.1.1", "198.51.100.1"),
            ("for=198.51.100.1, for=10.2.2.2", "198.51.100.1"),
            ("for=198.51.100.1 ; proto=http", "198.51.100.1"),
            ("for=\"198.51.100.1:_port\"", "10.1.1.1"),
            // A quote that the client leaves open hides nothing of what the proxy adds.
            ("for=\"1.1.1.1, for=198.51.100.1", "198.51.100.1"),
            ("for=1.1.1.1;x=\", for=198.51.100.1", "198.51.100.1"),
            (";;=,for", "10.1.1.1"),
            ("for=_hidden", "10.1.1.1"),
            ("by=10.1.1.1", "10.1.1.1"),
        ] {
            assert_eq!(client("10.1.1.1", &[forwarded(value)]), expected, "{value}");
        }
        let both = [forwarded("for=1.1.1.1"), (X_FORWARDED_FOR, "198.51.100.1")];
        assert_eq!(client("10.1.1.1", &both), "10.1.1.1");
        let twice = [
            (X_FORWARDED_FOR, "1.1.1.1"),
            (X_FORWARDED_FOR, "198.51.100.1"),
        ];
        assert_eq!(client("10.1.1.1", &twice), "198.51.100.1");
    }
}
