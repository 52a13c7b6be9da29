//! One job's log in memory, with what expired of it. Who reads it, and what goes wrong meanwhile, is the source's.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::source::{Chain, Verdict};
use crate::wire::{Seq, Stored, StreamSeq};

/// One job's log.
#[derive(Debug, Default)]
pub(super) struct Log {
    /// How many events it has had, the expired ones among them.
    pub(super) count: u64,
    pub(super) attempt: u32,
    /// What was stored and has not expired, also what has the form of an event and the number of another.
    pub(super) events: VecDeque<Arc<Stored>>,
    /// Up to where it has expired.
    pub(super) expired: StreamSeq,
}

impl Log {
    /// The events that have not expired.
    pub(super) fn events(&self) -> Vec<Arc<Stored>> {
        self.judge(&mut Chain::new(Seq::FIRST, 0), &self.events)
    }

    /// The events among the next messages.
    pub(super) fn judge<'a>(
        &self,
        chain: &mut Chain,
        messages: impl IntoIterator<Item = &'a Arc<Stored>>,
    ) -> Vec<Arc<Stored>> {
        let mut events = Vec::new();
        for message in messages {
            let is_event = match chain.judge(message) {
                Verdict::Next => true,
                Verdict::Undecodable => false,
                Verdict::IfExpired(places) => {
                    places.iter().any(|stream_seq| *stream_seq <= self.expired)
                }
                Verdict::IfStored(stream_seq) => stream_seq > self.expired,
            };
            if is_event {
                chain.accept(message);
                events.push(Arc::clone(message));
            } else {
                chain.skip(message.stream_seq);
            }
        }
        events
    }

    /// Removes everything, and forgets how many events there were.
    pub(super) fn begin_anew(&mut self) {
        let expired = self
            .events
            .back()
            .map_or(self.expired, |last| last.stream_seq);
        *self = Self {
            expired,
            ..Self::default()
        };
    }

    /// Removes what was stored up to this event.
    pub(super) fn expire(&mut self, up_to: Seq) {
        if let Some(last) = self.events().iter().rfind(|event| event.seq <= up_to) {
            self.expired = last.stream_seq;
            self.events
                .retain(|event| event.stream_seq > last.stream_seq);
        }
    }
}
