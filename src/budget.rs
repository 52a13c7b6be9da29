//! The memory budget of a process: how many bytes it may hold for its clients, and who holds them. It only counts; what
//! happens to a request that finds no room is decided by its caller.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crate::config::{MEMORY_MIN, MEMORY_PART, MEMORY_UNKNOWN};

/// A number of bytes that may be held at a time, shared by all clones.
///
/// A [`share`](Budget::share) is a budget inside another one: what is reserved from it counts in both, so that one kind of
/// work can take no more than its share, and all kinds together no more than the whole.
#[derive(Clone, Debug)]
pub struct Budget(Arc<Pool>);

#[derive(Debug)]
struct Pool {
    limit: usize,
    used: AtomicUsize,
    refused: AtomicU64,
    whole: Option<Budget>,
}

/// Nothing more may be held for the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the memory budget is used up")]
pub struct NoRoom;

impl Budget {
    /// A budget of `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self::within(limit, None)
    }

    /// A budget that refuses nothing, for programs with a single reader.
    pub fn unlimited() -> Self {
        Self::new(usize::MAX)
    }

    /// A part of the memory that the machine, or the container, gives to this process.
    pub fn of_machine() -> Self {
        let part = machine_memory().map_or(MEMORY_UNKNOWN, |bytes| bytes / MEMORY_PART);
        Self::new(part.max(MEMORY_MIN))
    }

    /// A part of this budget: at most `limit` bytes of it.
    #[must_use]
    pub fn share(&self, limit: usize) -> Self {
        Self::within(limit, Some(self.clone()))
    }

    fn within(limit: usize, whole: Option<Self>) -> Self {
        let used = AtomicUsize::new(0);
        let refused = AtomicU64::new(0);
        Self(Arc::new(Pool {
            limit,
            used,
            refused,
            whole,
        }))
    }

    /// Reserves `bytes` until the reservation is dropped. It never waits.
    ///
    /// # Errors
    /// [`NoRoom`] when this budget, or one that it is a share of, has fewer bytes left.
    pub fn reserve(&self, bytes: usize) -> Result<Reservation, NoRoom> {
        self.take(bytes)?;
        Ok(Reservation {
            budget: self.clone(),
            bytes,
        })
    }

    /// A reservation of nothing, to be grown.
    pub fn empty(&self) -> Reservation {
        Reservation {
            budget: self.clone(),
            bytes: 0,
        }
    }

    /// How many bytes may be reserved at a time.
    pub fn limit(&self) -> usize {
        self.0.limit
    }

    /// How many bytes are reserved.
    pub fn used(&self) -> usize {
        self.0.used.load(Ordering::Relaxed)
    }

    /// How many reservations this very budget has refused.
    pub fn refused(&self) -> u64 {
        self.0.refused.load(Ordering::Relaxed)
    }

    fn take(&self, bytes: usize) -> Result<(), NoRoom> {
        let Pool {
            limit,
            used,
            refused,
            whole,
        } = &*self.0;
        let fits = |used: usize| used.checked_add(bytes).filter(|sum| sum <= limit);
        // Only a number is shared, and nothing is read because of it: no ordering is needed.
        if used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits)
            .is_err()
        {
            refused.fetch_add(1, Ordering::Relaxed);
            return Err(NoRoom);
        }
        if let Some(whole) = whole
            && whole.take(bytes).is_err()
        {
            used.fetch_sub(bytes, Ordering::Relaxed);
            return Err(NoRoom);
        }
        Ok(())
    }

    fn give_back(&self, bytes: usize) {
        self.0.used.fetch_sub(bytes, Ordering::Relaxed);
        if let Some(whole) = &self.0.whole {
            whole.give_back(bytes);
        }
    }
}

/// Bytes that are held; given back when it is dropped.
#[derive(Debug)]
pub struct Reservation {
    budget: Budget,
    bytes: usize,
}

impl Reservation {
    /// Reserves `bytes` more.
    ///
    /// # Errors
    /// [`NoRoom`]; what was reserved before stays.
    pub fn grow(&mut self, bytes: usize) -> Result<(), NoRoom> {
        self.budget.take(bytes)?;
        self.bytes += bytes;
        Ok(())
    }

    /// Makes it `bytes` in all.
    ///
    /// # Errors
    /// [`NoRoom`] when that is more than before and does not fit; what was reserved before stays.
    pub fn resize(&mut self, bytes: usize) -> Result<(), NoRoom> {
        match bytes.checked_sub(self.bytes) {
            Some(more) => self.grow(more),
            None => {
                self.budget.give_back(self.bytes - bytes);
                self.bytes = bytes;
                Ok(())
            }
        }
    }

    /// How many bytes are held.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// How many bytes it may hold at most, when nothing else is held.
    pub fn limit(&self) -> usize {
        self.budget.limit()
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.budget.give_back(self.bytes);
    }
}

/// How much memory this process may have at most, where the system says so (Linux): that of the machine, or the limit of
/// a control group that it is in.
fn machine_memory() -> Option<usize> {
    let read = |path: PathBuf| fs::read_to_string(path).ok();
    let total = read("/proc/meminfo".into()).as_deref().and_then(total_of);
    let groups = read("/proc/self/cgroup".into()).unwrap_or_default();
    let own = groups
        .lines()
        .find_map(|line| line.strip_prefix("0::/"))
        .unwrap_or_default();
    // In a container the group is the root of what can be seen; the last is where version 1 keeps it.
    let root = PathBuf::from("/sys/fs/cgroup");
    let limits = [
        root.join(own).join("memory.max"),
        root.join("memory/memory.limit_in_bytes"),
    ];
    let limits = limits
        .into_iter()
        .filter_map(|path| read(path)?.trim().parse().ok());
    total.into_iter().chain(limits).min()
}

/// The `MemTotal` of `/proc/meminfo`, in bytes.
fn total_of(meminfo: &str) -> Option<usize> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kilobytes: usize = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kilobytes.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_memory_of_a_machine_is_read_from_its_table() {
        assert_eq!(
            total_of("MemTotal:       16384 kB\nMemFree: 1 kB\n"),
            Some(16 << 20)
        );
        assert_eq!(total_of("MemFree: 1 kB\n"), None);
        assert!(Budget::of_machine().limit() >= MEMORY_MIN);
    }

    #[test]
    fn what_is_reserved_is_given_back_when_it_is_dropped() {
        let budget = Budget::new(100);
        let mut held = budget.reserve(60).unwrap();
        assert_eq!(budget.reserve(41).unwrap_err(), NoRoom);
        held.grow(40).unwrap();
        assert_eq!(held.grow(1), Err(NoRoom));
        assert_eq!(
            (held.bytes(), budget.used(), budget.refused()),
            (100, 100, 2)
        );
        held.resize(10).unwrap();
        assert_eq!(budget.used(), 10);
        assert!(held.resize(101).is_err());
        assert_eq!((held.bytes(), budget.used()), (10, 10));
        drop(held);
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn a_share_counts_in_the_whole_and_takes_no_more_than_its_part() {
        let whole = Budget::new(100);
        let (one, other) = (whole.share(60), whole.share(60));
        let first = one.reserve(60).unwrap();
        assert!(one.reserve(1).is_err(), "its part is taken");
        assert!(other.reserve(41).is_err(), "the whole is taken");
        assert_eq!(
            (one.used(), other.used(), whole.used()),
            (60, 0, 60),
            "a refusal holds nothing"
        );
        let second = other.reserve(40).unwrap();
        drop(first);
        assert_eq!((one.used(), other.used(), whole.used()), (0, 40, 40));
        drop(second);
        assert_eq!(whole.used(), 0);
    }

    #[test]
    fn a_claim_beyond_all_numbers_is_refused() {
        let budget = Budget::unlimited();
        let _held = budget.reserve(10).unwrap();
        assert!(budget.reserve(usize::MAX).is_err());
        assert_eq!(budget.used(), 10);
    }

    #[test]
    fn threads_together_reserve_no_more_than_there_is() {
        let budget = Budget::new(1000);
        let held = std::thread::scope(|scope| {
            let reserve = || {
                (0..1000)
                    .filter_map(|_| budget.reserve(3).ok())
                    .collect::<Vec<_>>()
            };
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(reserve)).collect();
            threads
                .into_iter()
                .flat_map(|thread| thread.join().unwrap())
                .count()
        });
        assert!(held >= 333, "{held}");
        assert_eq!(budget.used(), 0);
    }
}
