//! The connections of an edge: how many there are in all, and how many of each address. A connection
//! of a trusted proxy counts in no share, because its requests are those of many clients; a stream
//! over it counts for its client.

use std::net::IpAddr;

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

impl ConnectionSlots {
    /// `slots`, which the threads of an edge share, for the clients and proxies of this edge.
    pub(super) fn new(slots: FairSlots, proxies: TrustedProxies) -> Self {
        Self { slots, proxies }
    }

    /// Acquires a slot for a connection from this address.
    ///
    /// # Errors
    /// [`LimitReached`] if all are taken, or if this address, unless it is a proxy's, has its share.
    pub(super) fn acquire(&self, peer: IpAddr) -> Result<FairSlot, LimitReached> {
        if self.proxies.are(peer) {
            return self.slots.acquire_unshared(network(peer));
        }
        self.slots.acquire(network(peer))
    }

    /// Counts that there is no slot for a connection. Returns its refusal.
    pub(super) fn refusal(&self) -> Problem {
        refusal(&self.slots)
    }
}

/// Acquires a slot for a stream that counts for its client, whatever connection it comes over.
///
/// # Errors
/// A [`Problem`] if all are taken, or if the client's address has its share: the same as for a
/// connection.
pub(super) fn acquire_for(client: IpAddr, slots: &FairSlots) -> Result<FairSlot, Problem> {
    slots.acquire(client).map_err(|LimitReached| refusal(slots))
}

fn refusal(slots: &FairSlots) -> Problem {
    // While some are free, only a share can be used up.
    if slots.taken() < slots.limit() {
        QuotaReached::of(Quota::Address, slots.share()).into()
    } else {
        Code::Overloaded.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
