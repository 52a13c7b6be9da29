//! The connections of an edge: how many there are in all, and how many of each address. A connection
//! of a trusted proxy counts in no share, because its requests are those of many clients; a stream
//! over it counts for its client.

use std::net::IpAddr;

use super::forwarded::TrustedProxies;
use super::meter::network;
use crate::budget::LimitReached;
use crate::fair_slots::{FairSlot, FairSlots};

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

    /// Whether some are free, so that only a share can be used up.
    pub(super) fn has_free(&self) -> bool {
        self.slots.taken() < self.slots.limit()
    }

    /// How many one address gets if no other address has any.
    pub(super) fn share(&self) -> usize {
        self.slots.share()
    }
}
