//! Limits how many clients are connected but have not joined.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::budget::LimitReached;
use crate::config::{HANDSHAKES_MAX, HANDSHAKES_PER_ADDRESS};

/// The handshakes in progress, in total and by address.
#[derive(Clone, Debug, Default)]
pub(super) struct Handshakes(Arc<Mutex<HandshakeCounts>>);

#[derive(Debug, Default)]
struct HandshakeCounts {
    all: usize,
    /// Only addresses that have a handshake.
    by_address: HashMap<IpAddr, usize>,
}

/// A handshake in progress, until it is dropped.
#[derive(Debug)]
pub(super) struct Handshake {
    handshakes: Handshakes,
    address: IpAddr,
}

impl Handshakes {
    /// Counts a handshake from this address.
    pub(super) fn start(&self, address: IpAddr) -> Result<Handshake, LimitReached> {
        let mut counts = self.lock();
        if counts.all >= HANDSHAKES_MAX {
            return Err(LimitReached);
        }
        let of_address = counts.by_address.entry(address).or_default();
        if *of_address >= HANDSHAKES_PER_ADDRESS {
            return Err(LimitReached);
        }
        *of_address += 1;
        counts.all += 1;
        Ok(Handshake {
            handshakes: self.clone(),
            address,
        })
    }

    fn lock(&self) -> MutexGuard<'_, HandshakeCounts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Handshake {
    /// The client's address.
    pub(super) const fn address(&self) -> IpAddr {
        self.address
    }
}

impl Drop for Handshake {
    fn drop(&mut self) {
        let mut counts = self.handshakes.lock();
        counts.all -= 1;
        if let Some(of_address) = counts.by_address.get_mut(&self.address) {
            *of_address -= 1;
            if *of_address == 0 {
                counts.by_address.remove(&self.address);
                counts.by_address.shrink_to(2 * HANDSHAKES_PER_ADDRESS);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neither_one_address_nor_all_together_exceed_their_limit() {
        let handshakes = Handshakes::default();
        let address = |n: u16| IpAddr::from([127, 0, (n / 256) as u8, (n % 256) as u8]);
        let mut held: Vec<_> = std::iter::from_fn(|| handshakes.start(address(1)).ok()).collect();
        assert_eq!(held.len(), HANDSHAKES_PER_ADDRESS);
        held.extend((2..10_000).map_while(|n| handshakes.start(address(n)).ok()));
        assert_eq!(held.len(), HANDSHAKES_MAX);
        held.truncate(1);
        assert_eq!(handshakes.lock().by_address.len(), 1);
        drop(held);
        let counts = handshakes.lock();
        assert_eq!((counts.all, counts.by_address.len()), (0, 0));
    }
}
