//! A feed's task: drives it until it is forgotten, and again after a panic. What moves a feed is in `driver`.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures_util::FutureExt as _;
use tokio::time::{Instant, sleep};
use tracing::{debug, error, warn};

use super::driver::Driver;
use super::feed::Feed;
use super::feeds::Feeds;
use crate::config::{FEED_LINGER, REREAD_MAX};
use crate::source::EventSource;
use crate::wire::Stored;

/// Drives a feed until it is forgotten. After a panic, a program fault, its watchers are served again: from an empty
/// history, and not at once, so that a fault that one event causes each time does not take the thread. `known` is the
/// log's last event, when that is known before the feed begins.
pub(super) async fn drive<S: EventSource>(
    feeds: Arc<Feeds<S>>,
    feed: Arc<Feed>,
    mut known: Option<Arc<Stored>>,
) {
    let mut again = false;
    loop {
        let driven = AssertUnwindSafe(drive_once(
            Arc::clone(&feeds),
            Arc::clone(&feed),
            known.take(),
            again,
        ));
        if driven.catch_unwind().await.is_ok() {
            return;
        }
        feeds.note_panic();
        error!(job = %feed.job(), "a feed's task panicked; its watchers are served by a new one");
        feed.close();
        again = true;
        sleep(REREAD_MAX).await;
    }
}

async fn drive_once<S: EventSource>(
    feeds: Arc<Feeds<S>>,
    feed: Arc<Feed>,
    known: Option<Arc<Stored>>,
    again: bool,
) {
    debug!(job = %feed.job(), "feed begins");
    let mut driver = Driver::new(Arc::clone(&feeds), Arc::clone(&feed));
    driver.may_refuse = !again;
    driver.known = known;
    if again && feed.watchers() == 0 {
        // They left before the panic, and are not reported again.
        driver.linger_until = Some(Instant::now() + FEED_LINGER);
    }
    loop {
        driver.step().await;
        driver.act();
        if driver.replaced {
            warn!(job = %feed.job(), "the log does not hold what was handed out: its watchers must begin anew");
            feeds.replace(&feed);
            break;
        }
        if feed.is_refused() {
            feeds.remove(&feed);
            break;
        }
        if driver.linger_over() && feeds.forget(&feed) {
            break;
        }
    }
    debug!(job = %feed.job(), "feed ends");
}
