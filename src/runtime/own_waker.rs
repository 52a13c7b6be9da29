//! Runs a future beside others in one task without polling it each time that the task is woken for
//! another one.

use std::future::{Future, pending};

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;

/// Runs a future with a waker of its own: it is polled only after it was woken itself.
pub(crate) async fn with_own_waker<F: Future>(future: F) -> F::Output {
    let mut only = std::iter::once(future).collect::<FuturesUnordered<_>>();
    match only.next().await {
        Some(output) => output,
        // It holds a future until that has returned.
        None => pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::{Cell, RefCell};
    use std::future::poll_fn;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    #[test]
    fn a_future_is_polled_only_when_it_was_woken() {
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
        let mut poll = || woken.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        for before in [0, 1] {
            for _ in 0..3 {
                assert_eq!(poll(), Poll::Pending);
                assert_eq!(polls.get(), before + 1);
            }
            waker.take().unwrap().wake();
        }
        assert_eq!(poll(), Poll::Ready(7));
    }
}
