//! What the threads of one edge must share: Socket.IO sessions, because each poll may reach another
//! thread; the memory budget; the histories of jobs; and what the statistics of the process need.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::sync::watch;

use super::files::connections_max;
use super::memory::Memory;
use super::socketio::engine::Engine;
use super::thread::EdgeThread;
use crate::budget::Budget;
use crate::config::REQUESTS_ALL_MAX;
use crate::fair_slots::FairSlots;
use crate::hub::Siblings;

/// Created once for each process and passed to each of its threads.
#[derive(Clone, Debug)]
pub struct EdgeShared(Arc<SharedState>);

#[derive(Debug)]
struct SharedState {
    memory: Memory,
    /// A client that reconnects may reach another thread.
    hubs: Siblings,
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
            hubs: Siblings::default(),
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

    pub(super) fn hubs(&self) -> &Siblings {
        &self.0.hubs
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
