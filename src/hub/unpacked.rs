//! The feeds with events that were unpacked for readers: packs them again soon, so that a storm of
//! clients that resume costs memory only for a moment.

use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::time::sleep;

use crate::config::UNPACKED_FOR;
use crate::runtime::Tasks;

/// A feed that can be packed.
pub(super) trait Pack: Debug + Send + Sync {
    /// Packs what was unpacked.
    fn pack(&self);
}

/// The feeds of one edge thread that have unpacked events. Clones share one list.
#[derive(Clone, Debug)]
pub(super) struct UnpackedFeeds {
    feeds: Arc<Mutex<Vec<Weak<dyn Pack>>>>,
    tasks: Tasks,
}

impl UnpackedFeeds {
    /// No feeds; `tasks` owns the task that packs them.
    pub(super) fn new(tasks: Tasks) -> Self {
        Self {
            feeds: Arc::default(),
            tasks,
        }
    }

    /// Packs this feed after [`UNPACKED_FOR`].
    pub(super) fn add(&self, feed: Weak<dyn Pack>) {
        let mut feeds = self.feeds.lock().unwrap_or_else(PoisonError::into_inner);
        feeds.push(feed);
        if feeds.len() == 1 {
            let all = Arc::clone(&self.feeds);
            self.tasks.spawn_until_stop(async move {
                sleep(UNPACKED_FOR).await;
                let feeds =
                    std::mem::take(&mut *all.lock().unwrap_or_else(PoisonError::into_inner));
                for feed in feeds.iter().filter_map(Weak::upgrade) {
                    feed.pack();
                }
            });
        }
    }
}
