//! A limited number of slots, shared fairly among addresses. It only counts: the caller decides
//! what to do when no slot is free.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::budget::LimitReached;
use crate::config::SHARE_TIMES_FREE;

/// Slots, shared by all clones. An address gets another slot while it holds fewer than
/// [`SHARE_TIMES_FREE`] times as many as are free. No slot is taken away again.
#[derive(Clone, Debug)]
pub struct FairSlots(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    limit: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    /// How many each address holds; addresses without a slot are removed.
    by_address: HashMap<IpAddr, usize>,
}

/// One slot, held until this is dropped.
#[derive(Debug)]
pub struct FairSlot {
    slots: FairSlots,
    from: IpAddr,
}

impl FairSlots {
    /// `limit` slots.
    pub fn new(limit: usize) -> Self {
        Self(Arc::new(Inner {
            limit,
            taken: Mutex::default(),
        }))
    }

    /// Acquires a slot for this address.
    ///
    /// # Errors
    /// [`LimitReached`] if all are taken, or if this address holds its share.
    pub fn acquire(&self, from: IpAddr) -> Result<FairSlot, LimitReached> {
        let mut taken = self.lock();
        let free = self.0.limit.saturating_sub(taken.all);
        let held = taken.by_address.get(&from).copied().unwrap_or_default();
        if held >= free.saturating_mul(SHARE_TIMES_FREE) {
            return Err(LimitReached);
        }
        taken.by_address.insert(from, held + 1);
        taken.all += 1;
        Ok(FairSlot {
            slots: self.clone(),
            from,
        })
    }

    /// How many there are.
    pub fn limit(&self) -> usize {
        self.0.limit
    }

    /// How many one address gets if no other address has any.
    pub fn share(&self) -> usize {
        self.0.limit * SHARE_TIMES_FREE / (SHARE_TIMES_FREE + 1)
    }

    /// How many are taken.
    pub fn taken(&self) -> usize {
        self.lock().all
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.0.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl FairSlot {
    /// The address that holds it.
    pub const fn from(&self) -> IpAddr {
        self.from
    }
}

impl Drop for FairSlot {
    fn drop(&mut self) {
        let mut taken = self.slots.lock();
        taken.all -= 1;
        if let Some(held) = taken.by_address.get_mut(&self.from) {
            *held -= 1;
            if *held == 0 {
                taken.by_address.remove(&self.from);
                let keep = taken.by_address.len() * 2;
                if taken.by_address.capacity() > 4 * keep {
                    taken.by_address.shrink_to(keep);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(n: u32) -> IpAddr {
        IpAddr::from(n.to_be_bytes())
    }

    fn flood(slots: &FairSlots, from: u32) -> Vec<FairSlot> {
        std::iter::from_fn(|| slots.acquire(address(from)).ok()).collect()
    }

    #[test]
    fn one_address_gets_at_most_three_quarters() {
        let slots = FairSlots::new(1000);
        let greedy = flood(&slots, 1);
        assert_eq!(greedy.len(), 750);
        let second = flood(&slots, 2);
        assert!((180..=190).contains(&second.len()), "{}", second.len());
        let newcomers: Vec<_> = (3..23)
            .map(|n| slots.acquire(address(n)).unwrap())
            .collect();
        assert!(slots.acquire(address(1)).is_err());
        assert_eq!(slots.taken(), 750 + second.len() + newcomers.len());
        drop((greedy, second, newcomers));
        assert_eq!((slots.taken(), slots.lock().by_address.len()), (0, 0));
        assert_eq!(flood(&slots, 2).len(), 750, "dropped slots are free again");
    }

    #[test]
    fn many_addresses_together_get_no_more_than_the_limit() {
        let slots = FairSlots::new(100);
        let held: Vec<_> = (0..1000)
            .filter_map(|n| slots.acquire(address(n)).ok())
            .collect();
        assert_eq!((held.len(), slots.taken()), (100, 100));
        assert!(slots.acquire(address(5000)).is_err());
    }
}
