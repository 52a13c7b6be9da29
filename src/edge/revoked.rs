//! The revocations that this process knows, and a signal when one is made. It does not watch the
//! broker.

use std::sync::{PoisonError, RwLock};

use tokio::sync::watch;

use crate::auth::{Revocations, Subject};
use crate::nats::RevocationChange;

/// Which tokens were revoked, for all threads of an edge.
#[derive(Debug)]
pub(super) struct RevokedTokens {
    known: RwLock<Revocations>,
    /// Incremented with each revocation.
    made: watch::Sender<u64>,
    /// Whether all earlier revocations are known.
    is_complete: watch::Sender<bool>,
}

impl Default for RevokedTokens {
    fn default() -> Self {
        Self {
            known: RwLock::default(),
            made: watch::Sender::new(0),
            is_complete: watch::Sender::new(false),
        }
    }
}

impl RevokedTokens {
    /// Applies a change that the broker reports.
    pub(super) fn apply(&self, change: RevocationChange) {
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        match change {
            RevocationChange::Made(revocation, at) => {
                known.add(revocation, at);
                drop(known);
                self.made.send_modify(|count| *count += 1);
            }
            RevocationChange::Withdrawn(revocation) => known.remove(&revocation),
            RevocationChange::Complete => {
                self.is_complete.send_replace(true);
            }
        }
    }

    /// Whether the subject's token was revoked.
    pub(super) fn cover(&self, subject: &Subject) -> bool {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        known.cover(subject)
    }

    /// Changes with each revocation.
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.made.subscribe()
    }

    /// Waits until all earlier revocations are known.
    pub(super) async fn until_complete(&self) {
        // The sender lives as long as `self`, so there is no error.
        let _ = self.is_complete.subscribe().wait_for(|is| *is).await;
    }
}
