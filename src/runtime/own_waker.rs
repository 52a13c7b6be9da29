//! A waker for one of several futures or streams of a task, so that it is not polled each time that the
//! task is woken for another one.

use std::future::{Future, poll_fn};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use futures_util::task::AtomicWaker;

/// Wakes a task, and records that it was for one of its futures or streams.
#[derive(Debug)]
pub(crate) struct OwnWaker {
    is_woken: AtomicBool,
    task: AtomicWaker,
}

impl OwnWaker {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            is_woken: AtomicBool::new(true),
            task: AtomicWaker::new(),
        })
    }

    /// Polls with this waker: the first time, after it was woken, and after the last poll was ready.
    pub(crate) fn poll<T>(
        self: &Arc<Self>,
        cx: &Context<'_>,
        poll: impl FnOnce(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        // Before the flag is read: a wake-up from now on wakes this task.
        self.task.register(cx.waker());
        if !self.is_woken.swap(false, Ordering::AcqRel) {
            return Poll::Pending;
        }
        let waker = Waker::from(Arc::clone(self));
        let polled = poll(&mut Context::from_waker(&waker));
        if polled.is_ready() {
            self.is_woken.store(true, Ordering::Release);
        }
        polled
    }
}

impl Wake for OwnWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.is_woken.store(true, Ordering::Release);
        self.task.wake();
    }
}

/// Runs a future with a waker of its own: it is polled only after it was woken itself.
pub(crate) async fn with_own_waker<F: Future>(future: F) -> F::Output {
    // Boxed, so that the task's other futures stay close together in memory.
    let mut future = Box::pin(future);
    let own = OwnWaker::new();
    poll_fn(|cx| own.poll(cx, |cx| future.as_mut().poll(cx))).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::wake_counter::WakeCounter;
    use std::cell::{Cell, RefCell};
    use std::pin::pin;

    #[test]
    fn a_future_is_polled_only_when_it_was_woken_and_wakes_its_task_once() {
        let polls = Cell::new(0);
        let waker = RefCell::new(None);
        let mut woken = pin!(with_own_waker(poll_fn(|cx| {
            polls.set(polls.get() + 1);
            *waker.borrow_mut() = Some(cx.waker().clone());
            if polls.get() < 3 {
                Poll::Pending
            } else {
                Poll::Ready(7)
            }
        })));
        let task = Arc::<WakeCounter>::default();
        for before in [0, 1] {
            for _ in 0..3 {
                assert_eq!(task.poll(woken.as_mut()), Poll::Pending);
                assert_eq!(polls.get(), before + 1);
            }
            assert_eq!(task.count(), before);
            waker.take().unwrap().wake();
        }
        assert_eq!(task.poll(woken.as_mut()), Poll::Ready(7));
    }

    #[test]
    fn a_wake_up_during_a_poll_is_not_lost() {
        let polls = Cell::new(0);
        let mut woken = pin!(with_own_waker(poll_fn(|cx| {
            polls.set(polls.get() + 1);
            if polls.get() == 1 {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            Poll::Ready(())
        })));
        let task = Arc::<WakeCounter>::default();
        assert_eq!(task.poll(woken.as_mut()), Poll::Pending);
        assert_eq!(task.count(), 1);
        assert_eq!(task.poll(woken.as_mut()), Poll::Ready(()));
    }
}
