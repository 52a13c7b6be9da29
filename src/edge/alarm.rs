//! One coarse timer of a thread for all of its clients. It wakes each client when that asked for
//! it, when its next turn to write has come, and all of them again and again while the edge stops. What
//! is due then, they know themselves.

use std::num::NonZeroU64;
use std::ops::Add;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::Duration;

use slab::Slab;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::turn_queue::{QueuedTurn, TurnQueue};
use crate::config::{DRAIN_TICK, TICK};

/// A time of a thread's timer, in milliseconds. It takes half the memory of a [`Duration`], also if it is
/// optional, because an idle client holds several.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct AlarmTime(NonZeroU64);

impl AlarmTime {
    /// When the timer begins.
    pub(super) const BEGIN: Self = Self(NonZeroU64::MIN);
    /// A time that never comes.
    pub(super) const NEVER: Self = Self(NonZeroU64::MAX);

    /// How long after an earlier time this is.
    pub(super) fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.get().saturating_sub(earlier.0.get()))
    }
}

impl Add<Duration> for AlarmTime {
    type Output = Self;

    fn add(self, time: Duration) -> Self {
        let millis = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        Self(self.0.saturating_add(millis))
    }
}

/// The timer of a thread. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct Alarms(Arc<AlarmState>);

#[derive(Debug)]
struct AlarmState {
    begun: Instant,
    /// The milliseconds since `begun` at the last tick.
    now: AtomicU64,
    is_stopping: AtomicBool,
    entries: Mutex<Slab<Entry>>,
    /// Notified when the first entry is added.
    used: Notify,
    turns: TurnQueue,
}

#[derive(Debug)]
struct Entry {
    due: AlarmTime,
    waker: Option<Waker>,
}

impl Alarms {
    pub(super) fn new() -> Self {
        Self(Arc::new(AlarmState {
            begun: Instant::now(),
            now: AtomicU64::new(0),
            is_stopping: AtomicBool::new(false),
            entries: Mutex::default(),
            used: Notify::new(),
            turns: TurnQueue::default(),
        }))
    }

    /// Wakes clients, more often once `stop` is cancelled, and all of them for the last time when
    /// `closing` is.
    pub(super) async fn run(self, stop: CancellationToken, closing: CancellationToken) {
        tokio::select! {
            () = self.ring(&stop, &closing) => {}
            () = self.0.turns.serve() => {}
        }
    }

    async fn ring(&self, stop: &CancellationToken, closing: &CancellationToken) {
        while !closing.is_cancelled() {
            let is_stopping = stop.is_cancelled();
            self.0.is_stopping.store(is_stopping, Ordering::Relaxed);
            self.tick();
            let is_unused = self.lock().is_empty();
            let pause = async {
                if is_stopping {
                    sleep(DRAIN_TICK).await;
                } else if is_unused {
                    self.0.used.notified().await;
                } else {
                    sleep(TICK).await;
                }
            };
            tokio::select! {
                () = closing.cancelled() => {}
                () = stop.cancelled(), if !is_stopping => {}
                () = pause => {}
            }
        }
        self.0.is_stopping.store(true, Ordering::Relaxed);
        self.tick();
    }

    /// An alarm that is due, but does not wake before it is set.
    pub(super) fn alarm(&self) -> Alarm {
        self.update();
        let mut entries = self.lock();
        let key = entries.insert(Entry {
            due: AlarmTime::NEVER,
            waker: None,
        });
        drop(entries);
        self.0.used.notify_one();
        Alarm {
            alarms: self.clone(),
            key,
            due: AlarmTime::BEGIN,
        }
    }

    fn tick(&self) {
        self.update();
        let now = self.now();
        let is_stopping = self.is_stopping();
        for (_, entry) in &mut *self.lock() {
            if (entry.due <= now || is_stopping)
                && let Some(waker) = &entry.waker
            {
                entry.due = AlarmTime::NEVER;
                waker.wake_by_ref();
            }
        }
    }

    fn update(&self) {
        let now = u64::try_from(self.0.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.0.now.store(now, Ordering::Relaxed);
    }

    fn now(&self) -> AlarmTime {
        AlarmTime::BEGIN + Duration::from_millis(self.0.now.load(Ordering::Relaxed))
    }

    fn is_stopping(&self) -> bool {
        self.0.is_stopping.load(Ordering::Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, Slab<Entry>> {
        self.0
            .entries
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// The alarm of one client.
#[derive(Debug)]
pub(super) struct Alarm {
    alarms: Alarms,
    key: usize,
    due: AlarmTime,
}

impl Alarm {
    /// The time of the last tick.
    pub(super) fn now(&self) -> AlarmTime {
        self.alarms.now()
    }

    /// Whether the edge stops.
    pub(super) fn is_stopping(&self) -> bool {
        self.alarms.is_stopping()
    }

    /// Whether the time has come for which it was set, or the edge stops.
    pub(super) fn is_due(&self) -> bool {
        self.due <= self.now() || self.is_stopping()
    }

    /// Wakes this task when the client's next turn has come.
    pub(super) fn wait_for_turn(&self, waker: &Waker) -> QueuedTurn {
        self.alarms.0.turns.wait(waker)
    }

    /// Whether that turn has come.
    pub(super) fn has_come(&self, turn: QueuedTurn) -> bool {
        self.alarms.0.turns.has_come(turn)
    }

    /// Wakes this task at `due`, and when the edge stops.
    pub(super) fn set(&mut self, due: AlarmTime, waker: &Waker) {
        self.due = due;
        let mut entries = self.alarms.lock();
        let entry = &mut entries[self.key];
        entry.due = due;
        match &mut entry.waker {
            Some(known) => known.clone_from(waker),
            none => *none = Some(waker.clone()),
        }
    }

    /// [`Self::set`], unless it is set for an earlier time.
    pub(super) fn set_by(&mut self, due: AlarmTime, waker: &Waker) {
        if due < self.due {
            self.set(due, waker);
        }
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        let mut entries = self.alarms.lock();
        entries.remove(self.key);
        if entries.is_empty() {
            entries.shrink_to_fit();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::Tasks;
    use std::future::poll_fn;
    use std::task::Poll;

    /// Waits until the alarm is due.
    async fn rings(alarm: &mut Alarm, after: Duration) {
        let due = alarm.now() + after;
        let mut is_set = false;
        poll_fn(|cx| {
            if is_set && alarm.is_due() {
                return Poll::Ready(());
            }
            alarm.set(due, cx.waker());
            is_set = true;
            Poll::Pending
        })
        .await;
    }

    #[test]
    fn a_time_takes_eight_bytes_also_if_it_is_optional() {
        assert_eq!(size_of::<Option<AlarmTime>>(), 8);
    }

    #[tokio::test(start_paused = true)]
    async fn an_alarm_wakes_its_client_when_it_is_due_and_at_the_stop() {
        let tasks = Tasks::default();
        let stop = CancellationToken::new();
        let alarms = Alarms::new();
        tasks.spawn(alarms.clone().run(stop.clone(), tasks.stop().clone()));
        sleep(Duration::from_secs(3600)).await;
        let mut alarm = alarms.alarm();
        let mut other = alarms.alarm();
        for after in [TICK, TICK * 7, Duration::from_secs(25)] {
            let begun = Instant::now();
            tokio::join!(rings(&mut alarm, after), rings(&mut other, after * 2));
            let late = begun.elapsed() - after * 2;
            assert!(late <= TICK * 2, "{late:?}");
        }
        let begun = Instant::now();
        stop.cancel();
        rings(&mut alarm, Duration::from_secs(3600)).await;
        assert!(begun.elapsed() <= DRAIN_TICK && alarm.is_stopping());
        assert!(tasks.end(Duration::from_secs(1)).await);
    }
}
