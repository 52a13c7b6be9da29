//! FairSlots of which there is a number, shared fairly among addresses. It only counts; what happens to who finds none is
//! decided by its caller.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::budget::NoRoom;
use crate::config::SHARE_TIMES_FREE;

/// FairSlots, shared by all clones. An address gets another one while it holds less than [`SHARE_TIMES_FREE`] times as many as are
/// free; who holds one keeps it.
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
    /// Only addresses that hold one.
    by_address: HashMap<IpAddr, usize>,
}

/// One of them, until it is dropped.
#[derive(Debug)]
pub struct FairSlot {
    slots: FairSlots,
    from: IpAddr,
}

impl FairSlots {
    /// This many.
    pub fn new(limit: usize) -> Self {
        Self(Arc::new(Inner {
            limit,
            taken: Mutex::default(),
        }))
    }

    /// A place for something that this address asked for.
    ///
    /// # Errors
    /// [`NoRoom`] when all are taken, or this address holds its share.
    pub fn take(&self, from: IpAddr) -> Result<FairSlot, NoRoom> {
        let mut taken = self.lock();
        let free = self.0.limit.saturating_sub(taken.all);
        let held = taken.by_address.get(&from).copied().unwrap_or_default();
        if held >= free.saturating_mul(SHARE_TIMES_FREE) {
            return Err(NoRoom);
        }
        taken.by_address.insert(from, held + 1);
        taken.all += 1;
        Ok(FairSlot {
            slots: self.clone(),
            from,
        })
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
    /// Who holds it.
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
        std::iter::from_fn(|| slots.take(address(from)).ok()).collect()
    }

    #[test]
    fn one_address_gets_three_quarters_and_newcomers_find_room() {
        let slots = FairSlots::new(1000);
        let greedy = flood(&slots, 1);
        assert_eq!(greedy.len(), 750);
        let second = flood(&slots, 2);
        assert!((180..=190).contains(&second.len()), "{}", second.len());
        let newcomers: Vec<_> = (3..23).map(|n| slots.take(address(n)).unwrap()).collect();
        assert!(slots.take(address(1)).is_err());
        assert_eq!(slots.taken(), 750 + second.len() + newcomers.len());
        drop((greedy, second, newcomers));
        assert_eq!((slots.taken(), slots.lock().by_address.len()), (0, 0));
        assert_eq!(
            flood(&slots, 2).len(),
            750,
            "what was given back is there for others"
        );
    }

    #[test]
    fn many_addresses_together_get_no_more_than_there_are() {
        let slots = FairSlots::new(100);
        let held: Vec<_> = (0..1000)
            .filter_map(|n| slots.take(address(n)).ok())
            .collect();
        assert_eq!((held.len(), slots.taken()), (100, 100));
        assert!(slots.take(address(5000)).is_err());
    }
}
