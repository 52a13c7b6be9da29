//! A limited number of slots, shared fairly among addresses or other holders. It only counts: the
//! caller decides what to do when no slot is free.

use std::collections::HashMap;
use std::hash::Hash;
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
    taken: Mutex<FairCount<IpAddr>>,
}

/// How many slots are taken, and by which holders. A holder gets another slot while it holds fewer
/// than [`SHARE_TIMES_FREE`] times as many as are free.
#[derive(Debug)]
pub(crate) struct FairCount<K> {
    all: usize,
    /// How many each holder has; holders without a slot are removed.
    by_holder: HashMap<K, usize>,
}

/// One slot, held until this is dropped.
#[derive(Debug)]
pub struct FairSlot {
    slots: FairSlots,
    from: IpAddr,
    /// Whether it counts in the share of its address.
    is_shared: bool,
}

impl FairSlots {
    /// `limit` slots.
    pub fn new(limit: usize) -> Self {
        Self(Arc::new(Inner {
            limit,
            taken: Mutex::new(FairCount::new()),
        }))
    }

    /// Acquires a slot for this address.
    ///
    /// # Errors
    /// [`LimitReached`] if all are taken, or if this address holds its share.
    pub fn acquire(&self, from: IpAddr) -> Result<FairSlot, LimitReached> {
        self.acquire_counted(from, true)
    }

    /// Acquires a slot for this address that does not count in its share.
    ///
    /// # Errors
    /// [`LimitReached`] if all are taken.
    pub fn acquire_unshared(&self, from: IpAddr) -> Result<FairSlot, LimitReached> {
        self.acquire_counted(from, false)
    }

    fn acquire_counted(&self, from: IpAddr, is_shared: bool) -> Result<FairSlot, LimitReached> {
        let holder = is_shared.then_some(&from);
        self.lock().acquire(self.0.limit, holder)?;
        Ok(FairSlot {
            slots: self.clone(),
            from,
            is_shared,
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
        self.lock().taken()
    }

    fn lock(&self) -> MutexGuard<'_, FairCount<IpAddr>> {
        self.0.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Clone + Eq + Hash> FairCount<K> {
    pub(crate) fn new() -> Self {
        Self {
            all: 0,
            by_holder: HashMap::new(),
        }
    }

    /// Counts one more of `limit` slots. A slot without a holder counts in no share.
    ///
    /// # Errors
    /// [`LimitReached`] if all are taken, or if this holder has its share.
    pub(crate) fn acquire(&mut self, limit: usize, holder: Option<&K>) -> Result<(), LimitReached> {
        let free = limit.saturating_sub(self.all);
        let held = holder.and_then(|holder| self.by_holder.get(holder));
        let held = held.copied().unwrap_or_default();
        if free == 0 || held >= free.saturating_mul(SHARE_TIMES_FREE) {
            return Err(LimitReached);
        }
        if let Some(holder) = holder {
            self.by_holder.insert(holder.clone(), held + 1);
        }
        self.all += 1;
        Ok(())
    }

    /// Frees a slot that this holder acquired.
    pub(crate) fn release(&mut self, holder: Option<&K>) {
        self.all -= 1;
        let Some(holder) = holder else { return };
        if let Some(held) = self.by_holder.get_mut(holder) {
            *held -= 1;
            if *held == 0 {
                self.by_holder.remove(holder);
                let keep = self.by_holder.len() * 2;
                if self.by_holder.capacity() > 4 * keep {
                    self.by_holder.shrink_to(keep);
                }
            }
        }
    }

    /// How many are taken.
    pub(crate) fn taken(&self) -> usize {
        self.all
    }

    /// How many holders have one.
    #[cfg(test)]
    pub(crate) fn holders(&self) -> usize {
        self.by_holder.len()
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
        let holder = self.is_shared.then_some(&self.from);
        self.slots.lock().release(holder);
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
        assert_eq!((slots.taken(), slots.lock().holders()), (0, 0));
        assert_eq!(flood(&slots, 2).len(), 750, "dropped slots are free again");
    }

    #[test]
    fn an_unshared_slot_counts_in_the_limit_and_in_no_share() {
        let slots = FairSlots::new(100);
        let unshared = || slots.acquire_unshared(address(1)).ok();
        let unshared: Vec<_> = std::iter::from_fn(unshared).collect();
        assert_eq!((unshared.len(), slots.taken()), (100, 100));
        assert!(slots.acquire(address(1)).is_err());
        drop(unshared);
        assert_eq!((slots.taken(), slots.lock().holders()), (0, 0));
        assert_eq!(flood(&slots, 1).len(), 75);
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
