//! Passes on wake-ups from other threads in batches. A single-threaded runtime pays a system call
//! for each task that another thread wakes, and it runs such a task only when none of its own is
//! ready. With hundreds of tasks that are woken at about the same time and each send a message over
//! one connection, the connection's task would therefore run after each of them, and write each
//! message by itself.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Wake, Waker};

use futures_util::task::AtomicWaker;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

use crate::config::{WAKE_GATHER, WAKE_MANY};

/// The wake-ups for the tasks of one thread. Clones share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct WakeQueue(Arc<WakeQueueState>);

#[derive(Debug, Default)]
struct WakeQueueState {
    /// The tasks to wake, each once.
    woken: Mutex<Vec<Arc<QueuedTask>>>,
    /// A task was added to `woken`, which was empty.
    not_empty: Notify,
}

/// What other threads wake instead of a task.
#[derive(Debug)]
struct QueuedTask {
    /// A queue that is gone wakes nothing.
    queue: Weak<WakeQueueState>,
    is_queued: AtomicBool,
    task: AtomicWaker,
}

/// Wakes one task through a queue.
#[derive(Debug)]
pub(crate) struct QueuedWaker {
    task: Arc<QueuedTask>,
    /// Wakes `task`.
    waker: Waker,
}

impl WakeQueue {
    /// Wakes the tasks that other threads have woken: at once, or while there are many, in batches.
    /// Never returns. Run it on the thread of these tasks.
    pub(crate) async fn pass_on(self) {
        let mut woken = Vec::new();
        let mut last: Option<Instant> = None;
        loop {
            // While wake-ups are gathered, a permit is stored instead of waking the thread.
            self.0.not_empty.notified().await;
            std::mem::swap(&mut woken, &mut *self.0.lock());
            if woken.is_empty() {
                // The last time, they were taken before their permit was stored.
                continue;
            }
            for task in woken.drain(..) {
                task.pass_on();
            }
            let now = Instant::now();
            if last.is_some_and(|last| now - last < WAKE_MANY) {
                sleep(WAKE_GATHER).await;
            }
            last = Some(now);
        }
    }

    /// A waker for one task.
    pub(crate) fn waker(&self) -> QueuedWaker {
        let task = Arc::new(QueuedTask {
            queue: Arc::downgrade(&self.0),
            is_queued: AtomicBool::new(false),
            task: AtomicWaker::new(),
        });
        let waker = Waker::from(Arc::clone(&task));
        QueuedWaker { task, waker }
    }
}

impl WakeQueueState {
    fn lock(&self) -> MutexGuard<'_, Vec<Arc<QueuedTask>>> {
        self.woken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl QueuedTask {
    fn pass_on(&self) {
        // Before the task is woken: what happens from now on wakes it again.
        self.is_queued.swap(false, Ordering::AcqRel);
        self.task.wake();
    }
}

impl Wake for QueuedTask {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.is_queued.swap(true, Ordering::AcqRel) {
            return;
        }
        let Some(queue) = self.queue.upgrade() else {
            return;
        };
        let mut woken = queue.lock();
        let is_first = woken.is_empty();
        woken.push(Arc::clone(self));
        drop(woken);
        if is_first {
            queue.not_empty.notify_one();
        }
    }
}

impl QueuedWaker {
    /// Polls a future whose wake-ups come from other threads. One future at a time: the task that
    /// polled last is woken.
    pub(crate) fn poll<F: Future>(
        &self,
        future: Pin<&mut F>,
        cx: &mut Context<'_>,
    ) -> Poll<F::Output> {
        self.task.task.register(cx.waker());
        future.poll(&mut Context::from_waker(&self.waker))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::wake_counter::WakeCounter;
    use std::pin::pin;
    use tokio::time::advance;

    /// A task that waits for a signal from another thread.
    struct WaitingTask {
        signal: Notify,
        waker: QueuedWaker,
        woken: Arc<WakeCounter>,
    }

    impl WaitingTask {
        fn new(queue: &WakeQueue) -> Self {
            Self {
                signal: Notify::new(),
                waker: queue.waker(),
                woken: Arc::default(),
            }
        }

        fn poll(&self, signaled: Pin<&mut impl Future<Output = ()>>) -> Poll<()> {
            let task = Waker::from(Arc::clone(&self.woken));
            self.waker.poll(signaled, &mut Context::from_waker(&task))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn wake_ups_of_many_tasks_wake_their_thread_once() {
        let queue = WakeQueue::default();
        let thread = Arc::<WakeCounter>::default();
        let mut passing = pin!(queue.clone().pass_on());
        assert!(thread.poll(passing.as_mut()).is_pending());
        let tasks: [_; 3] = std::array::from_fn(|_| WaitingTask::new(&queue));
        for round in 1..3 {
            let mut signaled: Vec<_> = tasks
                .iter()
                .map(|task| Box::pin(task.signal.notified()))
                .collect();
            for (task, signaled) in tasks.iter().zip(&mut signaled) {
                assert!(task.poll(signaled.as_mut()).is_pending());
            }
            std::thread::scope(|scope| {
                scope.spawn(|| tasks.iter().for_each(|task| task.signal.notify_one()));
            });
            assert_eq!(thread.count(), round);
            assert!(tasks.iter().all(|task| task.woken.count() == round - 1));
            assert!(thread.poll(passing.as_mut()).is_pending());
            for (task, signaled) in tasks.iter().zip(&mut signaled) {
                assert_eq!(task.woken.count(), round);
                assert!(task.poll(signaled.as_mut()).is_ready());
            }
            advance(WAKE_MANY).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn many_wake_ups_are_gathered() {
        let queue = WakeQueue::default();
        let thread = Arc::<WakeCounter>::default();
        let mut passing = pin!(queue.clone().pass_on());
        let task = WaitingTask::new(&queue);
        let mut never = pin!(std::future::pending());
        // The third one waits.
        for count in [1, 2, 2] {
            assert!(task.poll(never.as_mut()).is_pending());
            task.waker.waker.wake_by_ref();
            assert!(thread.poll(passing.as_mut()).is_pending());
            assert_eq!(task.woken.count(), count);
        }
        assert_eq!(thread.count(), 1, "the thread was woken for a gathered one");
        advance(WAKE_GATHER * 2).await;
        assert!(thread.poll(passing.as_mut()).is_pending());
        assert_eq!(task.woken.count(), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_is_woken_again_for_what_follows_its_wake_up() {
        let queue = WakeQueue::default();
        let thread = Arc::<WakeCounter>::default();
        let mut passing = pin!(queue.clone().pass_on());
        let task = WaitingTask::new(&queue);
        let wake = || task.waker.waker.wake_by_ref();
        let mut never = pin!(std::future::pending());
        // A wake-up before the queue is read the first time is not lost.
        for round in 1..4 {
            assert!(task.poll(never.as_mut()).is_pending());
            wake();
            wake();
            assert!(thread.poll(passing.as_mut()).is_pending());
            assert_eq!(task.woken.count(), round);
            advance(WAKE_MANY).await;
        }
    }

    #[test]
    fn a_backend_does_not_keep_the_wake_ups_of_a_thread_that_has_ended() {
        let queue = WakeQueue::default();
        let task = WaitingTask::new(&queue);
        let other = WaitingTask::new(&queue);
        other.waker.waker.wake_by_ref();
        let state = Arc::downgrade(&queue.0);
        drop(queue);
        assert_eq!(state.strong_count(), 0);
        task.waker.waker.wake_by_ref();
        assert_eq!(Arc::strong_count(&other.waker.task), 2);
    }
}
