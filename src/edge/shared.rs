//! What the threads of one edge must share: Socket.IO sessions, because each poll may reach another
//! thread; the memory budget; and what the statistics of the process need.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::sync::watch;
use tracing::{info, warn};

use super::memory::Memory;
use super::socketio::engine::Engine;
use super::thread::EdgeThread;
use crate::budget::Budget;
use crate::config::{FILES_RESERVED, REQUESTS_ALL_MAX};
use crate::share::FairSlots;

/// Created once for each process and passed to each of its threads.
#[derive(Clone, Debug)]
pub struct EdgeShared(Arc<SharedState>);

#[derive(Debug)]
struct SharedState {
    memory: Memory,
    /// Submits, cancels, states and pages in progress.
    requests: FairSlots,
    connections: FairSlots,
    socketio: Engine,
    threads: Mutex<Vec<Weak<EdgeThread>>>,
    /// How many threads have started to serve.
    serving: watch::Sender<usize>,
}

impl EdgeShared {
    /// For the threads of one edge, which together hold at most `budget` for their clients.
    pub fn new(budget: Budget) -> Self {
        Self(Arc::new(SharedState {
            memory: Memory::new(budget),
            requests: FairSlots::new(REQUESTS_ALL_MAX),
            connections: FairSlots::new(connections_max()),
            socketio: Engine::default(),
            threads: Mutex::default(),
            serving: watch::Sender::new(0),
        }))
    }

    pub(super) fn memory(&self) -> &Memory {
        &self.0.memory
    }

    pub(super) fn requests(&self) -> &FairSlots {
        &self.0.requests
    }

    pub(super) fn connections(&self) -> &FairSlots {
        &self.0.connections
    }

    pub(super) fn socketio(&self) -> &Engine {
        &self.0.socketio
    }

    /// Adds a thread that serves clients.
    pub(super) fn join(&self, app: &Arc<EdgeThread>) {
        let mut threads = self.lock_threads();
        threads.retain(|app| app.strong_count() > 0);
        threads.push(Arc::downgrade(app));
        self.0.serving.send_modify(|serving| *serving += 1);
    }

    /// Waits until this many threads serve clients.
    pub async fn serves(&self, threads: usize) {
        // The sender lives as long as `self`, so there is no error.
        let _ = self
            .0
            .serving
            .subscribe()
            .wait_for(|serving| *serving >= threads)
            .await;
    }

    /// The threads that serve.
    pub(super) fn threads(&self) -> Vec<Arc<EdgeThread>> {
        let threads = self.lock_threads();
        threads.iter().filter_map(Weak::upgrade).collect()
    }

    fn lock_threads(&self) -> MutexGuard<'_, Vec<Weak<EdgeThread>>> {
        let threads = self.0.threads.lock();
        threads.unwrap_or_else(PoisonError::into_inner)
    }
}

/// Raises the limit of open files to the maximum; many systems start with 1024. Call it before
/// [`EdgeShared::new`], which derives the number of connections from the limit.
pub fn raise_file_limit() {
    let mut files = getrlimit(Resource::Nofile);
    let before = files.current;
    let most = files.maximum;
    if before == most {
        return;
    }
    files.current = most;
    match setrlimit(Resource::Nofile, files) {
        Ok(()) => info!(?before, now = ?most, "the limit of open files was raised"),
        Err(error) => warn!(?before, ?most, %error, "the limit of open files cannot be raised"),
    }
}

/// How many client connections the process may have: its limit of open files, less those that it
/// needs itself.
fn connections_max() -> usize {
    let files = getrlimit(Resource::Nofile)
        .current
        .and_then(|files| usize::try_from(files).ok());
    let files = files.unwrap_or(usize::MAX);
    files - FILES_RESERVED.min(files / 4)
}
