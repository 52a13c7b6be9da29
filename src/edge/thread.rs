//! What the threads of an edge see of one another, to report on the whole process.

use std::sync::Arc;

use super::counters::Counters;
use crate::hub::Hub;
use crate::metrics::WaitCount;
use crate::nats::{Nats, Reader};

/// One thread.
#[derive(Debug)]
pub(super) struct EdgeThread {
    pub(super) nats: Nats,
    pub(super) hub: Arc<Hub<Reader>>,
    pub(super) counters: Arc<Counters>,
    /// States that wait until others are folded.
    pub(super) waiting_states: WaitCount,
}
