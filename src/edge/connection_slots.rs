//! The connections of an edge: how many there are in all, and how many of each address. A connection
//! of a trusted proxy counts in no share, because its requests are those of many clients; a stream
//! over it counts for its client.

use std::net::IpAddr;

use axum::http::Version;
use axum::http::request::Parts;

use super::error::Problem;
use super::forwarded::TrustedProxies;
use super::meter::network;
use super::quota::{Quota, QuotaReached};
use crate::budget::LimitReached;
use crate::fair_slots::{FairSlot, FairSlots};
use crate::wire::Code;

/// The slots of connections, and whose connections count in no share.
#[derive(Clone, Debug)]
pub(super) struct ConnectionSlots {
    slots: FairSlots,
    proxies: TrustedProxies,
}

/// Marks a request that came from a trusted proxy.
#[derive(Clone, Copy, Debug)]
pub(super) struct Proxied;

impl ConnectionSlots {
    /// `slots`, which the threads of an edge share, for the clients and proxies of this edge.
    pub(super) fn new(slots: FairSlots, proxies: TrustedProxies) -> Self {
        Self { slots, proxies }
    }

    /// Acquires a slot for a connection from this address.
    ///
    /// # Errors
    /// A [`Problem`] if all are taken, or if this address, unless it is a proxy's, has its share.
    pub(super) fn acquire(&self, peer: IpAddr) -> Result<FairSlot, Problem> {
        let address = network(peer);
        if self.proxies.are(peer) {
            let slot = self.slots.acquire_unshared(address);
            return slot.map_err(Problem::from);
        }
        acquire_for(address, &self.slots)
    }
}

/// Acquires a slot for a stream that counts for its client, whatever connection it comes over.
///
/// # Errors
/// A [`Problem`] if all are taken, or if the client's address has its share: the same as for a
/// connection.
pub(super) fn acquire_for(client: IpAddr, slots: &FairSlots) -> Result<FairSlot, Problem> {
    slots.acquire(client).map_err(|LimitReached| {
        // While some are free, only a share can be used up.
        if slots.taken() < slots.limit() {
            QuotaReached::of(Quota::Address, slots.share()).into()
        } else {
            Code::Overloaded.into()
        }
    })
}

/// Acquires a slot for the stream of a request, unless the connection holds one for this stream
/// alone: over HTTP/2 a connection has many streams, and that of a proxy counts in no share.
///
/// # Errors
/// The same as for [`acquire_for`].
pub(super) fn acquire_unless_held(
    request: &Parts,
    client: IpAddr,
    slots: &FairSlots,
) -> Result<Option<FairSlot>, Problem> {
    let slot = needs_slot(request).then(|| acquire_for(client, slots));
    slot.transpose()
}

/// Whether the stream of a request needs a slot of its own.
pub(super) fn needs_slot(request: &Parts) -> bool {
    let is_proxied = request.extensions.get::<Proxied>().is_some();
    request.version == Version::HTTP_2 || is_proxied
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::Request;

    #[test]
    fn a_client_with_its_share_of_streams_learns_its_limit() {
        let slots = FairSlots::new(8);
        let stream_of = |client: &str| acquire_for(client.parse().unwrap(), &slots);
        let mut held = Vec::new();
        for _ in 0..6 {
            held.push(stream_of("198.51.100.1").unwrap());
        }
        let refused = stream_of("198.51.100.1").unwrap_err().to_response();
        assert_eq!(refused.status(), 429);
        assert_eq!(refused.headers()["ratelimit-policy"], "\"address\";q=6");
        for other in ["198.51.100.2", "198.51.100.3"] {
            held.push(stream_of(other).unwrap());
        }
        let full = stream_of("198.51.100.4").unwrap_err();
        assert_eq!(full.code(), Code::Overloaded);
    }

    #[test]
    fn a_stream_needs_a_slot_unless_its_connection_holds_one_for_it_alone() {
        let slots = FairSlots::new(8);
        let client = "198.51.100.1".parse().unwrap();
        for (version, is_proxied, expected) in [
            (Version::HTTP_11, false, 0),
            (Version::HTTP_11, true, 1),
            (Version::HTTP_2, false, 1),
            (Version::HTTP_2, true, 1),
        ] {
            let mut request = Request::new(()).into_parts().0;
            request.version = version;
            if is_proxied {
                request.extensions.insert(Proxied);
            }
            let slot = acquire_unless_held(&request, client, &slots).unwrap();
            assert_eq!(slots.taken(), expected, "{version:?} {is_proxied}");
            drop(slot);
        }
    }
}
