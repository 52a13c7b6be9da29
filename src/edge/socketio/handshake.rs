//! How many clients may have connected without having joined. It knows no session.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::budget::NoRoom;
use crate::config::{HANDSHAKES_MAX, HANDSHAKES_PER_ADDRESS};

/// The handshakes under way, in total and by address.
#[derive(Clone, Debug, Default)]
pub(super) struct Handshakes(Arc<Mutex<HandshakeCounts>>);

#[derive(Debug, Default)]
struct HandshakeCounts {
    all: usize,
    /// Only addresses that have one.
    by_address: HashMap<IpAddr, usize>,
}

/// One of them, until it is dropped.
#[derive(Debug)]
pub(super) struct Handshake {
    handshakes: Handshakes,
    from: IpAddr,
}

impl Handshakes {
    /// Counts one more from this address.
    pub(super) fn begin(&self, from: IpAddr) -> Result<Handshake, NoRoom> {
        let mut counts = self.lock();
        if counts.all >= HANDSHAKES_MAX {
            return Err(NoRoom);
        }
        let of_address = counts.by_address.entry(from).or_default();
        if *of_address >= HANDSHAKES_PER_ADDRESS {
            return Err(NoRoom);
        }
        *of_address += 1;
        counts.all += 1;
        Ok(Handshake {
            handshakes: self.clone(),
            from,
        })
    }

    fn lock(&self) -> MutexGuard<'_, HandshakeCounts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Handshake {
    /// Where the client is.
    pub(super) const fn from(&self) -> IpAddr {
        self.from
    }
}

impl Drop for Handshake {
    fn drop(&mut self) {
        let mut counts = self.handshakes.lock();
        counts.all -= 1;
        if let Some(of_address) = counts.by_address.get_mut(&self.from) {
            *of_address -= 1;
            if *of_address == 0 {
                counts.by_address.remove(&self.from);
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
        let mut held: Vec<_> = std::iter::from_fn(|| handshakes.begin(address(1)).ok()).collect();
        assert_eq!(held.len(), HANDSHAKES_PER_ADDRESS);
        held.extend((2..10_000).map_while(|n| handshakes.begin(address(n)).ok()));
        assert_eq!(held.len(), HANDSHAKES_MAX);
        held.truncate(1);
        assert_eq!(handshakes.lock().by_address.len(), 1);
        drop(held);
        let counts = handshakes.lock();
        assert_eq!((counts.all, counts.by_address.len()), (0, 0));
    }
}
