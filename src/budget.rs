//! The memory budget of a process: how many bytes it may hold for its clients. It only counts: the
//! caller decides whether it waits when there is no room.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use bytes::Bytes;
use tokio::sync::Mutex;
use tokio::time::sleep;

use crate::config::{MEMORY_MIN, MEMORY_PART, MEMORY_UNKNOWN, READ_BUDGET_PAUSE};
use crate::runtime::{Tasks, mailbox};

/// How many bytes may be held at a time, shared by all clones.
///
/// A reservation from a budget [`within`](Budget::within) another one counts in both, so that one
/// kind of work cannot use more than its own limit, nor all kinds more than the whole.
#[derive(Clone, Debug)]
pub struct Budget(Arc<Pool>);

#[derive(Debug)]
struct Pool {
    limit: usize,
    used: AtomicUsize,
    refused: AtomicU64,
    whole: Option<Budget>,
    /// How many wait for room.
    waiting: AtomicUsize,
    /// Held by the first of those that wait; it serves them in their order.
    turn: Mutex<()>,
}

/// Counts one that waits, in this number, until it is dropped.
struct WaitsForRoom<'a>(&'a AtomicUsize);

impl<'a> WaitsForRoom<'a> {
    fn new(waiting: &'a AtomicUsize) -> Self {
        waiting.fetch_add(1, Ordering::Relaxed);
        Self(waiting)
    }
}

impl Drop for WaitsForRoom<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The limit is reached for the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the memory budget is used up")]
pub struct LimitReached;

impl Budget {
    /// A budget of `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self::create(limit, None)
    }

    /// A budget without a limit, for programs with a single reader.
    pub fn unlimited() -> Self {
        Self::new(usize::MAX)
    }

    /// A fraction of the memory of the machine or the container.
    pub fn of_machine() -> Self {
        let part = machine_memory().map_or(MEMORY_UNKNOWN, |bytes| bytes / MEMORY_PART);
        Self::new(part.max(MEMORY_MIN))
    }

    /// A budget of at most `limit` bytes within this one.
    #[must_use]
    pub fn within(&self, limit: usize) -> Self {
        Self::create(limit, Some(self.clone()))
    }

    fn create(limit: usize, whole: Option<Self>) -> Self {
        let used = AtomicUsize::new(0);
        let refused = AtomicU64::new(0);
        Self(Arc::new(Pool {
            limit,
            used,
            refused,
            whole,
            waiting: AtomicUsize::new(0),
            turn: Mutex::new(()),
        }))
    }

    /// Reserves `bytes` until the reservation is dropped. Never waits.
    ///
    /// # Errors
    /// [`LimitReached`] if this budget, or the one that it is within, has fewer bytes left.
    pub fn reserve(&self, bytes: usize) -> Result<Reservation, LimitReached> {
        self.acquire_or_count(bytes)?;
        Ok(self.acquired(bytes))
    }

    /// [`Self::reserve`], unless others wait for room: those come first.
    ///
    /// # Errors
    /// [`LimitReached`].
    pub fn reserve_if_first(&self, bytes: usize) -> Result<Reservation, LimitReached> {
        if self.0.waiting.load(Ordering::Relaxed) > 0 {
            return Err(self.count_refusal());
        }
        self.reserve(bytes)
    }

    /// Reserves `bytes`, at most the limit, once there is room. Callers are served in the order in
    /// which they came, so that small reservations do not overtake a large one forever. The others
    /// wait for the first one: poll it until it is ready, or drop it.
    pub async fn reserve_in_turn(&self, bytes: usize) -> Reservation {
        let bytes = bytes.min(self.limit());
        let _waits = WaitsForRoom::new(&self.0.waiting);
        let _turn = self.0.turn.lock().await;
        // Not counted as a refusal each time.
        while self.acquire(bytes).is_err() {
            sleep(READ_BUDGET_PAUSE).await;
        }
        self.acquired(bytes)
    }

    /// [`Self::reserve_in_turn`] for a caller that is not always polled, because its client accepts
    /// nothing: a task, one of `tasks`, waits in its place, so that those after it need not wait for the
    /// caller. Room that the caller does not take soon is released, and the caller waits again, after the
    /// others.
    pub async fn reserve_by_task(self, bytes: usize, tasks: Tasks) -> Reservation {
        loop {
            let (sender, mut room) = mailbox();
            let budget = self.clone();
            tasks.spawn(async move {
                let reservation = tokio::select! {
                    biased;
                    () = sender.unread() => return,
                    reservation = budget.reserve_in_turn(bytes) => reservation,
                };
                // The caller may be gone.
                let _ = sender.deliver(reservation, |_, refused| Err(refused));
                sender.until_taken().await;
            });
            if let Ok(reservation) = room.take().await {
                return reservation;
            }
        }
    }

    /// A reservation of 0 bytes, which can grow.
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

    /// How many reservations this budget has refused, without those that the whole budget refused.
    pub fn refused(&self) -> u64 {
        self.0.refused.load(Ordering::Relaxed)
    }

    /// Counts `bytes` as used. If that is refused, returns the budget that has no room.
    fn acquire(&self, bytes: usize) -> Result<(), &Self> {
        let Pool {
            limit,
            used,
            refused: _,
            whole,
            waiting: _,
            turn: _,
        } = &*self.0;
        let fits = |used: usize| used.checked_add(bytes).filter(|sum| sum <= limit);
        // Relaxed: no other memory access depends on this number.
        if used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits)
            .is_err()
        {
            return Err(self);
        }
        if let Some(whole) = whole
            && let Err(full) = whole.acquire(bytes)
        {
            used.fetch_sub(bytes, Ordering::Relaxed);
            return Err(full);
        }
        Ok(())
    }

    /// [`Self::acquire`], which counts a refusal.
    fn acquire_or_count(&self, bytes: usize) -> Result<(), LimitReached> {
        self.acquire(bytes).map_err(Self::count_refusal)
    }

    fn count_refusal(&self) -> LimitReached {
        self.0.refused.fetch_add(1, Ordering::Relaxed);
        LimitReached
    }

    /// A reservation of bytes that were acquired.
    fn acquired(&self, bytes: usize) -> Reservation {
        Reservation {
            budget: self.clone(),
            bytes,
        }
    }

    fn release(&self, bytes: usize) {
        self.0.used.fetch_sub(bytes, Ordering::Relaxed);
        if let Some(whole) = &self.0.whole {
            whole.release(bytes);
        }
    }
}

/// Reserved bytes, released when this is dropped.
#[derive(Debug)]
pub struct Reservation {
    budget: Budget,
    bytes: usize,
}

impl Reservation {
    /// Reserves `bytes` more.
    ///
    /// # Errors
    /// [`LimitReached`]; the earlier bytes stay reserved.
    pub fn grow(&mut self, bytes: usize) -> Result<(), LimitReached> {
        self.budget.acquire_or_count(bytes)?;
        self.bytes += bytes;
        Ok(())
    }

    /// Changes the reservation to `bytes` in all.
    ///
    /// # Errors
    /// [`LimitReached`] if the additional bytes do not fit; the earlier bytes stay reserved.
    pub fn resize(&mut self, bytes: usize) -> Result<(), LimitReached> {
        match bytes.checked_sub(self.bytes) {
            // Without touching counters that all threads share.
            Some(0) => Ok(()),
            Some(more) => self.grow(more),
            None => {
                self.budget.release(self.bytes - bytes);
                self.bytes = bytes;
                Ok(())
            }
        }
    }

    /// How many bytes are reserved here.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The limit of its budget.
    pub fn limit(&self) -> usize {
        self.budget.limit()
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.budget.release(self.bytes);
    }
}

/// Bytes that keep `owned` until their last slice is dropped: until the socket has accepted them.
pub fn bind<B, T>(bytes: B, owned: T) -> Bytes
where
    B: AsRef<[u8]> + Send + 'static,
    T: Send + 'static,
{
    struct Owner<B, T> {
        bytes: B,
        _owned: T,
    }
    impl<B: AsRef<[u8]>, T> AsRef<[u8]> for Owner<B, T> {
        fn as_ref(&self) -> &[u8] {
            self.bytes.as_ref()
        }
    }
    Bytes::from_owner(Owner {
        bytes,
        _owned: owned,
    })
}

/// How many bytes of memory this process may use: the machine's memory or the limit of its control
/// group. `None` except on Linux.
fn machine_memory() -> Option<usize> {
    let read = |path: PathBuf| fs::read_to_string(path).ok();
    let total = read("/proc/meminfo".into()).as_deref().and_then(total_of);
    let groups = read("/proc/self/cgroup".into()).unwrap_or_default();
    let own = groups
        .lines()
        .find_map(|line| line.strip_prefix("0::/"))
        .unwrap_or_default();
    // In a container, the group is the root of the visible hierarchy. The last path is that of
    // control groups version 1.
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
    use crate::config::READ_TAKE_WAIT;
    use futures_util::FutureExt as _;
    use std::pin::pin;
    use tokio::task::yield_now;
    use tokio::time::timeout;

    #[test]
    fn the_memory_of_a_machine_is_read_from_meminfo() {
        assert_eq!(
            total_of("MemTotal:       16384 kB\nMemFree: 1 kB\n"),
            Some(16 << 20)
        );
        assert_eq!(total_of("MemFree: 1 kB\n"), None);
        assert!(Budget::of_machine().limit() >= MEMORY_MIN);
    }

    #[test]
    fn a_dropped_reservation_releases_its_bytes() {
        let budget = Budget::new(100);
        let mut held = budget.reserve(60).unwrap();
        assert_eq!(budget.reserve(41).unwrap_err(), LimitReached);
        held.grow(40).unwrap();
        assert_eq!(held.grow(1), Err(LimitReached));
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
    fn a_share_counts_in_the_whole_and_has_its_own_limit() {
        let whole = Budget::new(100);
        let one = whole.within(60);
        let other = whole.within(60);
        let first = one.reserve(60).unwrap();
        assert!(one.reserve(1).is_err(), "its share is used");
        assert!(other.reserve(41).is_err(), "the whole is used");
        assert_eq!(
            (one.used(), other.used(), whole.used()),
            (60, 0, 60),
            "a refusal reserves nothing"
        );
        let second = other.reserve(40).unwrap();
        drop(first);
        assert_eq!((one.used(), other.used(), whole.used()), (0, 40, 40));
        drop(second);
        assert_eq!(whole.used(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn those_that_wait_for_room_are_served_in_their_order() {
        let budget = Budget::new(100);
        let held = budget.reserve(60).unwrap();
        let mut large = pin!(budget.reserve_in_turn(1000));
        assert!(large.as_mut().now_or_never().is_none());
        // There is room for it, but it came later.
        let mut small = pin!(budget.reserve_in_turn(10));
        assert!(small.as_mut().now_or_never().is_none());
        drop(held);
        let whole = large.await;
        assert_eq!(whole.bytes(), 100);
        assert!(small.as_mut().now_or_never().is_none());
        drop(whole);
        assert_eq!(small.await.bytes(), 10);
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_stops_waiting_holds_up_no_other() {
        let budget = Budget::new(100);
        let _held = budget.reserve(60).unwrap();
        let mut large = Box::pin(budget.reserve_in_turn(100));
        assert!(large.as_mut().now_or_never().is_none());
        let mut small = pin!(budget.reserve_in_turn(10));
        assert!(small.as_mut().now_or_never().is_none());
        drop(large);
        let small = small.now_or_never().expect("it is the first one now");
        assert_eq!(small.bytes(), 10);
    }

    #[tokio::test(start_paused = true)]
    async fn those_that_wait_count_no_refusals_and_come_before_others() {
        let budget = Budget::new(100);
        let held = budget.reserve(60).unwrap();
        let mut waiting = pin!(budget.reserve_in_turn(100));
        assert!(timeout(READ_BUDGET_PAUSE * 10, &mut waiting).await.is_err());
        assert_eq!(budget.refused(), 0);
        // There is room for it, but it came later.
        budget.reserve_if_first(10).unwrap_err();
        assert_eq!(budget.refused(), 1);
        drop(held);
        drop(waiting.await);
        assert_eq!(budget.reserve_if_first(10).unwrap().bytes(), 10);
    }

    #[test]
    fn threads_that_reserve_at_the_same_time_do_not_refuse_each_other() {
        let budget = Budget::new(2);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    for _ in 0..100_000 {
                        drop(budget.reserve_if_first(1).unwrap());
                    }
                });
            }
        });
        assert_eq!(budget.refused(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_caller_that_is_not_polled_holds_up_no_other_and_gets_room_later() {
        let budget = Budget::new(100);
        let tasks = Tasks::default();
        let wait = || budget.clone().reserve_by_task(100, tasks.clone());
        let held = budget.reserve(60).unwrap();
        let mut idle = pin!(wait());
        assert!(idle.as_mut().now_or_never().is_none());
        yield_now().await;
        let mut next = pin!(wait());
        assert!(next.as_mut().now_or_never().is_none());
        drop(held);
        let room = timeout(READ_TAKE_WAIT * 2, next).await.unwrap();
        assert_eq!((room.bytes(), budget.used()), (100, 100));
        drop(room);
        assert_eq!(idle.await.bytes(), 100);
        // One that is gone waits no more.
        let _held = budget.reserve(60).unwrap();
        assert!(wait().now_or_never().is_none());
        for _ in 0..10 {
            yield_now().await;
        }
        assert_eq!(tasks.running(), 0);
    }

    #[test]
    fn a_reservation_that_overflows_is_refused() {
        let budget = Budget::unlimited();
        let _held = budget.reserve(10).unwrap();
        assert!(budget.reserve(usize::MAX).is_err());
        assert_eq!(budget.used(), 10);
    }

    #[test]
    fn concurrent_threads_reserve_no_more_than_the_limit() {
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

    #[test]
    fn bytes_keep_their_room_until_their_last_slice_is_dropped() {
        let budget = Budget::new(100);
        let bytes = bind(vec![7; 10], budget.reserve(10).unwrap());
        let tail = bytes.slice(8..);
        drop(bytes);
        assert_eq!((&tail[..], budget.used()), (&[7, 7][..], 10));
        drop(tail);
        assert_eq!(budget.used(), 0);
    }
}
