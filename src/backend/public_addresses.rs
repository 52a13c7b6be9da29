//! Resolves the names of callback hosts to public addresses only. Whoever controls the name server of
//! an allowed host could otherwise make workers call an address of the operator's network. What was
//! checked is what is connected to: a name is not resolved again in between.

use std::error::Error;
use std::iter::successors;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use tokio::net::lookup_host;

/// Resolves names to public addresses.
#[derive(Debug)]
pub(super) struct PublicAddresses;

/// The name has no public address.
#[derive(Debug, thiserror::Error)]
#[error("the name has no public address")]
struct NotPublic;

impl Resolve for PublicAddresses {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move { public_addresses(name.as_str()).await })
    }
}

async fn public_addresses(name: &str) -> Result<Addrs, Box<dyn Error + Send + Sync>> {
    let found = lookup_host((name, 0)).await?;
    let public: Vec<_> = found.filter(|address| is_public(address.ip())).collect();
    if public.is_empty() {
        return Err(NotPublic.into());
    }
    Ok(Box::new(public.into_iter()))
}

/// Whether a request was not sent because the name of its host has no public address.
pub(super) fn is_not_public(error: &reqwest::Error) -> bool {
    successors(error.source(), |&cause| cause.source()).any(|cause| cause.is::<NotPublic>())
}

/// Whether an address belongs to the public Internet.
fn is_public(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

/// An address outside of the ranges that the IANA registry of special-purpose addresses (RFC 6890)
/// lists, and not one for several receivers.
fn is_public_v4(address: Ipv4Addr) -> bool {
    let [first, second, third, _] = address.octets();
    let is_special = matches!(
        (first, second, third),
        (0 | 10 | 127 | 224..=255, _, _)
            | (100, 64..=127, _)
            | (169, 254, _)
            | (172, 16..=31, _)
            | (192, 0, 0 | 2)
            | (192, 88, 99)
            | (192, 168, _)
            | (198, 18 | 19, _)
            | (198, 51, 100)
            | (203, 0, 113)
    );
    !is_special
}

/// A global address (2000::/3) outside of the ranges of that registry for IPv6. Some of those hold an
/// IPv4 address, which may be a private one.
fn is_public_v6(address: Ipv6Addr) -> bool {
    let [first, second, ..] = address.segments();
    let is_global = first & 0xE000 == 0x2000;
    let is_special = matches!(
        (first, second),
        (0x2001, 0..=0x01FF | 0x0DB8) | (0x2002, _) | (0x3FFF, 0..=0x0FFF)
    );
    is_global && !is_special
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_private_networks_and_of_this_machine_are_not_public() {
        for address in [
            "0.0.0.0",
            "10.1.2.3",
            "100.64.0.1",
            "127.0.0.1",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.8",
            "192.0.2.1",
            "192.168.1.1",
            "198.19.0.1",
            "198.51.100.1",
            "203.0.113.1",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::127.0.0.1",
            "::ffff:10.0.0.1",
            "64:ff9b::7f00:1",
            "2001::7f00:1",
            "2001:db8::1",
            "2002:7f00:1::",
            "3fff::1",
            "fd00::1",
            "fe80::1",
            "ff02::1",
        ] {
            assert!(!is_public(address.parse().unwrap()), "{address}");
        }
        for address in [
            "1.1.1.1",
            "100.128.0.1",
            "172.32.0.1",
            "192.0.1.1",
            "198.20.0.1",
            "::ffff:1.1.1.1",
            "2001:4860:4860::8888",
            "2606:4700::1111",
        ] {
            assert!(is_public(address.parse().unwrap()), "{address}");
        }
    }

    #[tokio::test]
    async fn the_name_of_this_machine_has_no_public_address() {
        let found = PublicAddresses.resolve("localhost".parse().unwrap()).await;
        let error = found.err().unwrap();
        assert!(error.is::<NotPublic>(), "{error}");
    }
}
