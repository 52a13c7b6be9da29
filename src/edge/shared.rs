//! What the threads of one edge share, and only what they must: a Socket.IO session over HTTP polling reaches whichever
//! thread the kernel gives its next connection to, and whoever asks one thread for numbers means the process.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::memory::Memory;
use super::{App, socketio};
use crate::budget::Budget;

/// Made once for each process, and given to each of its threads.
#[derive(Clone, Debug)]
pub struct Shared(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    memory: Memory,
    socketio: socketio::Engine,
    threads: Mutex<Vec<Weak<App>>>,
}

impl Shared {
    /// For the threads of one edge, which together hold no more for their clients than `budget`.
    pub fn new(budget: Budget) -> Self {
        let memory = Memory::new(budget);
        let socketio = socketio::Engine::default();
        Self(Arc::new(Inner { memory, socketio, threads: Mutex::default() }))
    }

    pub(super) fn memory(&self) -> &Memory {
        &self.0.memory
    }

    pub(super) fn socketio(&self) -> &socketio::Engine {
        &self.0.socketio
    }

    /// Makes a thread known to the others.
    pub(super) fn join(&self, app: &Arc<App>) {
        let mut threads = self.0.threads.lock().unwrap_or_else(PoisonError::into_inner);
        threads.retain(|app| app.strong_count() > 0);
        threads.push(Arc::downgrade(app));
    }

    /// The threads that serve.
    pub(super) fn threads(&self) -> Vec<Arc<App>> {
        let threads = self.0.threads.lock().unwrap_or_else(PoisonError::into_inner);
        threads.iter().filter_map(Weak::upgrade).collect()
    }
}
